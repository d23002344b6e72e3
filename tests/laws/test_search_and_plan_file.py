"""Laws of the search, and of the plan file that carries its result."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.cost.step import price
from planner.errors import InfeasibleError
from planner.plan_file.build import build_decision, build_inputs, build_prediction
from planner.plan_file.read import read_cost_model, read_decision, read_plan
from planner.plan_file.schema import DecisionRecord, Options, Plan, SearchRecord
from planner.search.engine import search
from planner.search.integer_program import MIN_GAIN, RELATIVE_GAP
from planner.search.tree import Pins
from planner.strategy.kind import decision_kind
from planner.strategy.limits import ANY

SETTINGS = settings(deadline=None, max_examples=60, derandomize=True)
ROUNDING = 1 + 1e-9
# What the bound is of: one sharding for all layers, whole blocks gathered. The integer program, which runs
# where memory binds, may leave both.
UNIFORM = replace(ANY, has_layer_sharding=False, gather_units=("block",))


@st.composite
def problems(draw, build):
    """Small problems on up to eight devices."""
    devices = draw(st.sampled_from([2, 4, 4, 8]))
    per_node = draw(st.sampled_from([n for n in (1, 2, 4, 8) if n <= devices]))
    blocks = {
        "dense": build.block(gated=draw(st.booleans())),
        "experts": build.block(experts=4, ffn=1024),
    }
    kinds = draw(st.sampled_from([["dense"] * 4, ["dense"] * 6, ["experts"] * 3, ["dense", "experts"] * 2]))
    model = build.model(kinds, blocks, tied=draw(st.booleans()))
    profile = build.profile(
        per_node=per_node,
        fast=draw(st.sampled_from([20, 100, 300])),
        slow=draw(st.sampled_from([3, 20, 100])),
    )
    batch = draw(st.sampled_from([4, 8, 16]))
    return build.cost_model(model, build.cluster(devices, profile), batch=batch)


def best_under(build, model, limit, limits=ANY):
    """(seconds, lower bound) of the search under a limit; infinite when nothing fits."""
    try:
        result = search(build.with_limit(model, limit), limits, Pins())
    except InfeasibleError:
        return float("inf"), float("inf")
    assert result.best.prediction.peak_memory_bytes <= limit * ROUNDING
    return result.best.seconds, result.lower_bound_seconds


def under_growing_limits(data, build, model, free, limits):
    """Seconds of the plans of ``limits`` under three memory limits up to what ``free`` needs, ascending.

    Half of what the fastest takes is seldom too little for all: where nothing fits the law says nothing.
    """
    high = free.prediction.peak_memory_bytes
    low = high / 2
    shares = data.draw(st.lists(st.floats(0, 1), min_size=3, max_size=3))
    caps = sorted(low + share * (high - low) for share in shares)
    return [best_under(build, model, cap, limits)[0] for cap in caps]


@settings(SETTINGS, max_examples=6)
@given(data=st.data())
def test_more_memory_never_makes_the_plan_slower(data, build):
    model = data.draw(problems(build))
    free = search(model, UNIFORM, Pins()).best
    seconds = under_growing_limits(data, build, model, free, UNIFORM)
    assert seconds == sorted(seconds, reverse=True)
    assert seconds[-1] >= free.seconds / ROUNDING


@settings(SETTINGS, max_examples=3)
@given(data=st.data())
def test_more_memory_never_makes_the_plan_of_the_whole_space_slower(data, build):
    """Up to what a plan of mixed shardings has to gain before it is preferred to a simple one."""
    model = data.draw(problems(build))
    free = search(model, ANY, Pins()).best
    seconds = [*under_growing_limits(data, build, model, free, ANY), free.seconds]
    for tighter, looser in pairwise(seconds):
        assert looser * (1.0 - MIN_GAIN - RELATIVE_GAP) <= tighter


@pytest.mark.parametrize("gib", [2.0, 2.25])
def test_a_mixed_plan_found_under_a_limit_is_found_without_one(gib, build):
    """Slow links, three blocks of experts: sharding the blocks alone is faster than any one sharding."""
    cluster = build.cluster(4, build.profile(per_node=4, fast=20, slow=3))
    spec = build.model(["experts"] * 3, {"experts": build.block(experts=4, ffn=1024)}, tied=True)
    model = build.cost_model(spec, cluster, batch=4)
    free = search(model, ANY, Pins()).best
    assert free.decision.layer_sharding
    assert free.seconds < 0.98 * search(model, replace(ANY, has_layer_sharding=False), Pins()).best.seconds
    assert free.seconds * (1.0 - MIN_GAIN) <= best_under(build, model, gib * 2**30)[0]


def test_more_memory_never_makes_a_plan_with_dear_sends_slower(build):
    """Two devices behind a 3 GB/s network, where bound and price rank splits differently."""
    cluster = build.cluster(2, build.profile(per_node=1, fast=20, slow=3))
    model = build.cost_model(build.model(4), cluster, batch=4)
    seconds = [best_under(build, model, gib * 2**30)[0] for gib in (2.3, 2.4, 2.5, 2.6, 2.8, 3.0, 80.0)]
    assert seconds == sorted(seconds, reverse=True)


@settings(SETTINGS, max_examples=8)
@given(data=st.data())
def test_a_lower_bound_stays_below_what_any_smaller_limit_achieves(data, build):
    model = data.draw(problems(build))
    free = search(model, UNIFORM, Pins())
    share = data.draw(st.floats(0.5, 1.0))
    limit = share * free.best.prediction.peak_memory_bytes
    seconds, bound = best_under(build, model, limit, limits=UNIFORM)
    assert free.lower_bound_seconds <= seconds * ROUNDING
    assert bound <= seconds * ROUNDING


@settings(SETTINGS, max_examples=14)
@given(data=st.data())
def test_pinning_what_the_search_chose_finds_it_again(data, build):
    model = data.draw(problems(build))
    best = search(model, ANY, Pins()).best
    d = best.decision.degrees
    again = search(model, ANY, Pins(tp=d.tp, pp=d.pp, dp=d.dp, cp=d.cp, ep=d.ep)).best
    assert again.seconds == pytest.approx(best.seconds, rel=1e-9)


@settings(SETTINGS, max_examples=8)
@given(data=st.data())
def test_the_search_reports_what_pricing_its_decision_gives(data, build):
    model = data.draw(problems(build))
    result = search(model, ANY, Pins())
    for solution in (result.best, *result.alternatives):
        assert price(model, solution.decision) == solution.prediction
    times = [solution.seconds for solution in (result.best, *result.alternatives)]
    assert times == sorted(times)
    kinds = {decision_kind(s.decision) for s in (result.best, *result.alternatives)}
    assert len(kinds) == len(times)


@SETTINGS
@given(data=st.data(), kind=st.sampled_from(["dense", "experts"]))
def test_decision_to_json_and_back_is_the_identity(data, kind, any_decision):
    decision = data.draw(any_decision(is_moe=kind == "experts"))
    layer_sharding = data.draw(st.lists(st.sampled_from([0, 1, 2, 3]), min_size=8, max_size=8))
    if data.draw(st.booleans()) and set(layer_sharding) != {decision.sharding}:
        decision = replace(decision, layer_sharding=tuple(layer_sharding))
    text = build_decision(decision).model_dump_json()
    assert read_decision(DecisionRecord.model_validate_json(text)) == decision


@pytest.fixture(scope="module")
def plan(build):
    """A plan of a small problem, built the way files are, and the cost model it was made with."""
    profile = build.profile(per_node=2, slow=10)
    model = build.cost_model(cluster=build.cluster(4, profile), limit=4 * 2**30)
    result = search(model, ANY, Pins())
    options = Options(memory_limit_bytes=model.problem.memory_limit_bytes)
    record = Plan(
        planner_version="0",
        inputs=build_inputs(model, profile, build.device(), options),
        decision=build_decision(result.best.decision),
        prediction=build_prediction(model, result.best.prediction),
        search=SearchRecord(
            status=result.status,
            space=result.space,
            lower_bound_seconds=result.lower_bound_seconds,
            gap=result.gap,
            funnel=result.funnel.steps,
        ),
    )
    return record, model


def test_a_plan_file_reads_back_as_the_plan_it_was_written_from(plan, tmp_path):
    record, _ = plan
    path = tmp_path / "plan.json"
    path.write_text(record.to_json())
    again = read_plan(path)
    assert again == record
    assert again.to_json() == record.to_json()


def test_a_plan_file_prices_itself_to_the_numbers_it_states(plan):
    record, model = plan
    again = read_cost_model(Plan.model_validate_json(record.to_json()).inputs)
    assert again.problem == model.problem
    assert again.constants == model.constants
    prediction = build_prediction(again, price(again, read_decision(record.decision)))
    assert prediction == record.prediction
