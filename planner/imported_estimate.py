"""What a launcher's file costs, and the better plans one flag away from it, as one plan record."""

from __future__ import annotations

from planner.api import estimate_decision
from planner.importing import Answers, ImportedPlan, import_plan
from planner.launchers.registry import launcher
from planner.launchers.settings import changed_settings
from planner.neighbours import Neighbour, neighbours
from planner.plan_file.schema import Alternative, Plan
from planner.request import Request
from planner.units import format_bytes

MAX_NEIGHBOURS = 3
MAX_SETTINGS = 3


def estimate_file(
    name: str, path: str, request: Request, answers: Answers, *, top: int = MAX_NEIGHBOURS
) -> Plan:
    """The file priced, with up to ``top`` better neighbours as its alternatives.

    A neighbour is better when it fits and is faster, or fits where the file's plan does not. Only plans the
    same launcher can express are offered. Raises InputError and UnsupportedFeature as ``import_plan``.
    """
    launcher(name)  # an unknown launcher is named before its file is looked for
    found = import_plan(name, path, request, answers)
    tried = neighbours(found.model, found.decision)
    better = [neighbour for neighbour in tried if _is_better(found, neighbour)]
    alternatives: list[Alternative] = []
    for neighbour in better:
        if len(alternatives) == top:
            break
        alternative = _alternative(name, found, neighbour)
        if alternative is not None:
            alternatives.append(alternative)
    why = [*found.plan.why, _summary(found, tried, alternatives)]
    return found.plan.model_copy(update={"alternatives": alternatives, "why": why})


def _is_better(found: ImportedPlan, neighbour: Neighbour) -> bool:
    limit = found.model.problem.memory_limit_bytes
    now = found.plan.prediction
    if neighbour.prediction.peak_memory_bytes > limit:
        return False
    is_faster = neighbour.prediction.step_seconds < now.step_seconds * (1 - 1e-6)
    return is_faster or now.peak_memory_bytes > limit


def _alternative(name: str, found: ImportedPlan, neighbour: Neighbour) -> Alternative | None:
    """The neighbour with its change in the launcher's words; None when the launcher cannot express it."""
    plan = estimate_decision(found.model, found.resolved, neighbour.decision)
    target = launcher(name)
    if target.reasons(plan):
        return None
    words = neighbour.change
    if not target.reasons(found.plan):
        settings = changed_settings(name, found.plan, plan)
        more = f"; and {len(settings) - MAX_SETTINGS} more" if len(settings) > MAX_SETTINGS else ""
        words += f" ({'; '.join(settings[:MAX_SETTINGS])}{more})"
    share = plan.prediction.step_seconds / found.plan.prediction.step_seconds - 1
    peak = format_bytes(plan.prediction.peak_memory_bytes)
    return Alternative(
        decision=plan.decision,
        prediction=plan.prediction,
        why=f"{share:+.1%}, {peak}: one flag away, {words}",
    )


def _summary(found: ImportedPlan, tried: list[Neighbour], better: list[Alternative]) -> str:
    limit = found.model.problem.memory_limit_bytes
    fitting = sum(neighbour.prediction.peak_memory_bytes <= limit for neighbour in tried)
    text = f"of {len(tried)} plans one flag away {fitting} fit"
    if better:
        return f"{text}; the best: {better[0].why}"
    return f"{text} and none that {found.imported.launcher} runs is better"
