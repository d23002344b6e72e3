"""The exact recompute knapsack against every assignment of modes."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.search.knapsack import cheapest_modes
from planner.search.recompute import Choice, Group

EXACT = 1e-9

layers = st.lists(
    st.tuples(
        st.integers(1, 60),  # bytes that selective frees
        st.integers(0, 60),  # and full beyond
        st.integers(1, 40),  # seconds of selective
        st.integers(1, 80),  # and of full beyond
        st.integers(0, 12),  # working bytes of full
    ),
    min_size=1,
    max_size=6,
)


def kind(freed, more, cost, extra, working):
    return SimpleNamespace(
        saved_bytes=(200.0, 200.0 - freed, 200.0 - freed - more),
        backward_seconds=(100.0, 100.0 + cost, 100.0 + cost + extra),
        working_bytes=(0.0, working / 2, float(working)),
    )


def every_choice(kinds, over_bytes):
    """Least extra seconds over all assignments, infinite where none frees enough."""
    best = float("inf")
    for modes in itertools.product(range(3), repeat=len(kinds)):
        freed = sum(k.saved_bytes[0] - k.saved_bytes[m] for k, m in zip(kinds, modes, strict=True))
        working = max(k.working_bytes[m] for k, m in zip(kinds, modes, strict=True))
        if any(modes) and freed >= max(1.0, over_bytes + working):
            extra = sum(k.backward_seconds[m] - 100.0 for k, m in zip(kinds, modes, strict=True))
            best = min(best, extra)
    return best


@settings(max_examples=400, deadline=None)
@given(layers, st.integers(0, 300))
def test_the_exact_choice_is_the_cheapest_of_all(shapes, over_bytes):
    kinds = tuple(kind(*shape) for shape in shapes)
    groups = tuple(Group(index, 1, (1,), True) for index in range(len(kinds)))
    worst = Choice(1e6, tuple((0, 1) for _ in groups), 1.0)
    found = cheapest_modes(kinds, groups, float(over_bytes), (1, 2), worst)
    expected = every_choice(kinds, float(over_bytes))
    assert found.extra_seconds == pytest.approx(min(expected, 1e6), rel=EXACT)
    assert found.spared_seconds == 0.0
    if expected < 1e6:
        chosen = sum(
            selective * (k.backward_seconds[1] - 100.0) + full * (k.backward_seconds[2] - 100.0)
            for k, (selective, full) in zip(kinds, found.counts, strict=True)
        )
        assert chosen == pytest.approx(found.extra_seconds, rel=EXACT)
