"""What-if on measured files: the same profile planned at every combination of a few values."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from planner.comparison import Comparison, Point, compare_points, point_of
from planner.profile_plan import make_profile_plan
from planner.profile_request import ProfileRequest

# Fields of a ProfileRequest that a comparison may vary.
VARIABLE = ("model", "gpu", "gpus", "seq_len", "global_batch", "precision", "memory_limit_gib")


def compare_profile(
    request: ProfileRequest,
    vary: dict[str, list[Any]],
    *,
    target: str = "any",
    time_budget_seconds: float = math.inf,
    progress: Callable[[int, int], None] | None = None,
    jobs: int | None = None,
) -> Comparison:
    """Plan the profile at each combination of the fields named in ``vary`` (of VARIABLE).

    Raises InputError for bad input at any point; see ``comparison.compare_points``.
    """
    plan_one = partial(_planned, request, target, time_budget_seconds)
    return compare_points(plan_one, vary, progress=progress, jobs=jobs)


def _planned(request: ProfileRequest, target: str, budget: float, values: dict[str, Any]) -> Point:
    asked = replace(request, **values)
    plan_it = partial(make_profile_plan, asked, target=target, time_budget_seconds=budget)
    return point_of(plan_it, target, values)
