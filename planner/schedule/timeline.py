"""Replay of an operation order into a timeline of events.

Every rank issues its operations in order; an operation starts when the rank is free and its input has
arrived: forward of virtual stage c needs forward of c-1, backward needs backward of c+1 (and, on the last
virtual stage, the forward itself). The makespan, the bubble and each rank's finish are read off the
result; there is no formula for them anywhere else.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from planner.schedule.orders import FORWARD, WEIGHT_GRADIENT, Operation, Order, virtual_stage


class Event(NamedTuple):
    """One executed operation on a rank, seconds from the start of the step."""

    rank: int
    operation: Operation
    start: float
    end: float


@dataclass(frozen=True)
class Timeline:
    """finish[r]: seconds when rank r ends its last operation; busy[r]: seconds it computes.

    ends[r]: seconds when rank r ends each of its operations, in its order.
    """

    makespan: float
    finish: tuple[float, ...]
    busy: tuple[float, ...]
    events: tuple[Event, ...] = ()
    ends: tuple[list[float], ...] = ()

    def bubble(self, rank: int) -> float:
        """Idle fraction of a rank over the makespan."""
        return 1.0 - self.busy[rank] / self.makespan


def busy_seconds(
    schedule: str, pp: int, microbatches: int, forward_seconds: list[float], backward_seconds: list[float]
) -> tuple[float, ...]:
    """Seconds each rank computes; ranks with equal work are equally busy to the last digit."""
    per_rank = len(forward_seconds) // pp
    stages = [[virtual_stage(schedule, rank, chunk, pp) for chunk in range(per_rank)] for rank in range(pp)]
    return tuple(
        microbatches * sum(forward_seconds[stage] + backward_seconds[stage] for stage in mine)
        for mine in stages
    )


def replay(
    order: Order,
    forward_seconds: list[float],
    backward_seconds: list[float],
    forward_delay: list[float] | None = None,
    backward_delay: list[float] | None = None,
    *,
    weight_seconds: list[float] | None = None,
    schedule: str = "1f1b",
    keep_events: bool = False,
) -> Timeline:
    """Timeline of ``order`` with per-virtual-stage times.

    forward_seconds[c], backward_seconds[c]: duration on virtual stage c; forward_delay[c] between the end
    of forward c and the earliest start of forward c+1; backward_delay[c] between backward c and c-1.
    weight_seconds[c]: the part of backward that is the weight gradient, where the order splits it.
    ``schedule`` says which virtual stage a rank's chunk is. Between two virtual stages of one rank nothing
    is sent. Raises ValueError when the order deadlocks.
    """
    pp = len(order)
    stages = len(forward_seconds)
    forward_delay = forward_delay or [0.0] * stages
    backward_delay = backward_delay or [0.0] * stages
    weight_seconds = weight_seconds or [0.0] * stages
    seconds = (
        forward_seconds,
        backward_seconds,
        [b - w for b, w in zip(backward_seconds, weight_seconds, strict=True)],
        weight_seconds,
    )
    placed = [[virtual_stage(schedule, r, c, pp) for c in range(stages // pp)] for r in range(pp)]
    microbatches = 1 + max(op.microbatch for op in order[0])
    forward_ready: list[list[float]] = [[-1.0] * microbatches for _ in range(stages)]
    backward_ready: list[list[float]] = [[-1.0] * microbatches for _ in range(stages)]
    forward_ready[0] = [0.0] * microbatches
    always = [[0.0] * microbatches] * stages
    ready_at = (forward_ready, backward_ready, backward_ready, always)
    position, clock = [0] * pp, [0.0] * pp
    events: list[Event] = []
    ends: tuple[list[float], ...] = tuple([] for _ in order)
    remaining = sum(len(operations) for operations in order)
    while remaining:
        before = remaining
        for rank in range(pp):
            operations = order[rank]
            at, now, ended = position[rank], clock[rank], ends[rank]
            while at < len(operations):
                kind, microbatch, chunk = operations[at]
                stage = placed[rank][chunk]
                ready = ready_at[kind][stage][microbatch]
                if ready < 0.0:
                    break
                start = now if now > ready else ready
                now = start + seconds[kind][stage]
                if kind == FORWARD:
                    if stage + 1 < stages:
                        forward_ready[stage + 1][microbatch] = now + forward_delay[stage]
                    else:
                        backward_ready[stage][microbatch] = now
                elif kind != WEIGHT_GRADIENT and stage:
                    backward_ready[stage - 1][microbatch] = now + backward_delay[stage]
                ended.append(now)
                if keep_events:
                    events.append(Event(rank, operations[at], start, now))
                at += 1
            remaining -= at - position[rank]
            position[rank], clock[rank] = at, now
        if remaining == before:
            raise ValueError("the operation order deadlocks: no rank can issue its next operation")
    busy = busy_seconds(schedule, pp, microbatches, forward_seconds, backward_seconds)
    return Timeline(max(clock), tuple(clock), busy, tuple(events), ends)
