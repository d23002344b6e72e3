"""The timeline continued from its steady state is the timeline replayed to the last microbatch."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.errors import InputError
from planner.schedule import steady
from planner.schedule.orders import FORWARD, operation_order, virtual_stage
from planner.schedule.steady import FIRST_LOOK, PERIODIC, period, timeline
from planner.schedule.timeline import replay

SETTINGS = settings(deadline=None, max_examples=300, derandomize=True)
# Equal stages, nearly equal ones (a long way to the steady state) and stages of any length.
LEVELS = (st.just(1.0), st.floats(1.0, 1.001), st.floats(0.01, 10.0))


@st.composite
def long_pipelines(draw):
    """(schedule, pp, microbatches, virtual stages), and seconds: forward, backward, both delays."""
    schedule = draw(st.sampled_from(PERIODIC))
    if schedule == "interleaved":
        pp, v = draw(st.integers(2, 6)), draw(st.integers(2, 4))
        shape = schedule, pp, pp * draw(st.integers(1, 24)), v
    else:
        pp, v = draw(st.integers(1, 8)), 1
        shape = schedule, pp, draw(st.integers(1, 150)), v
    level = draw(st.sampled_from(LEVELS))
    times = st.lists(level, min_size=pp * v, max_size=pp * v)
    delay = draw(st.sampled_from((st.just(0.0), st.floats(0.0, 3.0))))
    delays = st.lists(delay, min_size=pp * v, max_size=pp * v)
    return shape, (draw(times), draw(times), draw(delays), draw(delays))


def whole(shape, seconds):
    return replay(operation_order(*shape), *seconds, schedule=shape[0])


@SETTINGS
@given(long_pipelines())
def test_a_continued_steady_state_is_the_whole_replay(case):
    shape, seconds = case
    short, full = timeline(*shape, *seconds), whole(shape, seconds)
    assert short.makespan == pytest.approx(full.makespan, rel=1e-12)
    assert short.finish == pytest.approx(full.finish, rel=1e-12)
    assert short.busy == full.busy


@pytest.mark.parametrize(
    "shape", [("1f1b", 1, 64, 1), ("1f1b", 8, 512, 1), ("interleaved", 4, 128, 3), ("interleaved", 8, 64, 6)]
)
@pytest.mark.parametrize("slow", [1.0, 1.5])
def test_few_microbatches_are_replayed_where_one_stage_or_none_is_the_slowest(shape, slow, monkeypatch):
    stages = shape[1] * shape[3]
    forward = [1.0] * (stages - 1) + [slow]
    delay = [0.1 if shape[0] == "interleaved" else 0.0] * stages  # 1F1B waits for its sends: they are its own
    seconds = forward, [2.0 * one for one in forward], delay, delay
    steps, real = [], steady.run
    monkeypatch.setattr(steady, "run", lambda program, given: steps.append(program) or real(program, given))
    short, full = timeline(*shape, *seconds), whole(shape, seconds)
    assert short.finish == pytest.approx(full.finish, rel=1e-13)
    assert [program.microbatches for program in steps] == [period(*shape[:2], shape[3]).shortest(FIRST_LOOK)]
    assert steps[0].microbatches < shape[2]


def test_a_slow_way_to_the_steady_state_is_replayed_to_the_end():
    """Stage 1 outruns stage 2 by so little that the queue between them is not full within the schedule."""
    shape = "1f1b", 3, 200, 1
    seconds = [1.0, 1.0, 1.0], [2.0, 2.0, 2.0 + 1e-5], [0.5] * 3, [0.5] * 3
    assert timeline(*shape, *seconds) == whole(shape, seconds)


@pytest.mark.parametrize("schedule", PERIODIC)
@pytest.mark.parametrize("pp", [2, 3, 4, 8])
@pytest.mark.parametrize("virtual_stages", [1, 2, 5])
def test_orders_repeat_their_period_and_tensors_wait_for_the_next_one_at_most(schedule, pp, virtual_stages):
    if schedule == "1f1b" and virtual_stages > 1:
        return
    repeated, periods = period(schedule, pp, virtual_stages), 6
    order = operation_order(schedule, pp, repeated.shortest(periods), virtual_stages)
    made = {}
    for rank, (operations, first) in enumerate(zip(order, repeated.first, strict=True)):
        steady = operations[first : first + periods * repeated.operations]
        assert len(steady) == periods * repeated.operations
        for earlier, later in zip(steady, steady[repeated.operations :], strict=False):
            moved = later.microbatch - earlier.microbatch
            assert (later.kind, later.chunk, moved) == (earlier.kind, earlier.chunk, repeated.microbatches)
        for at, operation in enumerate(operations):
            stage = virtual_stage(schedule, rank, operation.chunk, pp)
            made[operation.kind, stage, operation.microbatch] = (at - first) // repeated.operations
    last = pp * virtual_stages - 1
    for (kind, stage, microbatch), when in made.items():
        if when not in (periods - 2, periods - 1):
            continue
        if kind == FORWARD:
            source = (kind, stage - 1, microbatch)
        else:
            source = (kind, stage + 1, microbatch) if stage < last else (FORWARD, stage, microbatch)
        assert when - made.get(source, when) in (0, 1)


def test_an_interleaved_schedule_of_a_broken_group_is_refused_as_ever():
    with pytest.raises(InputError, match="multiple of pp"):
        timeline("interleaved", 4, 130, 2, [1.0] * 8, [1.0] * 8)
