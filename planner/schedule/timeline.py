"""Replay of an operation order into a timeline of events.

Every rank issues its operations in order; an operation starts when the rank is free and its input has
arrived: forward of virtual stage c needs forward of c-1, backward needs backward of c+1 (and, on the last
virtual stage, the forward itself). The makespan, the bubble and each rank's finish are read off the
result; there is no formula for them anywhere else.

What waits for what is a matter of the order alone: ``resolve`` works it out once, ``run`` adds the seconds.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
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
    """finish[r]: seconds when rank r ends its last operation; busy[r]: seconds it computes."""

    makespan: float
    finish: tuple[float, ...]
    busy: tuple[float, ...]
    events: tuple[Event, ...] = ()

    def bubble(self, rank: int) -> float:
        """Idle fraction of a rank over the makespan."""
        return 1.0 - self.busy[rank] / self.makespan


@dataclass(frozen=True)
class Program:
    """An order as steps numbered from 1, none ahead of what it waits for.

    Of each step: the number of the rank's step before it, that of the step that makes its input (0 for
    none), and which of the delays (``Seconds.delays``) and durations (``Seconds.durations``) are its own.
    of_rank[r]: the steps of rank r, in its order.
    """

    schedule: str
    order: Order
    steps: list[tuple[int, int, int, int]]
    of_rank: list[list[int]]

    @property
    def microbatches(self) -> int:
        return 1 + max(operation.microbatch for operation in self.order[0])


@dataclass(frozen=True)
class Seconds:
    """Per virtual stage c, empty lists meaning none.

    forward[c], backward[c]: durations; weight[c]: the part of backward that is the weight gradient, where the
    order splits it. forward_delay[c]: between the end of forward c and the earliest start of forward c+1;
    backward_delay[c]: between backward c and c-1.
    """

    forward: list[float]
    backward: list[float]
    forward_delay: list[float]
    backward_delay: list[float]
    weight: list[float]

    def durations(self) -> list[float]:
        """By kind of operation (``orders.FORWARD`` ...), then by virtual stage."""
        weight = self.weight or [0.0] * len(self.forward)
        inputs = [b - w for b, w in zip(self.backward, weight, strict=True)]
        return [*self.forward, *self.backward, *inputs, *weight]

    def delays(self) -> list[float]:
        """Behind none, behind the forward of every stage, behind its backward."""
        nothing = [0.0] * len(self.forward)
        return [0.0, *(self.forward_delay or nothing), *(self.backward_delay or nothing)]


def resolve(order: Order, schedule: str, stages: int) -> Program:
    """What every operation of ``order`` waits for, on a pipeline of so many virtual ``stages``.

    ``schedule`` says which virtual stage a rank's chunk is. Raises ValueError when the order deadlocks.
    """
    pp = len(order)
    placed = [
        [virtual_stage(schedule, rank, chunk, pp) for chunk in range(stages // pp)] for rank in range(pp)
    ]
    microbatches = 1 + max(operation.microbatch for operation in order[0])
    forwards, backwards = ([[0] * microbatches for _ in range(stages)] for _ in range(2))
    steps: list[tuple[int, int, int, int]] = []
    of_rank: list[list[int]] = [[] for _ in order]
    number, total, last = 0, sum(map(len, order)), stages - 1
    while number < total:
        before = number
        for operations, own, mine in zip(order, placed, of_rank, strict=True):
            latest = mine[-1] if mine else 0
            for kind, microbatch, chunk in islice(operations, len(mine), None):
                stage = own[chunk]
                source = delay = 0
                if kind == FORWARD:
                    if stage:
                        source, delay = forwards[stage - 1][microbatch], stage
                        if not source:
                            break
                    forwards[stage][microbatch] = number + 1
                elif kind != WEIGHT_GRADIENT:
                    if stage == last:
                        source = forwards[stage][microbatch]
                    else:
                        source, delay = backwards[stage + 1][microbatch], stages + stage + 2
                    if not source:
                        break
                    backwards[stage][microbatch] = number + 1
                steps.append((latest, source, delay, kind * stages + stage))
                latest = number = number + 1
                mine.append(number)
        if number == before:
            raise ValueError("the operation order deadlocks: no rank can issue its next operation")
    return Program(schedule, order, steps, of_rank)


def run(program: Program, seconds: Seconds) -> list[float]:
    """When every step of ``program`` ends; number 0 is the start of the schedule."""
    durations, delays = seconds.durations(), seconds.delays()
    ends = [0.0]
    for before, source, delay, duration in program.steps:
        free, arrived = ends[before], ends[source] + delays[delay]
        ends.append((free if free > arrived else arrived) + durations[duration])
    return ends


def busy_seconds(schedule: str, pp: int, microbatches: int, seconds: Seconds) -> tuple[float, ...]:
    """Seconds each rank computes; ranks with equal work are equally busy to the last digit."""
    chunks = range(len(seconds.forward) // pp)
    return tuple(
        microbatches * sum(seconds.forward[stage] + seconds.backward[stage] for stage in mine)
        for mine in ([virtual_stage(schedule, rank, chunk, pp) for chunk in chunks] for rank in range(pp))
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
    """Timeline of ``order`` with per-virtual-stage times (see ``Seconds``).

    ``schedule`` says which virtual stage a rank's chunk is. Between two virtual stages of one rank nothing
    is sent. Raises ValueError when the order deadlocks.
    """
    seconds = Seconds(
        forward_seconds, backward_seconds, forward_delay or [], backward_delay or [], weight_seconds or []
    )
    program = resolve(order, schedule, len(forward_seconds))
    return timeline_of(program, seconds, run(program, seconds), keep_events=keep_events)


def timeline_of(program: Program, seconds: Seconds, ends: list[float], *, keep_events: bool) -> Timeline:
    """The timeline of a program that has ``run``."""
    finish = tuple(ends[mine[-1]] for mine in program.of_rank)
    busy = busy_seconds(program.schedule, len(program.order), program.microbatches, seconds)
    return Timeline(max(finish), finish, busy, _events(program, seconds, ends) if keep_events else ())


def _events(program: Program, seconds: Seconds, ends: list[float]) -> tuple[Event, ...]:
    delays = seconds.delays()
    events: list[Event | None] = [None] * len(program.steps)
    for rank, (operations, mine) in enumerate(zip(program.order, program.of_rank, strict=True)):
        for operation, number in zip(operations, mine, strict=True):
            before, source, delay, _ = program.steps[number - 1]
            start = max(ends[before], ends[source] + delays[delay])
            events[number - 1] = Event(rank, operation, start, ends[number])
    return tuple(event for event in events if event is not None)
