"""Whether a wider space holds a plan faster than a known one: what a launcher's restriction costs."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace

from planner.cost.model import CostModel
from planner.search.engine import PROVED_GAP, BestFirst
from planner.search.improvements import refined
from planner.search.reporter import Reporter
from planner.search.solution import Solution
from planner.search.space import Space
from planner.search.tree import Funnel, Pins
from planner.strategy.limits import Limits


@dataclass(frozen=True)
class Better:
    """A faster plan of the wider space, None when none was found; whether the search ran to its end."""

    solution: Solution | None
    is_complete: bool


def faster_solution(
    model: CostModel,
    limits: Limits,
    pins: Pins,
    than_seconds: float,
    *,
    time_budget_seconds: float = math.inf,
    reporter: Reporter | None = None,
) -> Better:
    """The best plan of ``model`` that takes less than ``than_seconds``, a time known from another machine.

    Nothing is opened where the smallest bound of the space is no better.
    """
    started = time.process_time()
    reporter = reporter or Reporter()
    space = Space(model, limits, pins, Funnel())
    if not space.has_candidates or space.smallest_bound() >= than_seconds:
        return Better(None, True)
    limit = model.problem.memory_limit_bytes
    run = BestFirst(model, space, limit, 1, reporter, than_seconds)
    is_complete = run.over(started + time_budget_seconds)
    if not run.found:
        return Better(None, is_complete)
    return Better(refined(model, limits, pins, run.ranked(), reporter)[0][0], is_complete)


def search_better(
    model: CostModel,
    limits: Limits,
    pins: Pins,
    known: Solution,
    *,
    time_budget_seconds: float = math.inf,
) -> Better:
    """The best plan within ``limits`` that beats ``known``, a plan of a part of that space.

    Candidates whose lower bound is not below the known plan are never solved, so that this costs little
    when the part holds the best plan of the whole. Where none is found the integer program refines the known
    plan itself. ``model`` prices both: only the space differs.
    """
    started = time.process_time()
    reporter = Reporter()
    run, is_complete = _faster(model, limits, pins, known, started + time_budget_seconds, reporter)
    if known.decision.offload and not run.found:
        # Nothing beats it with the optimizer on the GPUs: then plans that put it on the host too.
        model, pins = model.placed(known.decision.offload), replace(pins, offload="optimizer")
        run, is_complete = _faster(model, limits, pins, known, started + time_budget_seconds, reporter)
    # What was found already answers how much the part costs, to a fraction of what the program could add.
    best = run.ranked()[0] if run.found else refined(model, limits, pins, [known], reporter)[0][0]
    is_better = best.seconds < known.seconds * (1.0 - PROVED_GAP)
    return Better(best if is_better else None, is_complete)


def _faster(
    model: CostModel, limits: Limits, pins: Pins, known: Solution, deadline: float, reporter: Reporter
) -> tuple[BestFirst, bool]:
    """The best-first run for plans faster than ``known``, and whether it ran to its end."""
    space = Space(model, limits, pins, Funnel())
    limit = model.problem.memory_limit_bytes
    run = BestFirst(model, space, limit, 1, reporter, known.seconds, is_certified=False)
    return run, run.over(deadline)
