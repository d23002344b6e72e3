"""Laws of what a decision costs."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from planner.cost.decision_rows import rank_items
from planner.cost.memory import MEMORY_CATEGORIES
from planner.cost.step import BREAKDOWN, price
from planner.search.layout import balanced_chunks
from planner.strategy.decision import Decision, Degrees

ROUNDING = 1 + 1e-9
STATES = ("parameters", "gradients", "optimizer")
KINDS = ("dense", "experts", "encoder-decoder")
SETTINGS = settings(
    deadline=None, max_examples=40, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def model(kind, cost_models):
    return cost_models(kind)


def fitting(data, any_decision, kind):
    """Draw a decision; heads of the encoder-decoder allow tp 8 at most."""
    return data.draw(any_decision(is_moe=kind == "experts"))


def fullest(prediction, category):
    return max(stage.memory_bytes[category] for stage in prediction.stages)


def evenly(decision, pp):
    """The decision on ``pp`` equal 1F1B stages."""
    blocks = len(decision.recompute)
    return replace(
        decision,
        degrees=replace(decision.degrees, pp=pp),
        schedule="1f1b",
        virtual_stages=1,
        chunks=balanced_chunks(blocks, pp),
    )


@SETTINGS
@given(data=st.data())
def test_breakdown_sums_to_the_step_and_memory_categories_to_the_total(data, model, any_decision, kind):
    prediction = price(model, fitting(data, any_decision, kind))
    assert tuple(prediction.breakdown_seconds) == BREAKDOWN
    assert sum(prediction.breakdown_seconds.values()) == pytest.approx(prediction.step_seconds, rel=1e-9)
    assert min(prediction.breakdown_seconds.values()) >= 0.0
    for stage in prediction.stages:
        total = sum(stage.memory_bytes[name] for name in MEMORY_CATEGORIES)
        assert stage.memory_bytes["total"] == pytest.approx(total, rel=1e-12)
        assert set(stage.memory_bytes) == {*MEMORY_CATEGORIES, "total"}
        assert sum(stage.causes.values()) == pytest.approx(stage.forward_seconds + stage.backward_seconds)
    assert prediction.peak_memory_bytes == fullest(prediction, "total")
    assert 0 < prediction.mfu <= prediction.hfu < 1


@SETTINGS
@given(data=st.data())
def test_layers_over_stages_sum_to_the_model(data, model, any_decision, kind):
    decision = fitting(data, any_decision, kind)
    placed = Counter()
    modes = Counter()
    for rank in range(decision.degrees.pp):
        for _, items in rank_items(model, decision, rank):
            for item in items:
                placed[item.kind] += item.count
                if model.chain.kinds[item.kind].role == "block":
                    modes[item.mode] += item.count
    assert placed == Counter(model.chain.layers)
    assert modes == Counter(decision.recompute)


@SETTINGS
@given(data=st.data())
def test_state_bytes_never_grow_with_tp(data, model, any_decision, kind):
    # Not inside islands: a larger tp leaves fewer replicas in one, and the padded table more to divide.
    decision = replace(fitting(data, any_decision, kind), sequence_parallel=True, sharding_group=0)
    d = replace(decision.degrees, ep=1, expert_tp=1)
    before = price(model, replace(decision, degrees=replace(d, tp=2)))
    after = price(model, replace(decision, degrees=replace(d, tp=4)))
    for category in STATES:
        assert fullest(after, category) <= fullest(before, category) * ROUNDING


@SETTINGS
@given(data=st.data())
def test_state_bytes_never_grow_with_pp(data, model, any_decision, kind):
    decision = fitting(data, any_decision, kind)
    states = [price(model, evenly(decision, pp)) for pp in (1, 2, 4, 8)]
    for category in STATES:
        sizes = [fullest(prediction, category) for prediction in states]
        assert all(b <= a * ROUNDING for a, b in pairwise(sizes))


@SETTINGS
@given(data=st.data())
def test_state_bytes_never_grow_with_more_sharding_or_a_larger_group(data, model, any_decision, kind):
    decision = fitting(data, any_decision, kind)
    group = decision.sharding_group
    ladder = [price(model, replace(decision, sharding=code, sharding_group=group)) for code in range(4)]
    for before, after in pairwise(ladder):
        for category in STATES:
            assert fullest(after, category) <= fullest(before, category) * ROUNDING
    if group == 1 and decision.sharding:
        whole = price(model, replace(decision, sharding_group=0))
        for category in STATES:
            assert fullest(whole, category) <= fullest(price(model, decision), category) * ROUNDING


def test_sharding_divides_exactly_what_it_names(cost_models):
    """On one stage of 16 replicas: 1/16 of the states, then of the gradients, then of the parameters."""
    model = cost_models("dense")
    plain = Decision(Degrees(dp=16, tp=1, pp=1), False, 0, 0, "1f1b", 1, 1, 4, ((0, 8),), (0,) * 8)
    whole = {name: fullest(price(model, plain), name) for name in STATES}
    for code, divided in enumerate(((), ("optimizer",), ("optimizer", "gradients"), STATES)):
        prediction = price(model, replace(plain, sharding=code))
        for name in STATES:
            share = 16 if name in divided else 1
            assert fullest(prediction, name) == pytest.approx(whole[name] / share)


@SETTINGS
@given(data=st.data())
def test_recompute_trades_activations_for_time(data, model, any_decision, kind):
    decision = fitting(data, any_decision, kind)
    blocks = len(decision.recompute)
    none, selective, full = (
        price(model, replace(decision, recompute=(mode,) * blocks)) for mode in (0, 1, 2)
    )
    for before, after in ((none, selective), (selective, full)):
        for a, b in zip(before.stages, after.stages, strict=True):
            assert b.memory_bytes["activations"] <= a.memory_bytes["activations"] * ROUNDING
            assert b.backward_seconds >= a.backward_seconds
            assert b.forward_seconds == a.forward_seconds
        assert after.step_seconds >= before.step_seconds / ROUNDING
    assert none.breakdown_seconds["recompute"] == 0.0
    assert full.breakdown_seconds["recompute"] > 0.0
    assert none.mfu == none.hfu


@SETTINGS
@given(data=st.data())
def test_recomputing_one_more_block_never_saves_time(data, model, any_decision, kind):
    decision = fitting(data, any_decision, kind)
    if decision.schedule == "interleaved":
        # There a longer backward may fall into idle time and still hide more of the gradient reduction.
        decision = evenly(decision, decision.degrees.pp)
    block = data.draw(st.integers(0, len(decision.recompute) - 1))
    modes = list(decision.recompute)
    modes[block] = 2
    more = price(model, replace(decision, recompute=tuple(modes)))
    assert more.step_seconds >= price(model, decision).step_seconds / ROUNDING


@SETTINGS
@given(data=st.data(), factor=st.floats(1.01, 50.0), tier=st.sampled_from(["fast", "slow"]))
def test_a_slower_link_never_makes_a_decision_faster(
    data, factor, tier, model, any_decision, kind, cost_models
):
    decision = fitting(data, any_decision, kind)
    base = {"fast": 250.0, "slow": 400.0}[tier]
    slowed = price(cost_models(kind, **{tier: base / factor}), decision)
    here = price(model, decision)
    assert slowed.step_seconds >= here.step_seconds / ROUNDING
    assert slowed.peak_memory_bytes == here.peak_memory_bytes


@SETTINGS
@given(data=st.data())
def test_renaming_the_model_its_parts_and_the_cluster_changes_no_number(
    data, model, any_decision, kind, cost_models
):
    decision = fitting(data, any_decision, kind)
    other = cost_models(kind, name="another-cluster")
    spec = other.problem.model
    blocks = {f"renamed {name}": block for name, block in spec.block_kinds.items()}
    stacks = [
        stack.model_copy(
            update={
                "name": f"renamed {stack.name}",
                "cross_attends_to": stack.cross_attends_to and f"renamed {stack.cross_attends_to}",
                "layout": [
                    run.model_copy(update={"kinds": [f"renamed {name}" for name in run.kinds]})
                    for run in stack.layout
                ],
            }
        )
        for stack in spec.stacks
    ]
    renamed = spec.model_copy(update={"name": "other", "block_kinds": blocks, "stacks": stacks})
    problem = replace(other.problem, model=renamed)
    there = price(type(other).of(problem, other.constants), decision)
    here = price(model, decision)
    assert there == here


@SETTINGS
@given(data=st.data())
def test_1f1b_is_priced_no_slower_and_no_larger_than_gpipe(data, model, any_decision, kind):
    decision = fitting(data, any_decision, kind)
    plain = evenly(decision, decision.degrees.pp)
    one, deep = price(model, plain), price(model, replace(plain, schedule="gpipe"))
    assert one.step_seconds <= deep.step_seconds * ROUNDING
    assert one.peak_memory_bytes <= deep.peak_memory_bytes * ROUNDING


@SETTINGS
@given(data=st.data())
def test_a_faster_device_never_makes_a_decision_slower(data, model, any_decision, kind):
    decision = fitting(data, any_decision, kind)
    device = replace(model.device, bytes_per_s=model.device.bytes_per_s * 2)
    assert price(replace(model, device=device), decision).step_seconds <= price(model, decision).step_seconds
