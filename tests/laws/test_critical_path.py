"""The critical path to a rank's end: its parts sum to that end, and it says what longer operations do."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from planner.schedule.critical_path import CriticalPaths
from planner.schedule.orders import BACKWARD, INPUT_GRADIENT, ZERO_BUBBLE
from planner.schedule.steady import program
from planner.schedule.timeline import Seconds, run

EXACT = 1e-9
seconds = st.floats(0.1, 10.0)


@st.composite
def pipelines(draw):
    """A schedule's program, its seconds, and seconds to add to every backward."""
    schedule = draw(st.sampled_from(["1f1b", "gpipe", "interleaved", "zb-h1", "zb-v"]))
    pp = draw(st.integers(2, 4))
    chunks = {"interleaved": draw(st.integers(2, 3)), "zb-v": 2}.get(schedule, 1)
    stages, microbatches = pp * chunks, pp * draw(st.integers(1, 3))
    forward, backward, send, more = (
        draw(st.lists(seconds, min_size=stages, max_size=stages)) for _ in range(4)
    )
    weight = [0.4 * b for b in backward] if schedule in ZERO_BUBBLE else []
    times = Seconds(forward, backward, [0.1 * s for s in send], [0.0, *(0.1 * s for s in send[:-1])], weight)
    return program(schedule, pp, microbatches, chunks), times, more


@given(pipelines())
def test_its_operations_and_sends_sum_to_the_end(pipeline):
    order, times, _ = pipeline
    paths = CriticalPaths(order, times)
    ends = run(order, times)
    durations = times.durations()
    sends = sum(times.delays()) * order.microbatches
    for rank, finish in enumerate(paths.finish):
        counts = paths.counts(rank)
        assert finish == ends[order.of_rank[rank][-1]]
        worked = sum(n * one for n, one in zip(counts, durations, strict=True))
        assert worked <= finish * (1.0 + EXACT)
        assert finish <= (worked + sends) * (1.0 + EXACT)


@given(pipelines(), st.floats(0.0, 1.0))
def test_longer_backwards_put_an_end_off_by_as_often_as_they_lie_on_the_path(pipeline, share):
    order, times, more = pipeline
    added = [share * one for one in more]
    longer = Seconds(
        times.forward,
        [b + one for b, one in zip(times.backward, added, strict=True)],
        times.forward_delay,
        times.backward_delay,
        times.weight,
    )
    kind = INPUT_GRADIENT if order.schedule in ZERO_BUBBLE else BACKWARD
    stages = len(more)
    before, after = CriticalPaths(order, times), CriticalPaths(order, longer)
    for rank in range(len(before.finish)):
        mine = before.counts(rank)[kind * stages : (kind + 1) * stages]
        least = before.finish[rank] + sum(n * one for n, one in zip(mine, added, strict=True))
        assert after.finish[rank] >= least * (1.0 - EXACT)
