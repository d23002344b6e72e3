"""One pipeline rank: seconds per microbatch by cause, memory by category, and what is left at the end.

A rank holds *items*: a number of equal layers with one recompute mode, one sharding choice and one count of
microbatches in flight. Everything a rank costs is a sum (or, for short-lived buffers, a maximum) over them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from planner.cost.collectives import exposed_seconds
from planner.cost.compute import Device
from planner.cost.data_parallel import moves_seconds, norm_move, step_moves
from planner.cost.memory import Item, Moment, RankMemory
from planner.cost.moments import walked
from planner.cost.part import Move
from planner.cost.row import CandidateRow, KindCost
from planner.cost.stack import Stack
from planner.strategy.decision import SHARDING_OPTIMIZER

CAUSES = ("compute", "recompute", "tp", "cp", "ep", "dp")


@dataclass(frozen=True)
class Tail:
    """What a rank still does after its last backward, seconds.

    reduce: gradient reduction left exposed; optimizer: norm and update; gather: parameter gather exposed.
    """

    reduce: float
    optimizer: float
    gather: float

    @property
    def total(self) -> float:
        return self.reduce + self.optimizer + self.gather


@dataclass(frozen=True)
class StageModel:
    """Prices ranks of one mesh. ``rows`` holds one candidate row per sharding code in use."""

    rows: Mapping[int, CandidateRow]
    device: Device
    stack: Stack
    moment_bytes: float

    @property
    def row(self) -> CandidateRow:
        """The row of the plan's own sharding (the first)."""
        return next(iter(self.rows.values()))

    def kind(self, item: Item) -> KindCost:
        return self.rows[item.sharding].kinds[item.kind]

    def seconds(self, items: Iterable[Item]) -> tuple[float, float]:
        """(forward, backward) seconds of one microbatch, exposed communication and recompute included."""
        forward = backward = 0.0
        for item in items:
            kind = self.kind(item)
            forward += item.count * kind.forward_seconds
            backward += item.count * kind.backward_seconds[item.mode]
        return forward, backward

    def causes(self, items: Iterable[Item]) -> dict[str, float]:
        """Seconds of one microbatch, forward and backward together, by cause."""
        total = dict.fromkeys(CAUSES, 0.0)
        for item in items:
            kind = self.kind(item)
            for part in (kind.forward, kind.backward, kind.recompute[item.mode]):
                for cause, value in part.items():
                    total[cause] += item.count * value
        return total

    def moments(self, items: Iterable[Item]) -> list[Moment]:
        """The moments that may be the rank's fullest, bytes by category."""
        held = [item for item in items if item.count]
        memory = RankMemory(self.rows, self.stack, self.device.constants, held)
        return walked(memory) if self.stack.makes_buffers_when_needed else [memory.kept()]

    def memory(self, items: Iterable[Item]) -> dict[str, float]:
        """Bytes at the fullest moment by category, and their total."""
        return max(self.moments(items), key=lambda moment: moment.total).bytes

    def tail(self, items: Iterable[Item], forward: float, backward: float) -> Tail:
        """Gradient reduction, optimizer and parameter gather of one rank, once per step.

        ``forward`` and ``backward`` are the rank's seconds for one microbatch: the windows that hide the
        gather and the reduction. Each is at least one bucket long: the last bucket has nothing to hide
        behind (Li et al., PyTorch DDP, arXiv 2006.15704, section 3.2).
        """
        reduce = gather = traffic = 0.0
        parameters = 0.0
        for sharding, row in self.rows.items():
            dense = expert = 0.0
            for item in items:
                if item.sharding == sharding:
                    kind = self.kind(item)
                    dense += item.count * kind.dense_parameters
                    expert += item.count * kind.expert_parameters
            if dense + expert == 0.0:
                continue
            groups, has_pipeline = row.groups, row.degrees.pp > 1
            for axis, elements, size in (
                ("dp", dense, groups.shard_size),
                ("expert_dp", expert, groups.expert_shard_size),
            ):
                if elements:
                    moves = step_moves(self.stack, sharding, has_pipeline, axis, elements, size)
                    reduce += float(moves_seconds(groups, moves[0]))
                    gather += float(moves_seconds(groups, moves[1]))
                    kept = elements / (size if sharding >= SHARDING_OPTIMIZER else 1.0)
                    traffic += kept * self._optimizer_bytes()
                    parameters += elements
        reduce += self._norm_seconds(items)
        c, stack = self.device.constants, self.stack
        data_ranks = self.row.degrees.dp * self.row.degrees.cp
        bucket = max(stack.bucket_parameters, stack.bucket_parameters_per_rank * data_ranks)
        buckets = max(1.0, parameters / bucket)
        if stack.hides_gradient_reduction:
            reduce = max(reduce / buckets, float(exposed_seconds(reduce, backward, c.overlap_theft)))
        if stack.hides_parameter_gather:
            gather = max(gather / buckets, float(exposed_seconds(gather, forward, c.overlap_theft)))
        optimizer = self.device.stream_seconds(traffic) * c.optimizer_bytes_factor
        return Tail(reduce, optimizer, gather)

    def norm_moves(self, items: Iterable[Item]) -> tuple[Move, ...]:
        """Reductions of norm weights over tp that wait for the end of the step, by item."""
        row = self.row
        is_sequence = float(row.sequence_parallel and row.degrees.tp > 1)
        found = []
        for item in items:
            elements = item.count * self.kind(item).norm_parameters
            move = norm_move(
                self.stack, elements, row.hidden_size, is_sequence, row.degrees.pp > 1, is_step=True
            )
            found.append(move)
        return tuple(found)

    def _norm_seconds(self, items: Iterable[Item]) -> float:
        """All of them as one all-reduce: they are small and follow each other."""
        moves = self.norm_moves(items)
        whole_bytes = sum(float(move.count) * move.whole_bytes for move in moves)
        if not whole_bytes:
            return 0.0
        return float(moves_seconds(self.row.groups, (replace(moves[0], count=1.0, whole_bytes=whole_bytes),)))

    def _optimizer_bytes(self) -> float:
        """HBM traffic of one update per element: gradient for the norm and the step, states both ways."""
        stack = self.stack
        update = 2.0 * stack.gradient_bytes + 2.0 * (stack.master_bytes + self.moment_bytes)
        return update + (stack.parameter_bytes if stack.keeps_master_apart else 0.0)
