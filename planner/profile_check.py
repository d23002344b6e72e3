"""Checks of a plan priced on a measured profile: priced again from the profile inside the file, no search."""

from __future__ import annotations

import math

from planner.errors import InputError
from planner.plan_file.schema import Plan
from planner.profile_decision import read_layered
from planner.profile_plan import find_setting, predict
from planner.profile_request import problem_of_inputs
from planner.units import format_bytes, format_seconds

TOLERANCE = 1e-9


def profile_checks(plan: Plan) -> list[tuple[str, bool, str]]:
    """(name, holds, numbers) of every check beyond coverage."""
    try:
        problem = problem_of_inputs(plan.inputs)
        decision = read_layered(plan.decision)
        again = predict(problem, find_setting(problem, decision), decision)
    except InputError as error:
        return [("priced again from its profile", False, str(error))]
    stated, limit = plan.prediction, plan.inputs.options.memory_limit_bytes
    bound, total = plan.search.lower_bound_seconds, sum(stated.breakdown_seconds.values())
    return [
        (
            "step time",
            math.isclose(again.step_seconds, stated.step_seconds, rel_tol=TOLERANCE),
            f"{format_seconds(again.step_seconds)} priced again, "
            f"{format_seconds(stated.step_seconds)} stated",
        ),
        (
            "peak memory",
            math.isclose(again.peak_memory_bytes, stated.peak_memory_bytes, rel_tol=TOLERANCE),
            f"{format_bytes(again.peak_memory_bytes)} priced again, "
            f"{format_bytes(stated.peak_memory_bytes)} stated",
        ),
        (
            "memory limit",
            again.peak_memory_bytes <= limit * (1 + TOLERANCE),
            f"{format_bytes(again.peak_memory_bytes)} of {format_bytes(limit)}",
        ),
        (
            "breakdown",
            math.isclose(total, stated.step_seconds, rel_tol=TOLERANCE),
            f"causes sum to {format_seconds(total)}",
        ),
        (
            "lower bound",
            bound <= again.step_seconds * (1 + TOLERANCE),
            f"{format_seconds(bound)} is not above the plan's own time",
        ),
    ]
