"""The front of a table of numbers against its definition, by each of the ways it is found."""

from __future__ import annotations

import numpy as np
import pytest

from planner.search.undominated import MOST_LEVELS, PAIRWISE, undominated


def slow(values: np.ndarray) -> list[int]:
    """Rows that no other row is at most everywhere; of equal rows the first."""
    kept = []
    for index, row in enumerate(values):
        covers = (values <= row).all(axis=1)
        equal = (values == row).all(axis=1)
        if not (covers & ~equal).any() and np.flatnonzero(equal)[0] == index:
            kept.append(index)
    return kept


@pytest.mark.parametrize("columns", [1, 2, 3, 5])
@pytest.mark.parametrize("rows", [1, 2, PAIRWISE, PAIRWISE + 1, 300])
@pytest.mark.parametrize("most", [2, 9, 10 * MOST_LEVELS])
def test_the_front_is_that_of_the_definition(columns, rows, most):
    draw = np.random.default_rng(columns * 1000 + rows + most)
    for _ in range(8):
        values = draw.integers(0, most, (rows, columns)).astype(float)
        values[:, draw.integers(columns)] //= draw.integers(1, most + 1)
        values = values[np.argsort(values.sum(axis=1), kind="stable")]
        assert undominated(values).tolist() == slow(values)
