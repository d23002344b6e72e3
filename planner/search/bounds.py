"""Lower bounds on the seconds of a step, for all candidates at once.

A rank i that spends t_i per microbatch cannot finish before m t_i plus the time S_i the ranks before it
take to fill and drain, so for any split of the work W over p ranks the best is reached when all those are
equal, T = W / (1 - (1 - 1/m)^p). Where the layers of each rank are known (one rank, or balanced chunks)
the bound is taken rank by rank, with the recomputation the memory limit asks for. What follows the last
backward adds to both: the slowest rank is no faster than the mean, and hiding is convex.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from planner.cost.arrays import Array, IntArray, Number, ceil_div
from planner.cost.collectives import exposed_seconds
from planner.cost.data_parallel import layer_moves, moves_seconds
from planner.cost.groups import Groups, rank_groups
from planner.cost.layer import CostTable
from planner.cost.model import CostModel
from planner.cost.tail import Tail, exposed_tail
from planner.schedule.orders import ZERO_BUBBLE, in_flight, virtual_stage
from planner.search.kind_values import KindValues, by_code, synchronised, taken_groups
from planner.search.layout import Layout, balanced_chunks, end_weights
from planner.search.memory_bounds import layer_counts
from planner.search.split_bounds import forward_shares, plain_share, split_share
from planner.strategy.candidates import Candidates
from planner.strategy.decision import (
    GROUP_GLOBAL,
    SCHEDULES,
    SHARDING_GRADIENTS,
    SHARDING_GROUPS,
    SHARDING_NONE,
    SHARDING_OPTIMIZER,
    SHARDING_PARAMETERS,
)
from planner.strategy.limits import Limits

INTERLEAVED = SCHEDULES.index("interleaved")
ZB_V = SCHEDULES.index("zb-v")


@dataclass(frozen=True)
class _Totals:
    """The whole chain for every candidate: seconds of one microbatch, kernels apart, and elements.

    most_blocks: seconds of the rank with the most blocks, at least.
    """

    work: Array
    forward: Array
    slow_backward: Array
    forward_compute: Array
    backward_compute: Array
    dense: Array
    expert: Array
    block_dense: Array
    most_blocks: Array

    @staticmethod
    def of(table: CostTable) -> _Totals:
        """Sums over the chain; ``slow_backward`` with everything recomputed in full."""
        columns = [np.zeros(len(table.candidates)) for _ in range(8)]
        blocks = [1.0 if kind.role == "block" else 0.0 for kind in table.chain.kinds]
        for count, row, is_block in zip(layer_counts(table), table.rows, blocks, strict=True):
            forward, backward = row.forward_seconds(), row.backward_seconds(0)
            slowest = np.maximum(np.maximum(backward, row.backward_seconds(1)), row.backward_seconds(2))
            values = (
                forward + backward,
                forward,
                slowest,
                row.forward["compute"],
                row.backward["compute"],
                row.dense_parameters,
                row.expert_parameters,
                row.dense_parameters * is_block,
            )
            for column, value in zip(columns, values, strict=True):
                column += count * value
        # Some rank has at least ceil(blocks / pp) of them, whole ones, whatever the split.
        layers = table.chain.block_layers
        least = np.minimum.reduce(
            [
                table.rows[kind].forward_seconds() + table.rows[kind].backward_seconds(0)
                for kind in sorted({table.chain.layers[layer] for layer in layers})
            ]
        )
        columns.append(ceil_div(len(layers), table.candidates.pp) * least)
        return _Totals(*columns)

    def taken(self, chosen: IntArray) -> _Totals:
        """The totals of the chosen candidates."""
        return _Totals(*(column[chosen] for column in vars(self).values()))


def base_lower_bound(model: CostModel, table: CostTable, codes: list[int], limits: Limits) -> Array:
    """Seconds no plan of each base (a mesh and a microbatch size, priced without sharding) can beat.

    The least over the shardings ``codes`` and their groups of: the work, with the exposed traffic of
    sharded parameters, spread perfectly over the ranks, and the mean of what follows the last backward.
    """
    c, total = table.candidates, _Totals.of(table)
    m = c.microbatches(model.problem.workload.global_batch).astype(np.float64)
    is_free = (m % c.pp == 0) & ("interleaved" in limits.schedules)
    if any(name in limits.schedules for name in ZERO_BUBBLE):
        is_free = is_free | (c.pp > 1)
    share = np.where(is_free, m / c.pp, plain_share(c.pp, m, 1.0))
    best = np.full(len(c), np.inf)
    known: dict[int, Groups] = {}
    for code in codes:
        for name in limits.sharding_groups if code != SHARDING_NONE else ("global",):
            group = SHARDING_GROUPS.index(name)
            if group not in known:
                known[group] = _groups(model, table, group)
            exposed = _sharded_seconds(model, known[group], code, total, c)
            seconds = _spread_seconds(model, known[group], code, total, c, total.work + exposed, share)
            if code > SHARDING_OPTIMIZER and not limits.parameter_sharding_with_pipeline:
                seconds = np.where(c.pp > 1, np.inf, seconds)
            best = np.minimum(best, seconds)
    result: Array = best + model.constants.step_overhead_seconds
    return result


def _spread_seconds(
    model: CostModel,
    groups: Groups,
    code: int,
    total: _Totals,
    c: Candidates,
    work: Number,
    share: Number,
) -> Number:
    """``work`` of one microbatch over ranks nobody can balance better, and the mean tail.

    The slowest rank ends no sooner than T = work x share, and no sooner than the mean rank's own work and
    reduction.
    """
    m = c.microbatches(model.problem.workload.global_batch).astype(np.float64)
    tail = _mean_tail(model, groups, code, total, c)
    busy = model.straggler_factor * work
    fullest = model.straggler_factor * m * total.most_blocks
    spread = np.maximum(busy * share, busy * m / c.pp + tail.reduce)
    return np.maximum(spread, fullest) + tail.optimizer + tail.gather


def _groups(model: CostModel, table: CostTable, group: int) -> Groups:
    if group == GROUP_GLOBAL:
        return table.groups
    c = table.candidates
    return rank_groups(model.problem, model.constants, c.replace(sharding_group=c.sharding_group * 0 + group))


def _sharded_seconds(model: CostModel, groups: Groups, code: int, total: _Totals, c: Candidates) -> Number:
    """At least what sharded weights of the blocks expose per microbatch, beside the compute of all layers."""
    if code not in (SHARDING_GRADIENTS, SHARDING_PARAMETERS):
        return 0.0
    dense, expert = total.block_dense, total.expert
    forward, backward = layer_moves(model.stack, code, c.pp > 1, dense, expert, stays=False)
    theft = model.constants.overlap_theft
    return exposed_seconds(moves_seconds(groups, forward), total.forward_compute, theft) + exposed_seconds(
        moves_seconds(groups, backward), total.backward_compute, theft
    )


def _mean_tail(model: CostModel, groups: Groups, code: int, total: _Totals, c: Candidates) -> Tail:
    """At least the mean over ranks of the tail: its parts are subadditive in elements and windows."""
    whole = synchronised(model, groups, code, c.pp > 1, total.dense, total.expert)
    one_bucket = replace(whole, elements=np.inf)
    tail = exposed_tail(model.device, model.stack, 1.0, one_bucket, total.forward, total.slow_backward)
    return Tail(tail.reduce / c.pp, tail.optimizer / c.pp, tail.gather / c.pp)


def spread_lower_bound(model: CostModel, table: CostTable, expanded: Candidates, origin: IntArray) -> Array:
    """Seconds no plan of each expanded candidate can beat: the work spread perfectly, and the mean tail.

    ``origin`` says which row of the table each is priced by. What a schedule waits for: fill and drain under
    1F1B, the forwards where weight gradients fill the drain, nothing where chunks may be short.
    """
    c, total = table.candidates, _Totals.of(table)
    m = c.microbatches(model.problem.workload.global_batch).astype(np.float64)
    result = np.zeros(len(expanded))
    for schedule in np.flatnonzero(np.bincount(expanded.schedule, minlength=1)).tolist():
        if SCHEDULES[schedule] in ("1f1b", "gpipe"):
            share = plain_share(c.pp, m, 1.0)
        elif SCHEDULES[schedule] == "zb-h1":
            share = plain_share(c.pp, m, forward_shares(table)[0])
        else:
            share = m / c.pp
        rows = np.zeros(len(c))
        for code, where in by_code(c.sharding):
            mine, groups = total.taken(where), taken_groups(table.groups, where)
            rows[where] = _spread_seconds(model, groups, code, mine, c.take(where), mine.work, share[where])
        chosen = expanded.schedule == schedule
        result[chosen] = rows[origin[chosen]]
    return result + model.constants.step_overhead_seconds


def schedule_lower_bound(
    model: CostModel,
    table: CostTable,
    values: KindValues,
    layout: Layout,
    expanded: Candidates,
    origin: IntArray,
) -> Array:
    """Seconds no plan of each expanded candidate (sharding and schedule known) can beat.

    ``values``: of all rows of the table. Infinite where the memory limit is passed with everything
    recomputed.
    """
    result = _ranked_lower_bound(model, table, values, layout, expanded, origin)
    for name in ("1f1b", "zb-h1"):
        mine = np.flatnonzero((expanded.schedule == SCHEDULES.index(name)) & (expanded.pp > 1))
        if len(mine):
            rows, back = np.unique(origin[mine], return_inverse=True)
            result[mine] = _split_lower_bound(model, table, values.taken(rows), rows, name)[back]
    return result


def _split_lower_bound(
    model: CostModel, table: CostTable, values: KindValues, rows: IntArray, schedule: str
) -> Array:
    """Schedules without virtual stages: the best split nobody can beat, and the mean tail."""
    c = table.candidates.take(rows)
    total = _Totals.of(table).taken(rows)
    share = split_share(model, table, values, c, rows, schedule)
    result = np.zeros(len(c))
    for code, where in by_code(c.sharding):
        mine = total.taken(where)
        groups = taken_groups(values.groups, where)
        result[where] = _spread_seconds(model, groups, code, mine, c.take(where), mine.work, share[where])
    return result + model.constants.step_overhead_seconds


def _ranked_lower_bound(
    model: CostModel,
    table: CostTable,
    every: KindValues,
    layout: Layout,
    expanded: Candidates,
    origin: IntArray,
) -> Array:
    """Candidates whose layers per rank are known: one rank, or balanced chunks; 0 for the others.

    Rank i waits for the first chunks of the ranks before it (fill and drain) and works m t_i; where its
    memory passes the limit, t_i grows by the bytes to free times the best seconds per byte of any
    recompute. Candidates with the same chunks share one product of layer counts and per-kind values.
    """
    c = expanded
    result = np.zeros(len(c))
    chosen = np.flatnonzero(np.isin(c.schedule, (INTERLEAVED, ZB_V)) | (c.pp == 1))
    if not len(chosen):
        return result
    first, last = end_weights(table.chain, list(every.seconds[:, origin[chosen]]))
    m = c.microbatches(model.problem.workload.global_batch)[chosen]
    pp, v = c.pp[chosen], c.virtual_stages[chosen]
    deepest = 2 * pp  # microbatches beyond which the warm-up, and so the memory, no longer changes
    columns = [pp, v, first.astype(int), last.astype(int), np.minimum(m, deepest), c.schedule[chosen]]
    shapes, which = np.unique(np.stack(columns, axis=1), axis=0, return_inverse=True)
    which = which.reshape(-1)
    # Candidates of one shape side by side: slices are read where they lie, scattered ones copied.
    order = np.argsort(which, kind="stable")
    chosen, microbatches = chosen[order], m[order].astype(np.float64)
    values = every.taken(origin[chosen])
    starts = np.searchsorted(which[order], np.arange(len(shapes) + 1)).tolist()
    for (stages, degree, head, end, held, schedule), first_one, end_one in zip(
        shapes.tolist(), starts, starts[1:], strict=False
    ):
        mine = slice(first_one, end_one)
        chunks = np.array(balanced_chunks(layout.num_blocks, stages * degree, head, end))
        name = SCHEDULES[schedule]
        placed = [[virtual_stage(name, r, v, stages) for r in range(stages)] for v in range(degree)]
        counts = (layout.layers_before[chunks[:, 1]] - layout.layers_before[chunks[:, 0]])[placed]
        flight = np.array([in_flight(name, r, stages, held, degree) for r in range(stages)]).T
        fill = values.forward if schedule == ZB_V else values.seconds
        work = values.work(mine, counts, flight.astype(np.float64), microbatches[mine], fill)
        tail = values.tail(model, mine, counts.sum(axis=0))
        seconds = model.straggler_factor * work
        # Rank 0 reduces last where the last microbatch drains back to it, which zero bubble fills instead.
        behind = 0.0 if schedule == ZB_V else tail.reduce[0]
        finish = np.maximum(seconds.max(axis=0) + behind, (seconds + tail.reduce).max(axis=0))
        result[chosen[mine]] = finish + (tail.optimizer + tail.gather).max(axis=0)
    return result + model.constants.step_overhead_seconds * (result > 0)
