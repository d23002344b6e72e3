"""Everything about the per-layer search once more, slow and obvious, for instances a person could check.

Written without the search, the table's pricing or the schedule room: the 1F1B timeline is the longest path
in a
graph built from the definition (a device does one thing at a time, in 1F1B order; an input must have
arrived).
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from itertools import combinations, pairwise, product

import numpy as np
import pulp

from planner.cost.layered_table import EndCosts, LayerCosts, LayeredSetting
from planner.strategy.layered import LayerChoice


def timeline_seconds(m, forward, backward, sync, send_f, send_b, update=(0.0,)):
    """End of the step by recursion over the events of 1F1B, and the longest update behind it."""
    pp = len(forward)
    orders = []
    for i in range(pp):
        warm = min(m, pp - 1 - i)
        order = [("F", k) for k in range(warm)]
        for k in range(m - warm):
            order += [("F", warm + k), ("B", k)]
        order += [("B", k) for k in range(m - warm, m)]
        orders.append(order)

    @cache
    def end(i, op, k):
        position = orders[i].index((op, k))
        free = end(i, *orders[i][position - 1]) if position else 0.0
        if op == "F":
            ready = end(i - 1, "F", k) + send_f if i else 0.0
            return max(free, ready) + forward[i]
        ready = end(i + 1, "B", k) + send_b if i + 1 < pp else end(i, "F", k)
        return max(free, ready) + backward[i]

    return max(end(i, "B", m - 1) + sync[i] for i in range(pp)) + max(update)


def stage_numbers(s, stage, first, last, chosen, end):
    """(forward, backward, sync, bytes, update) of a stage."""
    c = s.costs
    kept = min(s.microbatches, s.pp - stage)
    f = b = g = size = 0.0
    widest, u = 0.0, s.constant_seconds[end] if s.constant_seconds else 0.0
    if s.stage_forward_seconds:
        f, b = s.stage_forward_seconds[stage], s.stage_backward_seconds[stage]
    updates = c.update_seconds if c.update_seconds is not None else np.zeros_like(c.sync_seconds)
    layouts = [int(s.layout[x]) for x in chosen[first:last]]
    for layer in range(first, last):
        k, x = s.layers[layer], chosen[layer]
        f, b, g = f + c.forward_seconds[k, x], b + c.backward_seconds[k, x], g + c.sync_seconds[k, x]
        size += c.state_bytes[k, x] + kept * c.activation_bytes[k, x]
        widest = max(widest, c.working_bytes[k, x])
        u += updates[k, x]
    if stage == 0:
        layouts = [int(s.end_layout[end]), *layouts]
    if stage == s.pp - 1:
        layouts = [*layouts, int(s.end_layout[end])]
    for before, after in pairwise(layouts):
        f += s.change_forward_seconds[before, after]
        b += s.change_backward_seconds[before, after]
    for at, costs in ((0, s.first), (s.pp - 1, s.last)):
        if stage == at:
            f, b = f + costs.forward_seconds[end], b + costs.backward_seconds[end]
            g += costs.sync_seconds[end]
            u += costs.update_seconds[end] if costs.update_seconds is not None else 0.0
            size += costs.state_bytes[end] + kept * costs.activation_bytes[end]
    if s.shared_bytes is not None:
        used = {s.group[chosen[layer]] for layer in range(first, last)}
        widest += s.shared_bytes(stage, end, sum(1 << one for one in used))
    return f, b, g, size + widest + s.reserve_bytes, u


def splits(s):
    count = len(s.layers)
    for cuts in combinations(range(1, count), s.pp - 1):
        ends = [0, *cuts, count]
        split = tuple(pairwise(ends))
        if s.splits is None or split == s.splits:
            yield split


def exhaustive_seconds(settings, limit):
    """Least step over every decision of every setting; infinite when nothing fits."""
    best = np.inf
    for s in settings:
        usable = [
            [x for x in range(len(s.strategies)) if np.isfinite(s.costs.forward_seconds[k, x])]
            for k in s.layers
        ]
        for end in range(len(s.ends)):
            known = {}  # a stage's numbers follow from its own layers' strategies
            for split in splits(s):
                for chosen in product(*usable):
                    numbers = []
                    for i, (a, b) in enumerate(split):
                        key = (i, a, chosen[a:b])
                        if key not in known:
                            known[key] = stage_numbers(s, i, a, b, chosen, end)
                        numbers.append(known[key])
                    if max(n[3] for n in numbers) > limit:
                        continue
                    f, b, g, u = ([n[x] for n in numbers] for x in (0, 1, 2, 4))
                    seconds = timeline_seconds(
                        s.microbatches, f, b, g, s.send_forward_seconds, s.send_backward_seconds, u
                    )
                    best = min(best, seconds)
    return best


def integer_program_seconds(s, end, limit):
    """Least step of one single-stage setting and end strategy as an integer program; infinite when
    infeasible.

    Variables: x[l, s] layer l uses strategy s; y[l, a, b] layers l - 1 and l have layouts a and b (the ends
    included); w the largest working set. Objective: m (forward + backward + changes) + synchronisation.
    (1) one strategy a layer; (2) y agrees with the x on both sides; (3) w covers the chosen working sets;
    (4) states + activations + w within the limit.
    """
    assert s.pp == 1
    c, m, count = s.costs, s.microbatches, len(s.layers)
    strategies, layouts = (
        range(len(s.strategies)),
        sorted({int(v) for v in s.layout} | {int(s.end_layout[end])}),
    )
    problem = pulp.LpProblem("stage", pulp.LpMinimize)
    x = pulp.LpVariable.dicts("x", (range(count), strategies), cat="Binary")
    y = pulp.LpVariable.dicts("y", (range(count + 1), layouts, layouts), lowBound=0)
    w = pulp.LpVariable("w", lowBound=0)
    seconds, size = [], [w]
    for layer in range(count):
        k = s.layers[layer]
        problem += pulp.lpSum(x[layer][q] for q in strategies) == 1
        for q in strategies:
            if not np.isfinite(c.forward_seconds[k, q]):
                problem += x[layer][q] == 0
                continue
            whole = m * (c.forward_seconds[k, q] + c.backward_seconds[k, q]) + c.sync_seconds[k, q]
            seconds.append(whole * x[layer][q])
            size.append((c.state_bytes[k, q] + c.activation_bytes[k, q]) * x[layer][q])
            problem += w >= c.working_bytes[k, q] * x[layer][q]

    def layout_of(layer, a):
        if layer in (-1, count):
            return int(int(s.end_layout[end]) == a)
        return pulp.lpSum(x[layer][q] for q in strategies if int(s.layout[q]) == a)

    for layer in range(count + 1):
        for a in layouts:
            problem += pulp.lpSum(y[layer][a][b] for b in layouts) == layout_of(layer - 1, a)
            problem += pulp.lpSum(y[layer][b][a] for b in layouts) == layout_of(layer, a)
            for b in layouts:
                change = s.change_forward_seconds[a, b] + s.change_backward_seconds[a, b]
                seconds.append(m * change * y[layer][a][b])
    fixed_seconds = fixed_bytes = 0.0
    for costs in (s.first, s.last):
        fixed_seconds += (
            m * (costs.forward_seconds[end] + costs.backward_seconds[end]) + costs.sync_seconds[end]
        )
        fixed_bytes += costs.state_bytes[end] + costs.activation_bytes[end]
    problem += pulp.lpSum(seconds)
    problem += pulp.lpSum(size) <= limit - s.reserve_bytes - fixed_bytes
    problem.solve(pulp.PULP_CBC_CMD(msg=False, gapRel=0, gapAbs=0))
    if pulp.LpStatus[problem.status] != "Optimal":
        return np.inf
    return float(pulp.value(problem.objective)) + fixed_seconds


def random_setting(rng, pp, layers, kinds, strategies, ends, layouts):
    """A small setting with whole-number costs, so that equal steps are equal to the last bit."""

    def draw(low, high, *shape):
        return rng.integers(low, high + 1, shape).astype(float)

    forward = draw(1, 9, kinds, strategies)
    costs = LayerCosts(
        forward_seconds=forward,
        backward_seconds=forward + draw(0, 12, kinds, strategies),
        sync_seconds=draw(0, 8, kinds, strategies),
        state_bytes=draw(0, 12, kinds, strategies),
        activation_bytes=draw(0, 6, kinds, strategies),
        working_bytes=draw(0, 9, kinds, strategies) * rng.integers(0, 2),
    )

    def end_costs():
        return EndCosts(*(draw(0, high, ends) for high in (6, 9, 5, 8, 3)))

    change = draw(0, 6, layouts, layouts) * (1 - np.eye(layouts))
    order = rng.integers(0, kinds, layers)
    return LayeredSetting(
        pp=pp,
        microbatches=int(rng.integers(1, 7)),
        layers=tuple(int(k) for k in order),
        strategies=tuple(LayerChoice(1, 1, x + 1, 0) for x in range(strategies)),
        ends=tuple(LayerChoice(1, 1, x + 1, 0) for x in range(ends)),
        costs=costs,
        first=end_costs(),
        last=end_costs(),
        layout=rng.integers(0, layouts, strategies),
        end_layout=rng.integers(0, layouts, ends),
        change_forward_seconds=change,
        change_backward_seconds=draw(0, 6, layouts, layouts) * (1 - np.eye(layouts)),
        send_forward_seconds=float(rng.integers(0, 4)),
        send_backward_seconds=float(rng.integers(0, 4)),
        reserve_bytes=float(rng.integers(0, 3)),
    )


def with_own_terms(rng, s):
    """The setting with updates, stages' own seconds, a constant and bytes shared by groups drawn too."""

    def draw(high, *shape):
        return rng.integers(0, high + 1, shape).astype(float)

    shape, ends = s.costs.sync_seconds.shape, len(s.ends)
    inner = replace(s.costs, update_seconds=draw(7, *shape))
    group = tuple(int(g) for g in rng.integers(0, 2, shape[1]))
    weights = draw(5, s.pp, ends, 2)

    def shared(stage, end, mask):
        if stage not in (0, s.pp - 1):
            end = 0
        return sum(weights[stage, end, one] for one in range(2) if mask >> one & 1)

    return replace(
        s,
        costs=inner,
        first=replace(s.first, update_seconds=draw(6, ends)),
        last=replace(s.last, update_seconds=draw(6, ends)),
        stage_forward_seconds=tuple(draw(3, s.pp).tolist()),
        stage_backward_seconds=tuple(draw(3, s.pp).tolist()),
        constant_seconds=tuple(draw(5, ends).tolist()),
        group=group,
        shared_bytes=shared,
    )


def random_limit(rng, settings):
    """From hopeless to generous."""
    s = settings[int(rng.integers(0, len(settings)))]
    width = (s.costs.state_bytes + s.costs.activation_bytes * min(s.pp, s.microbatches)).max()
    return float(rng.integers(2, int(width * len(s.layers) / s.pp) + 24))
