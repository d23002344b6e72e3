"""The exact choice of recompute modes where many kinds of layers share a rank.

A multiple-choice knapsack: one mode a layer, the least extra seconds that free the bytes needed. Layers are
taken in turn and Pareto fronts of (seconds, bytes freed) kept; a point is dropped where the linear
relaxation of the layers to come cannot bring it below the best choice known (branch and bound on fronts:
Nemhauser and Ullmann 1969; Kellerer, Pferschy and Pisinger, Knapsack Problems, 2004, chapter 11). The bytes
needed grow with the largest working set in use, so each possible largest one is solved on its own, those
whose relaxation is no better left out.
"""

from __future__ import annotations

import itertools

import numpy as np

from planner.cost.arrays import Array, IntArray
from planner.cost.row import KindCost
from planner.search.recompute import Choice, Group
from planner.search.recompute_fronts import TOLERANCE

MOST_POINTS = 50_000
Mode = tuple[int, float, float, float]
"""(mode, bytes freed, extra seconds, working bytes) of one layer."""


def cheapest_modes(
    kinds: tuple[KindCost, ...],
    groups: tuple[Group, ...],
    over_bytes: float,
    offered: tuple[int, ...],
    known: Choice,
) -> Choice:
    """The cheapest modes that free ``over_bytes`` and the largest working set in use; at worst ``known``.

    Where more than MOST_POINTS points would have to be kept ``known`` is returned as it is, with what it
    may spare.
    """
    layers = [index for index, group in enumerate(groups) if group.is_block for _ in range(group.count)]
    modes = [_modes(kinds[groups[index].kind], groups[index].in_flight, offered) for index in layers]
    best, picks = known.extra_seconds, None
    for working in sorted({mode[3] for options in modes for mode in options}):
        within = [[mode for mode in options if mode[3] <= working] for options in modes]
        found = _cheapest(within, max(1.0, over_bytes + working) * TOLERANCE, best)
        if found is None:
            return known
        if found[1]:
            best, picks = found
    if picks is None:
        return Choice(known.extra_seconds, known.counts)
    counts = [[0, 0] for _ in groups]
    for index, mode in zip(layers, picks, strict=True):
        if mode:
            counts[index][mode - 1] += 1
    return Choice(best, tuple((first, second) for first, second in counts))


def _modes(kind: KindCost, in_flight: int, offered: tuple[int, ...]) -> list[Mode]:
    return [
        (
            mode,
            (kind.saved_bytes[0] - kind.saved_bytes[mode]) * in_flight,
            kind.backward_seconds[mode] - kind.backward_seconds[0],
            kind.working_bytes[mode],
        )
        for mode in offered
    ]


def _cheapest(layers: list[list[Mode]], need: float, most: float) -> tuple[float, list[int]] | None:
    """(seconds, mode of each layer) below ``most``; no modes without one, None when points run out."""
    relaxed = _relaxations(layers)
    seconds, freed = np.zeros(1), np.zeros(1)
    steps: list[tuple[IntArray, IntArray]] = []
    for index, options in enumerate(layers):
        choices = [(0, 0.0, 0.0), *(mode[:3] for mode in options if mode[1] > 0.0)]
        size = len(seconds)
        each = np.concatenate([seconds + cost for _, _, cost in choices])
        gained = np.minimum(need, np.concatenate([freed + more for _, more, _ in choices]))
        ahead_bytes, ahead_seconds = relaxed[index + 1]
        missing = need - gained
        least = each + np.interp(missing, ahead_bytes, ahead_seconds)
        alive = np.flatnonzero((missing <= ahead_bytes[-1] * (1.0 + 1e-12)) & (least < most * TOLERANCE))
        order = alive[np.lexsort((-gained[alive], each[alive]))]
        reached = np.maximum.accumulate(gained[order]) if len(order) else gained[order]
        is_more = np.concatenate([[True], gained[order][1:] > reached[:-1]]) if len(order) else order > 0
        kept = order[is_more]
        if len(kept) > MOST_POINTS:
            return None
        steps.append((kept % size, np.array([mode for mode, _, _ in choices])[kept // size]))
        seconds, freed = each[kept], gained[kept]
    ends = np.flatnonzero(freed >= need * TOLERANCE)
    if not len(ends):
        return most, []
    at = int(ends[np.argmin(seconds[ends])])
    best, picks = float(seconds[at]), []
    for parent, mode in reversed(steps):
        picks.append(int(mode[at]))
        at = int(parent[at])
    return best, picks[::-1]


def _relaxations(layers: list[list[Mode]]) -> list[tuple[Array, Array]]:
    """Of the layers from each one on: bytes freed against least seconds, the linear relaxation's corners."""
    found = [(np.zeros(1), np.zeros(1))]
    steps: list[tuple[float, float, float]] = []
    for options in reversed(layers):
        steps = sorted([*steps, *_hull(options)])
        table = np.array([(bytes_freed, cost) for _, bytes_freed, cost in steps]).reshape(-1, 2)
        sums = np.vstack([np.zeros((1, 2)), np.cumsum(table, axis=0)])
        found.append((sums[:, 0], sums[:, 1]))
    return found[::-1]


def _hull(options: list[Mode]) -> list[tuple[float, float, float]]:
    """The lower convex hull of a layer's modes as (seconds per byte, bytes, seconds) steps."""
    points = sorted((freed, cost) for _, freed, cost, _ in options if freed > 0.0)
    hull = [(0.0, 0.0)]
    for freed, cost in points:
        if freed == hull[-1][0]:
            continue
        while len(hull) > 1 and _rate(hull[-2], hull[-1]) >= _rate(hull[-1], (freed, cost)):
            hull.pop()
        hull.append((freed, cost))
    return [(_rate(one, two), two[0] - one[0], two[1] - one[1]) for one, two in itertools.pairwise(hull)]


def _rate(one: tuple[float, float], two: tuple[float, float]) -> float:
    return (two[1] - one[1]) / (two[0] - one[0])
