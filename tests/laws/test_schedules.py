"""Laws of pipeline schedules, read off the replayed events."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.schedule.orders import alive_states, in_flight, operation_order, warmup_operations
from planner.schedule.timeline import replay
from planner.search.layout import balanced_chunks
from planner.search.split_bounds import WEIGHTS_DELAYED, rank_lower_bound, zero_bubble_return_bound

seconds = st.floats(0.01, 10.0, allow_nan=False)
SETTINGS = settings(deadline=None, max_examples=150, derandomize=True)


@st.composite
def pipelines(draw, schedules=("1f1b", "gpipe", "interleaved")):
    """(schedule, pp, microbatches, virtual stages) that are legal together."""
    schedule = draw(st.sampled_from(schedules))
    pp = draw(st.integers(1 if schedule != "interleaved" else 2, 6))
    if schedule == "interleaved":
        return schedule, pp, pp * draw(st.integers(1, 4)), draw(st.integers(2, 4))
    return schedule, pp, draw(st.integers(1, 12)), 1


@st.composite
def timed(draw, schedules=("1f1b", "gpipe", "interleaved")):
    """A pipeline with forward, backward and sending seconds per virtual stage."""
    shape = draw(pipelines(schedules))
    stages = shape[1] * shape[3]
    times = st.lists(seconds, min_size=stages, max_size=stages)
    return shape, draw(times), draw(times), draw(times), draw(times)


def run(shape, forward, backward, *delays, keep_events=False):
    return replay(operation_order(*shape), forward, backward, *delays, keep_events=keep_events)


@SETTINGS
@given(pipelines(("1f1b",)), seconds, seconds)
def test_the_1f1b_bubble_of_equal_stages_is_p_minus_1_over_m_plus_p_minus_1(shape, forward, backward):
    _, pp, m, _ = shape
    timeline = run(shape, [forward] * pp, [backward] * pp)
    for rank in range(pp):
        assert timeline.bubble(rank) == pytest.approx((pp - 1) / (m + pp - 1), abs=1e-9)


@SETTINGS
@given(pipelines(("interleaved",)), seconds, seconds)
def test_interleaving_divides_the_bubble_by_the_virtual_stages(shape, forward, backward):
    _, pp, m, v = shape
    timeline = run(shape, [forward / v] * (pp * v), [backward / v] * (pp * v))
    assert timeline.bubble(0) == pytest.approx((pp - 1) / (m * v + pp - 1), abs=1e-9)


@SETTINGS
@given(timed())
def test_events_never_overlap_on_a_rank_and_wait_for_their_inputs(case):
    shape, forward, backward, forward_delay, backward_delay = case
    _, pp, m, v = shape
    timeline = run(shape, forward, backward, forward_delay, backward_delay, keep_events=True)
    last = pp * v - 1
    ended, free = {}, [0.0] * pp
    per_rank = [[] for _ in range(pp)]
    for event in timeline.events:
        stage = event.operation.chunk * pp + event.rank
        ended[event.operation.is_backward, stage, event.operation.microbatch] = event.end
        per_rank[event.rank].append(event)
    assert len(ended) == 2 * m * pp * v == len(timeline.events)
    for rank, events in enumerate(per_rank):
        assert [event.operation for event in events] == list(operation_order(*shape)[rank])
        for event in events:
            assert event.start >= free[rank]
            free[rank] = event.end
            stage, microbatch = event.operation.chunk * pp + rank, event.operation.microbatch
            if event.operation.is_backward:
                own, above = ended[False, stage, microbatch], ended.get((True, stage + 1, microbatch))
                assert event.start >= own - 1e-9
                if stage < last:
                    assert event.start >= above + backward_delay[stage + 1] - 1e-9
                assert event.end - event.start == pytest.approx(backward[stage])
            else:
                if stage:
                    assert (
                        event.start >= ended[False, stage - 1, microbatch] + forward_delay[stage - 1] - 1e-9
                    )
                assert event.end - event.start == pytest.approx(forward[stage])
    assert timeline.finish == tuple(free)
    assert timeline.makespan == max(free)


@SETTINGS
@given(timed())
def test_no_rank_idles_while_its_next_operation_could_run(case):
    """A replay that only ever waits for inputs: every start is a predecessor's end."""
    shape, forward, backward, forward_delay, backward_delay = case
    pp = shape[1]
    timeline = run(shape, forward, backward, forward_delay, backward_delay, keep_events=True)
    ends = {0.0}
    for event in timeline.events:
        stage = event.operation.chunk * pp + event.rank
        delay = backward_delay if event.operation.is_backward else forward_delay
        ends |= {event.end, event.end + delay[stage]}
    assert all(event.start in ends for event in timeline.events)


@SETTINGS
@given(timed(("1f1b",)))
def test_1f1b_is_never_slower_than_gpipe(case):
    shape, forward, backward, *_ = case
    deep = run(("gpipe", *shape[1:]), forward, backward)
    assert run(shape, forward, backward).makespan <= deep.makespan * (1 + 1e-12)


@SETTINGS
@given(timed(("1f1b", "gpipe")))
def test_the_lower_bound_of_any_rank_is_below_the_makespan(case):
    shape, forward, backward, *_ = case
    schedule, pp, m, _ = shape
    makespan = run(shape, forward, backward).makespan
    both = [f + b for f, b in zip(forward, backward, strict=True)]
    for rank in range(pp):
        warmup = warmup_operations(schedule, rank, pp, m)
        before, after = sum(both[:rank]), sum(both[rank + 1 :])
        bound = rank_lower_bound(before, forward[rank], backward[rank], after, m, warmup)
        assert bound <= makespan * (1 + 1e-12)


@SETTINGS
@given(pipelines(("1f1b",)), seconds, seconds)
def test_the_lower_bound_of_equal_stages_is_the_makespan(shape, forward, backward):
    _, pp, m, _ = shape
    both = forward + backward
    bounds = [
        rank_lower_bound(
            rank * both, forward, backward, (pp - rank - 1) * both, m, warmup_operations("1f1b", rank, pp, m)
        )
        for rank in range(pp)
    ]
    assert max(bounds) == pytest.approx(run(shape, [forward] * pp, [backward] * pp).makespan)


def live(order, chunks):
    """Microbatches alive per chunk after every operation of one rank."""
    counts = Counter()
    for operation in order:
        counts[operation.chunk] += -1 if operation.is_backward else 1
        yield tuple(counts[chunk] for chunk in range(chunks))


@SETTINGS
@given(pipelines())
def test_in_flight_is_the_most_activations_alive_at_once(shape):
    v = shape[3]
    for rank, order in enumerate(operation_order(*shape)):
        moments = list(live(order, v))
        held = in_flight(shape[0], rank, *shape[1:])
        assert sum(held) == max(map(sum, moments))
        assert held in moments  # one moment, not a mixture of several
        assert set(moments[-1]) == {0}


@SETTINGS
@given(pipelines(("interleaved",)), st.lists(st.integers(1, 8), min_size=4, max_size=4))
def test_alive_states_cover_chunks_of_unequal_size(shape, sizes):
    """Bytes a rank holds at its fullest when its chunks keep unequal bytes per microbatch."""
    v = shape[3]
    for rank, order in enumerate(operation_order(*shape)):
        charged = max(
            sum(n * size for n, size in zip(state, sizes, strict=False))
            for state in alive_states(shape[0], rank, *shape[1:])
        )
        fullest = max(
            sum(n * size for n, size in zip(moment, sizes, strict=False)) for moment in live(order, v)
        )
        assert charged == fullest


@SETTINGS
@given(st.integers(1, 200), st.integers(1, 32), st.integers(0, 4), st.integers(0, 12))
def test_balanced_chunks_cover_every_block_once_and_differ_by_one(blocks, stages, first_extra, last_extra):
    stages = min(stages, blocks)
    chunks = balanced_chunks(blocks, stages, first_extra, last_extra)
    assert len(chunks) == stages
    assert [b for first, end in chunks for b in range(first, end)] == list(range(blocks))
    sizes = [end - first for first, end in chunks]
    assert min(sizes) >= 1
    weighed = list(sizes)
    weighed[0] += first_extra
    weighed[-1] += last_extra
    assert max(weighed) - min(weighed) <= 1 or max(sizes) - min(sizes) <= 1


@st.composite
def split_stages(draw):
    """(schedule, pp, m), seconds of forward, input and weight gradient of every stage, and of the sends."""
    pp, m = draw(st.integers(1, 6)), draw(st.integers(1, 16))
    times = st.lists(st.floats(0.1, 5.0), min_size=pp, max_size=pp)
    sends = draw(st.lists(st.floats(0.0, 2.0), min_size=pp, max_size=pp))
    return draw(st.sampled_from(sorted(WEIGHTS_DELAYED))), pp, m, draw(times), draw(times), draw(times), sends


@given(split_stages())
def test_zero_bubble_never_returns_before_the_bound_of_any_rank(case):
    schedule, pp, m, forward, inputs, weight, sends = case
    backward = [i + w for i, w in zip(inputs, weight, strict=True)]
    order = operation_order(schedule, pp, m)
    line = replay(
        order,
        forward,
        backward,
        sends,
        [0.0, *sends[:-1]],
        weight_seconds=weight,
        schedule=schedule,
    )
    for rank in range(pp):
        turn = sum(forward[:rank]) + sum(inputs[:rank]) + 2.0 * sum(sends[:rank])
        seconds, delayed = forward[rank] + backward[rank], WEIGHTS_DELAYED[schedule]
        bound = zero_bubble_return_bound(turn, seconds, weight[rank], m, rank, delayed) + weight[0]
        assert line.finish[0] >= bound * (1 - 1e-12)
