"""Lower bounds on the seconds of a step, for all candidates at once.

A rank i that spends t_i per microbatch cannot finish before m t_i plus the time S_i the ranks before it
take to fill and drain, so for any split of the work W over p ranks the best is reached when all those are
equal, T = W / (1 - (1 - 1/m)^p). Where the layers of each rank are known (one rank, or balanced chunks)
the bound is taken rank by rank, with the recomputation the memory limit asks for. What follows the last
backward adds to both: the slowest rank is no faster than the mean, and hiding is convex.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from planner.cost.arrays import Array, IntArray, Number, ceil_div
from planner.cost.collectives import GroupCosts, exposed_seconds
from planner.cost.data_parallel import layer_moves, moves_seconds
from planner.cost.groups import Groups, rank_groups
from planner.cost.layer import CostTable
from planner.cost.row import reserve_bytes
from planner.cost.step import CostModel
from planner.cost.tail import Sync, Tail, exposed_tail, sync
from planner.schedule.orders import ZERO_BUBBLE, in_flight, virtual_stage
from planner.search.layout import Layout, balanced_chunks, end_weights
from planner.search.memory_bounds import layer_counts, static_bytes
from planner.strategy.candidates import BoolArray, Candidates
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


def plain_share(pp: Number, m: Number, filling: Number) -> Number:
    """Least T / W of a schedule without virtual stages: f / (1 - (1 - f/m)^pp).

    ``filling`` f: the share of a rank's time of a microbatch that the next rank must wait for. 1 for fill
    and drain of whole backwards; the forward's share where weight gradients fill the drain.
    """
    return filling / (1.0 - (1.0 - filling / m) ** pp)


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
    whole = _synchronised(model, groups, code, c.pp > 1, total.dense, total.expert)
    one_bucket = Sync(whole.reduce, whole.gather, whole.traffic, np.inf)
    tail = exposed_tail(model.device, model.stack, 1.0, one_bucket, total.forward, total.slow_backward)
    return Tail(tail.reduce / c.pp, tail.optimizer / c.pp, tail.gather / c.pp)


def _synchronised(
    model: CostModel, groups: Groups, code: int, has_pipeline: Number, dense: Number, expert: Number
) -> Sync:
    """What ranks with these elements synchronise, norm weights over tp aside."""
    moments = model.problem.workload.moment_bytes_per_parameter
    args = (model.stack, code, has_pipeline, groups, moments)
    return sync(*args, "dp", dense) + sync(*args, "expert_dp", expert)


def schedule_lower_bound(
    model: CostModel, table: CostTable, layout: Layout, expanded: Candidates, origin: IntArray
) -> Array:
    """Seconds no plan of each expanded candidate (sharding and schedule known) can beat.

    ``origin`` says which row of the table each is priced by. Infinite where the memory limit is passed with
    everything recomputed.
    """
    result = _ranked_lower_bound(model, table, layout, expanded, origin)
    values = None
    for name in ("1f1b", "zb-h1"):
        mine = np.flatnonzero((expanded.schedule == SCHEDULES.index(name)) & (expanded.pp > 1))
        if len(mine):
            values = values or _KindValues.of(model, table, np.arange(len(table.candidates)))
            rows, back = np.unique(origin[mine], return_inverse=True)
            result[mine] = _split_lower_bound(model, table, values.taken(rows), rows, name)[back]
    return result


def _split_lower_bound(
    model: CostModel, table: CostTable, values: _KindValues, rows: IntArray, schedule: str
) -> Array:
    """Schedules without virtual stages: the best split nobody can beat, and the mean tail."""
    c = table.candidates.take(rows)
    total = _Totals.of(table).taken(rows)
    share = split_share(model, table, values, c, rows, schedule)
    result = np.zeros(len(c))
    for code, where in _by_code(c.sharding):
        mine = total.taken(where)
        groups = _taken(values.groups, where)
        result[where] = _spread_seconds(model, groups, code, mine, c.take(where), mine.work, share[where])
    return result + model.constants.step_overhead_seconds


BISECTIONS = 14


def split_share(
    model: CostModel,
    table: CostTable,
    values: _KindValues,
    c: Candidates,
    rows: IntArray,
    schedule: str,
) -> Array:
    """Least T / W over all splits of the chain that fit; infinite where none does.

    Rank r, with work x (of W = 1) and recomputation e behind work S of the ranks before it, cannot end before
    g S + m (x + e), g the share of S that keeps it waiting: all of it under 1F1B (fill and drain), the
    forwards f where weight gradients fill the drain. There also its first input gradient waits for microbatch
    0 to come back, beside which only w - 1 = min(m, pp - r) - 1 warm-up forwards are done: no sooner than
    f S + m x + (f + i)(1 - S - x) - (w - 1) f' x, i the input gradients' share, f' the most f of any layer.
    Its a microbatches in flight hold x (s + a k) bytes, s and k the least static and saved bytes per second
    of work of any block; what passes the limit is freed at the best seconds per byte. The first and the last
    layer of the chain lie on the first and the last rank. A larger x on every rank is always better, so
    bisection on T asks whether the largest x of all ranks reach the blocks' work.
    """
    is_zb = schedule in ZERO_BUBBLE
    m = c.microbatches(model.problem.workload.global_batch).astype(np.float64)
    pp = c.pp.astype(np.float64)
    total = layer_counts(table) @ values.seconds
    blocks = np.array([kind.role == "block" for kind in table.chain.kinds])
    goal = (layer_counts(table) * blocks) @ values.seconds / total
    static, saved, stuck = (
        total * _least_ratio(value[blocks], values.seconds[blocks])
        for value in (values.static, values.saved, values.saved - values.freeable)
    )
    rate, second = values.first_rate.min(axis=0) / total, values.second_rate.min(axis=0) / total
    second = np.where(np.isfinite(second), second, rate)
    # Bytes that the first rate can free at most, per second of work of any block.
    cheap = total * _most_ratio(values.cheap[blocks], values.seconds[blocks])
    least, most, turn = (share[rows] for share in _forward_shares(table))
    waiting = least if is_zb else np.ones(len(c))
    ends = (table.chain.layers[0], table.chain.layers[-1])
    low, high = m / pp, np.full(len(c), np.inf)
    middle = 2.0 * plain_share(pp, m, 1.0)  # first ask whether anything fits at all, recomputation included
    for _ in range(BISECTIONS):
        reached, placed = np.zeros(len(c)), np.zeros(len(c))
        for rank in range(int(c.pp.max(initial=1))):
            held = np.minimum(m, pp) if is_zb else np.maximum(1.0, np.minimum(m, pp - rank))
            own = [rank == 0 and not blocks[ends[0]], (rank == pp - 1) & (not blocks[ends[1]])]
            fixed = sum(has * values.seconds[kind] for has, kind in zip(own, ends, strict=True)) / total
            kept = sum(
                has * (values.static[kind] + held * values.saved[kind])
                for has, kind in zip(own, ends, strict=True)
            )
            spare, room = (middle - waiting * reached) / m - fixed, values.spare_bytes - kept
            with_recompute = (spare + room * rate / held) / (1.0 + (static + held * saved) * rate / held)
            steep = ((static + held * saved) * second - cheap * held * (second - rate)) / held
            x = np.minimum(np.minimum(spare, with_recompute), (spare + room * second / held) / (1.0 + steep))
            with np.errstate(divide="ignore", invalid="ignore"):
                x = np.minimum(x, np.where(room >= 0.0, room / (static + held * stuck), 0.0))
                if is_zb:
                    divisor = m - turn - np.maximum(0.0, np.minimum(m, pp - rank) - 1.0) * most
                    turned = (middle - turn + (turn - least) * reached) / divisor - fixed
                    x = np.where(divisor > 0.0, np.minimum(x, turned), x)
            is_there = rank < pp
            x = np.where(is_there, np.maximum(0.0, x), 0.0)
            placed, reached = placed + x, reached + x + np.where(is_there, fixed, 0.0)
        reaches = placed >= goal
        low, high = np.where(reaches, low, middle), np.where(reaches, middle, high)
        middle = np.where(np.isfinite(high), 0.5 * (low + high), 4.0 * middle)
    # What does not fit in millions of times its own work never does.
    return np.where(np.isfinite(high), low, np.inf)


def _least_ratio(value: Array, seconds: Array) -> Array:
    """The least value per second of work over the layer kinds that work."""
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(seconds > 0.0, value / seconds, np.inf)
    result: Array = ratio.min(axis=0)
    return result


def _most_ratio(value: Array, seconds: Array) -> Array:
    """The most value per second of work over the layer kinds that work."""
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(seconds > 0.0, value / seconds, 0.0)
    result: Array = ratio.max(axis=0)
    return result


def _forward_shares(table: CostTable) -> tuple[Array, Array, Array]:
    """Over the layer kinds: least and most share of forward, least of forward and input gradient."""
    least = np.ones(len(table.candidates))
    most, turn = np.zeros(len(table.candidates)), np.ones(len(table.candidates))
    for row in table.rows:
        forward, backward = row.forward_seconds(), row.backward_seconds(0)
        with np.errstate(divide="ignore", invalid="ignore"):
            share = forward / (forward + backward)
            around = (forward + backward - row.weight_seconds) / (forward + backward)
        is_work = forward + backward > 0.0
        least = np.where(is_work, np.minimum(least, share), least)
        most = np.where(is_work, np.maximum(most, share), most)
        turn = np.where(is_work, np.minimum(turn, around), turn)
    return np.maximum(least, 1e-9), most, turn


def _ranked_lower_bound(
    model: CostModel, table: CostTable, layout: Layout, expanded: Candidates, origin: IntArray
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
    values = _KindValues.of(model, table, origin[chosen])
    first, last = end_weights(table.chain, list(values.seconds))
    m = c.microbatches(model.problem.workload.global_batch)[chosen]
    pp, v = c.pp[chosen], c.virtual_stages[chosen]
    deepest = 2 * pp  # microbatches beyond which the warm-up, and so the memory, no longer changes
    columns = [pp, v, first.astype(int), last.astype(int), np.minimum(m, deepest), c.schedule[chosen]]
    shapes, which = np.unique(np.stack(columns, axis=1), axis=0, return_inverse=True)
    which = which.reshape(-1)
    for index, (stages, degree, head, end, held, schedule) in enumerate(shapes.tolist()):
        mine = np.flatnonzero(which == index)
        chunks = balanced_chunks(layout.num_blocks, stages * degree, head, end)
        name = SCHEDULES[schedule]
        placed = [[virtual_stage(name, r, v, stages) for r in range(stages)] for v in range(degree)]
        counts = np.array([layout.kind_counts(*span) for span in chunks], dtype=np.float64)[placed]
        flight = np.array([in_flight(name, r, stages, held, degree) for r in range(stages)]).T
        fill = values.forward if schedule == ZB_V else values.seconds
        work = values.work(mine, counts, flight.astype(np.float64), m[mine].astype(np.float64), fill)
        tail = values.tail(model, mine, counts.sum(axis=0))
        seconds = model.straggler_factor * work
        finish = np.maximum(seconds.max(axis=0) + tail.reduce[0], (seconds + tail.reduce).max(axis=0))
        result[chosen[mine]] = finish + (tail.optimizer + tail.gather).max(axis=0)
    return result + model.constants.step_overhead_seconds * (result > 0)


@dataclass(frozen=True)
class _KindValues:
    """Per kind (rows) and chosen candidate (columns): seconds, bytes, recompute's price, elements."""

    seconds: Array
    forward: Array
    slow_backward: Array
    static: Array
    saved: Array
    first_rate: Array
    second_rate: Array
    cheap: Array
    freeable: Array
    dense: Array
    expert: Array
    spare_bytes: float
    groups: Groups
    sharding: IntArray
    data_ranks: IntArray
    has_pipeline: BoolArray

    @staticmethod
    def of(model: CostModel, table: CostTable, chosen: IntArray) -> _KindValues:
        c = table.candidates
        columns: dict[str, list[Array]] = {name: [] for name in _COLUMNS}
        for row in table.rows:
            plain, forward = row.backward_seconds(0), row.forward_seconds()
            slowest = np.maximum.reduce([row.backward_seconds(mode) for mode in range(3)])
            freed = [(row.saved_bytes[0] - row.saved_bytes[mode])[chosen] for mode in (1, 2)]
            extra = [(row.backward_seconds(mode) - plain)[chosen] for mode in (1, 2)]
            first_rate, second_rate, cheap = _recompute_rates(freed, extra)
            values = {
                "seconds": (forward + plain)[chosen],
                "forward": forward[chosen],
                "slow_backward": slowest[chosen],
                "static": static_bytes(model, table, row)[chosen],
                "saved": row.saved_bytes[0][chosen],
                "first_rate": first_rate,
                "second_rate": second_rate,
                "cheap": cheap,
                "freeable": np.maximum.reduce([np.zeros(len(chosen)), *freed]),
                "dense": row.dense_parameters[chosen],
                "expert": row.expert_parameters[chosen],
            }
            for name, value in values.items():
                columns[name].append(value)
        slack = 1.0 + model.constants.allocator_slack
        arrays = {name: np.array(rows) for name, rows in columns.items()}
        arrays["static"] = arrays["static"] / slack
        return _KindValues(
            **arrays,
            spare_bytes=(model.problem.memory_limit_bytes - reserve_bytes(model.constants, 1)) / slack,
            groups=_taken(table.groups, chosen),
            sharding=c.sharding[chosen],
            data_ranks=c.data_ranks()[chosen],
            has_pipeline=c.pp[chosen] > 1,
        )

    def taken(self, chosen: IntArray) -> _KindValues:
        """The values of the chosen candidates."""
        columns = {name: getattr(self, name)[:, chosen] for name in _COLUMNS}
        return replace(
            self,
            **columns,
            groups=_taken(self.groups, chosen),
            sharding=self.sharding[chosen],
            data_ranks=self.data_ranks[chosen],
            has_pipeline=self.has_pipeline[chosen],
        )

    def work(self, mine: IntArray, counts: Array, flight: Array, m: Array, fill: Array) -> Array:
        """Seconds before which rank r (rows) of candidates ``mine`` cannot end, fill and drain included.

        counts[chunk, rank, kind], flight[chunk, rank]; ``fill``: what a kind keeps the next rank waiting.
        """
        per_rank = counts.sum(axis=0)
        work = per_rank @ self.seconds[:, mine]
        held = (flight[:, :, None] * counts).sum(axis=0)
        need = per_rank @ self.static[:, mine] + held @ self.saved[:, mine] - self.spare_bytes
        deepest = (flight[:, :, None] * (counts > 0)).max(axis=0)
        with np.errstate(divide="ignore", invalid="ignore"):
            rates = [
                np.where(deepest[:, :, None] > 0, rate[:, mine] / deepest[:, :, None], np.inf).min(axis=1)
                for rate in (self.first_rate, self.second_rate)
            ]
        second = np.where(np.isfinite(rates[1]), rates[1], rates[0])
        beyond = np.maximum(0.0, need - held @ self.cheap[:, mine]) * (second - rates[0])
        with np.errstate(invalid="ignore"):
            extra = np.where(need > 0, need * rates[0] + np.maximum(0.0, beyond), 0.0)
        extra = np.where(need > held @ self.freeable[:, mine], np.inf, extra)
        before = np.vstack([np.zeros(len(mine)), np.cumsum(counts[0] @ fill[:, mine], axis=0)[:-1]])
        result: Array = before + m * (work + extra)
        return result

    def tail(self, model: CostModel, mine: IntArray, per_rank: Array) -> Tail:
        """At least the tails of every rank (rows) of candidates ``mine``: with the widest backward."""
        forward, backward = per_rank @ self.forward[:, mine], per_rank @ self.slow_backward[:, mine]
        dense, expert = per_rank @ self.dense[:, mine], per_rank @ self.expert[:, mine]
        parts = [np.zeros(dense.shape) for _ in range(3)]
        for code, where in _by_code(self.sharding[mine]):
            groups = _taken(self.groups, mine[where])
            total = _synchronised(
                model, groups, code, self.has_pipeline[mine[where]], dense[:, where], expert[:, where]
            )
            ranks = self.data_ranks[mine[where]]
            tail = exposed_tail(
                model.device, model.stack, ranks, total, forward[:, where], backward[:, where]
            )
            for part, value in zip(parts, (tail.reduce, tail.optimizer, tail.gather), strict=True):
                part[:, where] = value
        return Tail(*parts)


_COLUMNS = (
    "seconds",
    "forward",
    "slow_backward",
    "static",
    "saved",
    "first_rate",
    "second_rate",
    "cheap",
    "freeable",
    "dense",
    "expert",
)


def _recompute_rates(freed: list[Array], extra: list[Array]) -> tuple[Array, Array, Array]:
    """(seconds per byte at first, seconds per byte beyond, bytes at the first rate) of a layer's recompute.

    ``freed`` and ``extra`` of selective and of full. The convex hull from none over selective to full, or
    straight to full where that is cheaper; infinite where nothing can be freed.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        selective = np.where(freed[0] > 0.0, extra[0] / freed[0], np.inf)
        full = np.where(freed[1] > 0.0, extra[1] / freed[1], np.inf)
        onward = (extra[1] - extra[0]) / (freed[1] - freed[0])
    has_more = freed[1] > freed[0]
    is_bent = (selective < full) & has_more
    first = np.minimum(selective, full)
    second = np.where(is_bent, onward, np.inf)
    cheap = np.where(is_bent, freed[0], np.maximum(freed[0], freed[1]))
    return first, second, np.maximum(0.0, cheap)


def _by_code(sharding: IntArray) -> Iterator[tuple[int, IntArray]]:
    for code in np.unique(sharding).tolist():
        yield int(code), np.flatnonzero(sharding == code)


def _taken(groups: Groups, chosen: IntArray) -> Groups:
    """The groups of the chosen candidates."""

    def one(value: Number) -> Number:
        if isinstance(value, GroupCosts):
            return GroupCosts(*(column[chosen] for column in vars(value).values()))
        return value[chosen]

    return Groups(**{name: one(value) for name, value in vars(groups).items()})


def rank_lower_bound(
    before: float,
    forward: float,
    backward: float,
    after: float,
    microbatches: int,
    warmup: int,
    *,
    has_drain: bool = True,
) -> float:
    """When the step can end at the earliest, judged from one rank of a non-interleaved schedule.

    ``before`` and ``after``: forward plus backward of one microbatch on the ranks before and after;
    ``warmup``: forwards issued before the first backward. The rank fills and drains with ``before``, works
    m (f + b), and idles while its first microbatch travels down and back (``after`` less the warm-up
    forwards that hide it) and, when m > warmup, again for its last one behind the draining backwards
    (not where weight gradients fill the drain: ``has_drain`` False).
    """
    idle = max(0.0, after - (warmup - 1) * forward)
    if microbatches > warmup and has_drain:
        idle += max(0.0, after - (warmup - 1) * backward)
    return before + microbatches * (forward + backward) + idle
