"""Laws of the optimum itself: what must hold between the best plans of two questions."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.errors import InfeasibleError
from planner.search.engine import search
from planner.search.least_memory import least_memory
from planner.search.tree import Pins
from planner.strategy.limits import ANY

SETTINGS = settings(deadline=None, max_examples=4, derandomize=True)
ROUNDING = 1 + 1e-9
# The certificate is that of plans with one sharding for all layers and whole blocks gathered.
UNIFORM = replace(ANY, has_layer_sharding=False, gather_units=("block",))


def small_model(build, kinds, tied, prefix=""):
    blocks = {
        f"{prefix}dense": build.block(),
        f"{prefix}wide": build.block(ffn=16384),
        f"{prefix}experts": build.block(experts=4, ffn=1024),
    }
    return build.model([prefix + kind for kind in kinds], blocks, tied=tied)


questions = st.fixed_dictionaries(
    {
        "kinds": st.sampled_from(
            [
                ["dense"] * 4,
                ["dense", "wide", "dense"],
                ["experts"] * 3,
                ["dense", "experts"] * 2,
                ["wide", "wide", "dense", "dense"],
            ]
        ),
        "tied": st.booleans(),
        "devices": st.sampled_from([2, 4, 8]),
        "per_node": st.sampled_from([1, 2]),
        "batch": st.sampled_from([4, 6, 8]),
    }
)


def model_of(build, q, *, fast=100.0, slow=20.0, prefix="", limit=None):
    profile = build.profile(per_node=q["per_node"], fast=fast, slow=slow, name=f"{prefix}machine")
    spec = small_model(build, q["kinds"], q["tied"], prefix)
    if prefix:
        stacks = [stack.model_copy(update={"name": prefix + stack.name}) for stack in spec.stacks]
        spec = spec.model_copy(update={"name": prefix + spec.name, "stacks": stacks})
    model = build.cost_model(spec, build.cluster(q["devices"], profile), batch=q["batch"])
    return model if limit is None else build.with_limit(model, limit)


def capped(build, q, share, **links):
    """The same question under a limit between the plan of least memory and the fastest one."""
    free = search(model_of(build, q, **links), ANY, Pins()).best.prediction.peak_memory_bytes
    least = least_memory(model_of(build, q, **links), ANY, Pins(), free).peak_bytes
    return model_of(build, q, **links, limit=least + share * (free - least) + 1.0)


def no_slower(better, worse):
    """The better question's plan is no slower than the other's, up to the gap its certificate states."""
    assert better.lower_bound_seconds <= worse.best.seconds * ROUNDING
    assert better.best.seconds * (1 - better.gap) <= worse.best.seconds * ROUNDING


def no_slower_if_any(better, model, limits, pins):
    """The same against a narrower space, which may hold no plan at all."""
    try:
        narrower = search(model, limits, pins)
    except InfeasibleError:
        return
    no_slower(better, narrower)


@SETTINGS
@given(q=questions, faster=st.sampled_from([1.5, 4.0, 20.0]), where=st.sampled_from(["fast", "slow"]))
def test_a_faster_link_is_never_worse(q, faster, where, build):
    links = {"fast": 30.0, "slow": 3.0}
    before = capped(build, q, 0.4, **links)
    links[where] *= faster
    after = model_of(build, q, **links, limit=before.problem.memory_limit_bytes)
    no_slower(search(after, UNIFORM, Pins()), search(before, UNIFORM, Pins()))


@settings(SETTINGS, max_examples=2)
@given(q=questions)
def test_renaming_model_layers_and_machine_changes_no_plan(q, build):
    limit = capped(build, q, 0.3).problem.memory_limit_bytes
    one = search(model_of(build, q, limit=limit), ANY, Pins())
    # The other name sorts the other way round.
    other = search(model_of(build, q, prefix="~", limit=limit), ANY, Pins())
    assert other.best == one.best
    assert [a.decision for a in other.alternatives] == [a.decision for a in one.alternatives]
    assert other.lower_bound_seconds == one.lower_bound_seconds
    assert other.funnel == one.funnel


@SETTINGS
@given(q=questions, share=st.floats(0.4, 1.0))
def test_a_pin_is_never_faster_and_a_narrower_space_neither(q, share, build):
    model = capped(build, q, share)
    whole = search(model, UNIFORM, Pins())
    d = whole.best.decision.degrees
    for pins in (Pins(tp=d.tp), Pins(pp=d.pp), Pins(sharding="parameters")):
        no_slower_if_any(whole, model, UNIFORM, pins)
    no_slower_if_any(whole, model, replace(UNIFORM, schedules=("1f1b",)), Pins())


@SETTINGS
@given(q=questions)
def test_the_number_of_plans_asked_for_changes_neither_the_best_nor_its_certificate(q, build):
    model = model_of(build, q)
    one, six = search(model, ANY, Pins(), top=1), search(model, ANY, Pins(), top=6)
    assert one.best == six.best
    assert one.lower_bound_seconds == pytest.approx(six.lower_bound_seconds, rel=1e-12)
    assert one.status == six.status
