"""What-if: the same question at every combination of a few values, re-planned at each point."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from planner.api import make_plan
from planner.errors import InfeasibleError, InputError, UnsupportedByTarget
from planner.parallel import in_order, usable_cores
from planner.plan_file.schema import Plan
from planner.request import Request
from planner.search.tree import Pins
from planner.units import SECONDS_PER_DAY, SECONDS_PER_HOUR

MAX_POINTS = 500
FEWEST_SHARED = 6


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
        )
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
    """All points of a what-if, in the order of the values given."""

    varied: list[str]
    points: list[Point]

    def rows(self) -> list[dict[str, Any]]:
        """One flat record a point."""
        return [point.row() for point in self.points]


def compare_requests(
    request: Request,
    vary: dict[str, list[Any]],
    pins: Pins,
    *,
    target: str = "any",
    progress: Callable[[int, int], None] | None = None,
    jobs: int | None = None,
) -> Comparison:
    """Plan at each combination. A point without a plan stays in the table with its reason.

    ``jobs``: processes, by default one a core where there are FEWEST_SHARED points or more; the points are
    the same and in the same order whatever their number. Raises InputError for bad input at any point, or
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
    plan_one = partial(_planned, request, pins, target)
    points = []
    for index, point in enumerate(in_order(plan_one, chosen, jobs)):
        if progress is not None:
            progress(index + 1, len(chosen))
        points.append(point)
    return Comparison(names, points)


def _planned(request: Request, pins: Pins, target: str, values: dict[str, Any]) -> Point:
    """One point; InputError passes on."""
    try:
        plan = make_plan(request.changed(**values), pins, target=target, top=1, suggest=False)
    except (InfeasibleError, UnsupportedByTarget) as error:
        verdict = "does not fit" if isinstance(error, InfeasibleError) else f"{target} cannot"
        return Point(values, None, error.message, verdict)
    return Point(values, plan)
