"""``plan --allow-idle``: awkward numbers of GPUs, on the screen and in the file."""

from __future__ import annotations

import json
from shlex import split

import jsonschema

GPT2 = split("--model gpt2 --gpu a100-80g-sxm --global-batch 64")


def test_gpus_that_fill_no_node_are_refused_with_the_way_out(cli):
    done = cli("plan", *GPT2, "--gpus", "60")
    assert done.code == 2
    assert "--gpus 56" in done.err
    assert "--allow-idle" in done.err


def test_idle_gpus_are_counted_and_paid_for(cli, tmp_path):
    """12 heads, 12 layers and a batch of 64: 7 nodes divide none of them, 4 nodes all."""
    path = tmp_path / "plan.json"
    done = cli("plan", *GPT2, "--gpus", "60", "--allow-idle", "-o", path)
    assert done.code == 0
    plan = json.loads(path.read_text(encoding="utf-8"))
    jsonschema.validate(plan, cli("schema", "plan").json())
    idle = plan["search"]["idle"]
    used = plan["inputs"]["cluster"]["gpus"]
    assert idle["gpus_available"] == 60
    assert idle["most_gpus"] == 56
    assert idle["idle_gpus"] == 60 - used > 4
    assert idle["most_gpus_seconds"] > plan["prediction"]["step_seconds"]
    assert f"Uses {used} of 60 GPUs, {60 - used} idle" in " ".join(done.out.split())
    assert cli("check", path).code == 0


def test_a_number_that_does_not_divide_the_batch_is_pointed_at(cli):
    odd = cli("plan", *GPT2, "--gpus", "56")
    assert "--allow-idle # 7 does not divide the batch: fewer GPUs may be faster" in " ".join(odd.out.split())
    for gpus in ("32", "8"):
        assert "--allow-idle" not in cli("plan", *GPT2, "--gpus", gpus).out


def test_the_other_options_still_hold(cli):
    """A pinned degree leaves the numbers it divides; a head-room is that of the chosen number."""
    asked = ["--gpus", "24", "--allow-idle", "--tp", "4", "--pp", "4", "--head-room", "10", "--json"]
    plan = cli("plan", *GPT2, *asked).json()
    assert plan["inputs"]["cluster"]["gpus"] == 16
    assert plan["decision"]["degrees"]["tp"] == plan["decision"]["degrees"]["pp"] == 4
    assert len(plan["front"]["points"]) == 3


def test_one_node_in_use_says_that_none_idles(cli):
    done = cli("plan", *GPT2, "--gpus", "8", "--allow-idle")
    assert done.code == 0
    assert "All 8 GPUs are used: no smaller number is faster" in done.out


def test_where_no_number_gives_a_plan_the_error_is_the_usual_one(cli):
    done = cli("plan", "--model", "llama-3.1-70b", "--gpu", "h100-sxm", "--gpus", "7", "--allow-idle")
    assert done.code == 3
    assert "nothing fits" in done.err
    unknown = cli("plan", "--model", "lama-3", "--gpu", "h100-sxm", "--gpus", "7", "--allow-idle")
    assert unknown.code == 2


def test_python_has_the_same_options():
    import planner

    plan = planner.plan(
        "gpt2", gpu="a100-80g-sxm", gpus=12, global_batch=32, allow_idle=True, head_rooms=(0.1,)
    )
    assert plan.search.idle is not None
    assert [point.head_room for point in plan.front.points] == [0.0, 0.1, None]
