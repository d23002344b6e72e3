"""stdout is data only: JSON by its schema, tables of at most 80 columns, no escape codes in a pipe."""

from __future__ import annotations

import csv
import io
import json
import os
import sys
from shlex import split

import jsonschema
import pytest

from planner.cli.app import run

BREAKDOWN = ["compute", "recompute", "bubble", "tp", "cp", "ep", "pp", "dp", "optimizer", "other"]


@pytest.fixture
def schema(cli):
    """``schema("plan")``: what ``planner schema plan`` prints."""

    def load(kind: str):
        outcome = cli("schema", kind)
        assert outcome.code == 0
        found = outcome.json()
        jsonschema.Draft202012Validator.check_schema(found)
        return found

    return load


def check_plan(plan) -> None:
    """What must hold inside any plan."""
    prediction, decision = plan["prediction"], plan["decision"]
    assert list(prediction["breakdown_seconds"]) == BREAKDOWN
    assert all(value >= 0 for value in prediction["breakdown_seconds"].values())
    assert sum(prediction["breakdown_seconds"].values()) == pytest.approx(prediction["step_seconds"])
    d = decision["degrees"]
    assert d["dp"] * d["tp"] * d["pp"] * d["cp"] == plan["inputs"]["cluster"]["gpus"]
    assert d["dp"] * decision["microbatch_size"] * decision["microbatches"] == decision["global_batch"]
    held = [b for s in decision["stages"] for b in range(s["layers"][0], s["layers"][1] + 1)]
    layout = plan["inputs"]["model"]["stacks"]
    blocks = sum(run["repeat"] * len(run["kinds"]) for stack in layout for run in stack["layout"])
    assert held == list(range(blocks)), "every layer is on exactly one stage, none dropped"
    for stage in prediction["stages"]:
        parts = {key: value for key, value in stage["memory_bytes"].items() if key != "total"}
        assert sum(parts.values()) == pytest.approx(stage["memory_bytes"]["total"])
    totals = [stage["memory_bytes"]["total"] for stage in prediction["stages"]]
    assert max(totals) == prediction["peak_memory_bytes"]
    assert 0 < prediction["mfu"] < 1
    low, high = prediction["step_seconds_interval"]
    assert low < prediction["step_seconds"] < high


@pytest.mark.parametrize(
    "question",
    [
        "--model llama-3.1-8b --gpu h100-sxm --gpus 16 --seq-len 8192 --global-batch 128",
        "--model mixtral-8x7b --cluster dgx-a100 --gpus 32 --seq-len 4096 --global-batch 128",
        "--model gpt2-xl --gpu v100-16g --gpus 4 --seq-len 1024 --global-batch 64",
    ],
)
def test_the_json_of_plan_follows_its_schema(cli, schema, question):
    outcome = cli("plan", *question.split(), "--json")
    assert outcome.code == 0
    plan = outcome.json()
    jsonschema.validate(plan, schema("plan"))
    assert plan["schema_version"] == 1
    assert plan["search"]["status"] in ("proved", "gap", "heuristic")
    assert plan["search"]["lower_bound_seconds"] <= plan["prediction"]["step_seconds"] * (1 + 1e-9)
    check_plan(plan)
    for other in plan["alternatives"]:
        assert other["prediction"]["step_seconds"] >= plan["prediction"]["step_seconds"] * (1 - 1e-9)
        assert other["why"]


@pytest.mark.parametrize(
    "degrees", ["--tp 2 --pp 2", "--tp 2 --pp 4 --virtual-stages 2 --recompute full", "--sharding parameters"]
)
def test_the_json_of_estimate_follows_its_schema(cli, schema, degrees):
    question = "--model llama-3.1-8b --gpu h100-sxm --gpus 16 --seq-len 4096 --global-batch 128"
    outcome = cli("estimate", *question.split(), *degrees.split(), "--json")
    assert outcome.code == 0
    plan = outcome.json()
    jsonschema.validate(plan, schema("plan"))
    assert plan["search"]["status"] == "estimate"
    check_plan(plan)


def test_built_in_models_and_machines_follow_their_schemas(cli, schema):
    model = cli("models", "show", "qwen3-30b-a3b", "--json").json()
    jsonschema.validate(model, schema("model"))
    jsonschema.validate(cli("hardware", "show", "h100-sxm", "--json").json(), schema("device"))
    jsonschema.validate(cli("hardware", "show", "dgx-h100", "--json").json(), schema("cluster"))
    schema("workload")
    listed = cli("hardware", "list", "--json").json()
    assert "h100-sxm" in [device["name"] for device in listed["gpus"]]
    rows = cli("models", "list", "--json").json()
    assert {"name", "parameters", "layers"} <= set(rows[0])


def test_more_than_one_json_document_is_never_printed(cli, small, plan_file, tmp_path):
    for arguments in (
        ["plan", *small, "-o", tmp_path / "p.json"],
        ["estimate", "--plan", plan_file],
        ["explain", plan_file],
        ["explain", plan_file, "--why-not", "tp=8", "--why-not", "pp=2"],
        ["compare", *small[:-2], "--global-batch", "32,64"],
    ):
        outcome = cli(*arguments, "--json")
        assert outcome.code == 0
        outcome.json()


def test_notes_go_to_stderr(cli, small, tmp_path):
    outcome = cli("plan", *small, "-o", tmp_path / "p.json")
    assert "wrote" in outcome.err
    assert "wrote" not in outcome.out
    outcome = cli("plan", *small, "-o", tmp_path / "p.json", "--json")
    assert json.loads(outcome.out) == json.loads((tmp_path / "p.json").read_text(encoding="utf-8"))


def test_the_screen_says_the_verdict_and_its_conditions(cli, small):
    out = cli("plan", *small).out
    for word in ("Fits:", "Decision", "TP ", "microbatch", "Why", "Runners-up", "Search", "Assumed", "Next"):
        assert word in out
    assert "set --gpus-per-node" in out, "an assumed number is named with the flag that sets it"
    assert "memory limit" in out


def test_compare_as_csv(cli, small):
    outcome = cli("compare", *small[:-2], "--global-batch", "32,64,128", "--csv")
    assert outcome.code == 0
    rows = list(csv.DictReader(io.StringIO(outcome.out)))
    assert [row["global_batch"] for row in rows] == ["32", "64", "128"]
    assert all(float(row["step_seconds"]) > 0 for row in rows)


@pytest.fixture
def screens(cli, small, plan_file):
    """Everything the commands print for people, by command."""
    wide = split("--model deepseek-v3 --cluster gb200-nvl72 --gpus 576 --seq-len 4096 --global-batch 4608")
    long = split("--model llama-3.1-405b --cluster hgx-h100-eth-400g-oversub2 --gpus 1024")
    return {
        "plan": [["plan", *small], ["plan", *small, "--target", "megatron"]],
        "estimate": [
            ["estimate", *wide, *split("--tp 2 --pp 8 --ep 8 --micro-batch 1 --recompute full")],
            ["estimate", *long, *split("--tp 8 --pp 16 --virtual-stages 7 --recompute selective")],
        ],
        "explain": [["explain", plan_file], ["explain", plan_file, "--why-not", "tp=8"]],
        "compare": [
            ["compare", *small[:-2], "--global-batch", "32,1024"],
            [
                *split("compare --model llama-3.1-8b,mixtral-8x7b --cluster dgx-h100,dgx-a100"),
                *split("--gpus 16,32 --seq-len 4096 --global-batch 256 --tokens 1e12"),
            ],
        ],
        "models": [["models", "list"], ["models", "show", "deepseek-v3"]],
        "hardware": [
            ["hardware", "list"],
            ["hardware", "show", "h100-sxm"],
            ["hardware", "show", "frontier"],
        ],
    }


@pytest.mark.parametrize("command", ["plan", "estimate", "explain", "compare", "models", "hardware"])
def test_screens_fit_80_columns_and_are_plain_in_a_pipe(cli, screens, command):
    for arguments in screens[command]:
        outcome = cli(*arguments)
        assert outcome.code == 0, arguments
        assert outcome.out.strip()
        assert max(map(len, outcome.out.splitlines())) <= 80, arguments
        assert "\x1b" not in outcome.out + outcome.err
        assert "…" not in outcome.out, "nothing is cut off"


def test_columns_of_the_environment_do_not_widen_the_screen(cli, small, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert max(map(len, cli("plan", *small).out.splitlines())) <= 80


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
@pytest.mark.parametrize("no_color", [True, False])
def test_colour_only_on_a_terminal_that_wants_it(small, monkeypatch, no_color):
    import pty

    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    if no_color:
        monkeypatch.setenv("NO_COLOR", "1")
    controller, terminal = pty.openpty()
    with os.fdopen(terminal, "w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        assert run(["estimate", *small]) == 0
        stream.flush()
        monkeypatch.undo()
        seen = os.read(controller, 1 << 16).decode()
    os.close(controller)
    colours = [f"\x1b[{style}{code}m" for style in ("", "1;", "0;") for code in range(30, 38)]
    assert any(code in seen for code in colours) != no_color
