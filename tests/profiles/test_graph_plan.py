"""Piper's graphs from the command line: the plan document, its check, and flags that mean nothing there."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import pytest

from planner.cli.app import run as command_line
from planner.errors import InfeasibleError
from planner.graph_plan import GraphPlanRecord, check_graph_plan, make_graph_plan
from planner.profiles.files import read_file
from planner.profiles.piper import read_piper
from planner.search.downsets import search_graph

PIPER = Path(__file__).parents[1] / "data" / "piper"
# name: devices and bytes a device that ask for more than one stage
CASES = {"gnmt": (2, 3e9), "resnet": (2, 12e9), "bert32a100": (8, 20e9)}


@cache
def planned(name):
    devices, size = CASES[name]
    return make_graph_plan(read_file(str(PIPER / f"{name}.json")), devices=devices, memory_bytes=size)


@pytest.mark.parametrize("name", CASES)
def test_the_document_holds_the_search_s_plan_and_checks(name):
    plan = planned(name)
    devices, size = CASES[name]
    table = read_piper(read_file(str(PIPER / f"{name}.json")), devices=devices, memory_bytes=size)
    if name == "bert32a100":  # the others take seconds to search again
        assert plan.load_seconds == search_graph(table).load_seconds
    assert max(stage.seconds_per_sample for stage in plan.stages) == plan.load_seconds
    assert all(stage.memory_bytes <= size for stage in plan.stages)
    assert sorted(n for s in plan.stages for n in s.nodes) == sorted(table.nodes)
    again = GraphPlanRecord.model_validate_json(plan.to_json())
    assert again == plan
    assert all(finding.holds for finding in check_graph_plan(again))


def failing(plan):
    return {finding.name for finding in check_graph_plan(plan) if not finding.holds}


def test_a_changed_plan_fails_the_check():
    plan = planned("bert32a100")
    first, *rest = plan.stages
    assert failing(plan.model_copy(update={"load_seconds": plan.load_seconds * 0.9})) == {"load"}
    assert failing(plan.model_copy(update={"lower_bound_seconds": plan.load_seconds * 2})) == {"lower bound"}
    fewer = first.model_copy(update={"nodes": first.nodes[1:]})
    assert "every node once" in failing(plan.model_copy(update={"stages": [fewer, *rest]}))
    more = first.model_copy(update={"dp": first.dp * 64})
    assert "devices" in failing(plan.model_copy(update={"stages": [more, *rest]}))
    unknown = first.model_copy(update={"nodes": ["none", *first.nodes]})
    assert failing(plan.model_copy(update={"stages": [unknown, *rest]})) == {"graph"}
    if rest:
        assert "edges run forward" in failing(plan.model_copy(update={"stages": plan.stages[::-1]}))
    inputs = plan.inputs.model_copy(update={"devices": plan.inputs.devices + 1})
    assert failing(plan.model_copy(update={"inputs": inputs})) == {"inputs digest"}


def test_nothing_fits_is_said():
    with pytest.raises(InfeasibleError):
        make_graph_plan(read_file(str(PIPER / "bert32a100.json")), devices=2, memory_bytes=1e8)


def run(capsys, *words):
    code = command_line(list(words))
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_the_command_line_plans_writes_and_checks(capsys, tmp_path):
    place = str(tmp_path / "graph.json")
    graph = str(PIPER / "bert32a100.json")
    code, out, _ = run(capsys, "plan", "--profile", graph, "--gpus", "8", "-o", place)
    assert code == 0
    assert "s a sample on the slowest of" in out
    code, out, _ = run(capsys, "check", place)
    assert code == 0
    assert "ok   load" in out
    code, out, _ = run(capsys, "plan", "--profile", graph, "--gpus", "8", "--json")
    assert json.loads(out) == json.loads(Path(place).read_text())
    document = json.loads(Path(place).read_text())
    document["load_seconds"] *= 2
    Path(place).write_text(json.dumps(document))
    assert run(capsys, "check", place)[0] == 1
    assert run(capsys, "check", place, "--target", "megatron")[0] == 2


@pytest.mark.parametrize(
    "flag",
    [("--model", "llama-2-7b"), ("--tp", "2"), ("--target", "megatron"), ("--seq-len", "128"), ("--ep", "2")],
)
def test_flags_without_meaning_are_refused(capsys, flag):
    code, _, error = run(capsys, "plan", "--profile", str(PIPER / "gnmt.json"), *flag)
    assert code == 2
    assert flag[0] in error
