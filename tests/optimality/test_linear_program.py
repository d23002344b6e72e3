"""Linear programs solved again and again: each optimum against all corners, and that of a fresh program."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest

from planner.search.linear_program import LinearProgram, linear_solver

VARIABLES = 3
NEAR = 1e-6


class Written:
    """A program as lists of numbers, solved by looking at every corner."""

    def __init__(self, draw):
        self.costs = [float(c) for c in draw.integers(-4, 5, VARIABLES)]
        self.bounds = [(0.0, float(high)) for high in draw.integers(1, 6, VARIABLES)]
        self.rows = []

    def fresh(self):
        program = LinearProgram(linear_solver())
        for cost, (low, high) in zip(self.costs, self.bounds, strict=True):
            program.variable(low, high, cost)
        for terms, low, high in self.rows:
            program.row(terms, low, high)
        return program

    def optimum(self):
        """The least cost of a corner: all of them, since every variable has bounds."""
        sides = []
        for at, (low, high) in enumerate(self.bounds):
            sides.append((np.eye(VARIABLES)[at], low, high))
        for terms, low, high in self.rows:
            sides.append((np.array([terms.get(at, 0.0) for at in range(VARIABLES)]), low, high))
        planes = [(side, value) for side, *values in sides for value in values if math.isfinite(value)]
        picks = np.array(list(combinations(range(len(planes)), VARIABLES)))
        normals = np.array([normal for normal, _ in planes])[picks]
        values = np.array([value for _, value in planes])[picks]
        is_corner = np.abs(np.linalg.det(normals)) > 1e-9
        corners = np.linalg.solve(normals[is_corner], values[is_corner][:, :, None])[:, :, 0]
        for side, low, high in sides:
            at = corners @ side
            corners = corners[(at >= low - 1e-9) & (at <= high + 1e-9)]
        return float((corners @ np.array(self.costs)).min()) if len(corners) else None


def changed(written, program, draw):
    """The same change of both: a row, a bound or a cost."""
    kind = int(draw.integers(4))
    if kind == 0 and len(written.rows) < 5:
        at = draw.choice(VARIABLES, int(draw.integers(1, VARIABLES + 1)), replace=False)
        terms = {int(one): float(draw.choice([-2, -1, 1, 2, 3])) for one in at}
        low = float(draw.integers(-4, 6))
        high = low + float(draw.integers(0, 5)) if draw.integers(2) else math.inf
        assert program.row(terms, low, high) == len(written.rows)
        written.rows.append((terms, low, high))
    elif kind == 1:
        at = int(draw.integers(VARIABLES))
        written.costs[at] = float(draw.integers(-4, 5))
        program.cost(at, written.costs[at])
    else:
        at = int(draw.integers(VARIABLES))
        low = float(draw.integers(0, 5))
        written.bounds[at] = (low, low + float(draw.integers(0, 4)))
        program.within(at, *written.bounds[at])


def test_an_optimum_after_changes_is_that_of_all_corners_and_of_a_fresh_program():
    draw = np.random.default_rng(1)
    solved, infeasible, recovered = 0, 0, 0
    for _ in range(25):
        written = Written(draw)
        program, was_infeasible = written.fresh(), False
        for _ in range(12):
            changed(written, program, draw)
            expected, found, fresh = written.optimum(), program.solve(), written.fresh().solve()
            assert (found is None) == (fresh is None) == (expected is None)
            if found is None:
                infeasible, was_infeasible = infeasible + 1, True
                for at in range(VARIABLES):
                    written.bounds[at] = (0.0, 9.0)
                    program.within(at, 0.0, 9.0)
                continue
            assert found.objective == pytest.approx(expected, abs=NEAR)
            assert fresh.objective == pytest.approx(expected, abs=NEAR)
            assert found.values @ np.array(written.costs) == pytest.approx(expected, abs=NEAR)
            for value, (low, high) in zip(found.values, written.bounds, strict=True):
                assert low - NEAR <= value <= high + NEAR
            for terms, low, high in written.rows:
                total = sum(by * found.values[at] for at, by in terms.items())
                assert low - NEAR <= total <= high + NEAR
            solved, recovered, was_infeasible = solved + 1, recovered + was_infeasible, False
    assert min(solved, infeasible, recovered) >= 10, "every case was seen"


def test_it_recovers_once_bounds_that_leave_nothing_are_widened_again():
    program = LinearProgram(linear_solver())
    first, second = program.variable(0.0, 3.0, 1.0), program.variable(0.0, 3.0, 2.0)
    program.row({first: 1.0, second: 1.0}, 4.0)
    assert program.solve().objective == pytest.approx(3.0 + 2.0)
    program.within(second, 0.0, 0.5)
    assert program.solve() is None
    program.within(second, 0.0, 3.0)
    assert program.solve().objective == pytest.approx(3.0 + 2.0)
    program.row({first: 1.0}, 0.0, 2.0)
    assert program.solve().objective == pytest.approx(2.0 + 2.0 * 2.0)


def test_without_a_least_cost_there_is_no_optimum():
    program = LinearProgram(linear_solver())
    program.variable(-math.inf, math.inf, 1.0)
    assert program.solve() is None


def test_a_dual_is_what_its_rows_bound_is_worth():
    """The optimum is convex in every bound: by another one it grows by no less than the dual says.

    A row held from below is worth something positive, one held from above something negative.
    """
    draw = np.random.default_rng(2)
    signs = set()
    for _ in range(60):
        written = Written(draw)
        for _ in range(2):
            terms = {at: float(draw.integers(1, 4)) for at in range(VARIABLES)}
            low, high = float(draw.integers(0, 6)), math.inf
            written.rows.append((terms, low, high) if draw.integers(2) else (terms, -math.inf, low))
        found = written.fresh().solve()
        if found is None:
            continue
        for index, (terms, low, high) in enumerate(list(written.rows)):
            dual = float(found.duals[index])
            assert dual >= -NEAR if high == math.inf else dual <= NEAR
            signs.add(0 if abs(dual) < NEAR else math.copysign(1, dual))
            for by in (-2.0, -0.25, 0.25, 1.0):
                written.rows[index] = (terms, low + by, high + by)
                moved = written.fresh().solve()
                if moved is not None:
                    assert moved.objective >= found.objective + dual * by - NEAR
            written.rows[index] = (terms, low, high)
    assert signs == {-1.0, 0, 1.0}
