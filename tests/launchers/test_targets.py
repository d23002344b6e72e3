"""Targets: what a launcher's limits cost, who can run the faster plan, the nearest plan of a refused one."""

from __future__ import annotations

from typing import Any

import pytest

from planner import plan as plan_request
from planner.cost.collectives import all_gather_seconds
from planner.cost.decision_rows import decision_rows
from planner.cost.model import CostModel
from planner.cost.step import price
from planner.errors import UnsupportedByTarget
from planner.launchers.registry import launcher, launcher_names
from planner.plan_file.read import read_cost_model, read_decision
from planner.plan_file.schema import Plan
from planner.report.terminal import restriction_words
from planner.search.engine import search
from planner.search.tree import Pins
from planner.search.words import describe_space
from planner.targets import export_files, limits_of

LARGE: dict[str, Any] = {"gpu": "h100-sxm", "gpus": 64, "seq_len": 8192, "global_batch": 512}
SMALL: dict[str, Any] = {"gpu": "h100-sxm", "gpus": 16}


@pytest.fixture(scope="module")
def unrestricted() -> Plan:
    return plan_request("llama-3.1-70b", **LARGE)


def test_a_plan_without_a_target_has_no_restriction(unrestricted: Plan) -> None:
    assert unrestricted.search.restriction is None


def test_a_restriction_costs_what_two_searches_differ_by(unrestricted: Plan) -> None:
    """Megatron-LM's plans are priced on the default stack, so the plan without a target is the other side."""
    found = plan_request("llama-3.1-70b", target="megatron", **LARGE)
    record = found.search.restriction
    assert record is not None
    assert record.step_seconds == unrestricted.prediction.step_seconds
    assert record.decision == unrestricted.decision
    assert record.slower == pytest.approx(found.prediction.step_seconds / record.step_seconds - 1.0)
    assert record.slower > 0.001
    assert record.launchers == [n for n in launcher_names() if not launcher(n).reasons(unrestricted)]
    words = restriction_words(record)
    assert words.startswith(f"Keeping to megatron costs {record.slower:.1%}".replace("%", " %"))
    assert ("no launcher here can run that" in words) == (not record.launchers)


@pytest.mark.parametrize("target", ["galvatron", "accelerate"])
def test_who_can_run_the_faster_plan_is_named(target: str) -> None:
    record = plan_request("llama-3.1-8b", target=target, **SMALL).search.restriction
    assert record is not None
    assert record.slower > 0.001
    assert record.launchers
    assert target not in record.launchers
    assert f"{' and '.join(record.launchers)} can run that" in restriction_words(record)


def test_no_cost_is_said_when_the_best_plan_of_all_is_within_the_limits() -> None:
    found = plan_request("llama-3.1-8b", target="megatron", pp=1, **SMALL)
    record = found.search.restriction
    assert record is not None
    assert (record.slower, record.decision) == (0.0, None)
    assert record.step_seconds == found.prediction.step_seconds
    assert restriction_words(record).startswith("Keeping to megatron costs nothing")


@pytest.mark.parametrize("target", launcher_names())
def test_the_space_in_words_follows_the_limits(target: str) -> None:
    limits = limits_of(target)
    words = describe_space(limits, Pins())
    assert ("inside an island" in words) == ("island" in limits.sharding_groups)
    assert ("interleaving" in words) == ("interleaved" in limits.schedules and limits.max_pp > 1)
    assert ("per layer" in words) == (limits.recompute_granularity == "layer")
    assert ("first layers of each stage" in words) == (limits.recompute_granularity == "stage")
    assert (" cp," in words) == (limits.max_cp > 1)
    assert ("single layers" in words) == limits.has_layer_sharding


def test_galvatron_is_never_behind_its_own_uniform_plans() -> None:
    """Per-layer recompute: at least as fast as each pinned uniform plan, faster where memory binds."""
    small = SMALL | {"seq_len": 8192, "global_batch": 128, "memory_limit_gib": 30, "top": 1}
    free = plan_request("llama-3.1-8b", target="galvatron", **small)
    pinned = [
        plan_request("llama-3.1-8b", target="galvatron", recompute=mode, **small).prediction.step_seconds
        for mode in ("none", "full")
    ]
    assert free.decision.recompute == "mixed"
    assert free.prediction.step_seconds < min(pinned)
    tight = LARGE | {"top": 1, "tp": 2, "pp": 4, "cp": 1}
    mixed = plan_request("llama-3.1-70b", target="galvatron", sharding="gradients", **tight)
    assert mixed.decision.recompute == "mixed"
    modes = {r.recompute for s in mixed.decision.stages for r in s.layer_strategies}
    assert modes == {"none", "full"}
    whole = plan_request("llama-3.1-70b", target="galvatron", sharding="gradients", recompute="full", **tight)
    assert mixed.prediction.step_seconds < whole.prediction.step_seconds


@pytest.mark.parametrize(("tp", "virtual_stages"), [(2, 1), (4, 2)])
def test_megatron_recomputes_the_first_layers_of_every_stage(tp: int, virtual_stages: int) -> None:
    pins = {"tp": tp, "pp": 4, "cp": 1, "virtual_stages": virtual_stages, "top": 1, "memory_limit_gib": 75.7}
    found = plan_request("llama-3.1-70b", target="megatron", **LARGE, **pins)
    assert launcher("megatron").reasons(found) == []
    whole = plan_request("llama-3.1-70b", target="megatron", recompute="full", **LARGE, **pins)
    assert found.decision.recompute == "mixed"
    assert found.prediction.step_seconds < whole.prediction.step_seconds
    assert found.prediction.peak_memory_bytes <= found.prediction.memory_limit_bytes


def test_a_refused_export_names_the_nearest_plans_and_their_cost() -> None:
    refused = plan_request("llama-3.1-70b", tp=4, pp=4, cp=1, virtual_stages=1, schedule="1f1b", **LARGE)
    with pytest.raises(UnsupportedByTarget) as caught:
        export_files(refused, "torchtitan")
    same, anywhere = caught.value.details["nearest"]
    assert (same["where"], anywhere["where"]) == ("on this mesh", "on any mesh")
    assert same["decision"]["degrees"] == refused.decision.degrees.model_dump()
    saved, limits = read_cost_model(refused.inputs), limits_of("torchtitan")
    model = CostModel.of(saved.problem, saved.constants, limits.stack)
    best = search(model, limits, Pins(), top=1).best
    own = price(model, read_decision(refused.decision)).step_seconds
    assert anywhere["step_seconds"] == pytest.approx(best.seconds)
    assert anywhere["slower"] == pytest.approx(best.seconds / own - 1.0)
    word = "slower" if anywhere["slower"] >= 0 else "faster"
    assert f"{abs(anywhere['slower']) * 100:.1f} % {word}" in caught.value.message


def test_a_model_no_setting_helps_is_refused_without_a_nearest_plan() -> None:
    found = plan_request("t5-large", gpu="a100-sxm-80gb", gpus=8, seq_len=512, global_batch=64)
    with pytest.raises(UnsupportedByTarget) as caught:
        export_files(found, "pytorch")
    assert "nearest" not in caught.value.details


@pytest.mark.parametrize("target", ["accelerate", "galvatron"])
def test_weights_gathered_every_microbatch_are_priced_so(target: str) -> None:
    """One gather a microbatch in the forward pass, none behind the step: the default stack reversed."""
    pins = {"tp": 1, "pp": 1, "cp": 1, "sharding": "gradients", "top": 1}
    found = plan_request("llama-3.1-8b", target=target, **SMALL, **pins)
    assert found.inputs.options.stack == target
    model, decision = read_cost_model(found.inputs), read_decision(found.decision)
    row = next(iter(decision_rows(model, decision).values()))
    block = max(row.kinds, key=lambda kind: kind.dense_parameters)
    gather = float(all_gather_seconds(row.groups.data, block.dense_parameters * model.stack.parameter_bytes))
    assert block.forward["dp"] >= gather * model.constants.overlap_theft > 0.0
    prediction = price(model, decision)
    assert all(stage.tail.gather == 0.0 for stage in prediction.stages)
    assert prediction.step_seconds == found.prediction.step_seconds
