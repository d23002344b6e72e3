"""Lower bounds on seconds and bytes, for all candidates at once.

Time: a rank i that spends t_i per microbatch cannot finish before m t_i plus the time S_i the ranks before
it take to fill and drain, so for any split of the work W over p ranks the best is reached when all those
are equal, T = W / (1 - (1 - 1/m)^p); interleaving is bounded on its balanced chunks. Bytes: the sum over
ranks of what must be kept cannot pass p times the limit. Both hold for every recompute choice.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from planner.cost.arrays import Array, IntArray
from planner.cost.layer import CostTable
from planner.cost.row import reserve_bytes, state_bytes_per_parameter
from planner.cost.step import CostModel
from planner.schedule.orders import in_flight
from planner.search.layout import Layout, balanced_chunks, end_weights
from planner.strategy.candidates import Candidates
from planner.strategy.decision import SCHEDULES, SHARDINGS

INTERLEAVED = SCHEDULES.index("interleaved")


def layer_counts(table: CostTable) -> Array:
    """How often each kind occurs in the chain."""
    return np.bincount(np.array(table.chain.layers), minlength=len(table.rows)).astype(np.float64)


def step_lower_bound(model: CostModel, table: CostTable) -> Array:
    """Seconds no non-interleaved plan of each candidate can beat: recompute-free work, spread perfectly."""
    c = table.candidates
    m = c.microbatches(model.problem.workload.global_batch).astype(np.float64)
    work = np.zeros(len(c))
    for count, row in zip(layer_counts(table), table.rows, strict=True):
        work = work + count * (row.forward_seconds() + row.backward_seconds(0))
    filled = work / (1.0 - (1.0 - 1.0 / m) ** c.pp)
    return model.straggler_factor * filled + model.constants.step_overhead_seconds


def interleaved_lower_bound(
    model: CostModel, table: CostTable, layout: Layout, expanded: Candidates, origin: IntArray
) -> Array:
    """Seconds of interleaved candidates on their balanced chunks; 0 for the others, inf where none fits.

    Rank i waits for the first chunks of the ranks before it (fill and drain) and works m t_i; where its
    memory passes the limit, t_i grows by the bytes to free times the best seconds per byte of any recompute.
    Candidates with the same chunks share one product of layer counts and per-kind values. ``origin`` says
    which row of the table each expanded candidate is priced by.
    """
    c = expanded
    result = np.zeros(len(c))
    chosen = np.flatnonzero(c.schedule == INTERLEAVED)
    if not len(chosen):
        return result
    values = _KindValues.of(model, table, origin[chosen])
    first, last = end_weights(table.chain, list(values.seconds))
    m = c.microbatches(model.problem.workload.global_batch)[chosen]
    pp, v = c.pp[chosen], c.virtual_stages[chosen]
    deepest = 2 * pp  # microbatches beyond which the warm-up, and so the memory, no longer changes
    shape = np.stack([pp, v, first.astype(int), last.astype(int), np.minimum(m, deepest)], axis=1)
    shapes, which = np.unique(shape, axis=0, return_inverse=True)
    which = which.reshape(-1)
    for index, (stages, degree, head, tail, held) in enumerate(shapes.tolist()):
        mine = np.flatnonzero(which == index)
        chunks = balanced_chunks(layout.num_blocks, stages * degree, head, tail)
        counts = np.array([layout.kind_counts(*span) for span in chunks], dtype=np.float64)
        counts = counts.reshape(degree, stages, -1)
        flight = np.array([in_flight("interleaved", r, stages, held, degree) for r in range(stages)]).T
        bound = values.bound(mine, counts, flight.astype(np.float64), m[mine].astype(np.float64))
        result[chosen[mine]] = bound
    return model.straggler_factor * result + model.constants.step_overhead_seconds * (result > 0)


@dataclass(frozen=True)
class _KindValues:
    """Per kind (rows) and chosen candidate (columns): seconds without recompute, bytes, recompute's price."""

    seconds: Array
    static: Array
    saved: Array
    seconds_per_byte: Array
    freeable: Array
    spare_bytes: float

    @staticmethod
    def of(model: CostModel, table: CostTable, chosen: IntArray) -> _KindValues:
        dense_state = _state(model, table, table.groups.shard_size)
        expert_state = _state(model, table, table.groups.expert_shard_size)
        seconds, static, saved, rate, freeable = [], [], [], [], []
        for row in table.rows:
            plain = row.backward_seconds(0)
            seconds.append((row.forward_seconds() + plain)[chosen])
            bytes_kept = row.dense_parameters * dense_state + row.expert_parameters * expert_state
            static.append(bytes_kept[chosen])
            saved.append(row.saved_bytes[0][chosen])
            best = np.full(len(chosen), np.inf)
            most = np.zeros(len(chosen))
            for mode in (1, 2):
                freed = (row.saved_bytes[0] - row.saved_bytes[mode])[chosen]
                extra = (row.backward_seconds(mode) - plain)[chosen]
                with np.errstate(divide="ignore", invalid="ignore"):
                    best = np.where(freed > 0, np.minimum(best, extra / freed), best)
                most = np.maximum(most, freed)
            rate.append(best)
            freeable.append(most)
        slack = 1.0 + model.constants.allocator_slack
        spare = (model.problem.memory_limit_bytes - reserve_bytes(model.constants, 1)) / slack
        return _KindValues(
            seconds=np.array(seconds),
            static=np.array(static) / slack,
            saved=np.array(saved),
            seconds_per_byte=np.array(rate),
            freeable=np.array(freeable),
            spare_bytes=spare,
        )

    def bound(self, mine: IntArray, counts: Array, flight: Array, m: Array) -> Array:
        """Step seconds of candidates ``mine``; counts[chunk, rank, kind], flight[chunk, rank]."""
        per_rank = counts.sum(axis=0)
        work = per_rank @ self.seconds[:, mine]
        held = (flight[:, :, None] * counts).sum(axis=0)
        need = per_rank @ self.static[:, mine] + held @ self.saved[:, mine] - self.spare_bytes
        deepest = (flight[:, :, None] * (counts > 0)).max(axis=0)
        with np.errstate(divide="ignore", invalid="ignore"):
            rate = np.where(
                deepest[:, :, None] > 0, self.seconds_per_byte[:, mine] / deepest[:, :, None], np.inf
            )
        extra = np.where(need > 0, need * rate.min(axis=1), 0.0)
        extra = np.where(need > held @ self.freeable[:, mine], np.inf, extra)
        before = np.vstack([np.zeros(len(mine)), np.cumsum(counts[0] @ self.seconds[:, mine], axis=0)[:-1]])
        bound: Array = np.max(before + m * (work + extra), axis=0)
        return bound


def memory_lower_bound(model: CostModel, table: CostTable) -> Array:
    """Bytes the fullest rank holds at least: mean static state, one recomputed microbatch, the reserve."""
    c = table.candidates
    total = np.zeros(len(c))
    dense_state = _state(model, table, table.groups.shard_size)
    expert_state = _state(model, table, table.groups.expert_shard_size)
    for count, row in zip(layer_counts(table), table.rows, strict=True):
        kept = np.minimum(np.minimum(row.saved_bytes[0], row.saved_bytes[1]), row.saved_bytes[2])
        static = row.dense_parameters * dense_state + row.expert_parameters * expert_state
        total = total + count * (static + kept)
    return total / c.pp + reserve_bytes(model.constants, 1)


def _state(model: CostModel, table: CostTable, shard_size: Array) -> Array:
    """Static bytes per element for every candidate's sharding."""
    c = table.candidates
    result = np.zeros(len(c))
    for code in range(len(SHARDINGS)):
        chosen = c.sharding == code
        if chosen.any():
            state = np.zeros(len(c))
            parts = state_bytes_per_parameter(model.problem, model.stack, code, shard_size, c.pp > 1)
            for part in parts:
                state = state + part
            # Gradients made in backward may never be there beside all saved tensors.
            if model.stack.makes_buffers_when_needed:
                m = c.microbatches(model.problem.workload.global_batch)
                state = state - np.where(m <= c.pp, parts[1], 0.0)
            result = np.where(chosen, state, result)
    return result


def rank_lower_bound(
    before: float, forward: float, backward: float, after: float, microbatches: int, warmup: int
) -> float:
    """When the step can end at the earliest, judged from one rank of a non-interleaved schedule.

    ``before`` and ``after``: forward plus backward of one microbatch on the ranks before and after;
    ``warmup``: forwards issued before the first backward. The rank fills and drains with ``before``, works
    m (f + b), and idles while its first microbatch travels down and back (``after`` less the warm-up
    forwards that hide it) and, when m > warmup, again for its last one behind the draining backwards.
    """
    idle = max(0.0, after - (warmup - 1) * forward)
    if microbatches > warmup:
        idle += max(0.0, after - (warmup - 1) * backward)
    return before + microbatches * (forward + backward) + idle
