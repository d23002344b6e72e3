"""Linear programs solved again and again, each time with a few bounds or rows more: HiGHS, warm.

The dual simplex method goes on from the last optimum, so a program that grew by a row takes milliseconds; a
solver started as a process for each takes a hundred times that. highspy is imported in this file only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType

import numpy as np

from planner.cost.arrays import Array


def linear_solver() -> ModuleType | None:
    """The library of HiGHS; None where it cannot be loaded."""
    try:
        import highspy
    except ImportError:
        return None
    return highspy


@dataclass(frozen=True)
class Optimum:
    """objective; values of the variables; what each row's bound is worth (its dual)."""

    objective: float
    values: Array
    duals: Array


class LinearProgram:
    """Minimise the sum of cost x variable; variables and rows are numbered in the order they are added."""

    def __init__(self, library: ModuleType) -> None:
        self._highs = library.Highs()
        for option, value in (("output_flag", False), ("threads", 1), ("presolve", "off")):
            self._highs.setOptionValue(option, value)
        self._status = library.HighsModelStatus
        # Whether the last ``solve`` proved that nothing meets all bounds and rows.
        self.is_infeasible = False
        self.lows: list[float] = []
        self.highs: list[float] = []
        self.num_rows = 0

    def variable(self, low: float, high: float, cost: float = 0.0) -> int:
        """A variable within [low, high]."""
        none = np.zeros(0)
        self._highs.addCol(cost, low, high, 0, none.astype(np.int32), none)
        self.lows.append(low)
        self.highs.append(high)
        return len(self.lows) - 1

    def row(self, terms: Mapping[int, float], low: float, high: float = math.inf) -> int:
        """low <= sum of coefficient x variable <= high."""
        index = np.fromiter(terms, dtype=np.int32, count=len(terms))
        value = np.fromiter(terms.values(), dtype=np.float64, count=len(terms))
        self._highs.addRow(low, high, len(terms), index, value)
        self.num_rows += 1
        return self.num_rows - 1

    def cost(self, variable: int, cost: float) -> None:
        """A new cost of a variable."""
        self._highs.changeColCost(variable, cost)

    def within(self, variable: int, low: float, high: float) -> None:
        """New bounds of a variable."""
        if low != self.lows[variable] or high != self.highs[variable]:
            self._highs.changeColBounds(variable, low, high)
            self.lows[variable], self.highs[variable] = low, high

    def solve(self) -> Optimum | None:
        """The optimum, from the last one on; None where it is not found: ``is_infeasible`` where none is.

        Where the way from the last one loses its footing in rounding it is looked for afresh.
        """
        for _ in range(2):
            self._highs.run()
            status = self._highs.getModelStatus()
            self.is_infeasible = status == self._status.kInfeasible
            if status == self._status.kOptimal:
                found = self._highs.getSolution()
                objective = float(self._highs.getInfo().objective_function_value)
                return Optimum(objective, np.array(found.col_value), np.array(found.row_dual))
            if self.is_infeasible:
                break
            self._highs.clearSolver()
        return None
