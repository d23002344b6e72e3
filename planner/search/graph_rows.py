"""What every stage of a layer graph costs: one row a difference of two closed sets and a width.

Choices of leaner alternatives are exact when few classes of equal savings exist (the cheapest of a class
first); else greedy orders, and a relaxed row lets every node be fast and lean at once.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from itertools import product

import numpy as np

from planner.cost.graph_table import GraphTable, WidthCosts
from planner.cost.layered_table import Codes, Floats

MAX_CONFIGS = 4096


@dataclass(frozen=True)
class GraphRows:
    """One row a (set, subset, width): what a stage of that difference costs.

    ``configs`` [row, config] are seconds of compute by rising cost, ``carried`` the most samples a replica
    can keep with it or a cheaper one (both padded).
    """

    whole: Codes
    rest: Codes
    width: Codes
    cut_seconds: Floats
    sync_seconds: Floats
    configs: Floats
    carried: Floats


def graph_rows(table: GraphTable, masks: Floats, *, relaxed: bool) -> tuple[GraphRows, bool]:
    inside = masks.astype(bool)
    whole, rest = np.nonzero(
        (masks @ (1.0 - masks).T == 0).T & (masks.sum(1)[:, None] > masks.sum(1)[None, :])
    )
    tails = [tail for tail, _ in table.edges]
    heads = [head for _, head in table.edges]
    parts: list[tuple[Codes, Codes, int, Floats, Floats]] = []
    tables: list[tuple[Floats, Floats]] = []
    is_exact = has_few_classes(table)
    for t, costs in table.widths.items():
        open_in = (masks[:, heads] * (1.0 - masks[:, tails]) * costs.in_bytes) @ (1.0 - masks[:, heads]).T
        open_out = (masks[:, tails] * costs.out_bytes) @ ((1.0 - masks[:, tails]) * masks[:, heads]).T
        cut = 2.0 * (open_in + open_out) / table.bytes_per_s
        weights = masks @ np.where(np.isfinite(costs.seconds), costs.weight_bytes, 0.0)
        sync = 4.0 * (weights[:, None] - weights[None, :]) / table.samples / table.bytes_per_s
        blocked = masks @ (~np.isfinite(costs.seconds)).astype(float)
        usable = blocked[whole] == blocked[rest]
        w, r = whole[usable], rest[usable]
        parts.append((w, r, t, cut[w, r], sync[w, r]))
        if relaxed or not is_exact:
            tables.append(_greedy_rows(table, costs, masks, w, r, relaxed=relaxed))
        else:
            found = [
                configs_of(table, costs, np.flatnonzero(inside[a] & ~inside[b]), is_exact)
                for a, b in zip(w.tolist(), r.tolist(), strict=True)
            ]
            tables.append(_padded([[(seconds, kept) for seconds, kept, _ in configs] for configs in found]))
    width = max(seconds.shape[1] for seconds, _ in tables)
    seconds = [np.pad(x, ((0, 0), (0, width - x.shape[1])), constant_values=np.inf) for x, _ in tables]
    carried = [np.pad(x, ((0, 0), (0, width - x.shape[1])), mode="edge") for _, x in tables]
    rows = GraphRows(
        np.concatenate([p[0] for p in parts]),
        np.concatenate([p[1] for p in parts]),
        np.concatenate([np.full(len(p[0]), p[2]) for p in parts]),
        np.concatenate([p[3] for p in parts]),
        np.concatenate([p[4] for p in parts]),
        np.concatenate(seconds),
        np.concatenate(carried),
    )
    return rows, is_exact


def has_few_classes(table: GraphTable) -> bool:
    """Whether the equal savings of leaner alternatives are few enough to list every choice."""
    for costs in table.widths.values():
        pairs = zip(costs.saved_kept_bytes.tolist(), costs.saved_fixed_bytes.tolist(), strict=True)
        classes = Counter(pair for pair in pairs if max(pair) > 0)
        if math.prod(count + 1 for count in classes.values()) > MAX_CONFIGS:
            return False
    return True


def _padded(configs: list[list[tuple[float, int]]]) -> tuple[Floats, Floats]:
    width = max((len(c) for c in configs), default=1) or 1
    seconds, carried = np.full((len(configs), width), np.inf), np.zeros((len(configs), width))
    for index, found in enumerate(configs):
        for at, (value, kept) in enumerate(found):
            seconds[index, at], carried[index, at:] = value, kept
    return seconds, carried


def _greedy_order(costs: WidthCosts) -> Codes:
    """Nodes with a leaner alternative, the least seconds a byte saved first (at two samples kept)."""
    saved = 2.0 * costs.saved_kept_bytes + costs.saved_fixed_bytes
    nodes = np.flatnonzero((saved > 0) & np.isfinite(costs.seconds))
    return nodes[np.argsort(costs.extra_seconds[nodes] / saved[nodes], kind="stable")]


def _is_one_order(costs: WidthCosts, order: Codes) -> bool:
    """Whether the greedy order is the same whatever is kept: fixed savings in one ratio to kept savings.

    Then its prefixes with a part of the next node solve the fractional knapsack, a bound of the whole one.
    """
    if not len(order) or (costs.saved_kept_bytes[order] <= 0).any():
        return False
    outside = np.setdiff1d(np.flatnonzero(np.isfinite(costs.seconds)), order)
    if (costs.saved_kept_bytes[outside] > 0).any() or (costs.saved_fixed_bytes[outside] > 0).any():
        return False
    ratio = costs.saved_fixed_bytes[order] / costs.saved_kept_bytes[order]
    return bool(np.ptp(ratio) <= 1e-6)


def _greedy_rows(
    table: GraphTable, costs: WidthCosts, masks: Floats, whole: Codes, rest: Codes, *, relaxed: bool
) -> tuple[Floats, Floats]:
    """(seconds, samples kept) of every prefix of the greedy order; relaxed: all lean, at no cost."""
    finite = np.where(np.isfinite(costs.seconds), costs.seconds, 0.0)
    order = _greedy_order(costs)
    most = min(table.samples, table.devices)
    base = [masks @ x for x in (finite, costs.kept_bytes, costs.fixed_bytes)]
    sums = [
        np.concatenate([np.zeros((len(masks), 1)), np.cumsum(masks[:, order] * x[order], axis=1)], axis=1)
        for x in (costs.extra_seconds, costs.saved_kept_bytes, costs.saved_fixed_bytes)
    ]
    is_split = relaxed and _is_one_order(costs, order)
    if relaxed and not is_split:
        best = [masks @ x.clip(0.0) for x in (costs.saved_kept_bytes, costs.saved_fixed_bytes)]
        sums = [np.zeros((len(masks), 1)), best[0][:, None], best[1][:, None]]
    seconds, carried = [], []
    for start in range(0, len(whole), 2048):
        w, r = whole[start : start + 2048], rest[start : start + 2048]
        extra, less, less_fixed = (x[w] - x[r] for x in sums)
        kept = (base[1][w] - base[1][r])[:, None] - less
        room = table.memory_bytes - (base[2][w] - base[2][r])[:, None] + less_fixed
        with np.errstate(divide="ignore", invalid="ignore"):
            count = np.where(kept * most <= room, most, np.floor(room / kept))
        count = np.maximum.accumulate(np.where(room < 0, 0.0, count), axis=1)
        if is_split:  # the next node lean for free: at least what a part of it buys
            taken = (masks[w][:, order] - masks[r][:, order]) > 0
            split = count.copy()
            for column in range(len(order) - 1, -1, -1):
                split[:, column] = np.where(taken[:, column], count[:, column + 1], split[:, column + 1])
            count = split
        seconds.append((base[0][w] - base[0][r])[:, None] + extra)
        carried.append(count)
    return np.concatenate(seconds), np.concatenate(carried)


def configs_of(
    table: GraphTable, costs: WidthCosts, nodes: Codes, is_exact: bool
) -> list[tuple[float, int, tuple[int, ...]]]:
    """[(seconds, most samples kept, lean nodes)] rising in both.

    Every choice within the classes of equal savings when they are few, else the prefixes of the greedy order.
    """
    seconds, most = float(costs.seconds[nodes].sum()), min(table.samples, table.devices)
    kept, fixed = float(costs.kept_bytes[nodes].sum()), float(costs.fixed_bytes[nodes].sum())
    extra, less, less_fixed = costs.extra_seconds, costs.saved_kept_bytes, costs.saved_fixed_bytes

    def carried(lean: list[int]) -> int:
        kept_bytes = kept - float(less[lean].sum())
        room = table.memory_bytes - fixed + float(less_fixed[lean].sum())
        if room < 0:
            return 0
        return most if kept_bytes * most <= room else int(room // kept_bytes)

    plain = carried([])
    if plain >= most:
        return [(seconds, plain, ())]
    inside = set(nodes.tolist())
    if is_exact:
        classes: dict[tuple[float, float], list[int]] = {}
        for node in sorted(inside, key=lambda v: (float(extra[v]), v)):
            if less[node] > 0 or less_fixed[node] > 0:
                classes.setdefault((float(less[node]), float(less_fixed[node])), []).append(node)
        choices = [
            [
                node
                for members, count in zip(classes.values(), counts, strict=True)
                for node in members[:count]
            ]
            for counts in product(*(range(len(members) + 1) for members in classes.values()))
        ]
    else:
        order = [node for node in _greedy_order(costs).tolist() if node in inside]
        choices = [order[:count] for count in range(len(order) + 1)]
    found = []
    for chosen in choices:
        k = carried(chosen)
        if k >= 1:
            found.append((seconds + float(extra[chosen].sum()), k, tuple(chosen)))
    found.sort(key=lambda entry: (entry[0], -entry[1]))
    front: list[tuple[float, int, tuple[int, ...]]] = []
    for entry in found:
        if not front or entry[1] > front[-1][1]:
            front.append(entry)
    return front
