"""check, diff and trace: plan files judged, compared and drawn without a search."""

from __future__ import annotations

import json

import pytest

ARGUMENTS = "--model llama-3.1-8b --gpu h100-sxm --gpus 8 --seq-len 4096 --global-batch 32"


@pytest.fixture(scope="module")
def plan_file(tmp_path_factory):
    from planner.cli.app import run

    path = tmp_path_factory.mktemp("plans") / "plan.json"
    assert run(["plan", *ARGUMENTS.split(), "--tp", "2", "--pp", "2", "-o", str(path)]) == 0
    return path


def edited(plan_file, tmp_path, change):
    document = json.loads(plan_file.read_text(encoding="utf-8"))
    change(document)
    path = tmp_path / "edited.json"
    path.write_text(json.dumps(document), encoding="utf-8")
    return path


def lose_a_layer(document):
    document["decision"]["stages"][-1]["layers"][1] -= 1


def flatter_the_step(document):
    document["prediction"]["step_seconds"] *= 0.9


def break_the_batch(document):
    document["decision"]["microbatches"] += 1


def raise_the_bound(document):
    document["search"]["lower_bound_seconds"] *= 2
    document["search"]["status"] = "gap"


def tighten_the_limit(document):
    document["inputs"]["options"]["memory_limit_bytes"] /= 8


def test_a_plan_from_the_search_passes_every_check(cli, plan_file):
    result = cli(*f"check {plan_file} --json".split())
    assert result.code == 0
    report = json.loads(result.out)
    assert report["holds"]
    assert {"hard rules", "step time", "peak memory", "lower bound"} <= {c["name"] for c in report["checks"]}


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (lose_a_layer, "every layer once"),
        (flatter_the_step, "step time"),
        (break_the_batch, "batch identity"),
        (raise_the_bound, "lower bound"),
        (tighten_the_limit, "memory limit"),
    ],
)
def test_a_tampered_plan_fails_the_check_that_names_it(cli, plan_file, tmp_path, change, name):
    result = cli(*f"check {edited(plan_file, tmp_path, change)} --json".split())
    assert result.code == 1
    failed = {check["name"] for check in json.loads(result.out)["checks"] if not check["holds"]}
    assert name in failed


def test_check_holds_a_launchers_rules(cli, plan_file, tmp_path):
    def shard(document):
        document["decision"]["sharding"] = "gradients"

    result = cli(*f"check {edited(plan_file, tmp_path, shard)} --target deepspeed".split())
    assert result.code == 1
    assert "FAIL deepspeed" in result.out


def test_a_plan_does_not_differ_from_itself(cli, plan_file):
    assert cli(*f"diff {plan_file} {plan_file}".split()).code == 0


def test_diff_puts_the_decision_first_and_exits_1(cli, plan_file, tmp_path):
    other = tmp_path / "other.json"
    assert cli(*f"plan {ARGUMENTS} --tp 4 -o {other}".split()).code == 0
    result = cli(*f"diff {plan_file} {other}".split())
    assert result.code == 1
    assert result.out.index("Decision") < result.out.index("Prediction")
    assert "degrees.tp" in result.out
    report = json.loads(cli(*f"diff {plan_file} {other} --json".split()).out)
    assert {"field": "degrees.tp", "before": 2, "after": 4} in report["decision"]


def test_trace_holds_every_operation_of_every_stage(cli, plan_file, tmp_path):
    target = tmp_path / "trace.json"
    assert cli(*f"trace {plan_file} -o {target}".split()).code == 0
    plan = json.loads(plan_file.read_text(encoding="utf-8"))
    events = [e for e in json.loads(target.read_text(encoding="utf-8"))["traceEvents"] if e["ph"] == "X"]
    decision = plan["decision"]
    passes = 3 if decision["schedule"].startswith("zb") else 2  # split backwards are two operations
    assert len(events) == passes * decision["microbatches"] * len(decision["stages"])
    assert {e["tid"] for e in events} == set(range(decision["degrees"]["pp"]))
    longest = max(e["ts"] + e["dur"] for e in events) / 1e6
    assert longest <= plan["prediction"]["step_seconds"]


def test_a_plan_whose_stages_lose_layers_is_refused_where_it_is_read(cli, plan_file, tmp_path):
    def skip(document):
        document["decision"]["stages"][0]["layers"][1] -= 1

    result = cli(*f"estimate --plan {edited(plan_file, tmp_path, skip)}".split())
    assert result.code == 2
    assert "every layer once" in result.err
