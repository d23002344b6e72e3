"""Whether any split of the chain may end within given seconds, for many candidates at once.

Rank by rank from the last one, each takes as many blocks as its time and memory let it: the earlier it can
start, the fewer are left for the ranks before it. A rank that starts at block a waits for one microbatch of
all layers in front of it, and fewer layers on it never hold more bytes or end later, so its earliest start is
found by bisection. Recomputation costs at least the best seconds per byte of any block (``bounds``).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from planner.cost.arrays import Array, IntArray
from planner.cost.layer import RECOMPUTE_MODES, CostTable
from planner.cost.model import CostModel
from planner.search.kind_values import KindValues
from planner.search.layout import Layout
from planner.strategy.candidates import BoolArray, Candidates


def may_end_within(
    model: CostModel,
    table: CostTable,
    values: KindValues,
    layout: Layout,
    c: Candidates,
    rows: IntArray,
    seconds: float,
) -> BoolArray:
    """Which of the 1F1B candidates ``c`` have a split that may beat ``seconds``; False is a proof, True none.

    ``rows``: the row of the table of each; ``values``: of all rows of the table.
    """
    order = np.argsort(-c.pp, kind="stable")
    c, rows = c.take(order), rows[order]
    rate, second = values.first_rate.min(axis=0)[rows], values.second_rate.min(axis=0)[rows]

    def sums(column: Array) -> Array:
        result: Array = layout.layers_before @ column[:, rows]
        return result

    reach = _Reach(
        counts=[int((c.pp > rank).sum()) for rank in range(int(c.pp.max(initial=1)))],
        pp=c.pp,
        m=c.microbatches(model.problem.workload.global_batch),
        work=sums(values.seconds),
        static=sums(values.static),
        saved=sums(values.saved),
        freed=sums(values.freeable),
        cheap=sums(values.cheap),
        rates=(rate, np.where(np.isfinite(second), second, rate)),
        spare=values.spare_bytes - _least_buffers(model, table, layout, rows),
    )
    found = np.empty(len(c), dtype=bool)
    found[order] = reach.within((seconds - model.constants.step_overhead_seconds) / model.straggler_factor)
    return found


@dataclass(frozen=True)
class _Reach:
    """Candidates (columns, those of most ranks first) and sums over the layers before every block (rows).

    ``counts``: the candidates that have a rank of that number. ``freed``: bytes that recomputation can free,
    ``cheap`` those at the first of the two ``rates`` (seconds a byte); ``spare``: bytes for all of it.
    """

    counts: list[int]
    pp: IntArray
    m: IntArray
    work: Array
    static: Array
    saved: Array
    freed: Array
    cheap: Array
    rates: tuple[Array, Array]
    spare: Array

    def within(self, seconds: float) -> BoolArray:
        """Whether the ranks reach back to the first block when the step may take ``seconds``."""
        blocks = len(self.work) - 1
        ends: IntArray = np.full(len(self.pp), blocks, dtype=np.int64)
        alive = np.ones(len(self.pp), dtype=bool)
        for rank in reversed(range(1, len(self.counts))):
            n = self.counts[rank]
            low, high = np.full(n, rank, dtype=np.int64), ends[:n].copy()
            for _ in range(blocks.bit_length()):
                middle = (low + high) // 2
                holds = self._holds(rank, middle, ends[:n], seconds)
                low, high = np.where(holds, low, np.minimum(middle + 1, high)), np.where(holds, middle, high)
            alive[:n] &= high < ends[:n]
            ends[:n] = np.maximum(high, rank)
        return alive & self._holds(0, np.zeros(len(ends), dtype=np.int64), ends, seconds)

    def _holds(self, rank: int, first: IntArray, end: IntArray, seconds: float) -> BoolArray:
        """Whether a rank may hold blocks [first, end) of each candidate and end in time."""
        n = len(first)
        at = np.arange(n)

        def between(sums: Array) -> Array:
            result: Array = sums[end, at] - sums[first, at]
            return result

        held = np.maximum(1, np.minimum(self.m[:n], self.pp[:n] - rank))
        need = between(self.static) + held * between(self.saved) - self.spare[:n]
        is_over = need > 0.0
        extra = np.zeros(n)
        if is_over.any():
            rate, second = (rates[:n] / held for rates in self.rates)
            beyond = np.maximum(0.0, need - held * between(self.cheap)) * (second - rate)
            with np.errstate(invalid="ignore"):
                extra = np.where(is_over, need * rate + np.maximum(0.0, beyond), 0.0)
            extra = np.where(need > held * between(self.freed), np.inf, extra)
        result: BoolArray = self.work[first, at] + self.m[:n] * (between(self.work) + extra) < seconds
        return result


def _least_buffers(model: CostModel, table: CostTable, layout: Layout, rows: IntArray) -> Array:
    """Short-lived bytes beside what is kept that every rank needs: the least of any block."""
    if model.stack.makes_buffers_when_needed:
        return np.zeros(len(rows))
    kinds = [row for row, is_block in zip(table.rows, layout.is_block, strict=True) if is_block]
    least = [
        row.transient_bytes + np.minimum.reduce([row.working_bytes[mode] for mode in range(RECOMPUTE_MODES)])
        for row in kinds
    ]
    result: Array = np.minimum.reduce(least)[rows]
    return result
