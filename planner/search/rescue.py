"""When the dynamic program finds nothing that fits: finer gathers for the plans that come closest.

Whole blocks gathered under sharded parameters can be what passes the limit: units finer than a block
(``cost.gather_units``) need less of it. The integer program looks for them on balanced stages of the
candidates of least memory; the fastest plan that fits is the answer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from planner.cost.layer import CostTable
from planner.cost.model import CostModel
from planner.cost.row import candidate_row
from planner.cost.step import Prediction
from planner.search.nearest_miss import ONE_F_ONE_B, recomputed
from planner.search.policy import offered_modes
from planner.search.refinement import refine, strategies_of
from planner.strategy.decision import SHARDING_PARAMETERS, Decision
from planner.strategy.limits import Limits

# A solver that answers each of them late must not make the error wait.
MOST_PROGRAMS = 8


@dataclass(frozen=True)
class Rescue:
    """A plan with finer gathers where none gathers whole blocks, and the solver's data."""

    decision: Decision
    prediction: Prediction
    solver: dict[str, object]


def rescue(model: CostModel, limits: Limits, table: CostTable, least_bytes: np.ndarray) -> Rescue | None:
    """The fastest plan found with finer gathers, None when none fits.

    ``table``: candidates as ``Space.smallest`` gives them, ``least_bytes`` what each holds at least.
    """
    chosen = np.flatnonzero(
        (table.candidates.sharding == SHARDING_PARAMETERS) & (least_bytes <= model.problem.memory_limit_bytes)
    )
    best: Rescue | None = None
    for index in chosen[np.argsort(least_bytes[chosen], kind="stable")][:MOST_PROGRAMS].tolist():
        row = candidate_row(model.problem, table, model.stack, index, ONE_F_ONE_B, 1)
        decision = recomputed(model, row)
        strategies = strategies_of(model, decision, limits)
        if len(strategies) < 2:
            break
        known = math.inf if best is None else best.prediction.step_seconds
        found = refine(model, decision, known, strategies, offered_modes(limits))
        if found.decision is not None and found.prediction is not None:
            best = Rescue(found.decision, found.prediction, found.solver)
    return best
