"""Stages of a layer graph that need not be a chain: Piper's space, searched by feasibility.

A stage is the difference of two sets closed under successors (Tarnawski et al., NeurIPS 2021: "downsets"
there; in a chain they are the suffixes). For a load T, walk the sets from the empty one and keep the Pareto
front of (devices, replicas) that cover a set with no stage above T: fewer of either never hurts what comes in
front, so a stage takes the fewest replicas that meet T and fit. Memory sees only ceil(replicas behind / its
own): each choice of leaner alternatives turns into the greatest such number it can carry, and T into a budget
of seconds. The least feasible T is found by bisection, every feasible T replaced by the load of the plan it
gave.

Choices of leaner alternatives are those of ``graph_rows``; where they are greedy, the bound comes from rows
that let every node be fast and lean at once. Sets beyond ``MAX_SETS`` are those of several topological orders
and their unions; then the bound is the work over the devices.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import product

import numpy as np

from planner.cost.graph_table import GraphStage, GraphTable, plan_load
from planner.cost.layered_table import Codes, Floats
from planner.errors import InfeasibleError
from planner.search.graph_rows import GraphRows, configs_of, graph_rows, has_few_classes
from planner.units import format_bytes

MAX_SETS = 600
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


def search_graph(table: GraphTable) -> GraphPlan:
    """The least load of a plan on at most ``table.devices`` devices. Raises InfeasibleError when nothing
    fits."""
    sets, is_all = successor_closed_sets(table)
    masks = np.array([[mask >> v & 1 for v in range(len(table.nodes))] for mask in sets], dtype=float)
    rows, is_exact = graph_rows(table, masks, relaxed=False)
    best = _least(table, masks, rows)
    if best is None:
        raise _infeasible(table)
    stages, load = best
    bound, status = load * (1 - CLOSED), "proved"
    if not (is_all and is_exact):
        bound, status = _work_bound(table), "gap"
        if is_all:
            optimistic, _ = graph_rows(table, masks, relaxed=True)
            bound = max(bound, _least_load(table, masks, optimistic, load))
        if bound >= load * (1 - 2 * CLOSED):
            status = "proved"
    return GraphPlan(stages, load, bound, status, len(sets), len(rows.whole))


def _least(table: GraphTable, masks: Floats, rows: GraphRows) -> tuple[tuple[GraphStage, ...], float] | None:
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


def _least_load(table: GraphTable, masks: Floats, rows: GraphRows, high: float) -> float:
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


@dataclass(frozen=True)
class _Found:
    """Per set, the front of (devices, replicas) and how each point arose: row, replicas, point behind."""

    fronts: list[Codes]
    came: list[Codes]


def _cover(table: GraphTable, masks: Floats, rows: GraphRows, load: float) -> _Found | None:
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


def _stages(table: GraphTable, masks: Floats, rows: GraphRows, found: _Found) -> tuple[GraphStage, ...]:
    """The plan with the fewest devices of a covering, first stage first."""
    at, point = len(masks) - 1, 0
    stages = []
    while at:
        row, d, before = (int(x) for x in found.came[at][point])
        behind = int(found.fronts[at][point][1])
        rest, t = int(rows.rest[row]), int(rows.width[row])
        nodes = np.flatnonzero((masks[at] > 0) & (masks[rest] == 0))
        needed = -(-behind // d)
        options = configs_of(table, table.widths[t], nodes, has_few_classes(table))
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
