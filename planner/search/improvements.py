"""What is tried on the plans the best-first search found, or did not find.

Neighbours of a plan that is not proved, the integer program where memory binds or shardings may be mixed, and
gathers of less than a block where no plan that gathers whole blocks fits.
"""

from __future__ import annotations

from planner.cost.model import CostModel
from planner.cost.step import price
from planner.schedule.orders import ZERO_BUBBLE
from planner.search.mixed_sharding import may_mix, mixed_without_pipeline
from planner.search.policy import SPLIT_RECOMPUTES, offered_modes
from planner.search.polish import polish
from planner.search.refinement import (
    MOST_KINDS,
    WORTH,
    block_kinds,
    is_memory_bound,
    paid_share,
    refine,
    strategies_of,
)
from planner.search.reporter import Reporter
from planner.search.rescue import rescue
from planner.search.solution import TIE, Solution
from planner.search.space import Space
from planner.search.tree import Pins
from planner.search.words import solver_failed
from planner.strategy.decision import RECOMPUTES
from planner.strategy.kind import decision_kind
from planner.strategy.limits import Limits


def polished(model: CostModel, limits: Limits, pins: Pins, ranked: list[Solution]) -> list[Solution]:
    """The ranked solutions, the best one moved to its fastest neighbour where every layer has its choice."""
    best = ranked[0]
    if limits.recompute_granularity != "layer" or pins.recompute is not None:
        return ranked
    if best.decision.virtual_stages > 1 and paid_share(best.decision, best.prediction) < WORTH:
        return ranked  # only recomputation moves there
    modes = offered_modes(limits)
    if best.decision.schedule in ZERO_BUBBLE:
        modes = tuple(mode for mode in modes if RECOMPUTES[mode] in SPLIT_RECOMPUTES)
    decision = polish(model, best.decision, best.seconds, model.problem.memory_limit_bytes, modes)
    if decision == best.decision:
        return ranked
    return [Solution(decision, price(model, decision), best.bound_seconds), *ranked[1:]]


def with_best(ranked: list[Solution], others: list[Solution]) -> list[Solution]:
    """The ranked solutions with the fastest of ``others`` ahead, in place of its kind's, if it beats them."""
    best = min(others, key=lambda solution: solution.seconds, default=ranked[0])
    if best.seconds >= ranked[0].seconds * (1.0 - TIE):
        return ranked
    kind = decision_kind(best.decision)
    return [best, *(solution for solution in ranked if decision_kind(solution.decision) != kind)]


def finer_gathers(
    model: CostModel, limits: Limits, pins: Pins, space: Space
) -> tuple[Solution, dict[str, object]] | None:
    """A plan that gathers less than a block at once, where none that gathers whole blocks fits.

    Raises SolverError where the solver did not say whether there is one.
    """
    if pins.recompute is not None or len(limits.gather_units) < 2:
        return None
    found = rescue(model, limits, pins, *space.smallest())
    if found.decision is None or found.prediction is None:
        if found.solver is not None:
            raise solver_failed(model, space, pins, found.solver)
        return None
    # Finer gathers are never faster than whole ones: the bases' bounds hold for them too.
    return Solution(found.decision, found.prediction, space.floor_seconds()), found.solver or {}


def refined(
    model: CostModel, limits: Limits, pins: Pins, ranked: list[Solution], reporter: Reporter
) -> tuple[list[Solution], dict[str, object]]:
    """The ranked solutions, the best one refined by the integer program when its memory binds."""
    best = ranked[0]
    strategies = strategies_of(model, best.decision, limits)
    is_free = pins.recompute is None and pins.sharding is None and len(strategies) > 1
    is_free &= best.decision.schedule not in ZERO_BUBBLE and limits.recompute_granularity == "layer"
    is_free &= not best.decision.layer_tp
    if not is_free or not is_memory_bound(best.decision):
        return ranked, {}
    kinds = block_kinds(model)
    if kinds > MOST_KINDS:
        return ranked, {
            "name": "none",
            "status": f"not asked: {kinds} kinds of blocks, of {MOST_KINDS} at most",
        }
    share = paid_share(best.decision, best.prediction)
    if share < WORTH:
        words = f"nothing to gain: recomputation and gathers are {share:.2%} of the step"
        return ranked, {"name": "none", "status": words}
    reporter.refining(best.decision.label())
    refinement = refine(model, best.decision, best.seconds, strategies, offered_modes(limits))
    if refinement.decision is None or refinement.prediction is None:
        return ranked, refinement.solver
    better = Solution(refinement.decision, refinement.prediction, best.bound_seconds)
    return [better, *ranked[1:]], refinement.solver


def mixed(
    model: CostModel,
    limits: Limits,
    pins: Pins,
    space: Space,
    ranked: list[Solution],
    solver: dict[str, object],
) -> tuple[list[Solution], dict[str, object]]:
    """The ranked solutions, a faster one of mixed shardings and one stage first, and its solver's data."""
    if not may_mix(limits, pins) or block_kinds(model) > MOST_KINDS:
        return ranked, solver
    found = mixed_without_pipeline(model, limits, pins, space.without_pipeline(), ranked[0].seconds)
    if found is None:
        return ranked, solver
    better = Solution(found.decision, found.prediction, found.bound_seconds)
    return with_best(ranked, [better]), found.solver
