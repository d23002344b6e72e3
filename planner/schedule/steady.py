"""The timeline of a schedule without replaying every microbatch: its steady state, found and continued.

Behind its warm-up a rank repeats one pattern of operations, a *period*: of one microbatch under 1F1B, of pp
of them when interleaved. A tensor is used in the period that made it or in the next one. So if x(n) are the
ends of all operations of period n, on all ranks, then x(n+1) = F(x(n)), where F takes maxima and adds
constants: it hands on what is added to all of its arguments, F(x + t) = F(x) + t, and brings no two further
apart, |F(x) - F(y)| <= |x - y|. Hence, once a period has moved every end by the same t, all later ones do,
and k periods more let every rank finish k t later. Where the moves agree to ``ROUNDING`` of the clock, the
result is off by k times that at most. Baccelli, Cohen, Olsder and Quadrat, Synchronization and Linearity
(1992), chapter 3, on such (max, +) recurrences.

Where no steady state is found early, and for the other schedules, every microbatch is replayed.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from planner.schedule.orders import operation_order, warmup_operations
from planner.schedule.timeline import Program, Seconds, Timeline, busy_seconds, resolve, run, timeline_of

PERIODIC = ("1f1b", "interleaved")
# A share of the clock: some units in the last place, as sums of many doubles differ by.
ROUNDING = 1e-14
# Periods replayed before a steady state is looked for: those of nearly all schedules, and once more.
FIRST_LOOK = 3
SECOND_LOOK_PER_STAGE = 4


@dataclass(frozen=True)
class Period:
    """What an order repeats: microbatches and operations of a period, and where it begins.

    first[r]: rank r's operations ahead of its first period.
    """

    microbatches: int
    operations: int
    first: tuple[int, ...]

    def shortest(self, periods: int) -> int:
        """The fewest microbatches with which every rank has so many periods."""
        forwards = self.operations // 2
        return self.microbatches * (periods + -(-self.first[0] // forwards))

    def seconds(self, program: Program, ends: list[float], number: int) -> float | None:
        """By how much period ``number`` moved all ends of the one before; None where they differ."""
        moved = None
        for first, mine in zip(self.first, program.of_rank, strict=True):
            at = first + number * self.operations
            for step in range(at, at + self.operations):
                after = ends[mine[step]]
                apart = after - ends[mine[step - self.operations]]
                if moved is None:
                    moved = apart
                elif abs(apart - moved) > ROUNDING * after:
                    return None
        return moved


@lru_cache(maxsize=1024)
def period(schedule: str, pp: int, virtual_stages: int = 1) -> Period:
    """The period of a schedule of ``PERIODIC``; rank 0 has the longest warm-up."""
    microbatches = pp if schedule == "interleaved" else 1
    # The first period begins with the forward behind which the first backward comes.
    endless = 4 * pp * virtual_stages
    first = (warmup_operations(schedule, rank, pp, endless, virtual_stages) - 1 for rank in range(pp))
    return Period(microbatches, 2 * microbatches * virtual_stages, tuple(first))


def timeline(
    schedule: str,
    pp: int,
    microbatches: int,
    virtual_stages: int,
    forward_seconds: list[float],
    backward_seconds: list[float],
    forward_delay: list[float] | None = None,
    backward_delay: list[float] | None = None,
    *,
    weight_seconds: list[float] | None = None,
    keep_events: bool = False,
) -> Timeline:
    """``replay`` of ``operation_order``: mostly without replaying all of it.

    Seconds as in ``replay``. Raises InputError as ``operation_order`` does.
    """
    seconds = Seconds(
        forward_seconds, backward_seconds, forward_delay or [], backward_delay or [], weight_seconds or []
    )
    if schedule in PERIODIC and not keep_events:
        repeated = period(schedule, pp, virtual_stages)
        for periods in (FIRST_LOOK, SECOND_LOOK_PER_STAGE * (pp + 1)):
            short = repeated.shortest(periods)
            left, rest = divmod(microbatches - short, repeated.microbatches)
            if left <= 0 or rest:
                break
            begun = program(schedule, pp, short, virtual_stages)
            ends = run(begun, seconds)
            moved = repeated.seconds(begun, ends, periods - 1)
            if moved is not None:
                finish = tuple(ends[mine[-1]] + left * moved for mine in begun.of_rank)
                return Timeline(max(finish), finish, busy_seconds(schedule, pp, microbatches, seconds))
    whole = program(schedule, pp, microbatches, virtual_stages)
    return timeline_of(whole, seconds, run(whole, seconds), keep_events=keep_events)


@lru_cache(maxsize=64)
def program(schedule: str, pp: int, microbatches: int, virtual_stages: int) -> Program:
    """``resolve`` of ``operation_order``."""
    return resolve(operation_order(schedule, pp, microbatches, virtual_stages), schedule, pp * virtual_stages)
