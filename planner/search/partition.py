"""Dynamic program over layers and stages: the best split of the chain over pipeline ranks.

State (rank i, blocks placed l) with labels (T, U, S, F, R): S the time of one microbatch on the ranks so far
(fill and drain), F its forward half; T the largest end seen from any of them (``bounds.rank_lower_bound``,
close to the exact 1F1B makespan and never above it) with the gradient reduction behind it, R that of rank
0, which ends last; U the longest optimizer and gather. The step is at least T + U. A rank is offered every
block range whose layers fit the memory limit under their cheapest recompute modes. A label is kept while
no other is at most equal in all five; ranges that cannot beat the incumbent are not tried.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from planner.cost.stage import StageModel
from planner.cost.tail import Tail
from planner.schedule.orders import warmup_operations
from planner.search.bounds import rank_lower_bound
from planner.search.layout import Layout
from planner.search.recompute import Choice, Group, choose_recompute, plain_items

SMALL = 1e-12
PRICED_SPLITS = 4


@dataclass(frozen=True)
class RankChoice:
    """One rank's block range and recompute choice, with its seconds per microbatch (sends included)."""

    first: int
    end: int
    groups: tuple[Group, ...]
    choice: Choice
    forward: float
    backward: float


@dataclass(frozen=True)
class Partition:
    """A split of the chain: the bound on its seconds, tails included, and every rank's choice."""

    bound_seconds: float
    ranks: tuple[RankChoice, ...]


@dataclass(frozen=True)
class _Label:
    """What ranks 0..i cost: T, U, S, F and R of the module docstring, seconds; T has the straggler factor."""

    total: float
    update: float
    before: float
    forward: float
    reduce: float
    rank: RankChoice | None = None
    parent: _Label | None = None

    @property
    def bound(self) -> float:
        return self.total + self.update

    def covers(self, other: _Label) -> bool:
        """Nothing that continues ``other`` can beat the same continuation of this label."""
        return (
            self.total <= other.total + SMALL
            and self.update <= other.update + SMALL
            and self.before <= other.before + SMALL
            and self.forward <= other.forward + SMALL
            and self.reduce <= other.reduce + SMALL
        )


START = _Label(0.0, 0.0, 0.0, 0.0, 0.0)


class Partitioner:
    """Splits the chain for one candidate (non-interleaved schedules).

    ``policy`` fixes the recompute mode of every layer ("none", "selective", "full") or leaves it to the
    memory limit ("free"); ``full_layers`` recomputes exactly that many layers of each rank in full.
    """

    def __init__(
        self,
        stages: StageModel,
        layout: Layout,
        limit_bytes: float,
        straggler_factor: float,
        send_at: list[float],
        policy: RecomputePolicy,
    ) -> None:
        self.stages, self.layout, self.limit = stages, layout, limit_bytes
        self.factor = straggler_factor
        self.send_at = send_at
        self.policy = policy
        row = stages.row
        self.pp, self.m = row.degrees.pp, row.microbatches
        self.warmup = [warmup_operations(row.schedule, r, self.pp, self.m) for r in range(self.pp)]
        cheapest = [kind.forward_seconds + min(kind.backward_seconds) for kind in row.kinds]
        n = layout.num_blocks
        self.rest = [layout.sum_over(cheapest, block, n) if block < n else 0.0 for block in range(n + 1)]
        self.least_send = min(send_at[1:n], default=0.0) if self.pp > 1 else 0.0
        self._cache: dict[tuple[tuple[int, ...], int], _Priced | None] = {}

    def solve(self, incumbent_seconds: float) -> list[Partition]:
        """The best splits by bound, best first; only those whose bound beats ``incumbent_seconds``.

        Bounds are exact only without sends and recompute, so a few splits are returned for pricing.
        """
        n = self.layout.num_blocks
        frontier: dict[int, list[_Label]] = {0: [START]}
        for rank in range(self.pp):
            following: dict[int, list[_Label]] = {}
            for first, labels in frontier.items():
                for label in labels:
                    for end in self._ends(rank, label, first, incumbent_seconds):
                        extended = self._extend(label, rank, first, end, incumbent_seconds)
                        if extended is not None:
                            _keep(following.setdefault(end, []), extended)
            frontier = following
        final = sorted(frontier.get(n, []), key=lambda label: (label.bound, label.before))
        return [self._partition(label) for label in final[:PRICED_SPLITS]]

    def _partition(self, label: _Label) -> Partition:
        ranks: list[RankChoice] = []
        step: _Label | None = label
        while step is not None and step.rank is not None:
            ranks.append(step.rank)
            step = step.parent
        return Partition(label.bound, tuple(reversed(ranks)))

    def _ends(self, rank: int, label: _Label, first: int, incumbent: float) -> list[int]:
        """Block ranges worth trying: not so long that this rank, nor so short that the rest, is too slow."""
        n, left = self.layout.num_blocks, self.pp - rank - 1
        if left == 0:
            return [n] if first < n else []
        room = (incumbent - label.update - label.reduce) / self.factor
        found = []
        for end in range(first + 1, n - left + 1):
            mine = self.rest[first] - self.rest[end]
            if label.before + self.m * mine >= room:
                break
            if self._spread(self.rest[end], label.before + mine, left) < room:
                found.append(end)
        return found

    def _spread(self, work: float, before: float, ranks: int) -> float:
        """Least T for ``work`` spread perfectly over ``ranks`` ranks behind ``before`` seconds of fill."""
        keep = (1.0 - 1.0 / self.m) ** ranks
        return before + work / (1.0 - keep)

    def _extend(self, label: _Label, rank: int, first: int, end: int, incumbent: float) -> _Label | None:
        found = self._price(rank, first, end)
        if found is None:
            return None
        tail = found.tail
        forward = found.forward + (self.send_at[end] if rank + 1 < self.pp else 0.0)
        backward = found.backward + (self.send_at[first] if rank else 0.0)
        after = self._after(rank, end)
        bound = rank_lower_bound(label.before, forward, backward, after, self.m, self.warmup[rank])
        first_reduce = label.reduce if rank else tail.reduce
        # This rank itself ends before the backwards of the ranks before it, and then reduces.
        mine = bound - (label.before - label.forward)
        total = max(label.total, self.factor * bound + first_reduce, self.factor * mine + tail.reduce)
        update = max(label.update, tail.optimizer + tail.gather)
        if total + update >= incumbent:
            return None
        groups = self.layout.groups(first, end, (self.warmup[rank],))
        choice = RankChoice(first, end, groups, found.choice, forward, backward)
        before = label.before + forward + backward
        return _Label(total, update, before, label.forward + forward, first_reduce, choice, label)

    def _after(self, rank: int, end: int) -> float:
        """Least time of one microbatch on the ranks behind, sends included: down and back again."""
        ranks = self.pp - rank - 1
        sends = 2 * ranks - 1 if ranks else 0
        return self.rest[end] + sends * self.least_send

    def _price(self, rank: int, first: int, end: int) -> _Priced | None:
        """One rank priced, None when it does not fit."""
        key = (self.layout.kind_counts(first, end), self.warmup[rank])
        if key not in self._cache:
            self._cache[key] = self._price_new(rank, first, end)
        return self._cache[key]

    def _price_new(self, rank: int, first: int, end: int) -> _Priced | None:
        stages = self.stages
        sharding = stages.row.sharding
        groups = self.layout.groups(first, end, (self.warmup[rank],))
        choice = self.policy.choose(stages, groups, self.limit, sharding)
        if choice is None:
            return None
        items = choice.items(groups, sharding)
        forward, backward = stages.seconds(items)
        return _Priced(choice, forward, backward, stages.tail(items, forward, backward))


@dataclass(frozen=True)
class _Priced:
    """A rank's recompute choice, its seconds per microbatch (sends excluded) and its tail."""

    choice: Choice
    forward: float
    backward: float
    tail: Tail


@dataclass(frozen=True)
class RecomputePolicy:
    """How layers are recomputed: ``mode`` "free" (each layer its own, as memory asks), a mode name for all
    layers, or "block" (``full_layers`` layers of every virtual stage in full)."""

    mode: str = "free"
    full_layers: int = 0

    def choose(
        self,
        stages: StageModel,
        groups: tuple[Group, ...],
        limit_bytes: float,
        sharding: int,
        most_extra_seconds: float = math.inf,
    ) -> Choice | None:
        """Modes for one rank, None when they do not fit ``limit_bytes`` or cost too much."""
        if self.mode == "free":
            return choose_recompute(stages, groups, limit_bytes, sharding, most_extra_seconds)
        counts = self._counts(groups)
        choice = Choice(0.0, counts)
        items = choice.items(groups, sharding)
        if stages.memory(items)["total"] > limit_bytes:
            return None
        extra = sum(stages.seconds(items)) - sum(stages.seconds(plain_items(groups, sharding)))
        return Choice(extra, counts)

    def _counts(self, groups: tuple[Group, ...]) -> tuple[tuple[int, int], ...]:
        counts = []
        left = self.full_layers if self.mode == "block" else 0
        for group in groups:
            if not group.is_block or self.mode == "none":
                counts.append((0, 0))
            elif self.mode == "selective":
                counts.append((group.count, 0))
            elif self.mode == "full":
                counts.append((0, group.count))
            else:
                used = min(left, group.count)
                left -= used
                counts.append((0, used))
        return tuple(counts)


def _keep(labels: list[_Label], new: _Label) -> None:
    """Add ``new`` unless covered; drop what it covers."""
    if any(old.covers(new) for old in labels):
        return
    labels[:] = [old for old in labels if not new.covers(old)]
    labels.append(new)
