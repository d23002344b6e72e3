"""When the dynamic program finds nothing that fits: finer gathers for the plans that come closest.

Whole blocks gathered under sharded parameters can be what passes the limit: units finer than a block
(``cost.gather_units``) need less of it. The integer program looks for them on balanced stages of the
candidates of least memory; the fastest plan that fits is the answer.

Plans are tried under the schedule that holds least (``nearest_miss.least_schedules``): plain 1F1B, or what
the pins leave of interleaving and GPipe. Zero bubble is not: the program does not know its weight gradients,
and with everything recomputed it holds no less than plain 1F1B. What that cannot hold no schedule can, but
for the balance of its stages.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import islice

import numpy as np

from planner.cost.layer import CostTable
from planner.cost.model import CostModel
from planner.cost.step import Prediction
from planner.schedule.orders import ZERO_BUBBLE
from planner.search.nearest_miss import least_schedules, recomputed
from planner.search.policy import offered_modes
from planner.search.refinement import refine, strategies_of
from planner.search.tree import Pins
from planner.strategy.decision import SHARDING_PARAMETERS, Decision
from planner.strategy.limits import Limits

# A solver that answers each of them late must not make the error wait.
MOST_PROGRAMS = 8


# What the solver says where it has looked at everything it was asked for.
ANSWERS = ("optimal", "infeasible", "no better by its relaxation")


@dataclass(frozen=True)
class Rescue:
    """A plan with finer gathers where none gathers whole blocks, and the solver's data.

    Without a plan ``solver`` is that of a program that was not answered, None when all of them were.
    """

    decision: Decision | None
    prediction: Prediction | None
    solver: dict[str, object] | None


def rescue(model: CostModel, limits: Limits, pins: Pins, table: CostTable, least_bytes: np.ndarray) -> Rescue:
    """The fastest plan found with finer gathers.

    ``table``: candidates as ``Space.smallest`` gives them, ``least_bytes`` what each holds at least.
    """
    chosen = np.flatnonzero(
        (table.candidates.sharding == SHARDING_PARAMETERS) & (least_bytes <= model.problem.memory_limit_bytes)
    )
    best, unanswered = Rescue(None, None, None), None
    order = chosen[np.argsort(least_bytes[chosen], kind="stable")]
    rows = (
        row
        for row in least_schedules(model, table, order, limits, pins)
        if row.schedule not in ZERO_BUBBLE
        and pins.schedule in (None, row.schedule)
        and pins.virtual_stages in (None, row.virtual_stages)
    )
    for row in islice(rows, MOST_PROGRAMS):
        decision = recomputed(model, row)
        strategies = strategies_of(model, decision, limits)
        if len(strategies) < 2:
            break
        known = math.inf if best.prediction is None else best.prediction.step_seconds
        found = refine(model, decision, known, strategies, offered_modes(limits))
        if found.decision is not None:
            best = Rescue(found.decision, found.prediction, found.solver)
        elif found.solver["status"] not in ANSWERS:
            unanswered = found.solver
    return best if best.decision is not None else Rescue(None, None, unanswered)
