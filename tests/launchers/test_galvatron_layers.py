"""Plans whose layers have tensor degrees of their own: exported, read by Galvatron's reader, read back."""

from __future__ import annotations

import io
import json
import math
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from acceptance import galvatron as accepted
from galvatron_reader import derived_by_galvatron
from rich.console import Console
from round_trip import round_trip, write

from planner.api import estimate_decision
from planner.checking import check_plan
from planner.cost.model import CostModel
from planner.errors import InputError
from planner.explanation import explain_plan, rank_collectives
from planner.launchers.galvatron import GALVATRON, GALVATRON_LIMITS, config_name
from planner.launchers.galvatron_read import read_galvatron
from planner.launchers.registry import launcher, launcher_names
from planner.plan_file.read import read_decision
from planner.plan_file.schema import Plan
from planner.report.plan_page import plan_page
from planner.report.terminal import print_plan
from planner.report.trace import trace_json
from planner.request import Request, resolve
from planner.search.layer_degrees import layer_settings, layered_decision
from planner.search.tree import Funnel, Pins

# name: pinned pp, cp, seed of the drawn strategies
CASES = {"one stage": (1, 1, 0), "pipeline": (2, 1, 1), "four stages": (4, 1, 2), "context": (2, 2, 3)}


@cache
def layered(case: str) -> Plan:
    """A plan with strategies drawn at random for every layer, each stage in two runs."""
    pp, cp, seed = CASES[case]
    rng = np.random.default_rng(seed)
    answers: dict[str, Any] = {"gpu": "a100-80g-sxm", "gpus": 16, "seq_len": 2048, "global_batch": 32}
    resolved = resolve(Request(model="llama-2-7b", **answers))
    model = CostModel.of(resolved.problem, resolved.constants, GALVATRON_LIMITS.stack)
    found = layer_settings(model, GALVATRON_LIMITS, Pins(pp=pp, cp=cp), math.inf, Funnel())
    setting = next(s for s in found if len({row.degrees.tp for row in s.rows}) > 2 and len(s.rows) > 4)
    blocks, count = len(setting.table.layers), len(setting.table.strategies)
    ends = [blocks * i // pp for i in range(pp + 1)]
    chosen: list[int] = []
    for first, end in pairwise(ends):
        one, two = (int(x) for x in rng.integers(count, size=2))
        chosen += [one] * ((end - first) // 2) + [two] * (end - first - (end - first) // 2)
    end = int(rng.integers(len(setting.rows)))
    decision = layered_decision(setting.rows, setting.table, end, tuple(pairwise(ends)), tuple(chosen))
    assert decision.layer_tp
    return estimate_decision(model, resolved, decision)


@pytest.fixture(params=list(CASES))
def plan(request: pytest.FixtureRequest) -> Plan:
    return layered(request.param)


def config_of(plan: Plan) -> dict[str, Any]:
    return dict(json.loads(GALVATRON.export(plan)[config_name(plan)]))


def by_layer(plan: Plan, name: str) -> list[Any]:
    runs = [run for stage in plan.decision.stages for run in stage.layer_strategies]
    return [getattr(run, name) for run in runs for _ in range(run.layers[0], run.layers[1] + 1)]


def test_our_reader_derives_the_plan(plan: Plan) -> None:
    assert GALVATRON.reasons(plan) == []
    read = read_galvatron(config_of(plan), plan.inputs.cluster.gpus)
    assert read["tp"] == by_layer(plan, "tp")
    assert read["cp"] == by_layer(plan, "cp")
    assert read["dp"] == by_layer(plan, "dp")
    assert read["recompute"] == by_layer(plan, "recompute")
    ends = plan.decision.ends
    assert ends is not None
    config = config_of(plan)
    assert (config["vtp"], config["vcp"], config["vsp"]) == (ends.tp, ends.cp, 0)


@pytest.mark.heavy
def test_galvatrons_own_reader_derives_the_plan(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    layers, gpus = plan.inputs.model.num_layers, plan.inputs.cluster.gpus
    theirs, args = derived_by_galvatron(config_of(plan), layers, gpus, monkeypatch)
    ends, d = plan.decision.ends, plan.decision.degrees
    assert ends is not None
    tensor = by_layer(plan, "tp")
    # embedding, layers, norm, head
    assert theirs["tp_sizes_whole"] == [ends.tp, *tensor, ends.tp, ends.tp]
    ranks = gpus // d.pp
    assert theirs["dp_sizes_whole"] == [ranks // tp for tp in (ends.tp, *tensor, ends.tp, ends.tp)]
    assert theirs["pp_division"] == [s.layers[1] - s.layers[0] + 1 for s in plan.decision.stages]
    assert args.vocab_tp == ends.tp


@pytest.mark.heavy
def test_the_acceptance_table_takes_it(plan: Plan, tmp_path: Path) -> None:
    write(plan, "galvatron", tmp_path)
    assert accepted(plan, tmp_path) == []


def test_read_back_it_is_the_same_decision_at_the_same_price(plan: Plan, tmp_path: Path) -> None:
    assert round_trip(plan, "galvatron", tmp_path) == []


def test_its_file_checks_and_no_other_launcher_takes_it(plan: Plan) -> None:
    again = Plan.model_validate_json(plan.to_json())
    assert all(finding.holds for finding in check_plan(again) if finding.name != "memory limit")
    for name in launcher_names():
        assert bool(launcher(name).reasons(plan)) == (name != "galvatron"), name


def test_people_see_the_layers(plan: Plan) -> None:
    out = io.StringIO()
    print_plan(Console(file=out, width=80), plan, cpu_seconds=None, next_commands=[])
    text = out.getvalue()
    assert "Layers" in text
    assert "ends" in text
    tensor = sorted(set(by_layer(plan, "tp")))
    assert f"TP {'/'.join(map(str, tensor))}" in text
    assert "<h2>Layers" in plan_page([("plan.json", plan)])


def test_explain_has_a_row_for_every_strategy(plan: Plan) -> None:
    found = explain_plan(plan)
    decision = read_decision(plan.decision)
    assert len(found.kinds) > 3
    assert sum(kind.count for kind in found.kinds) == plan.inputs.model.num_layers + 2
    tensor = {decision.tp_of(block) for block in range(len(decision.recompute))}
    for tp in tensor:
        assert any(f"tp {tp}" in kind.name for kind in found.kinds)
    listed = rank_collectives(plan)
    assert any(one.axis == "tp" for rank in listed for one in rank.collectives)
    assert json.loads(trace_json(plan))["traceEvents"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tp": 64}, "ranks; the plan's other layers"),
        ({"cp": 2}, "one is priced"),
        ({"tp": 4, "dp": 4, "sequence_parallel": False}, "sequence parallelism"),
    ],
)
def test_degrees_no_cost_follows_from_are_refused(change: dict[str, Any], message: str) -> None:
    record = layered("one stage").decision
    stage = record.stages[0]
    run = stage.layer_strategies[0].model_copy(update=change)
    stages = [stage.model_copy(update={"layer_strategies": [run, *stage.layer_strategies[1:]]})]
    with pytest.raises(InputError, match=message):
        read_decision(record.model_copy(update={"stages": stages}))
