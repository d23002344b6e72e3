"""Labels of the dynamic program over stages: one that is dropped never ends sooner than one that is kept."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from planner.search.labels import Label, keep

SECONDS = st.integers(0, 6).map(float)
FACTOR = 1.25
LABEL = st.tuples(*[SECONDS] * 7).map(lambda values: Label(*values))
# What one later rank adds: seconds behind those before it, behind the forwards, its reduction, the way back.
RANK = st.tuples(SECONDS, SECONDS, SECONDS, SECONDS, SECONDS)


def ended(label: Label, ranks: list[tuple[float, ...]], *, has_drain: bool) -> float:
    """The step of a label continued by ``ranks``, by the terms of ``partition``."""
    total, update = label.total, label.update
    for behind, own, reduce, back, optimizer in ranks:
        total = max(total, FACTOR * (label.before + behind) + label.reduce)
        total = max(total, FACTOR * (label.forward + own) + reduce)
        if not has_drain:
            total = max(total, FACTOR * (label.turn + back) + label.last)
        update = max(update, optimizer)
    return total + update


@given(
    st.lists(LABEL, min_size=1, max_size=12), st.lists(st.lists(RANK, max_size=3), max_size=6), st.booleans()
)
def test_what_is_kept_ends_as_soon_as_anything_offered(offered, continuations, has_drain):
    kept: list[Label] = []
    for label in offered:
        keep(kept, label, FACTOR, has_drain=has_drain)
    for ranks in continuations:
        best = min(ended(label, ranks, has_drain=has_drain) for label in kept)
        assert best <= min(ended(label, ranks, has_drain=has_drain) for label in offered) + 1e-9


@given(LABEL, LABEL, st.booleans())
def test_a_label_is_kept_unless_it_is_covered(first, second, has_drain):
    kept: list[Label] = []
    keep(kept, first, FACTOR, has_drain=has_drain)
    keep(kept, second, FACTOR, has_drain=has_drain)
    assert (second in kept) == (first == second or not first.covers(second, FACTOR, has_drain=has_drain))
