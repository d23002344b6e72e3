"""Targets: a launcher's limits, whether it runs a plan, what keeping to it costs, what it runs instead."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from planner.cost.model import CostModel
from planner.cost.step import Prediction, price
from planner.errors import InfeasibleError, SolverError, UnsupportedByTarget
from planner.plan_file.build import build_decision
from planner.plan_file.read import read_cost_model, read_decision
from planner.plan_file.schema import Inputs, Plan, RestrictionRecord
from planner.search.better import search_better
from planner.search.engine import PROVED_GAP
from planner.search.last_resort import search_all
from planner.search.solution import Solution
from planner.search.tree import Pins
from planner.strategy.decision import Decision
from planner.strategy.limits import ANY, Limits
from planner.units import format_seconds, format_share

if TYPE_CHECKING:
    from planner.launchers.base import Reason


def limits_of(target: str) -> Limits:
    """The limits of a launcher by name; "any" is the whole space. Raises UnknownName."""
    if target == "any":
        return ANY
    from planner.launchers.registry import launcher

    return launcher(target).limits


def require_expressible(plan: Plan, target: str) -> None:
    """Raises UnsupportedByTarget when the target's launcher refuses the plan found for it.

    The limits steer the search; what they cannot say (an optimizer, a model family) is checked here.
    """
    if target == "any":
        return
    from planner.launchers.registry import launcher

    _refuse(target, launcher(target).reasons(plan))


def require_able(inputs: Inputs, target: str) -> None:
    """Raises UnsupportedByTarget when the target's launcher refuses these inputs whatever the plan is.

    Asked before a search, so that a model the launcher does not have is refused at once.
    """
    if target == "any":
        return
    from planner.launchers.base import undecided
    from planner.launchers.registry import launcher

    _refuse(target, launcher(target).reasons(undecided(inputs)))


def _refuse(target: str, reasons: Sequence[Reason]) -> None:
    if reasons:
        raise UnsupportedByTarget(
            f"{target} cannot run this: "
            + "; ".join(f"{r.rule}: {r.statement} ({r.numbers})" for r in reasons),
            hint="; ".join(f"{r.rule}: {r.nearest}" for r in reasons),
            target=target,
            reasons=[r.__dict__ for r in reasons],
        )


def restriction_record(
    model: CostModel, plan: Plan, pins: Pins, best: Solution, *, time_budget_seconds: float = math.inf
) -> RestrictionRecord:
    """What the plan's target costs against the whole space, priced on the same training stack.

    ``best`` is the plan as the search found it. The whole space is searched only where it could be faster.
    """
    better = search_better(model, ANY, pins, best, time_budget_seconds=time_budget_seconds)
    target, faster = plan.inputs.options.target, better.solution
    if faster is None:
        return RestrictionRecord(
            target=target, slower=0.0, step_seconds=best.seconds, is_complete=better.is_complete
        )
    decision = build_decision(faster.decision)
    return RestrictionRecord(
        target=target,
        slower=best.seconds / faster.seconds - 1.0,
        step_seconds=faster.seconds,
        decision=decision,
        label=faster.decision.label(),
        launchers=runners(plan.model_copy(update={"decision": decision})),
        is_complete=better.is_complete,
    )


def runners(plan: Plan) -> list[str]:
    """The launchers that can express a plan, by name."""
    from planner.launchers.registry import launcher, launcher_names

    return [name for name in launcher_names() if not launcher(name).reasons(plan)]


def export_files(plan: Plan, target: str) -> dict[str, str]:
    """The launcher's files for a plan, name to text.

    What the launcher would derive from them is worked out and compared with the plan.
    Raises UnsupportedByTarget (exit 5) with every reason and with the nearest plans the launcher can express,
    priced: the best on the plan's own mesh, and the best of all.
    """
    from planner.launchers.registry import launcher
    from planner.read_back import derived_differences

    chosen = launcher(target)
    try:
        files = chosen.export(plan)
    except UnsupportedByTarget as error:
        raise _with_nearest(error, plan, target) from None
    differences = derived_differences(plan, target, files)
    if differences:
        raise RuntimeError(
            f"the files for {target} say something else than the plan: {'; '.join(differences)}"
        )
    return files


def nearest_expressible(plan: Plan, target: str) -> list[tuple[str, Prediction, Decision]]:
    """What ``target`` can run for the plan's own inputs: the best on its mesh, and the best on any.

    Each with where it was looked for. The second is left out when the first is as fast; none when the
    launcher cannot run the model or the workload at all, or nothing fits.
    """
    from planner.launchers.base import undecided
    from planner.launchers.registry import launcher

    if launcher(target).reasons(undecided(plan.inputs)):
        return []
    limits, d = limits_of(target), plan.decision.degrees
    model = _model_on(plan, limits)
    mesh = Pins(tp=d.tp, pp=d.pp, dp=d.dp, cp=d.cp, ep=d.ep)
    found: list[tuple[str, Prediction, Decision]] = []
    for where, pins in (("on this mesh", mesh), ("on any mesh", Pins())):
        try:
            best = search_all(model, limits, pins, top=1).best
        except (InfeasibleError, SolverError):
            continue
        record = build_decision(best.decision)
        is_refused = launcher(target).reasons(plan.model_copy(update={"decision": record}))
        is_faster = all(best.seconds < other.step_seconds * (1.0 - PROVED_GAP) for _, other, _ in found)
        if is_faster and not is_refused:
            found.append((where, best.prediction, best.decision))
    return found


def _model_on(plan: Plan, limits: Limits) -> CostModel:
    """The cost model of the plan's inputs on the training stack of ``limits``."""
    saved = read_cost_model(plan.inputs)
    return CostModel.of(saved.problem, saved.constants, limits.stack, saved.chain)


def _with_nearest(error: UnsupportedByTarget, plan: Plan, target: str) -> UnsupportedByTarget:
    """The refusal with the nearest expressible plans' labels and predicted costs, all on one stack."""
    nearest = nearest_expressible(plan, target)
    if not nearest:
        return error
    own = price(_model_on(plan, limits_of(target)), read_decision(plan.decision)).step_seconds
    words, records = [], []
    for where, prediction, decision in nearest:
        change = prediction.step_seconds / own - 1.0
        word = f"{format_share(abs(change))} {'slower' if change >= 0 else 'faster'}"
        words.append(f"{where} {decision.label()}, {format_seconds(prediction.step_seconds)} a step ({word})")
        records.append(
            {
                "where": where,
                "label": decision.label(),
                "decision": build_decision(decision).model_dump(mode="json"),
                "step_seconds": prediction.step_seconds,
                "slower": change,
                "peak_memory_bytes": prediction.peak_memory_bytes,
            }
        )
    return UnsupportedByTarget(
        f"{error.message}. Nearest plan {target} can run, against {format_seconds(own)} of this one: "
        + "; ".join(words),
        hint=error.hint,
        **error.details,
        nearest=records,
    )
