"""The front between speed and memory: the fastest plan under each of several memory limits.

A plan with head-room h is the best plan under the limit (1 - h) L, found by the same search and with the same
certificate as the plan under L. Two facts save searches: a plan whose peak lies under the tighter limit is
the best there too, because less memory never makes another plan faster; and the bound of a looser limit
holds for every tighter one. The end of the front is the plan of the smallest fullest rank.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from planner.cost.model import CostModel
from planner.cost.step import price
from planner.errors import InfeasibleError, SolverError
from planner.search.engine import PROVED_GAP, SearchResult, search
from planner.search.least_memory import LeastMemory, least_memory
from planner.search.reporter import Reporter
from planner.search.solution import Solution
from planner.search.tree import Pins
from planner.strategy.limits import Limits

ROUNDING = 1.0 + 1e-9


@dataclass(frozen=True)
class FrontPoint:
    """The best plan found under ``limit_bytes``, and seconds no plan there can beat.

    ``head_room``: the share of the search's memory limit left free; None for the end of least memory.
    """

    head_room: float | None
    limit_bytes: float
    solution: Solution
    lower_bound_seconds: float
    status: str

    @property
    def gap(self) -> float:
        """(plan - lower bound) / plan."""
        return max(0.0, 1.0 - self.lower_bound_seconds / self.solution.seconds)


@dataclass(frozen=True)
class Front:
    """Points by growing head-room, the end of least memory last where it was found.

    ``unfit``: head-rooms at which nothing fits. ``is_complete``: False when stopped early.
    """

    points: list[FrontPoint]
    least: LeastMemory | None = None
    unfit: list[float] = field(default_factory=list)
    is_complete: bool = True


def head_room_front(
    model: CostModel,
    limits: Limits,
    pins: Pins,
    best: SearchResult,
    head_rooms: Sequence[float],
    *,
    time_budget_seconds: float = math.inf,
    reporter: Reporter | None = None,
) -> Front:
    """The front of a finished search: ``best`` under its own limit, then each of ``head_rooms`` (shares).

    The seconds never fall from one point to the next. Ctrl-C and the time budget end it with the points
    known by then.
    """
    deadline = time.process_time() + time_budget_seconds
    full = model.problem.memory_limit_bytes
    # A refined plan may lie below the bound of uniform sharding: then no plan known or bounded is faster.
    bound = min(best.lower_bound_seconds, best.best.seconds)
    points = [FrontPoint(0.0, full, best.best, bound, best.status)]
    unfit: list[float] = []
    least: LeastMemory | None = None
    is_complete = best.status != "interrupted"
    try:
        for share in sorted(set(head_rooms)):
            left = deadline - time.process_time()
            if left <= 0.0 or not is_complete:
                return Front(_monotone(points), None, unfit, False)
            if unfit:
                unfit.append(share)
                continue
            point = _point(model, limits, pins, points[-1], share, (1.0 - share) * full, left, reporter)
            if point is None:
                unfit.append(share)
            else:
                points.append(point)
                is_complete = point.status != "interrupted"
        if is_complete and time.process_time() < deadline:
            known = min(point.solution.prediction.peak_memory_bytes for point in points)
            least = least_memory(model, limits, pins, known, deadline=deadline)
            left = deadline - time.process_time()
            points.append(_end(model, limits, pins, points[-1], least, left, reporter))
    except KeyboardInterrupt:
        is_complete = False
    return Front(_monotone(points), least, unfit, is_complete)


def _point(
    model: CostModel,
    limits: Limits,
    pins: Pins,
    looser: FrontPoint,
    head_room: float | None,
    limit_bytes: float,
    time_budget_seconds: float,
    reporter: Reporter | None,
) -> FrontPoint | None:
    """The best plan under ``limit_bytes``, None when nothing fits."""
    if looser.solution.prediction.peak_memory_bytes <= limit_bytes * ROUNDING:
        return replace(looser, head_room=head_room, limit_bytes=limit_bytes)
    tighter = replace(model, problem=replace(model.problem, memory_limit_bytes=limit_bytes))
    try:
        found = search(
            tighter, limits, pins, top=1, time_budget_seconds=time_budget_seconds, reporter=reporter
        )
    except (InfeasibleError, SolverError):
        return None
    bound = min(max(found.lower_bound_seconds, looser.lower_bound_seconds), found.best.seconds)
    return FrontPoint(head_room, limit_bytes, found.best, bound, found.status)


def _end(
    model: CostModel,
    limits: Limits,
    pins: Pins,
    looser: FrontPoint,
    least: LeastMemory,
    time_budget_seconds: float,
    reporter: Reporter | None,
) -> FrontPoint:
    """The end of least memory: the fastest plan there; where the least is not known, the plan found.

    Searching at a limit that is not the least costs much and proves little.
    """
    limit = least.peak_bytes * ROUNDING
    if least.decision is None:
        smallest = looser.solution
        return replace(looser, head_room=None, limit_bytes=max(limit, smallest.prediction.peak_memory_bytes))
    if least.is_exact:
        point = _point(model, limits, pins, looser, None, limit, time_budget_seconds, reporter)
        if point is not None:
            return point
    bound = looser.lower_bound_seconds
    found = Solution(least.decision, price(model, least.decision), bound)
    return FrontPoint(None, limit, found, min(bound, found.seconds), "gap")


def _monotone(points: list[FrontPoint]) -> list[FrontPoint]:
    """More memory never slower: a plan found under a tighter limit serves every looser one.

    Only a search that ended with a gap, or a refinement outside the bounded space, leaves room for that.
    """
    found = list(points)
    for index in reversed(range(len(found) - 1)):
        this, tighter = found[index], found[index + 1]
        plan = tighter.solution
        if plan.seconds < this.solution.seconds * (1.0 - PROVED_GAP):
            bound = min(this.lower_bound_seconds, plan.seconds)
            found[index] = replace(this, solution=plan, lower_bound_seconds=bound, status=tighter.status)
    return found
