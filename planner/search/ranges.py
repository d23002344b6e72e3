"""Block ranges of one candidate priced as differences of prefix sums.

A rank's seconds, elements and bytes are sums over its layers (short-lived buffers aside, which are a
maximum), so any range of blocks costs two look-ups. What follows the last backward is worked out for all
ranges up to a length at once.
"""

from __future__ import annotations

from itertools import accumulate
from operator import mul

import numpy as np

from planner.cost.arrays import Array
from planner.cost.row import reserve_bytes
from planner.cost.stage import StageModel
from planner.cost.tail import Sync, Tail, exposed_tail
from planner.search.layout import Layout

FEWEST_LENGTHS = 4
Spans = list[tuple[int, int]]


class Ranges:
    """Seconds, bytes and tails of block ranges [first, end), embeddings and head included."""

    def __init__(self, stages: StageModel, layout: Layout) -> None:
        self.stages, self.num_blocks = stages, layout.num_blocks
        row = stages.row
        self._kinds, self._layers, self._at = row.kinds, layout.chain.layers, layout.boundaries
        self._forward = self.prefix([kind.forward_seconds for kind in row.kinds])
        self._backward = self.prefix([kind.backward_seconds[0] for kind in row.kinds])
        self._weight = self.prefix([kind.weight_seconds for kind in row.kinds])
        self._static: list[float] = []
        self._tails: tuple[list[list[float]], ...] = ()
        self._length = 0

    def prefix(self, values: list[float]) -> list[float]:
        """Sums of a per-kind value over the layers before every block, and over all of them."""
        sums = [0.0, *accumulate([values[kind] for kind in self._layers])]
        return [sums[at] for at in self._at]

    def forward_seconds(self, first: int, end: int) -> float:
        return self._forward[end] - self._forward[first]

    def backward_seconds(self, first: int, end: int) -> float:
        """Without recomputation."""
        return self._backward[end] - self._backward[first]

    def weight_seconds(self, first: int, end: int) -> float:
        """The part of backward that is weight gradients."""
        return self._weight[end] - self._weight[first]

    def plain_bytes(self, first: int, end: int, alive: int) -> float | None:
        """Bytes without recomputation and with ``alive`` microbatches: the total of ``RankMemory.kept``.

        None for a stack whose fullest moment is not one sum.
        """
        return self.chunks_bytes([(first, end)], ((alive,),))

    def chunks_bytes(self, spans: Spans, states: tuple[tuple[int, ...], ...]) -> float | None:
        """The same for a rank of several chunks, with the microbatches each holds in every state."""
        if self.stages.stack.makes_buffers_when_needed:
            return None
        return max(self.state_bytes(spans, states))

    def state_bytes(self, spans: Spans, states: tuple[tuple[int, ...], ...]) -> list[float]:
        """Bytes in every state, without recomputation, of a rank whose fullest moment is one sum."""
        if not self._static:
            self._sum_bytes()
        static = working = transient = gathered = 0.0
        saved = []
        for first, end in spans:
            low, high = self._at[first], self._at[end]
            static += self._static[end] - self._static[first]
            saved.append(self._saved[end] - self._saved[first])
            working = max(working, *self._working[low:high])
            transient = max(transient, *self._transient[low:high])
            gathered = max(gathered, *self._gathered[low:high])
        buffers = working + transient + gathered + self._boundary
        return [
            float(static + self._slack * (sum(map(mul, state, saved)) + buffers) + self._reserve)
            for state in states
        ]

    def _sum_bytes(self) -> None:
        row, constants = self.stages.row, self.stages.device.constants
        self._static = self.prefix([kind.static_bytes for kind in row.kinds])
        self._saved = self.prefix([kind.saved_bytes[0] for kind in row.kinds])
        self._working = self._by_layer([kind.working_bytes[0] for kind in row.kinds])
        self._transient = self._by_layer([kind.transient_bytes for kind in row.kinds])
        self._gathered = self._by_layer([kind.gathered_bytes[0] for kind in row.kinds])
        self._boundary = 2.0 * row.boundary_bytes if row.degrees.pp > 1 else 0.0
        self._slack = 1.0 + constants.allocator_slack
        self._reserve = reserve_bytes(constants, row.num_communicators)

    def _by_layer(self, values: list[float]) -> list[float]:
        return [values[kind] for kind in self._layers]

    def tail(self, first: int, end: int, extra_backward_seconds: float) -> Tail:
        """What a rank with these blocks does after its last backward (``cost.tail``)."""
        length = end - first
        if length > self._length:
            self._work_out_tails(length)
        at = length - 1
        reduce, optimizer, gather, whole, traffic, elements = (rows[first][at] for rows in self._tails)
        if extra_backward_seconds:
            total = Sync(whole, 0.0, traffic, elements)
            backward = self.backward_seconds(first, end) + extra_backward_seconds
            reduce = self.stages.exposed(total, 0.0, backward).reduce
        return Tail(reduce, optimizer, gather)

    def rank_tails(self, ranks: list[Spans]) -> tuple[Sync, Tail]:
        """What ranks with these chunks synchronise and, nothing recomputed, their tails; arrays."""
        row, stages = self.stages.row, self.stages

        def totals(value: list[float]) -> Array:
            return np.array([sum(value[end] - value[first] for first, end in spans) for spans in ranks])

        def kind_totals(name: str) -> Array:
            return totals(self.prefix([getattr(kind, name) for kind in row.kinds]))

        total = stages.synchronised_parameters(
            kind_totals("dense_parameters"), kind_totals("expert_parameters"), kind_totals("norm_parameters")
        )
        total = Sync(*(np.broadcast_to(value, len(ranks)) for value in vars(total).values()))
        data_ranks = row.degrees.dp * row.degrees.cp
        windows = totals(self._forward), totals(self._backward)
        tail = exposed_tail(stages.device, stages.stack, data_ranks, total, *windows)
        return total, Tail(*(np.broadcast_to(value, len(ranks)) for value in vars(tail).values()))

    def _work_out_tails(self, length: int) -> None:
        """Tails of every range up to twice ``length``, of those that start at block 0 where that is all."""
        n, row, stages = self.num_blocks, self.stages.row, self.stages
        if length == n:
            self._length, firsts = n, np.zeros(1, dtype=np.int64)
        else:
            self._length, firsts = min(n - 1, max(FEWEST_LENGTHS, 2 * length)), np.arange(n)
        ends = np.minimum(firsts[:, None] + np.arange(1, self._length + 1), n)

        def between(value: list[float]) -> Array:
            sums = np.array(value)
            result: Array = sums[ends] - sums[firsts][:, None]
            return result

        def kind_sums(name: str) -> Array:
            return between(self.prefix([getattr(kind, name) for kind in row.kinds]))

        total = stages.synchronised_parameters(
            kind_sums("dense_parameters"), kind_sums("expert_parameters"), kind_sums("norm_parameters")
        )
        data_ranks = row.degrees.dp * row.degrees.cp
        forward, backward = between(self._forward), between(self._backward)
        tail = exposed_tail(stages.device, stages.stack, data_ranks, total, forward, backward)
        found = (tail.reduce, tail.optimizer, tail.gather, total.reduce, total.traffic, total.elements)
        self._tails = tuple(np.broadcast_to(value, ends.shape).tolist() for value in found)
