"""The front between speed and memory against the exhaustive planner: every point, the end, the splits."""

from __future__ import annotations

from dataclasses import replace

import pytest

from planner.search.engine import search
from planner.search.front import head_room_front
from planner.search.least_memory import STEP
from planner.search.split_front import split_front
from planner.search.tree import Pins
from planner.strategy.limits import ANY

EXACT = 1 + 1e-9
SHARES = (0.05, 0.1, 0.2, 0.35, 0.5)
# The exhaustive planner shards all layers alike and gathers whole blocks.
UNIFORM = replace(ANY, has_layer_sharding=False, gather_units=("block",))


def dense(build):
    return build.cost_model(build.model(4), build.cluster(4, build.profile(per_node=2)), batch=8)


def experts(build):
    model = build.model(3, {"block": build.block(experts=4, ffn=1024)})
    return build.cost_model(model, build.cluster(4, build.profile(per_node=2, slow=10)), batch=4)


def heavy_head(build):
    cluster = build.cluster(4, build.profile(per_node=2, slow=4))
    return build.cost_model(build.model(4, vocab=131072), cluster, batch=4)


CASES = (dense, experts, heavy_head)


@pytest.fixture(scope="module", params=CASES, ids=lambda case: case.__name__)
def case(request, build, oracle):
    """A cost model whose limit is its fastest plan's peak, its front, and every priced decision."""
    model = request.param(build)
    free = search(model, UNIFORM, Pins()).best
    model = build.with_limit(model, free.prediction.peak_memory_bytes)
    best = search(model, UNIFORM, Pins())
    front = head_room_front(model, UNIFORM, Pins(), best, SHARES)
    return model, best, front, oracle.Exhaustive(model).price_all()


def test_every_point_is_the_optimum_under_its_limit(case, oracle):
    model, _, front, priced = case
    full = model.problem.memory_limit_bytes
    for point in front.points:
        if point.head_room is not None:
            assert point.limit_bytes == pytest.approx((1 - point.head_room) * full)
        optimum = oracle.optimum(priced, point.limit_bytes * EXACT)
        seconds = point.solution.seconds
        assert point.solution.prediction.peak_memory_bytes <= point.limit_bytes * EXACT
        assert optimum.seconds / EXACT <= seconds <= optimum.seconds * EXACT / (1 - point.gap)
        assert point.lower_bound_seconds <= optimum.seconds * EXACT
        if point.status == "proved":
            assert seconds <= optimum.seconds * EXACT
    for share in front.unfit:
        assert oracle.optimum(priced, (1 - share) * full / EXACT) is None
    assert len(front.points) + len(front.unfit) == len(SHARES) + 2


def test_the_end_is_the_smallest_fullest_rank(case):
    _, _, front, priced = case
    least = min(decision.peak_bytes for decision in priced)
    assert front.least.is_exact
    assert front.least.bound_bytes <= least * EXACT
    assert least <= front.least.peak_bytes * EXACT
    assert front.least.peak_bytes * (1 - STEP) <= least * EXACT
    assert front.points[-1].solution.prediction.peak_memory_bytes <= front.least.peak_bytes * EXACT


def test_more_head_room_is_never_faster(case):
    _, best, front, _ = case
    seconds = [point.solution.seconds for point in front.points]
    assert seconds == sorted(seconds)
    assert front.points[0].solution == best.best
    assert len(set(seconds)) > 2, "a front with one plan shows nothing"


def test_a_splits_ends_are_the_fastest_and_the_emptiest_of_its_mesh(case, oracle):
    """Every mesh with a pipeline: recomputation and split are free, everything else is as in the plan."""
    model, _, _, priced = case
    seen = set()
    for each in sorted(priced, key=lambda p: p.seconds):
        d = each.decision
        key = replace(d, chunks=(), recompute=())
        if d.degrees.pp == 1 or key in seen or len(seen) == 12:
            continue
        seen.add(key)
        mine = [p for p in priced if replace(p.decision, chunks=(), recompute=()) == key]
        splits = split_front(model, UNIFORM, Pins(), d)
        least = min(p.peak_bytes for p in mine)
        last = splits[-1].solution
        assert last.prediction.peak_memory_bytes <= least * EXACT / (1 - STEP)
        for point in splits:
            optimum = oracle.optimum(mine, point.limit_bytes * EXACT)
            assert optimum.seconds / EXACT <= point.solution.seconds
            assert point.solution.bound_seconds <= optimum.seconds * EXACT
            assert point.solution.seconds <= optimum.seconds * 1.01
        peaks = [point.solution.prediction.peak_memory_bytes for point in splits]
        assert peaks == sorted(peaks, reverse=True)
    assert seen


def test_a_plan_without_a_pipeline_has_no_splits(case):
    model, _, _, priced = case
    alone = next(p.decision for p in priced if p.decision.degrees.pp == 1)
    assert split_front(model, UNIFORM, Pins(), alone) == []


def test_a_front_stopped_early_says_so_and_keeps_what_it_has(case):
    model, best, _, _ = case
    front = head_room_front(model, UNIFORM, Pins(), best, SHARES, time_budget_seconds=0.0)
    assert not front.is_complete
    assert [point.head_room for point in front.points] == [0.0]
