"""Per-layer tensor degrees on the analytical model: one price, tables that bound it, the best of all."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache
from itertools import combinations, pairwise, product

import numpy as np
import pytest

from planner.api import make_plan
from planner.catalog import load_model
from planner.cost.collectives import all_gather_seconds, group_costs
from planner.cost.decision_rows import decision_rows, rank_items
from planner.cost.layered_table import stage_cost, step_seconds
from planner.cost.layout_change import layout_change
from planner.cost.model import CostModel
from planner.cost.step import price
from planner.errors import InfeasibleError
from planner.plan_file.build import build_decision
from planner.plan_file.read import read_decision
from planner.request import Request, resolve
from planner.search import layer_degrees
from planner.search.engine import search
from planner.search.layer_degrees import layer_settings, layered_decision, with_layer_degrees
from planner.search.tree import Funnel, Pins
from planner.strategy.decision import Decision
from planner.targets import limits_of

LIMITS = limits_of("galvatron")


def small(layers, **changes):
    """Llama 2 7B cut to a few narrow layers."""
    model = load_model("llama-2-7b")[0]
    data = model.model_dump(mode="json", exclude_none=True)
    data["hidden_size"], data["vocab_size"] = 1024, 4096
    data["stacks"][0]["layout"][0]["repeat"] = layers
    for block in data["block_kinds"].values():
        block["attention"] |= {"num_heads": 8, "num_kv_heads": 8, "head_dim": 128}
        block["feed_forward"]["ffn_size"] = 2816
    return type(model).model_validate(data | {"name": "small"} | changes)


def cost_model(**answers):
    resolved = resolve(Request(**answers))
    return CostModel.of(resolved.problem, resolved.constants, LIMITS.stack)


@cache
def pool():
    """Models of all kinds of settings: one stage and many, one node and several, memory tight or not."""
    return tuple(
        cost_model(model=model, gpu=gpu, gpus=gpus, seq_len=length, global_batch=batch)
        for model, gpu, gpus, length, batch in (
            ("llama-2-7b", "a100-40g-sxm", 8, 4096, 64),
            ("llama-2-13b", "rtx-4090", 16, 2048, 64),
            ("llama-3.1-70b", "h100-sxm", 32, 4096, 64),
            ("gpt2-xl", "a100-80g-sxm", 8, 1024, 64),
        )
    )


def uniform_choices(model, seed, count):
    """(rows, table, decision) of settings with one strategy everywhere, balanced stages."""
    found = layer_settings(model, LIMITS, Pins(), math.inf, Funnel())
    rng = np.random.default_rng(seed)
    for index in rng.choice(len(found), min(count, len(found)), replace=False):
        setting = found[int(index)]
        strategy = int(rng.integers(len(setting.table.strategies)))
        end = strategy // (len(setting.table.strategies) // len(setting.rows))
        blocks, pp = len(setting.table.layers), setting.table.pp
        if pp > blocks:
            continue
        ends = [blocks * i // pp for i in range(pp + 1)]
        stages = tuple(pairwise(ends))
        chosen = (strategy,) * blocks
        yield setting, end, stages, chosen


def table_step(setting, end, stages, chosen):
    costs = [stage_cost(setting.table, i, span, chosen, end) for i, span in enumerate(stages)]
    columns = ("forward_seconds", "backward_seconds", "sync_seconds", "update_seconds")
    seconds = step_seconds(setting.table, *([getattr(c, name) for c in costs] for name in columns))
    return seconds, [c.total_bytes for c in costs]


def test_uniform_decisions_cost_the_same_with_a_degree_stated_for_every_layer():
    tried = 0
    for model in pool():
        for setting, end, stages, chosen in uniform_choices(model, 1, 25):
            decision = layered_decision(setting.rows, setting.table, end, stages, chosen)
            assert decision.layer_tp == () == decision.layer_sharding
            blocks = len(chosen)
            stated = replace(
                decision,
                layer_tp=(decision.degrees.tp,) * blocks,
                layer_sharding=(decision.sharding,) * blocks,
            )
            once, again = price(model, decision), price(model, stated)
            assert again.step_seconds == once.step_seconds
            assert [s.memory_bytes for s in again.stages] == [s.memory_bytes for s in once.stages]
            assert again.breakdown_seconds == once.breakdown_seconds
            tried += 1
    assert tried >= 90


def test_the_table_bounds_the_price_and_holds_its_bytes():
    """Uniform plans: never above the price, bytes equal to rounding, and within the tail's latency below."""
    loose = []
    for model in pool():
        for setting, end, stages, chosen in uniform_choices(model, 2, 25):
            priced = price(model, layered_decision(setting.rows, setting.table, end, stages, chosen))
            seconds, sizes = table_step(setting, end, stages, chosen)
            assert seconds <= priced.step_seconds * (1 + 1e-9)
            assert sizes == pytest.approx([s.memory_bytes["total"] for s in priced.stages], rel=1e-9)
            loose.append(1 - seconds / priced.step_seconds)
    assert len(loose) >= 90
    assert np.median(loose) < 1e-6
    assert max(loose) < 0.05


def test_mixed_decisions_are_bounded_too_and_cost_what_their_plan_file_says():
    tried = 0
    for seed, model in enumerate(pool()):
        rng = np.random.default_rng(seed)
        for setting, end, stages, chosen in uniform_choices(model, seed, 12):
            mixed = tuple(int(s) for s in rng.integers(len(setting.table.strategies), size=len(chosen)))
            decision = layered_decision(setting.rows, setting.table, end, stages, mixed)
            priced = price(model, decision)
            seconds, sizes = table_step(setting, end, stages, mixed)
            assert seconds <= priced.step_seconds * (1 + 1e-9)
            for size, stage in zip(sizes, priced.stages, strict=True):
                assert size <= stage.memory_bytes["total"] * (1 + 1e-9)
            again = read_decision(build_decision(decision))
            assert again == decision
            assert sum(priced.breakdown_seconds.values()) == pytest.approx(priced.step_seconds)
            tried += len(set(decision.layer_tp)) > 1
    assert tried > 15


def every_decision(model, pins):
    """Every decision of every setting, with its price: slow and obvious."""
    found = []
    for setting in layer_settings(model, LIMITS, pins, math.inf, Funnel()):
        blocks, pp = len(setting.table.layers), setting.table.pp
        for cuts in combinations(range(1, blocks), pp - 1):
            stages = tuple(pairwise((0, *cuts, blocks)))
            for chosen in product(range(len(setting.table.strategies)), repeat=blocks):
                for end in range(len(setting.rows)):
                    decision = layered_decision(setting.rows, setting.table, end, stages, chosen)
                    priced = price(model, decision)
                    found.append((priced.step_seconds, priced.peak_memory_bytes))
    return np.array(found)


CASES = {
    "one stage": (2, Pins(pp=1, cp=1), 2),
    "two stages": (4, Pins(pp=2, cp=1, recompute="none", sharding="gradients"), 4),
    "four ranks a stage": (4, Pins(pp=1, cp=1, recompute="full"), 2),
}


@pytest.mark.parametrize("case", CASES)
def test_the_search_is_exhaustive_search(monkeypatch, case):
    gpus, pins, layers = CASES[case]
    monkeypatch.setattr(layer_degrees, "WORTH", 0.0)
    answers = {"model": small(layers), "gpu": "rtx-4090", "gpus": gpus, "seq_len": 2048, "global_batch": 4}
    model = cost_model(**answers)
    every = every_decision(model, pins)
    tight = np.quantile(every[:, 1], [0.02, 0.1, 0.2, 0.35, 0.5, 0.75, 0.95])
    tried = 0
    for limit in tight:
        model = replace(model, problem=replace(model.problem, memory_limit_bytes=float(limit)))
        want = every[every[:, 1] <= limit, 0].min()
        try:
            uniform = search(model, LIMITS, pins)
        except InfeasibleError:
            continue
        found = with_layer_degrees(model, LIMITS, pins, uniform)
        assert found.best.seconds == pytest.approx(want, rel=1e-9)
        assert found.best.seconds <= uniform.best.seconds
        assert found.lower_bound_seconds <= want * (1 + 1e-9)
        assert found.gap < 2e-3
        assert found.best.prediction.peak_memory_bytes <= limit * (1 + 1e-9)
        tried += 1
    assert tried >= 4


@pytest.mark.parametrize("index", range(4))
def test_never_slower_than_the_uniform_plan(index):
    model = pool()[index]
    uniform = search(model, LIMITS, Pins())
    found = with_layer_degrees(model, LIMITS, Pins(), uniform)
    assert found.best.seconds <= uniform.best.seconds
    assert found.lower_bound_seconds <= found.best.seconds
    assert price(model, found.best.decision).step_seconds == found.best.seconds
    if not found.best.decision.layer_tp and not found.best.decision.layer_sharding:
        assert found.best.seconds == uniform.best.seconds


def test_pins_of_single_degrees_keep_the_plan_uniform():
    model = pool()[0]
    for pins in (Pins(tp=2), Pins(dp=4), Pins(microbatch_size=1), Pins(schedule="gpipe")):
        assert not layer_degrees.has_layer_degrees(model, LIMITS, pins)
    assert layer_degrees.has_layer_degrees(model, LIMITS, Pins(pp=2, sharding="gradients"))
    assert not layer_degrees.has_layer_degrees(model, limits_of("megatron"), Pins())


def test_interrupted_it_keeps_the_best_so_far(monkeypatch):
    model = pool()[0]
    uniform = search(model, LIMITS, Pins())

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(layer_degrees, "improve_layered", interrupt)
    found = with_layer_degrees(model, LIMITS, Pins(), uniform)
    assert found.status == "interrupted"
    assert found.best == uniform.best
    assert 0.0 < found.lower_bound_seconds < uniform.best.seconds


def test_a_label_names_every_degree_and_that_of_the_ends():
    base = search(pool()[0], LIMITS, Pins(tp=2, pp=1)).best.decision
    layers = len(base.recompute)
    mixed = replace(base, layer_tp=(1,) * (layers - 2) + (4,) * 2)
    assert mixed.label().startswith("TP1/4 PP1 DP8")
    assert mixed.label().endswith("ends:TP2")


def test_a_change_of_layout_is_what_galvatron_gathers():
    """1 to 4: the new group; 2 to 4: the old group, then the pairs two apart; 4 to 2: the old group."""
    model = pool()[0]
    cluster, constants, size = model.problem.cluster, model.constants, 1e6

    def gather(stride, ranks, whole):
        return all_gather_seconds(group_costs(cluster, constants, stride, ranks), whole)

    one = layout_change(cluster, constants, 1, 4, size)
    assert one.forward_seconds == pytest.approx(gather(1, 4, 4 * size))
    assert one.backward_seconds == pytest.approx(gather(1, 4, 4 * size))
    two = layout_change(cluster, constants, 2, 4, size)
    assert two.forward_seconds == pytest.approx(gather(1, 2, 2 * size) + gather(2, 2, 4 * size))
    assert two.backward_seconds == pytest.approx(gather(1, 4, 4 * size))
    assert two.gathered_bytes == 4 * size
    assert layout_change(cluster, constants, 4, 4, size).forward_seconds == 0.0


def test_layers_of_another_degree_pay_for_the_change_and_keep_their_own_groups():
    """From tp 2 to 4 before the second half, and back to the head's 2; two more process groups."""
    model = pool()[0]
    base = search(model, LIMITS, Pins(tp=2, pp=1, sharding="gradients", recompute="none")).best.decision
    layers = len(base.recompute)
    mixed = replace(base, layer_tp=(2,) * (layers // 2) + (4,) * (layers - layers // 2))
    rows = decision_rows(model, mixed)
    items = [item for _, chunk in rank_items(model, mixed, 0) for item in chunk]
    inside = model.stage_model(rows).causes(items)["tp"]
    size = rows[mixed.sharding].boundary_bytes
    change = layout_change(model.problem.cluster, model.constants, 2, 4, size)
    both = 2 * (change.forward_seconds + change.backward_seconds)
    plain, priced = price(model, base), price(model, mixed)
    assert priced.breakdown_seconds["tp"] == pytest.approx(mixed.microbatches * (inside + both))
    more = priced.stages[0].memory_bytes["reserve"] - plain.stages[0].memory_bytes["reserve"]
    assert more == pytest.approx(2 * model.constants.communicator_bytes)


def test_a_plan_with_layer_degrees_from_the_public_function():
    plan = make_plan(
        Request(model="llama-3.1-8b", gpu="a100-40g-sxm", gpus=8, seq_len=4096, global_batch=64),
        target="galvatron",
        suggest=False,
    )
    decision = read_decision(plan.decision)
    assert isinstance(decision, Decision)
    assert decision.layer_tp
    assert plan.decision.ends is not None
    assert plan.alternatives
    assert all(other.prediction.step_seconds >= plan.prediction.step_seconds for other in plan.alternatives)
