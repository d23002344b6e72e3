"""Decisions priced together are priced as each one alone; a polished plan is never worse and fits."""

from __future__ import annotations

from dataclasses import replace

import pytest

from planner.cost.many import price_many
from planner.cost.model import CostModel
from planner.cost.step import price
from planner.errors import UnsupportedFeature
from planner.search.engine import search
from planner.search.polish import polish
from planner.search.tree import Pins
from planner.strategy.limits import ANY
from tests.benchmarks.evaluations import decision_at, random_many

EXACT = 1e-12
DENSE = ((1, 1, 1), (2, 1, 1), (2, 2, 1))
EXPERTS = ((1, 1, 1), (1, 1, 2), (2, 1, 2))
SHAPES = [
    ("1f1b", 2, 1, 4),
    ("zb-h1", 2, 1, 4),
    ("interleaved", 2, 3, 4),
    ("zb-v", 2, 2, 4),
    ("1f1b", 1, 1, 2),
]


def models(build):
    dense = build.cost_model(
        build.model(8, tied=True), build.cluster(8, build.profile(per_node=4, slow=20)), batch=32
    )
    mixed = {"dense": build.block(), "experts": build.block(experts=4, ffn=1024)}
    kinds = ["dense", "experts", "experts", "dense", "experts", "experts", "dense", "experts"]
    experts = build.cost_model(
        build.model(kinds, mixed), build.cluster(8, build.profile(per_node=4)), batch=32
    )
    return {"dense": (dense, DENSE), "experts": (experts, EXPERTS)}


@pytest.mark.parametrize("name", ["dense", "experts"])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: f"{shape[0]}-pp{shape[1]}")
def test_many_at_once_are_priced_as_one_alone(build, name, shape):
    model, meshes = models(build)[name]
    meshes = [mesh for mesh in meshes if name == "dense" or mesh[2] <= 8 // (mesh[0] * mesh[1] * shape[1])]
    many = random_many(model, shape, meshes, 60)
    seconds, peak_bytes = price_many(model, many)
    for index in range(60):
        alone = price(model, decision_at(many, index, 32))
        assert seconds[index] == pytest.approx(alone.step_seconds, rel=EXACT)
        assert peak_bytes[index] == pytest.approx(alone.peak_memory_bytes, rel=EXACT)


def test_stacks_whose_memory_is_no_sum_are_refused(build):
    model, meshes = models(build)["dense"]
    walked = CostModel.of(model.problem, model.constants, "torchtitan")
    with pytest.raises(UnsupportedFeature):
        price_many(walked, random_many(walked, SHAPES[0], meshes, 2))


def test_a_polished_plan_fits_and_is_never_slower(build):
    model, _ = models(build)["dense"]
    found = search(model, ANY, Pins(pp=4, schedule="zb-h1"))
    worse = found.best.decision
    ends = [2, 3, 5, 8]
    chunks = tuple(zip([0, *ends[:-1]], ends, strict=True))
    start = replace(worse, chunks=chunks, recompute=(2,) * 8, layer_sharding=(), layer_units=())
    before, limit = price(model, start), model.problem.memory_limit_bytes
    after = price(model, polish(model, start, before.step_seconds, limit, (2,)))
    assert after.step_seconds < before.step_seconds
    assert after.peak_memory_bytes <= limit


def test_recomputation_moves_to_the_chunk_that_is_waited_for_least(build):
    """Rank 0 recomputes in its last chunk, rank 1 in its first: they wait for each other in both."""
    model, _ = models(build)["dense"]
    chunks = tuple((at, at + 1) for at in range(8))
    start = replace(
        search(model, ANY, Pins(pp=2, schedule="interleaved", virtual_stages=4)).best.decision,
        chunks=chunks,
        recompute=(0, 2, 0, 0, 0, 0, 2, 0),
        layer_sharding=(),
        layer_units=(),
    )
    before = price(model, start)
    limit = before.peak_memory_bytes
    decision = polish(model, start, before.step_seconds, limit, (2,))
    after = price(model, decision)
    assert after.step_seconds < before.step_seconds
    assert after.peak_memory_bytes <= limit
    assert decision.chunks == chunks
    assert polish(model, decision, after.step_seconds, limit, (2,)) == decision


def test_a_plan_that_recomputes_nothing_has_nothing_to_move(build):
    model, _ = models(build)["dense"]
    found = search(model, ANY, Pins(pp=2, schedule="interleaved", virtual_stages=2)).best
    start = replace(found.decision, recompute=(0,) * 8, layer_sharding=(), layer_units=())
    seconds = price(model, start).step_seconds
    assert polish(model, start, seconds, model.problem.memory_limit_bytes, (1, 2)) == start
