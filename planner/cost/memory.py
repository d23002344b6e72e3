"""Memory of one pipeline rank: what is kept, what is saved for backward, and the fullest moment.

Two kinds of stack. One keeps every buffer for the whole step (Megatron-LM's gradient and parameter
buffers): its one moment adds up what is kept and the largest of each short-lived need. The other makes
tensors when they are needed and frees them after (FSDP2 with autograd): ``moments`` walks its backward.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import zip_longest

from planner.cost.constants import Constants
from planner.cost.row import CandidateRow, KindCost, communicators, reserve_bytes
from planner.cost.stack import Stack
from planner.strategy.decision import UNIT_BLOCK, row_code

MEMORY_CATEGORIES = ("parameters", "gradients", "optimizer", "activations", "buffers", "reserve")


@dataclass(frozen=True)
class Item:
    """``count`` layers of one kind: recompute ``mode``, cost row ``sharding``, microbatches ``alive``.

    ``sharding`` is the layer's ``Decision.row_code``: the sharding code where all have one tensor degree.

    ``alive`` has one entry per moment that may be the rank's fullest (``schedule.orders.alive_states``).
    ``unit``: what of sharded weights is gathered at once, a code of ``GATHER_UNITS``; ``tensor``: which of
    the plan's tensor degrees.
    """

    kind: int
    count: int
    mode: int
    sharding: int
    alive: tuple[int, ...]
    unit: int = UNIT_BLOCK
    tensor: int = 0

    @cached_property
    def key(self) -> int:
        """Which of a rank's candidate rows prices it."""
        return row_code(self.sharding, self.unit, self.tensor)


@dataclass(frozen=True)
class Moment:
    """Bytes by category at one moment, ``total`` included.

    freed_share: how much of the bytes that recompute takes off the saved tensors is off at this moment, None
    where it does not follow from their number;
    has_working: whether a layer that recomputes has its tensors back beside them.
    """

    name: str
    bytes: dict[str, float]
    freed_share: float | None = 1.0
    has_working: bool = True

    @property
    def total(self) -> float:
        return self.bytes["total"]


@dataclass(frozen=True)
class RankMemory:
    """Memory of one rank: its items, the candidate row of each code in use, and the stack's habits.

    ``change_bytes``: the largest tensor gathered between layers of different tensor degrees.
    """

    rows: Mapping[int, CandidateRow]
    stack: Stack
    constants: Constants
    items: Sequence[Item]
    change_bytes: float = 0.0

    @property
    def row(self) -> CandidateRow:
        return next(iter(self.rows.values()))

    def kind(self, item: Item) -> KindCost:
        return self.rows[item.key].kinds[item.kind]

    @property
    def num_communicators(self) -> int:
        """Process groups of all layers of the rank; equal groups are one."""
        if len(self.rows) == 1:
            return self.row.num_communicators
        own = {self.rows[item.key].degrees for item in self.items} or {self.row.degrees}
        return 1 + len(set().union(*map(communicators, own)))

    def moment(
        self,
        name: str,
        static: tuple[float, float, float],
        activations: float,
        buffers: float,
        share: float | None = 1.0,
        has_working: bool = True,
    ) -> Moment:
        """Bytes of (parameters, gradients, optimizer), tensors and buffers as a moment, reserve added."""
        slack = 1.0 + self.constants.allocator_slack
        reserve = reserve_bytes(self.constants, self.num_communicators)
        values = (*static, activations * slack, buffers * slack, reserve)
        result = dict(zip(MEMORY_CATEGORIES, values, strict=True))
        result["total"] = sum(values)
        return Moment(name, result, share, has_working)

    def static(self) -> tuple[float, float, float]:
        """(parameters, gradients, optimizer) bytes of all layers."""
        states = [(item.count, self.kind(item).state_bytes) for item in self.items]
        first, second, third = (sum(n * state[i] for n, state in states) for i in range(3))
        return first, second, third

    def saved(self, fewer: Callable[[Item], int] = lambda item: 0) -> float:
        """Saved bytes of the fullest state, each item holding ``fewer`` microbatches less."""
        total: list[float] = []
        for item in self.items:
            kept = item.count * self.kind(item).saved_bytes[item.mode]
            alive = [max(0, n - fewer(item)) for n in item.alive]
            total = [kept * n + before for n, before in zip_longest(alive, total, fillvalue=0.0)]
        return max(total, default=0.0)

    def kept(self) -> Moment:
        """Everything kept, and the largest of each short-lived need, at once."""
        working = gathered = 0.0
        transient = self.change_bytes
        for item in self.items:
            kind = self.kind(item)
            working = max(working, kind.working_bytes[item.mode])
            transient = max(transient, kind.transient_bytes)
            gathered = max(gathered, kind.gathered_bytes[item.mode])
        boundary = 2.0 * self.row.boundary_bytes if self.row.degrees.pp > 1 else 0.0
        buffers = transient + gathered + boundary
        return self.moment("all", self.static(), self.saved() + working, buffers)
