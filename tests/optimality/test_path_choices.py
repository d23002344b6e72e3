"""Choices of all ranks together, on paths and offers of any numbers."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from planner.search.choice_front import Choice
from planner.search.path_choices import PathChoices


@pytest.mark.parametrize("seed", range(10))
def test_ranks_settle_where_none_alone_gains_on_any_paths(seed):
    """Offered choices and paths of random numbers, so that what one rank does turns what others gain."""
    draw = np.random.default_rng(seed)
    placed = [[0, 3], [1, 4], [2, 5]]
    offered = {
        rank: [Choice(0.0, 0.0, draw.uniform(0.0, 5.0, 2), (np.array([[rank, n]]),)) for n in range(12)]
        for rank in range(3)
    }
    paths = [
        SimpleNamespace(length=float(draw.uniform(0.0, 4.0)), counts=draw.integers(0, 4, 6) * 1.0)
        for _ in range(8)
    ]
    program = SimpleNamespace(
        paths=paths,
        step=SimpleNamespace(placed=placed),
        choices={rank: SimpleNamespace(around=lambda *_, own=own: own) for rank, own in offered.items()},
        extras=lambda _: draw.uniform(0.0, 5.0, 6),
        weights=lambda _: np.ones(6),
        add_path=lambda *_: False,
    )
    best = PathChoices(program, None).best()

    def lasts(chosen):
        extra = np.zeros(6)
        for rank, choice in chosen.items():
            extra[placed[rank]] = choice.extra
        longest = max(path.length + float(path.counts @ extra) for path in paths)
        return longest + 1e-3 * float(extra.sum())

    assert all(any(choice is one for one in offered[rank]) for rank, choice in best.items())
    for rank, own in offered.items():
        assert lasts(best) <= min(lasts({**best, rank: other}) for other in own) + 1e-6
