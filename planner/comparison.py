"""What-if: the same question at every combination of a few values, re-planned at each point."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from planner.api import make_plan
from planner.errors import InfeasibleError, InputError, SolverError, UnsupportedByTarget
from planner.fronts import PERCENT
from planner.idle import make_plan_allowing_idle, sensible_counts
from planner.parallel import in_order, usable_cores
from planner.plan_file.schema import Plan
from planner.request import Request, available_gpus, resolve
from planner.search.tree import Pins
from planner.targets import limits_of
from planner.units import GIB, SECONDS_PER_DAY, SECONDS_PER_HOUR

MAX_POINTS = 500
FEWEST_SHARED = 6
# What may vary beside the fields of a request: per cent of the memory limit left free.
HEAD_ROOM = "head_room_percent"


@dataclass(frozen=True)
class HowToPlan:
    """What is the same at every point of a comparison: pins, launcher, and how long to search."""

    pins: Pins
    target: str = "any"
    allow_idle: bool = False
    exact: bool = False
    time_budget_seconds: float = math.inf


@dataclass(frozen=True)
class Point:
    """One combination: the values varied, the plan, or why there is none (in short: the verdict)."""

    values: dict[str, Any]
    plan: Plan | None
    reason: str = ""
    verdict: str = ""

    def row(self) -> dict[str, Any]:
        """The point as one flat record; empty figures where nothing fits."""
        row: dict[str, Any] = dict(self.values)
        if self.plan is None:
            return {**row, "fits": False, "verdict": self.verdict, "reason": self.reason}
        p, d = self.plan.prediction, self.plan.decision
        row.update(
            fits=True,
            step_seconds=p.step_seconds,
            step_seconds_low=p.step_seconds_interval[0],
            step_seconds_high=p.step_seconds_interval[1],
            tokens_per_second=p.tokens_per_second,
            tokens_per_second_per_gpu=p.tokens_per_second_per_gpu,
            mfu=p.mfu,
            peak_memory_bytes=p.peak_memory_bytes,
            tp=d.degrees.tp,
            pp=d.degrees.pp,
            dp=d.degrees.dp,
            cp=d.degrees.cp,
            ep=d.degrees.ep,
            microbatch_size=d.microbatch_size,
            virtual_stages=d.virtual_stages,
            sharding=d.sharding,
            recompute=d.recompute,
            offload=d.offload,
            status=self.plan.search.status,
            gap=self.plan.search.gap,
            warnings=self.plan.warnings,
        )
        if self.plan.search.idle is not None:
            row["idle_gpus"] = self.plan.search.idle.idle_gpus
        tokens = self.plan.inputs.workload.tokens
        if tokens is not None:
            seconds = tokens / p.tokens_per_second
            row["days"] = seconds / SECONDS_PER_DAY
            row["gpu_hours"] = seconds / SECONDS_PER_HOUR * self.plan.inputs.cluster.gpus
            price = self.plan.inputs.cluster.profile.node_groups[0].price_dollars_per_device_hour
            if price is not None:
                row["dollars"] = row["gpu_hours"] * price.value
        return row


@dataclass(frozen=True)
class Comparison:
    """All points of a what-if, in the order of the values given.

    ``left``: points that Ctrl-C kept from being planned.
    """

    varied: list[str]
    points: list[Point]
    left: int = 0

    def rows(self) -> list[dict[str, Any]]:
        """One flat record a point."""
        return [point.row() for point in self.points]


def compare_requests(
    request: Request,
    vary: dict[str, list[Any]],
    how: HowToPlan,
    *,
    progress: Callable[[int, int], None] | None = None,
    jobs: int | None = None,
) -> Comparison:
    """Plan at each combination of the fields of ``request`` named in ``vary``; see ``compare_points``."""
    return compare_points(partial(_planned, request, how), vary, progress=progress, jobs=jobs)


def compare_points(
    plan_one: Callable[[dict[str, Any]], Point],
    vary: dict[str, list[Any]],
    *,
    progress: Callable[[int, int], None] | None = None,
    jobs: int | None = None,
) -> Comparison:
    """``plan_one`` at each combination. A point without a plan stays in the table with its reason.

    ``plan_one`` is pickled where more than one process works. ``jobs``: processes, by default one a core
    where there are FEWEST_SHARED points or more; the points are the same and in the same order whatever their
    number. Ctrl-C ends it with the points planned by then. Raises InputError for bad input at any point, or
    more than 500 points.
    """
    names = list(vary)
    combinations = list(itertools.product(*vary.values()))
    if len(combinations) > MAX_POINTS:
        raise InputError(
            f"{len(combinations)} combinations are more than the {MAX_POINTS} a comparison plans",
            hint="give fewer values",
        )
    chosen = [dict(zip(names, values, strict=True)) for values in combinations]
    if jobs is None:
        jobs = usable_cores() if len(chosen) >= FEWEST_SHARED else 1
    points: list[Point] = []
    try:
        for index, point in enumerate(in_order(plan_one, chosen, jobs)):
            if progress is not None:
                progress(index + 1, len(chosen))
            points.append(point)
    except KeyboardInterrupt:
        if not points:
            raise
    return Comparison(names, points, len(chosen) - len(points))


def _planned(request: Request, how: HowToPlan, values: dict[str, Any]) -> Point:
    """One point; InputError passes on."""
    fields = {name: value for name, value in values.items() if name != HEAD_ROOM}
    asked = request.changed(**fields)
    if values.get(HEAD_ROOM):
        asked = _with_head_room(asked, values[HEAD_ROOM], limits_of(how.target).stack)
    planner = make_plan_allowing_idle if how.allow_idle else make_plan
    plan_it = partial(
        planner,
        asked,
        how.pins,
        target=how.target,
        top=1,
        suggest=False,
        exact=how.exact,
        time_budget_seconds=how.time_budget_seconds,
    )
    return point_of(plan_it, how.target, values)


def point_of(plan_it: Callable[[], Plan], target: str, values: dict[str, Any]) -> Point:
    """The point ``plan_it`` gives, or why there is none; InputError passes on."""
    try:
        return Point(values, plan_it())
    except (InfeasibleError, SolverError, UnsupportedByTarget) as error:
        verdict = "does not fit" if isinstance(error, InfeasibleError) else f"{target} cannot"
        verdict = "solver failed" if isinstance(error, SolverError) else verdict
        return Point(values, None, error.message, verdict)


def _with_head_room(request: Request, percent: float, stack: str) -> Request:
    """The request under its own memory limit on a training ``stack``, less ``percent`` of it."""
    whole = request.changed(gpus=sensible_counts(*available_gpus(request))[0])
    limit = resolve(whole, stack).problem.memory_limit_bytes
    return request.changed(memory_limit_gib=(1.0 - percent / PERCENT) * limit / GIB)
