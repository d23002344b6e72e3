"""One pipeline rank: seconds per microbatch by cause, memory by category, and what is left at the end.

A rank holds *items*: a number of equal layers with one recompute mode, one sharding choice and one count of
microbatches in flight. Everything a rank costs is a sum (or, for short-lived buffers, a maximum) over them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import zip_longest

from planner.cost.collectives import exposed_seconds
from planner.cost.compute import Device
from planner.cost.data_parallel import moves_seconds, step_moves
from planner.cost.row import CandidateRow, KindCost, reserve_bytes
from planner.cost.stack import Stack
from planner.strategy.decision import SHARDING_OPTIMIZER

CAUSES = ("compute", "recompute", "tp", "cp", "ep", "dp")
MEMORY_CATEGORIES = ("parameters", "gradients", "optimizer", "activations", "buffers", "reserve")


@dataclass(frozen=True)
class Item:
    """``count`` layers of one kind: recompute ``mode``, ``sharding`` code, microbatches ``alive``.

    ``alive`` has one entry per moment that may be the rank's fullest (``schedule.orders.alive_states``).
    """

    kind: int
    count: int
    mode: int
    sharding: int
    alive: tuple[int, ...]


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

    def memory(self, items: Iterable[Item]) -> dict[str, float]:
        """Bytes at the fullest moment by category, and their total."""
        parameters = gradients = optimizer = working = transient = gathered = 0.0
        saved: list[float] = []
        for item in items:
            if not item.count:
                continue
            kind = self.kind(item)
            parameters += item.count * kind.state_bytes[0]
            gradients += item.count * kind.state_bytes[1]
            optimizer += item.count * kind.state_bytes[2]
            kept = item.count * kind.saved_bytes[item.mode]
            saved = [kept * n + before for n, before in zip_longest(item.alive, saved, fillvalue=0.0)]
            working = max(working, kind.working_bytes[item.mode])
            transient = max(transient, kind.transient_bytes)
            gathered = max(gathered, kind.gathered_bytes)
        row, c = self.row, self.device.constants
        boundary = 2.0 * row.boundary_bytes if row.degrees.pp > 1 else 0.0
        slack = 1.0 + c.allocator_slack
        result = {
            "parameters": parameters,
            "gradients": gradients,
            "optimizer": optimizer,
            "activations": (max(saved, default=0.0) + working) * slack,
            "buffers": (transient + gathered + boundary) * slack,
            "reserve": reserve_bytes(c, row.num_communicators),
        }
        result["total"] = sum(result.values())
        return result

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

    def _optimizer_bytes(self) -> float:
        """HBM traffic of one update per element: gradient for the norm and the step, states both ways."""
        stack = self.stack
        return (
            2.0 * stack.gradient_bytes
            + 2.0 * (stack.master_bytes + self.moment_bytes)
            + stack.parameter_bytes
        )
