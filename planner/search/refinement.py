"""Plans whose memory binds, refined layer by layer: which strategies there are, and when the result is used.

The integer program (``integer_program``) proposes; its plan is priced like every decision, and kept when it
fits and is faster.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from planner.cost.decision_rows import strategy_rows
from planner.cost.gather_units import has_units
from planner.cost.model import CostModel
from planner.cost.offload import usable_bytes
from planner.cost.step import Prediction, price
from planner.search.integer_program import MIN_GAIN, LayerProgram, solver_library
from planner.search.recompute import MODES
from planner.strategy.decision import (
    GATHER_UNITS,
    SHARDING_PARAMETERS,
    SHARDINGS,
    UNIT_BLOCK,
    Decision,
)
from planner.strategy.limits import Limits

# Share of the step paid for memory from which another choice per layer is looked for.
WORTH = 2e-3
# Kinds of blocks beyond which the program has thousands of variables and does not end in time.
MOST_KINDS = 16


@dataclass(frozen=True)
class Refinement:
    """What the integer program gave: the decision and prediction when better, and the solver's own data."""

    decision: Decision | None
    prediction: Prediction | None
    solver: dict[str, object]


def block_kinds(model: CostModel) -> int:
    """How many kinds of blocks the model has."""
    chain = model.chain
    return len({chain.layers[layer] for layer in chain.block_layers})


def is_memory_bound(decision: Decision) -> bool:
    """Whether the plan pays for memory: it recomputes, or gathers sharded parameters."""
    return any(decision.recompute) or decision.sharding == SHARDING_PARAMETERS


def paid_share(decision: Decision, prediction: Prediction) -> float:
    """The share of the step that the plan pays for memory: recomputation; gathers where it shards weights.

    What another choice per layer could save of it at most, but for what it moves off the slowest rank.
    """
    paid = prediction.breakdown_seconds["recompute"]
    if decision.sharding == SHARDING_PARAMETERS:
        paid += prediction.breakdown_seconds["dp"]
    return paid / prediction.step_seconds


def strategies_of(model: CostModel, decision: Decision, limits: Limits) -> list[tuple[int, int]]:
    """(sharding, gather unit) codes the launcher lets blocks of this decision have, its own first."""
    codes = [decision.sharding]
    data_ranks = decision.degrees.dp * decision.degrees.cp
    may_differ = limits.has_layer_sharding and SHARDINGS[decision.sharding] in limits.layer_sharding_bases
    if may_differ and decision.sharding != SHARDING_PARAMETERS and data_ranks > 1:
        codes.append(SHARDING_PARAMETERS)
    found = [(code, UNIT_BLOCK) for code in codes]
    if SHARDING_PARAMETERS in codes and any(map(has_units, model.problem.model.block_kinds.values())):
        units = [GATHER_UNITS.index(name) for name in limits.gather_units]
        found += [(SHARDING_PARAMETERS, unit) for unit in units if unit != UNIT_BLOCK]
    return found


def refine(
    model: CostModel,
    decision: Decision,
    current_seconds: float,
    strategies: list[tuple[int, int]],
    offered: tuple[int, ...] = MODES,
) -> Refinement:
    """Choose among ``strategies`` and recompute (none or an ``offered`` mode) per layer on its stages.

    Infinite ``current_seconds`` for a decision that does not fit: any that does is better. A missing, failing
    or slow solver costs the refinement, never the answer: its status says so.
    """
    model = model.placed(decision.offload)
    pulp = solver_library()
    if pulp is None:
        return Refinement(None, None, {"name": "pulp", "status": "not installed"})
    if len(strategies) < 2:
        return Refinement(None, None, {"name": "none", "status": "nothing to choose: one sharding possible"})
    program = LayerProgram(
        pulp, model, decision, strategy_rows(model, decision, strategies), strategies, offered
    )
    solver = program.solve(current_seconds * (1.0 - MIN_GAIN))
    if solver["status"] != "optimal" and solver["status"] != "feasible":
        return Refinement(None, None, solver)
    refined = program.decision()
    prediction = price(model, refined)
    is_better = prediction.step_seconds < current_seconds * (1.0 - MIN_GAIN)
    fits = prediction.peak_memory_bytes <= model.problem.memory_limit_bytes * (1.0 + 1e-9)
    fits &= prediction.host_bytes <= usable_bytes(model.problem.cluster.host)
    solver["step_seconds"] = prediction.step_seconds
    solver["is_used"] = is_better and fits
    bound, best = solver.get("bound_seconds"), prediction.step_seconds if fits else current_seconds
    if isinstance(bound, float) and math.isfinite(best):
        solver["gap"] = max(0.0, 1.0 - bound / min(best, current_seconds))
    if not (is_better and fits):
        return Refinement(None, None, solver)
    return Refinement(refined, prediction, solver)
