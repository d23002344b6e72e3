"""Laws of planning with idle GPUs: more GPUs are never worse, whole nodes are never left out."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.api import make_plan
from planner.errors import InfeasibleError
from planner.idle import MANY_NODES, make_plan_allowing_idle, sensible_counts
from planner.request import Request

SETTINGS = settings(deadline=None, max_examples=5, derandomize=True)
ROUNDING = 1 + 1e-9


@pytest.fixture(scope="module")
def request_on(build):
    """A request for a small model on so many GPUs of a small machine; heads and layers divide oddly."""

    def of(gpus: int, *, per_node: int, batch: int, heads: int, layers: int, slow: float) -> Request:
        block = build.block(hidden=768, heads=heads, ffn=3072)
        return Request(
            model=build.model(layers, {"block": block}, hidden=768),
            cluster=build.profile(per_node=per_node, nodes=12, slow=slow),
            device=build.device(),
            gpus=gpus,
            seq_len=1024,
            global_batch=batch,
        )

    return of


machines = st.fixed_dictionaries(
    {
        "per_node": st.sampled_from([2, 4]),
        "batch": st.sampled_from([6, 7, 12, 16]),
        "heads": st.sampled_from([2, 6, 12]),
        "layers": st.sampled_from([3, 4, 5]),
        "slow": st.sampled_from([5.0, 100.0]),
    }
)


def seconds_of(request):
    """The best step with idle GPUs allowed, infinite when no number of them gives a plan."""
    try:
        return make_plan_allowing_idle(request, top=1, suggest=False).prediction.step_seconds
    except InfeasibleError:
        return math.inf


@settings(SETTINGS, max_examples=4)
@given(machine=machines, counts=st.lists(st.integers(1, 14), min_size=3, max_size=3, unique=True))
def test_more_gpus_are_never_worse_when_some_may_idle(machine, counts, request_on):
    seconds = [seconds_of(request_on(gpus, **machine)) for gpus in sorted(counts)]
    for fewer, more in pairwise(seconds):
        assert more <= fewer * ROUNDING


@settings(SETTINGS, max_examples=5)
@given(machine=machines, nodes=st.integers(1, 5))
def test_the_best_number_beats_every_whole_number_of_nodes(machine, nodes, request_on):
    """The search over numbers against planning every one of them."""
    per_node = machine["per_node"]
    gpus = nodes * per_node
    every = [math.inf]
    for count in {*range(1, per_node + 1), *(k * per_node for k in range(1, nodes + 1))}:
        try:
            plan = make_plan(request_on(count, **machine), top=1, suggest=False)
        except InfeasibleError:
            continue
        every.append(plan.prediction.step_seconds)
    found = make_plan_allowing_idle(request_on(gpus, **machine), top=1, suggest=False)
    assert found.prediction.step_seconds == pytest.approx(min(every), rel=1e-9)
    record = found.search.idle
    assert record.gpus_available == gpus
    assert record.idle_gpus == gpus - found.inputs.cluster.gpus


def test_an_awkward_number_of_gpus_leaves_some_idle(request_on):
    """A batch of 8 and 4 layers on 10 GPUs: 8 divide them, 10 do not."""
    machine = {"per_node": 2, "batch": 8, "heads": 2, "layers": 4, "slow": 100.0}
    found = make_plan_allowing_idle(request_on(10, **machine), top=1, suggest=False)
    assert found.inputs.cluster.gpus == 8
    assert found.search.idle.idle_gpus == 2
    assert found.search.idle.most_gpus_seconds is None or (
        found.search.idle.most_gpus_seconds > found.prediction.step_seconds
    )


@given(gpus=st.integers(1, 5000), per_node=st.sampled_from([1, 2, 4, 6, 8]), more=st.integers(0, 200))
@settings(deadline=None, max_examples=200, derandomize=True)
def test_a_larger_machine_offers_what_a_smaller_one_does(gpus, per_node, more):
    small, large = sensible_counts(gpus, per_node), sensible_counts(gpus + more, per_node)
    assert small == sorted(small, reverse=True)
    assert small[0] == (gpus if gpus < per_node else gpus // per_node * per_node)
    missing = set(small) - set(large)
    assert missing <= {small[0]}
    if gpus // per_node <= MANY_NODES:
        assert not missing
