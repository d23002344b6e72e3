"""Nothing fits: exit 3, the fullest stage, how much is missing, the rule, and changes that truly fit."""

from __future__ import annotations

import json
import re
from shlex import split

import pulp
import pytest

CASES = {
    "4 GPUs for 13B": "--model llama-2-13b --gpu a100-40g-sxm --gpus 4 --global-batch 32",
    "fewer tokens": "--model llama-3.1-8b --gpu h100-sxm --gpus 1 --seq-len 8192 --global-batch 8",
    "a cap": "--model llama-3.1-8b --gpu h100-sxm --gpus 8 --seq-len 4096 --global-batch 64 "
    "--memory-limit-gib 16",
    "a pin": "--model llama-3.1-8b --gpu a100-40g-sxm --gpus 8 --seq-len 4096 --global-batch 64 --tp 1 "
    "--pp 1 --sharding none",
    "one GPU": "--model llama-2-7b --gpu a100-40g-sxm --gpus 1 --global-batch 8",
}


def changed(arguments: list[str], flags: str) -> list[str]:
    """The arguments with a remedy applied: ``--flag value`` set, ``without --flag`` removed."""
    words = flags.split()
    drop = words[-1] if words[0] == "without" else words[0]
    kept = list(arguments)
    if drop in kept:
        at = kept.index(drop)
        del kept[at : at + 2]
    return kept if words[0] == "without" else [*kept, *words]


@pytest.mark.parametrize("name", CASES)
def test_the_error_says_what_is_missing_and_what_would_fit(cli, name):
    arguments = [*CASES[name].split(), "--offload", "none"]
    outcome = cli("plan", *arguments, "--json")
    assert outcome.code == 3
    error = outcome.json()["error"]
    assert (error["kind"], error["exit_code"]) == ("infeasible", 3)
    assert error["rule"]
    miss = error["nearest_miss"]
    assert miss["stage"] >= 0
    assert miss["over_bytes"] > 0
    assert miss["peak_memory_bytes"] - error["memory_limit_bytes"] == pytest.approx(miss["over_bytes"])
    parts = {key: value for key, value in miss["memory_bytes"].items() if key != "total"}
    assert sum(parts.values()) == pytest.approx(miss["peak_memory_bytes"])
    assert error["would_fit"], "a usual change should fit here"
    for remedy in error["would_fit"]:
        again = cli("plan", *changed(arguments, remedy["flags"]), "--json")
        assert again.code == 0, remedy
        prediction = again.json()["prediction"]
        assert prediction["peak_memory_bytes"] <= prediction["memory_limit_bytes"] * (1 + 1e-9)
        # What a change would give is not certified: the plan itself may be a little faster.
        ratio = prediction["step_seconds"] / remedy["step_seconds"]
        assert 0.97 <= ratio <= 1 + 1e-9
        assert remedy["peak_memory_bytes"] <= prediction["memory_limit_bytes"] * (1 + 1e-9)


def test_in_words(cli):
    outcome = cli("plan", *CASES["one GPU"].split())
    assert outcome.code == 3
    assert outcome.out == ""
    assert re.search(r"error: nothing fits [\d.,]+ GiB per GPU", outcome.err)
    assert re.search(r"stage \d+ needs [\d.,]+ GiB, [\d.,]+ GiB too much", outcome.err)
    assert "rule " in outcome.err
    assert "hint: would fit: " in outcome.err
    assert "--gpus" in outcome.err


def test_nothing_is_written_when_nothing_fits(cli, tmp_path):
    path = tmp_path / "plan.json"
    assert cli("plan", *CASES["one GPU"].split(), "-o", path).code == 3
    assert list(tmp_path.iterdir()) == []


def test_estimate_prices_what_does_not_fit_and_says_so(cli):
    outcome = cli(*split("estimate --model llama-3.1-70b --gpu h100-sxm --gpus 8 --tp 8 --global-batch 8"))
    assert outcome.code == 0
    assert "Does not fit" in outcome.out
    assert "above the limit" in outcome.out


def test_a_point_of_compare_where_nothing_fits_is_a_row(cli):
    arguments = split("--model llama-2-7b --gpu rtx-4090 --gpus 1,16 --seq-len 2048 --global-batch 64")
    outcome = cli("compare", *arguments)
    assert outcome.code == 0
    assert "does not fit" in outcome.out
    assert "nothing fits" in outcome.err
    rows = cli("compare", *arguments, "--json").json()
    assert [row["fits"] for row in rows] == [False, True]
    assert "nothing fits" in rows[0]["reason"]


def test_the_process_exits_with_three(process):
    outcome = process("plan", *CASES["one GPU"].split())
    assert outcome.code == 3
    assert outcome.out == ""


# Whole gathered blocks pass this limit by little: the integer program is asked for finer gathers.
NEAR = split(
    "--model llama-3.1-8b --gpu h100-sxm --gpus 8 --seq-len 8192 --global-batch 8 --tp 1 --pp 1 --cp 1 "
    "--offload none --memory-limit-gib 31.8"
)


@pytest.mark.parametrize("harm", ["", "failing", "late"])
def test_a_solver_that_fails_where_nothing_else_can_answer_exits_with_four(cli, harm, monkeypatch):
    if harm == "failing":

        def fails(*_arguments, **_options):
            raise pulp.PulpSolverError("killed")

        monkeypatch.setattr(pulp.LpProblem, "solve", fails)
    elif harm == "late":
        monkeypatch.setattr(pulp.LpProblem, "solve", lambda *_arguments, **_options: None)
    outcome = cli("plan", *NEAR, "--json")
    error = outcome.json()["error"]
    if not harm:
        assert (outcome.code, error["kind"]) == (3, "infeasible")
        return
    assert (outcome.code, error["kind"], error["exit_code"]) == (4, "solver_failed", 4)
    assert error["solver"]["status"] == {"failing": "failed", "late": "no solution"}[harm]
    assert "gathers whole blocks" in error["message"]
    assert ("killed" in error["message"]) == (harm == "failing")
    wanted = re.search(r"use GPUs with ([\d.]+) GiB", error["hint"])[1]
    monkeypatch.undo()
    arguments = [*NEAR[: NEAR.index("--memory-limit-gib")], "--memory-limit-gib", wanted]
    assert cli("plan", *arguments).code == 0


def test_a_failing_solver_still_leaves_the_optimizer_on_the_host(cli, monkeypatch):
    def fails(*_arguments, **_options):
        raise pulp.PulpSolverError("killed")

    monkeypatch.setattr(pulp.LpProblem, "solve", fails)
    outcome = cli("plan", *(word for word in NEAR if word not in ("--offload", "none")), "--json")
    assert outcome.code == 0
    assert outcome.json()["decision"]["offload"] == "optimizer"


@pytest.mark.parametrize(
    ("flags", "label"),
    [("--schedule gpipe", "gpipe"), ("--virtual-stages 4", "VP4"), ("--schedule zb-v", "zb-v")],
)
def test_the_nearest_miss_has_the_schedule_that_is_pinned(cli, flags, label):
    asked = "--model llama-2-13b --gpu a100-40g-sxm --gpus 8 --global-batch 32 --pp 4 --dp 1 --micro-batch 1"
    asked += " --memory-limit-gib 12 --offload none"
    peaks = {}
    for pinned in ("", flags):
        outcome = cli("plan", *asked.split(), *pinned.split(), "--json")
        assert outcome.code == 3
        miss = outcome.json()["error"]["nearest_miss"]
        peaks[pinned] = miss["peak_memory_bytes"]
        assert (label in miss["decision"].split()) == bool(pinned)
    assert peaks[flags] > peaks[""]


def test_layers_of_their_own_are_tried_where_no_plan_with_one_choice_for_all_fits(cli, tmp_path):
    """Few key/value heads keep the tensor degree low, so the gathered blocks are what does not fit."""
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_attention_heads": 8,
        "num_key_value_heads": 1,
        "num_hidden_layers": 4,
        "vocab_size": 65536,
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-05,
        "tie_word_embeddings": True,
        "hidden_act": "silu",
        "head_dim": 128,
    }
    model, plan = tmp_path / "config.json", tmp_path / "plan.json"
    model.write_text(json.dumps(config))
    asked = split("--gpu a100-40g-sxm --gpus 2 --seq-len 512 --global-batch 8 --target galvatron")
    limited = [*asked, "--memory-limit-gib", "3.05"]
    # A pinned microbatch size leaves plans with one choice for all layers alone: none of any size fits.
    for size in (1, 2, 4, 8):
        assert cli("plan", "--model", model, *limited, "--micro-batch", size).code == 3
    outcome = cli("plan", "--model", model, *limited, "--json", "-o", plan)
    assert outcome.code == 0
    found = outcome.json()
    assert found["prediction"]["peak_memory_bytes"] <= found["prediction"]["memory_limit_bytes"]
    assert found["search"]["status"] == "proved"
    assert "no plan of this space fits" in found["search"]["space"]
    assert len(found["decision"]["stages"][0]["layer_strategies"]) > 1
    assert cli("check", plan, "--target", "galvatron").code == 0
    assert cli("export", plan, "--to", "galvatron", "-o", tmp_path / "files").code == 0
    assert cli("plan", "--model", model, *asked, "--memory-limit-gib", "2.9").code == 3
