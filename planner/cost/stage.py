"""One pipeline rank: seconds per microbatch by cause, memory by category, and what is left at the end.

A rank holds *items*: a number of equal layers with one recompute mode, one sharding choice and one count of
microbatches in flight. Everything a rank costs is a sum (or, for short-lived buffers, a maximum) over them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import zip_longest

from planner.cost.compute import Device
from planner.cost.row import CandidateRow, KindCost, reserve_bytes
from planner.cost.stack import Stack
from planner.cost.tail import Sync, Tail, exposed_tail, sync

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

    def weight_seconds(self, items: Iterable[Item]) -> float:
        """The part of one microbatch's backward that is weight gradients."""
        return sum(item.count * self.kind(item).weight_seconds for item in items)

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

        ``forward`` and ``backward`` are the rank's seconds for one microbatch (see ``tail.exposed_tail``).
        """
        return self.exposed(self.synchronised(items), forward, backward)

    def synchronised(self, items: Iterable[Item]) -> Sync:
        """What the rank's layers synchronise once per step, before hiding."""
        total = Sync()
        for sharding, row in self.rows.items():
            dense = expert = 0.0
            for item in items:
                if item.sharding == sharding:
                    kind = self.kind(item)
                    dense += item.count * kind.dense_parameters
                    expert += item.count * kind.expert_parameters
            groups = row.groups
            pairs = (
                (dense, groups.data, groups.data_outer, groups.shard_size),
                (expert, groups.expert_data, groups.expert_data_outer, groups.expert_shard_size),
            )
            for elements, inner, outer, size in pairs:
                if elements:
                    total += sync(self.stack, sharding, elements, inner, outer, size, self.moment_bytes)
        return Sync(*(float(value) for value in vars(total).values()))

    def exposed(self, total: Sync, forward: float, backward: float) -> Tail:
        """The tail of a rank that synchronises ``total`` and hides it behind one microbatch's seconds."""
        data_ranks = self.row.degrees.dp * self.row.degrees.cp
        tail = exposed_tail(self.device, self.stack, data_ranks, total, forward, backward)
        return Tail(float(tail.reduce), float(tail.optimizer), float(tail.gather))
