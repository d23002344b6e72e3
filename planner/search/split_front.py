"""The balance of one mesh: its fastest split over the pipeline ranks, its emptiest, and what lies between.

The two ends are those of Galvatron-BMW (Wang et al. 2307.02031): stages of equal time, whatever they hold,
and stages of equal memory, whatever they take. Each point is the best split and recomputation of the same
mesh, microbatch size, schedule and sharding under a memory limit of its own, by the same dynamic program
as the search, and priced like every plan.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from planner.cost.decision_rows import decision_rows
from planner.cost.model import CostModel
from planner.cost.step import price
from planner.search.engine import PROVED_GAP
from planner.search.least_memory import candidate_solver, smallest_peak
from planner.search.solution import Solution
from planner.search.tree import Pins
from planner.strategy.decision import Decision
from planner.strategy.limits import Limits

STEPS = 4
ROUNDING = 1.0 + 1e-9
UNLIMITED = 1e18


@dataclass(frozen=True)
class SplitPoint:
    """One split: "time", "memory" or "between" the two ends; its plan's bound is that of the mesh."""

    balance: str
    limit_bytes: float
    solution: Solution


def split_front(model: CostModel, limits: Limits, pins: Pins, decision: Decision) -> list[SplitPoint]:
    """From the split balanced in time to the one balanced in memory; empty without a pipeline.

    The time end may pass the memory limit. In between lie the best splits under STEPS limits at equal
    distances. Points that no limit tells apart are one.
    """
    if decision.degrees.pp == 1:
        return []
    row = next(iter(decision_rows(model, replace(decision, layer_sharding=())).values()))
    solver = candidate_solver(model, limits, pins)

    def best_under(limit: float) -> Solution | None:
        solved = replace(solver, limit_bytes=limit).solve(row, math.inf)
        if solved is None:
            return None
        priced = [(d, price(model, d)) for d in solved.decisions]
        decision, prediction = min(priced, key=lambda p: (p[1].step_seconds, p[1].peak_memory_bytes))
        return Solution(decision, prediction, min(solved.bound_seconds, prediction.step_seconds))

    fastest = best_under(UNLIMITED)
    if fastest is None:
        return []
    high = fastest.prediction.peak_memory_bytes
    points = [SplitPoint("time", high, fastest)]
    smallest = smallest_peak(solver, row, below_bytes=high)
    low = min(high, smallest[1]) if smallest is not None else high
    for step in range(1, STEPS + 2):
        limit = high + (low - high) * step / (STEPS + 1)
        found = best_under(limit * ROUNDING)
        if found is not None:
            points.append(SplitPoint("memory" if step > STEPS else "between", limit, found))
    return _distinct(points)


def _distinct(points: list[SplitPoint]) -> list[SplitPoint]:
    """Points without those a tighter one replaces: as fast, and no fuller. The last one is the memory end."""
    kept: list[SplitPoint] = []
    for point in reversed(points):
        if kept and point.solution.seconds >= kept[-1].solution.seconds * (1.0 - PROVED_GAP):
            if point.balance == "time":
                kept[-1] = replace(kept[-1], balance="time")
            continue
        kept.append(point)
    return kept[::-1]
