"""Stages of a layer graph that need not be a chain: Piper's space, searched by feasibility.

A stage is the difference of two sets closed under successors (Tarnawski et al., NeurIPS 2021: "downsets"
there;
in a chain they are the suffixes). For a load T, walk the sets from the empty one and keep the Pareto front of
(devices, replicas) that cover a set with no stage above T: fewer of either never hurts what comes in
front, so
a stage takes the fewest replicas that meet T and fit. Memory sees only ceil(replicas behind / its own): each
choice of leaner alternatives turns into the greatest such number it can carry, and T into a budget of
seconds.
The least feasible T is found by bisection, every feasible T replaced by the load of the plan it gave.

Choices of leaner alternatives are exact when few classes of equal savings exist (the cheapest of a class
first); else greedy orders, and the bound comes from letting every node be fast and lean at once. Sets beyond
``MAX_SETS`` are those of several topological orders and their unions; then the bound is the work over the
devices.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from itertools import product

import numpy as np

from planner.cost.graph_table import GraphStage, GraphTable, WidthCosts, plan_load
from planner.cost.layered_table import Codes, Floats
from planner.errors import InfeasibleError
from planner.units import format_bytes

MAX_SETS = 600
MAX_CONFIGS = 4096
CLOSED = 1e-9


@dataclass(frozen=True)
class GraphPlan:
    """Stages from first to last, the slowest one's seconds a sample, and what is proved."""

    stages: tuple[GraphStage, ...]
    load_seconds: float
    lower_bound_seconds: float
    status: str
    sets: int
    pairs: int

    @property
    def gap(self) -> float:
        """(load - bound) / load."""
        return max(0.0, 1.0 - self.lower_bound_seconds / self.load_seconds)


def successor_closed_sets(table: GraphTable, most: int = MAX_SETS) -> tuple[list[int], bool]:
    """(sets as bit masks by size, whether these are all)."""
    count = len(table.nodes)
    heads = [0] * count
    for tail, head in table.edges:
        heads[tail] |= 1 << head
    found, queue = {0}, [0]
    while queue and len(found) <= most:
        base = queue.pop()
        for node in range(count):
            grown = base | 1 << node
            if grown != base and heads[node] & ~base == 0 and grown not in found:
                found.add(grown)
                queue.append(grown)
    is_all = len(found) <= most
    if not is_all:
        found = _along_orders(heads, count, most)
    return sorted(found, key=lambda mask: (mask.bit_count(), mask)), is_all


def _along_orders(heads: list[int], count: int, most: int) -> set[int]:
    """Sets along topological orders: by number, reversed, and depth first, with unions while there is
    room."""
    chains = []
    for choose in (max, min, None):
        done, chain, recent = 0, [0], count
        while done != (1 << count) - 1:
            ready = [v for v in range(count) if not done >> v & 1 and heads[v] & ~done == 0]
            node = choose(ready) if choose else min(ready, key=lambda v: (not heads[v] >> recent & 1, -v))
            done, recent = done | 1 << node, node
            chain.append(done)
        chains.append(chain)
    found = {mask for chain in chains for mask in chain}
    for one, other in ((0, 1), (0, 2), (1, 2)):
        for a, b in product(chains[one], chains[other]):
            if len(found) >= most:
                return found
            found.add(a | b)
    return found


@dataclass(frozen=True)
class _Rows:
    """One row a (set, subset, width): what a stage of that difference costs.

    ``configs`` [row, config] are seconds of compute by rising cost, ``carried`` the most samples a replica
    can
    keep with it or a cheaper one (both padded).
    """

    whole: Codes
    rest: Codes
    width: Codes
    cut_seconds: Floats
    sync_seconds: Floats
    configs: Floats
    carried: Floats


def search_graph(table: GraphTable) -> GraphPlan:
    """The least load of a plan on at most ``table.devices`` devices. Raises InfeasibleError when nothing
    fits."""
    sets, is_all = successor_closed_sets(table)
    masks = np.array([[mask >> v & 1 for v in range(len(table.nodes))] for mask in sets], dtype=float)
    rows, is_exact = _rows(table, masks, relaxed=False)
    best = _least(table, masks, rows)
    if best is None:
        raise _infeasible(table)
    stages, load = best
    bound, status = load * (1 - CLOSED), "proved"
    if not (is_all and is_exact):
        bound, status = _work_bound(table), "gap"
        if is_all:
            optimistic, _ = _rows(table, masks, relaxed=True)
            bound = max(bound, _least_load(table, masks, optimistic, load))
        if bound >= load * (1 - 2 * CLOSED):
            status = "proved"
    return GraphPlan(stages, load, bound, status, len(sets), len(rows.whole))


def _least(table: GraphTable, masks: Floats, rows: _Rows) -> tuple[tuple[GraphStage, ...], float] | None:
    found = _cover(table, masks, rows, math.inf)
    if found is None:
        return None
    stages = _stages(table, masks, rows, found)
    high = plan_load(table, stages)
    low = _work_bound(table)
    while high > low * (1 + CLOSED):
        middle = high * (1 - CLOSED) if high < low * 1.001 else (low + high) / 2.0
        found = _cover(table, masks, rows, middle)
        if found is None:
            low = middle
        else:
            stages = _stages(table, masks, rows, found)
            high = plan_load(table, stages)
    return stages, high


def _least_load(table: GraphTable, masks: Floats, rows: _Rows, high: float) -> float:
    """A load below which even ``rows`` cover nothing, within a millionth."""
    low = _work_bound(table)
    if _cover(table, masks, rows, high * (1 - CLOSED)) is None:
        return high * (1 - CLOSED)
    while high > low * (1 + 1e-6):
        middle = (low + high) / 2.0
        if _cover(table, masks, rows, middle) is None:
            low = middle
        else:
            high = middle
    return low


def _work_bound(table: GraphTable) -> float:
    """Compute alone, each node at its cheapest width, spread over all devices."""
    least = np.min([costs.seconds * t for t, costs in table.widths.items()], axis=0)
    return float(least.sum()) / table.devices


def _rows(table: GraphTable, masks: Floats, *, relaxed: bool) -> tuple[_Rows, bool]:
    inside = masks.astype(bool)
    whole, rest = np.nonzero(
        (masks @ (1.0 - masks).T == 0).T & (masks.sum(1)[:, None] > masks.sum(1)[None, :])
    )
    tails = [tail for tail, _ in table.edges]
    heads = [head for _, head in table.edges]
    parts: list[tuple[Codes, Codes, int, Floats, Floats]] = []
    tables: list[tuple[Floats, Floats]] = []
    is_exact = _has_few_classes(table)
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
                _configs(table, costs, np.flatnonzero(inside[a] & ~inside[b]), is_exact)
                for a, b in zip(w.tolist(), r.tolist(), strict=True)
            ]
            tables.append(_padded([[(seconds, kept) for seconds, kept, _ in configs] for configs in found]))
    width = max(seconds.shape[1] for seconds, _ in tables)
    seconds = [np.pad(x, ((0, 0), (0, width - x.shape[1])), constant_values=np.inf) for x, _ in tables]
    carried = [np.pad(x, ((0, 0), (0, width - x.shape[1])), mode="edge") for _, x in tables]
    rows = _Rows(
        np.concatenate([p[0] for p in parts]),
        np.concatenate([p[1] for p in parts]),
        np.concatenate([np.full(len(p[0]), p[2]) for p in parts]),
        np.concatenate([p[3] for p in parts]),
        np.concatenate([p[4] for p in parts]),
        np.concatenate(seconds),
        np.concatenate(carried),
    )
    return rows, is_exact


def _has_few_classes(table: GraphTable) -> bool:
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


def _configs(
    table: GraphTable, costs: WidthCosts, nodes: Codes, has_few_classes: bool
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
    if has_few_classes:
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


@dataclass(frozen=True)
class _Found:
    """Per set, the front of (devices, replicas) and how each point arose: row, replicas, point behind."""

    fronts: list[Codes]
    came: list[Codes]


def _cover(table: GraphTable, masks: Floats, rows: _Rows, load: float) -> _Found | None:
    """Fronts of every set under ``load``; None when the whole graph cannot be covered."""
    limit = min(table.samples, table.devices)
    degrees = np.array([d for d in range(1, limit + 1) if table.samples % d == 0])
    if math.isinf(load):
        budget = np.full((len(rows.whole), len(degrees)), np.finfo(float).max)
    else:
        share = (degrees - 1) / degrees
        budget = (load - rows.sync_seconds[:, None] * share) * degrees - rows.cut_seconds[:, None]
    # How many configurations (by rising seconds) the budget pays for, by binary search in every row.
    affordable = np.zeros(budget.shape, dtype=np.intp)
    size = rows.configs.shape[1]
    for step in (1 << bit for bit in range(size.bit_length() - 1, -1, -1)):
        tried = affordable + step
        value = np.take_along_axis(rows.configs, np.minimum(tried, size) - 1, axis=1)
        affordable = np.where((tried <= size) & (value <= budget), tried, affordable)
    kept = np.concatenate([np.zeros((len(budget), 1)), rows.carried], axis=1)
    # Replicas behind a stage of d replicas that still leave at most ``kept`` samples a replica.
    capacity = (np.take_along_axis(kept, affordable, axis=1) - 1.0) * degrees
    capacity[degrees[None, :] * rows.width[:, None] > table.devices] = -1.0
    alive = np.flatnonzero(capacity.max(axis=1) >= 0)
    by_set: dict[int, list[int]] = {}
    for row in alive.tolist():
        by_set.setdefault(int(rows.whole[row]), []).append(row)
    empty = np.zeros((0, 2), dtype=np.intp)
    fronts: list[Codes] = [np.zeros((1, 2), dtype=np.intp)]
    came: list[Codes] = [np.full((1, 3), -1, dtype=np.intp)]
    for index in range(1, len(masks)):
        mine = [row for row in by_set.get(index, []) if len(fronts[int(rows.rest[row])])]
        if not mine:
            fronts.append(empty)
            came.append(np.zeros((0, 3), dtype=np.intp))
            continue
        sizes = [len(fronts[int(rows.rest[row])]) for row in mine]
        row = np.repeat(np.array(mine), sizes)
        point = np.concatenate([np.arange(size) for size in sizes])
        before = np.concatenate([fronts[int(rows.rest[r])] for r in mine])
        fits = capacity[row] >= before[:, 1:2]
        first = fits.argmax(axis=1)
        d = degrees[first]
        used = before[:, 0] + d * rows.width[row]
        replicas = before[:, 1] + d
        good = np.flatnonzero(fits.any(axis=1) & (used <= table.devices) & (replicas <= limit))
        order = good[np.lexsort((replicas[good], used[good]))]
        lowest = np.minimum.accumulate(replicas[order]) if len(order) else order
        keep = order[np.concatenate([[True], lowest[1:] < lowest[:-1]])] if len(order) else order
        fronts.append(np.stack([used[keep], replicas[keep]], axis=1))
        came.append(np.stack([row[keep], d[keep], point[keep]], axis=1))
    return _Found(fronts, came) if len(fronts[-1]) else None


def _stages(table: GraphTable, masks: Floats, rows: _Rows, found: _Found) -> tuple[GraphStage, ...]:
    """The plan with the fewest devices of a covering, first stage first."""
    at, point = len(masks) - 1, 0
    stages = []
    while at:
        row, d, before = (int(x) for x in found.came[at][point])
        behind = int(found.fronts[at][point][1])
        rest, t = int(rows.rest[row]), int(rows.width[row])
        nodes = np.flatnonzero((masks[at] > 0) & (masks[rest] == 0))
        needed = -(-behind // d)
        options = _configs(table, table.widths[t], nodes, _has_few_classes(table))
        lean = next(lean for _, kept, lean in options if kept >= needed)
        stages.append(GraphStage(tuple(nodes.tolist()), d, t, lean))
        at, point = rest, before
    return tuple(stages)


def _infeasible(table: GraphTable) -> InfeasibleError:
    leanest = min(
        float(
            (c.kept_bytes - c.saved_kept_bytes + c.fixed_bytes - c.saved_fixed_bytes)[
                np.isfinite(c.seconds)
            ].sum()
        )
        / t
        for t, c in table.widths.items()
    )
    return InfeasibleError(
        f"no stages of {table.devices} devices with {format_bytes(table.memory_bytes)} each hold the graph",
        hint="give more devices or more memory; one sample in flight keeps about "
        f"{format_bytes(leanest)} in all",
    )
