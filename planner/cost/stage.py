"""One pipeline rank: seconds per microbatch by cause, memory by category, and what is left at the end.

A rank holds *items*: a number of equal layers with one recompute mode, one sharding choice and one count of
microbatches in flight. Everything a rank costs is a sum (or, for short-lived buffers, a maximum) over them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from planner.cost.arrays import Number
from planner.cost.compute import Device
from planner.cost.data_parallel import moves_seconds, norm_move
from planner.cost.memory import Item, Moment, RankMemory
from planner.cost.moments import walked
from planner.cost.part import Move
from planner.cost.row import CandidateRow, KindCost
from planner.cost.stack import Stack
from planner.cost.tail import Sync, Tail, exposed_tail, sync

CAUSES = ("compute", "recompute", "tp", "cp", "ep", "dp")


@dataclass(frozen=True)
class StageModel:
    """Prices ranks of one mesh. ``rows``: one candidate row per code in use (``decision.row_code``)."""

    rows: Mapping[int, CandidateRow]
    device: Device
    stack: Stack
    moment_bytes: float

    @property
    def row(self) -> CandidateRow:
        """The row of the plan's own sharding (the first)."""
        return next(iter(self.rows.values()))

    def kind(self, item: Item) -> KindCost:
        return self.rows[item.key].kinds[item.kind]

    def seconds(self, items: Iterable[Item]) -> tuple[float, float]:
        """(forward, backward) seconds of one microbatch, exposed communication and recompute included."""
        forward = backward = 0.0
        for item in items:
            kind = self.kind(item)
            forward += item.count * kind.forward_seconds
            backward += item.count * kind.backward_seconds[item.mode]
        return forward, backward

    def weight_seconds(self, items: Iterable[Item]) -> float:
        """The part of one microbatch's backward that is weight gradients."""
        return sum(item.count * self.kind(item).weight_seconds for item in items)

    def causes(self, items: Iterable[Item]) -> dict[str, float]:
        """Seconds of one microbatch, forward and backward together, by cause."""
        total = dict.fromkeys(CAUSES, 0.0)
        for item in items:
            kind = self.kind(item)
            for part in (kind.forward, kind.backward, kind.recompute(item.mode)):
                for cause, value in part.items():
                    total[cause] += item.count * value
        return total

    def moments(self, items: Iterable[Item], change_bytes: float = 0.0) -> list[Moment]:
        """The moments that may be the rank's fullest, bytes by category."""
        held = [item for item in items if item.count]
        memory = RankMemory(self.rows, self.stack, self.device.constants, held, change_bytes)
        return walked(memory) if self.stack.makes_buffers_when_needed else [memory.kept()]

    def memory(self, items: Iterable[Item], change_bytes: float = 0.0) -> dict[str, float]:
        """Bytes at the fullest moment by category, and their total.

        ``change_bytes``: the largest tensor gathered between layers of different tensor degrees.
        """
        return max(self.moments(items, change_bytes), key=lambda moment: moment.total).bytes

    def tail(self, items: Iterable[Item], forward: float, backward: float) -> Tail:
        """Gradient reduction, optimizer and parameter gather of one rank, once per step.

        ``forward`` and ``backward`` are the rank's seconds for one microbatch (see ``tail.exposed_tail``).
        """
        return self.exposed(self.synchronised(items), forward, backward)

    def synchronised(self, items: Iterable[Item]) -> Sync:
        """What the rank's layers synchronise once per step, before hiding."""
        total = Sync()
        for key, row in self.rows.items():
            dense = expert = 0.0
            for item in items:
                if item.key == key:
                    kind = self.kind(item)
                    dense += item.count * kind.dense_parameters
                    expert += item.count * kind.expert_parameters
            total += self._sync(row, dense, expert)
        norms = self._norm_seconds(items)
        return Sync(*(float(value) for value in vars(total + Sync(reduce=norms)).values()))

    def _sync(self, row: CandidateRow, dense: Number, expert: Number) -> Sync:
        args = (self.stack, row.sharding, row.degrees.pp > 1, row.groups, self.moment_bytes)
        total = Sync()
        for axis, elements in (("dp", dense), ("expert_dp", expert)):
            if np.any(elements):
                total += sync(*args, axis, elements)
        return total

    def synchronised_parameters(self, dense: Number, expert: Number, norm: Number) -> Sync:
        """The same for a rank (or an array of them) with these elements, all of the plan's own sharding."""
        row = self.row
        move = self._norm_move(norm, row)
        bytes_moved = move.count * move.whole_bytes
        one = replace(move, count=1.0, whole_bytes=bytes_moved)
        norms = moves_seconds(row.groups, (one,)) if np.any(bytes_moved) else 0.0
        return self._sync(row, dense, expert) + Sync(reduce=norms)

    def exposed(self, total: Sync, forward: float, backward: float) -> Tail:
        """The tail of a rank that synchronises ``total`` and hides it behind one microbatch's seconds."""
        data_ranks = max(row.degrees.dp * row.degrees.cp for row in self.rows.values())
        tail = exposed_tail(self.device, self.stack, data_ranks, total, forward, backward)
        return Tail(float(tail.reduce), float(tail.optimizer), float(tail.gather))

    def norm_moves(self, items: Iterable[Item]) -> tuple[Move, ...]:
        """Reductions of norm weights over tp that wait for the end of the step, by item."""
        return tuple(
            self._norm_move(item.count * self.kind(item).norm_parameters, self.rows[item.key])
            for item in items
        )

    def _norm_move(self, elements: Number, row: CandidateRow) -> Move:
        is_sequence = float(row.sequence_parallel and row.degrees.tp > 1)
        has_pipeline = row.degrees.pp > 1
        return norm_move(self.stack, elements, row.hidden_size, is_sequence, has_pipeline, is_step=True)

    def _norm_seconds(self, items: Iterable[Item]) -> float:
        """All of them as one all-reduce a tensor degree: they are small and follow each other."""
        by_degree: dict[int, tuple[CandidateRow, Move, float]] = {}
        for item, move in zip(items, self.norm_moves(items), strict=True):
            row = self.rows[item.key]
            _, _, before = by_degree.get(row.degrees.tp, (row, move, 0.0))
            whole_bytes = before + float(move.count) * move.whole_bytes
            by_degree[row.degrees.tp] = (row, move, whole_bytes)
        return sum(
            float(moves_seconds(row.groups, (replace(move, count=1.0, whole_bytes=whole_bytes),)))
            for row, move, whole_bytes in by_degree.values()
            if whole_bytes
        )
