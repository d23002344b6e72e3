"""Plans of mixed shardings without a pipeline against every one of them, and the floor of their meshes."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from planner.cost.decision_rows import decision_candidates
from planner.cost.layer import cost_table
from planner.cost.step import price
from planner.search.engine import search
from planner.search.integer_program import MIN_GAIN, RELATIVE_GAP
from planner.search.mixed_sharding import may_mix, mixed_floor, mixed_without_pipeline
from planner.search.space import Space
from planner.search.tree import Funnel, Pins
from planner.strategy.decision import Decision, Degrees
from planner.strategy.limits import ANY

SHARDED = 3


def question(build, seed):
    """A small model on two or four devices behind slow links, and its memory without a limit."""
    lot = random.Random(seed)
    devices = lot.choice([2, 4])
    blocks = {"dense": build.block(), "experts": build.block(experts=4, ffn=1024)}
    kinds = lot.choice([["dense"] * 3, ["experts"] * 3, ["dense", "experts"]])
    profile = build.profile(per_node=lot.choice([1, 2]), fast=lot.choice([20, 100]), slow=lot.choice([3, 20]))
    spec = build.model(kinds, blocks, tied=lot.choice([True, False]))
    return (
        build.cost_model(spec, build.cluster(devices, profile), batch=lot.choice([4, 8])),
        devices,
        len(kinds),
    )


def every_mixed(model, devices, blocks):
    """Plans of one stage without tensor and context degrees: blocks plain or sharded, recomputed or not."""
    batch = model.problem.workload.global_batch
    is_moe = bool(model.problem.model.is_moe)
    choices = list(product((False, True), (0, 2)))
    for ep, size, own in product((1, 2, 4), (1, 2, 4, 8), (0, 1, 2)):
        if batch % (devices * size) or devices % ep or (ep > 1 and not is_moe):
            continue
        for picked in product(choices, repeat=blocks):
            yield Decision(
                degrees=Degrees(dp=devices, tp=1, pp=1, cp=1, ep=ep, expert_tp=1),
                sequence_parallel=False,
                sharding=own,
                sharding_group=0,
                schedule="1f1b",
                virtual_stages=1,
                microbatch_size=size,
                microbatches=batch // (devices * size),
                chunks=((0, blocks),),
                recompute=tuple(mode for _, mode in picked),
                layer_sharding=tuple(SHARDED if is_sharded else own for is_sharded, _ in picked),
            )


@pytest.mark.parametrize("seed", range(4))
def test_no_mixed_plan_beats_the_search_by_more_than_it_must_gain(build, seed):
    model, devices, blocks = question(build, seed)
    free = search(model, ANY, Pins()).best
    priced = [price(model, decision) for decision in every_mixed(model, devices, blocks)]
    for share in (1.0, 0.9):
        capped = build.with_limit(model, share * free.prediction.peak_memory_bytes)
        least, limit = search(capped, ANY, Pins()).best.seconds, capped.problem.memory_limit_bytes
        fitting = [one.step_seconds for one in priced if one.peak_memory_bytes <= limit]
        assert least * (1.0 - MIN_GAIN - RELATIVE_GAP) <= min(fitting)


@pytest.mark.parametrize("seed", range(4))
def test_the_floor_is_below_every_mixed_plan_of_its_mesh(build, seed):
    model, devices, blocks = question(build, seed)
    lot, closest = random.Random(seed), 0.0
    for decision in every_mixed(model, devices, blocks):
        if lot.random() > 0.05:
            continue
        prediction = price(model, decision)
        capped = build.with_limit(model, prediction.peak_memory_bytes)
        tables = [
            cost_table(
                model.problem, model.chain, decision_candidates(decision, [code]), model.device, model.stack
            )
            for code in (decision.sharding, SHARDED)
        ]
        for one in (model, capped):
            floor = float(mixed_floor(one, *tables)[0])
            assert floor <= prediction.step_seconds * (1 + 1e-9)
            closest = max(closest, floor / prediction.step_seconds)
    assert closest > 0.9  # a floor of nothing would pass


def test_mixing_is_for_launchers_and_pins_that_leave_it_open():
    assert may_mix(ANY, Pins())
    assert may_mix(ANY, Pins(tp=2, schedule="1f1b"))
    for pins in (Pins(sharding="none"), Pins(recompute="full"), Pins(schedule="interleaved")):
        assert not may_mix(ANY, pins)
    assert not may_mix(replace(ANY, has_layer_sharding=False), Pins())
    assert not may_mix(replace(ANY, recompute_granularity="uniform"), Pins())


def test_nothing_is_asked_of_the_solver_where_the_floor_is_no_better(build, monkeypatch):
    model, *_ = question(build, 0)
    bases = Space(model, ANY, Pins(), Funnel()).without_pipeline()
    assert len(bases)
    assert np.all(bases.pp == 1)

    def asked(*_):
        raise AssertionError("asked")

    monkeypatch.setattr("planner.search.mixed_sharding.refine", asked)
    assert mixed_without_pipeline(model, ANY, Pins(), bases, 1e-6) is None
    with pytest.raises(AssertionError, match="asked"):
        mixed_without_pipeline(model, ANY, Pins(), bases, 1e6)
