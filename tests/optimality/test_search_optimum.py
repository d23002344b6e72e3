"""The search against the exhaustive planner, at every memory limit that changes the optimum."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest

from planner.errors import InfeasibleError
from planner.search.engine import search
from planner.search.tree import Pins
from planner.strategy.limits import ANY, Limits

# The space that exhaustion covers: one sharding, whole blocks gathered.
UNIFORM = replace(ANY, has_layer_sharding=False, gather_units=("block",))
EXACT = 1e-9
MEASURED_REGRET = 0.04
"""Where the search reports a gap, its plan is this close to the optimum on the cases of this file."""
MOST_LIMITS = 6


def dense(build):
    return build.cost_model(build.model(4), build.cluster(4, build.profile(per_node=2)), batch=8)


def slow_links(build):
    cluster = build.cluster(4, build.profile(per_node=2, slow=5))
    return build.cost_model(build.model(4, tied=True), cluster, batch=8)


def five_blocks(build):
    cluster = build.cluster(4, build.profile(per_node=2, slow=10))
    return build.cost_model(build.model(5), cluster, batch=4)


def eight_devices(build):
    cluster = build.cluster(8, build.profile(per_node=4, slow=20))
    return build.cost_model(build.model(3), cluster, batch=8)


def unfused(build):
    model = build.model(3, {"block": build.block(dropout=True)})
    return build.cost_model(model, build.cluster(4), sequence=1024, batch=8, attention="unfused")


def few_microbatches(build):
    """Fewer microbatches than stages."""
    model = build.model(5, {"block": build.block(heads=1, kv_heads=1)})
    cluster = build.cluster(4, build.profile(per_node=1, slow=3))
    return build.cost_model(model, cluster, sequence=2047, batch=2)


def experts(build):
    model = build.model(3, {"block": build.block(experts=4, ffn=1024)})
    return build.cost_model(model, build.cluster(4, build.profile(per_node=2, slow=10)), batch=4)


def heavy_head(build):
    cluster = build.cluster(4, build.profile(per_node=2, slow=4))
    return build.cost_model(build.model(4, vocab=131072), cluster, batch=4)


def dense_then_experts(build):
    blocks = {"dense": build.block(), "experts": build.block(experts=2, ffn=2048, shared_ffn=1024)}
    model = build.model(["dense", "experts", "dense", "experts"], blocks)
    return build.cost_model(model, build.cluster(2, build.profile(per_node=2, fast=20)), batch=2)


def encoder_decoder(build):
    cluster = build.cluster(4, build.profile(per_node=2, slow=10))
    return build.cost_model(build.encoder_decoder(2, 2), cluster, batch=4)


def unequal_blocks(build):
    blocks = {
        "usual": build.block(),
        "wide": build.block(ffn=16384),
        "narrow": build.block(ffn=1024, kv_heads=2),
    }
    model = build.model(["usual", "wide", "usual", "narrow"], blocks)
    return build.cost_model(model, build.cluster(1), batch=4)


def unequal_stages(build):
    blocks = {"usual": build.block(), "wide": build.block(ffn=16384)}
    model = build.model(["wide", "usual", "usual", "usual"], blocks)
    return build.cost_model(model, build.cluster(4, build.profile(per_node=1, slow=4)), batch=4)


EQUAL_BLOCKS = (
    dense,
    slow_links,
    five_blocks,
    eight_devices,
    unfused,
    few_microbatches,
    experts,
    heavy_head,
)
MIXED_BLOCKS = (dense_then_experts, encoder_decoder, unequal_blocks, unequal_stages)
named = pytest.mark.parametrize("case", [*EQUAL_BLOCKS, *MIXED_BLOCKS], ids=lambda case: case.__name__)


@pytest.fixture(scope="module")
def solved(build, oracle):
    """Cost model and every priced decision of a case, worked out once."""

    @cache
    def of(case):
        model = case(build)
        return model, oracle.Exhaustive(model).price_all()

    return of


def frontier(priced):
    """The decisions worth having at some memory limit, from the least memory to the least time."""
    found = []
    for each in sorted(priced, key=lambda p: (p.peak_bytes, p.seconds)):
        if not found or each.seconds < found[-1].seconds * (1 - EXACT):
            found.append(each)
    return found


def spread(values, most):
    """At most ``most`` values, first and last included."""
    if len(values) <= most:
        return values
    return [values[round(i * (len(values) - 1) / (most - 1))] for i in range(most)]


def judged(result, optimum):
    """What is wrong with a search result, in words; empty when nothing is."""
    best, wrong = result.best.seconds, []
    if best < optimum.seconds * (1 - EXACT):
        wrong.append(f"found {best}, faster than anything valid ({optimum.seconds})")
    if result.lower_bound_seconds > optimum.seconds * (1 + EXACT):
        wrong.append(f"bound {result.lower_bound_seconds} above the optimum {optimum.seconds}")
    if best - optimum.seconds > (result.gap + EXACT) * best:
        wrong.append(f"{best} is further from {optimum.seconds} than the gap {result.gap} allows")
    if result.status == "proved" and best > optimum.seconds * (1 + EXACT):
        wrong.append("says proved")
    if best > optimum.seconds * (1 + MEASURED_REGRET):
        wrong.append(f"regret {best / optimum.seconds - 1:.3f}")
    if wrong:
        wrong.append(f"optimum {optimum.decision}, found {result.best.decision}")
    return wrong


@named
def test_search_finds_the_optimum_or_bounds_its_distance_at_every_memory_limit(case, build, oracle, solved):
    model, priced = solved(case)
    wrong = []
    for point in spread(frontier(priced), MOST_LIMITS):
        limit = point.peak_bytes * (1 + EXACT)
        optimum = oracle.optimum(priced, limit)
        result = search(build.with_limit(model, limit), UNIFORM, Pins())
        assert result.best.prediction.peak_memory_bytes <= limit * (1 + EXACT)
        wrong += judged(result, optimum)
    assert not wrong, "\n".join(wrong)


@named
def test_a_limit_below_the_smallest_decision_is_infeasible(case, build, solved):
    model, priced = solved(case)
    least = min(p.peak_bytes for p in priced)
    with pytest.raises(InfeasibleError):
        search(build.with_limit(model, least * (1 - 1e-6)), UNIFORM, Pins())


@named
def test_search_never_prices_its_plan_differently_from_the_exhaustive_planner(case, build, solved):
    model, priced = solved(case)
    best = search(model, UNIFORM, Pins()).best
    fastest = min(p.seconds for p in priced)
    same = [
        p
        for p in priced
        if p.decision.chunks == best.decision.chunks
        and p.decision.sequence_parallel == best.decision.sequence_parallel
        and (p.decision.label(), p.decision.recompute) == (best.decision.label(), best.decision.recompute)
    ]
    assert [p.seconds for p in same] == [pytest.approx(best.seconds, rel=1e-12)]
    assert best.seconds <= fastest * (1 + MEASURED_REGRET)


def test_the_memory_limits_force_every_kind_of_recompute(build, oracle, solved):
    """Guards the cases themselves: none, selective, full and mixtures are all optimal somewhere."""
    modes = set()
    for case in (dense, unfused, unequal_blocks):
        modes |= {p.decision.recompute_summary() for p in frontier(solved(case)[1])}
    assert modes >= {"none", "selective", "full", "mixed"}


@pytest.mark.parametrize("case", [slow_links, few_microbatches, heavy_head], ids=lambda case: case.__name__)
def test_gpipe_is_never_faster_at_any_memory_limit(case, build, oracle, solved):
    model, priced = solved(case)
    deep = oracle.Exhaustive(model, ("gpipe",)).price_all()
    assert deep
    for point in frontier(deep):
        limit = point.peak_bytes * (1 + EXACT)
        assert oracle.optimum(priced, limit).seconds <= point.seconds * (1 + EXACT)


ONE_MODE = Limits("one-mode", recompute_granularity="uniform")
PLAIN = Limits("plain", shardings=("none", "optimizer"), sharding_groups=("global",), schedules=("1f1b",))
NO_DEEP = Limits("no-deep", parameter_sharding_with_pipeline=False)
RESTRICTED = [
    pytest.param(ONE_MODE, Pins(), lambda d: len(set(d.recompute)) == 1, id="one recompute mode"),
    pytest.param(
        PLAIN,
        Pins(),
        lambda d: d.sharding <= 1 and d.sharding_group == 0 and d.schedule == "1f1b",
        id="few shardings, no interleaving",
    ),
    pytest.param(
        NO_DEEP, Pins(), lambda d: d.degrees.pp == 1 or d.sharding <= 1, id="no sharded gradients with pp"
    ),
    pytest.param(UNIFORM, Pins(tp=2), lambda d: d.degrees.tp == 2, id="tp pinned"),
    pytest.param(UNIFORM, Pins(pp=2), lambda d: d.degrees.pp == 2, id="pp pinned"),
    pytest.param(UNIFORM, Pins(sharding="parameters"), lambda d: d.sharding == 3, id="sharding pinned"),
    pytest.param(UNIFORM, Pins(microbatch_size=2), lambda d: d.microbatch_size == 2, id="microbatch pinned"),
    pytest.param(UNIFORM, Pins(recompute="full"), lambda d: set(d.recompute) == {2}, id="recompute pinned"),
    pytest.param(UNIFORM, Pins(virtual_stages=2), lambda d: d.virtual_stages == 2, id="interleaving pinned"),
]


@pytest.mark.parametrize(("limits", "pins", "is_allowed"), RESTRICTED)
def test_limits_and_pins_cut_the_space_and_nothing_more(limits, pins, is_allowed, build, oracle, solved):
    model, priced = solved(slow_links)
    allowed = [p for p in priced if is_allowed(p.decision)]
    wrong = []
    for point in spread(frontier(allowed), 5):
        limit = point.peak_bytes * (1 + EXACT)
        result = search(build.with_limit(model, limit), limits, pins)
        assert is_allowed(result.best.decision)
        wrong += judged(result, oracle.optimum(allowed, limit))
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("case", [dense, slow_links, unfused], ids=lambda case: case.__name__)
def test_sequence_parallelism_is_a_choice_that_keeps_the_optimum(case, oracle, solved):
    """With tp the sequence may be split or not; both are searched, also with tp pinned."""
    model, free = solved(case)
    assert {p.decision.sequence_parallel for p in free if p.decision.degrees.tp > 1} == {True, False}
    wrong = []
    for pins in (Pins(), Pins(tp=2), Pins(tp=4)):
        allowed = [p for p in free if pins.tp in (None, p.decision.degrees.tp)]
        result = search(model, UNIFORM, pins)
        wrong += [f"{pins.items()}: {fault}" for fault in judged(result, oracle.optimum(allowed, 1e18))]
    assert not wrong, "\n".join(wrong)
