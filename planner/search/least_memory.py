"""The least memory anything fits in: the plan of the smallest fullest rank, of the whole space.

Bases are taken in the order of their memory bound. Each of their candidates is asked whether any split and
recompute choice fits below the smallest peak so far; where one does, bisection over the limit finds the
smallest peak of that candidate. The search ends when the bound of the next base passes the smallest peak.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from planner.cost.model import CostModel
from planner.cost.row import CandidateRow, candidate_row
from planner.cost.step import price
from planner.search.candidate import CandidateSolver
from planner.search.layout import Layout
from planner.search.nearest_miss import nearest_miss
from planner.search.policy import recompute_policies, split_policies
from planner.search.space import FIRST_WAVE, Space
from planner.search.tree import Funnel, Pins, expand_schedules
from planner.strategy.decision import Decision
from planner.strategy.limits import Limits

# Peaks closer than this share count as equal: what one more bisection could still save.
STEP = 1e-3
# Candidates asked before the gap is left as it is. A huge cluster has many ways to slice a model thin, and
# none of them is fast. A count, not seconds: the same question gives the same answer.
MOST_CANDIDATES = 4000


@dataclass(frozen=True)
class LeastMemory:
    """The plan of the smallest peak found, and bytes below which no plan of the space fits."""

    decision: Decision | None
    peak_bytes: float
    bound_bytes: float

    @property
    def is_exact(self) -> bool:
        """Whether the two are no more than a bisection step apart."""
        return self.bound_bytes >= self.peak_bytes * (1.0 - STEP)


def least_memory(
    model: CostModel, limits: Limits, pins: Pins, known_bytes: float, *, deadline: float = math.inf
) -> LeastMemory:
    """The smallest peak of any plan within ``limits``, to a tenth of a percent.

    ``known_bytes``: the peak of a plan already found; where none is smaller the decision is None.
    ``deadline``: of ``time.process_time``. What is not known by then, or after MOST_CANDIDATES, is a wider
    gap between peak and bound.
    """
    space = Space(model, limits, pins, Funnel())
    solver = candidate_solver(model, limits, pins)
    decision, peak, asked = None, known_bytes, 0
    start = _start(model, space, pins)
    if start is not None and start[1] < peak:
        decision, peak = start
    for first in range(0, space.num_bases, FIRST_WAVE):
        bound = space.least_bytes(first)
        if bound >= peak * (1.0 - STEP):
            break
        for row in _candidates(model, space, first, peak):
            if asked == MOST_CANDIDATES or time.process_time() > deadline:
                return LeastMemory(decision, peak, min(peak * (1.0 - STEP), bound))
            asked += 1
            found = smallest_peak(solver, row, below_bytes=peak * (1.0 - STEP))
            if found is not None and found[1] < peak:
                decision, peak = found
    return LeastMemory(decision, peak, peak * (1.0 - STEP))


def _start(model: CostModel, space: Space, pins: Pins) -> tuple[Decision, float] | None:
    """A plan of little memory and its peak, None where pins or limits forbid that plan."""
    if pins.recompute not in (None, "full") or "full" not in space.limits.recomputes:
        return None
    if pins.schedule not in (None, "1f1b") or pins.virtual_stages not in (None, 1):
        return None
    table, least = space.smallest()
    if not len(table.candidates):
        return None
    miss = nearest_miss(model, table, least, space.limits, pins)
    return miss.decision, miss.peak_bytes


def _candidates(model: CostModel, space: Space, first: int, below_bytes: float) -> Iterator[CandidateRow]:
    """The scheduled candidates of one wave of bases whose memory bound lies below ``below_bytes``."""
    table, least = space.smallest(first)
    order = np.argsort(least, kind="stable")
    kept = order[least[order] < below_bytes]
    if not len(kept):
        return
    chosen = table.candidates.take(kept)
    scheduled, local = expand_schedules(chosen, model.problem, space.limits, space.pins, Funnel())
    for index, origin in enumerate(local.tolist()):
        schedule, virtual = int(scheduled.schedule[index]), int(scheduled.virtual_stages[index])
        yield candidate_row(model.problem, table, model.stack, int(kept[origin]), schedule, virtual)


def candidate_solver(model: CostModel, limits: Limits, pins: Pins) -> CandidateSolver:
    """A solver of single candidates, without the rest of the search."""
    asked = (model.chain, limits, pins.recompute)
    policies, split = recompute_policies(*asked), split_policies(*asked)
    return CandidateSolver(model, Layout(model.chain), model.problem.memory_limit_bytes, policies, split)


def smallest_peak(
    solver: CandidateSolver, row: CandidateRow, *, below_bytes: float
) -> tuple[Decision, float] | None:
    """One candidate's plan of the smallest peak (bytes), None when none of them is below ``below_bytes``.

    To a share of STEP; stage split and recomputation are free within the solver's policies.
    """
    if not replace(solver, limit_bytes=below_bytes).can_fit(row):
        return None
    low, high = 0.0, below_bytes
    while high - low > 0.5 * STEP * high:
        middle = 0.5 * (low + high)
        fits = replace(solver, limit_bytes=middle).can_fit(row)
        low, high = (low, middle) if fits else (middle, high)
    solved = replace(solver, limit_bytes=high).solve(row, math.inf)
    found = [(d, price(solver.model, d).peak_memory_bytes) for d in (solved.decisions if solved else ())]
    return min(found, key=lambda pair: pair[1], default=None)
