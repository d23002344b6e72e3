"""Rows that no other row is at most everywhere: the front of a table, by the cheapest of three ways.

Few rows are compared pair by pair at once. Three columns, one of them with few values, are a sweep over that
one with a staircase of the other two (Kung, Luccio and Preparata, Journal of the ACM 22(4), 1975). Else the
rows are taken in turn, each ruling out what it covers.
"""

from __future__ import annotations

import numpy as np

from planner.cost.layered_table import Codes, Floats

PAIRWISE = 48
MOST_LEVELS = 64


def undominated(values: Floats) -> Codes:
    """Indices, ascending, of rows that no other is at most everywhere; of equal rows the first.

    Of rows given in the order of their sums none is covered by a later one.
    """
    values = values[:, (values != values[:1]).any(axis=0)]
    if len(values) <= PAIRWISE:
        return _pairwise(values)
    if values.shape[1] <= 3:
        columns = np.zeros((3, len(values)))
        columns[: values.shape[1]] = values.T
        levels = [np.unique(column) for column in columns]
        least = min(range(3), key=lambda at: len(levels[at]))
        if len(levels[least]) <= MOST_LEVELS:
            x, y = (columns[at] for at in range(3) if at != least)
            return _swept(columns[least], levels[least], x, y)
    return _in_turn(values)


def _pairwise(values: Floats) -> Codes:
    is_covered = np.tri(len(values), k=-1, dtype=bool)
    for column in values.T:
        is_covered &= column[None, :] <= column[:, None]
    return np.flatnonzero(~is_covered.any(axis=1))


def _swept(level_of: Floats, levels: Floats, x: Floats, y: Floats) -> Codes:
    """Level by level upwards: a row stays when it lies below the staircase of all levels up to its own."""
    steps, least = np.zeros(0), np.zeros(0)  # x ascending, the least y of any row kept up to there
    kept = []
    for level in levels:
        rows = np.flatnonzero(level_of == level)
        rows = rows[np.lexsort((y[rows], x[rows]))]
        before = np.minimum.accumulate(np.concatenate([[np.inf], y[rows][:-1]]))
        rows = rows[y[rows] < before]
        if len(steps):
            at = np.searchsorted(steps, x[rows], side="right") - 1
            rows = rows[(at < 0) | (y[rows] < least[at])]
        kept.append(rows)
        merged, heights = np.concatenate([steps, x[rows]]), np.concatenate([least, y[rows]])
        order = np.lexsort((heights, merged))
        steps, least = merged[order], np.minimum.accumulate(heights[order])
    return np.sort(np.concatenate(kept))


def _in_turn(values: Floats) -> Codes:
    left, kept = np.arange(len(values)), []
    while len(left):
        kept.append(int(left[0]))
        alive = (values < values[0]).any(axis=1)
        left, values = left[alive], values[alive]
    return np.array(kept, dtype=np.intp)
