"""Dynamic program over layers and stages: the best split of the chain over pipeline ranks.

State (rank i, blocks placed l) with labels (T, S, choice): S the time of one microbatch on the ranks so far
(fill and drain), T the largest lower bound of the step seen from any of them
(``bounds.rank_lower_bound``), close to the exact 1F1B makespan and never above it. A rank is offered
every block range whose layers fit the memory limit under their cheapest recompute modes. A label is kept
while no other has both less T and less S; ranges that cannot beat the incumbent are not tried. The rank's
tail (gradient reduction, optimizer, gather) of stage 0 is part of S from the start, because stage 0 ends
last.
"""

from __future__ import annotations

from dataclasses import dataclass

from planner.cost.stage import StageModel
from planner.schedule.orders import warmup_operations
from planner.search.bounds import rank_lower_bound
from planner.search.layout import Layout
from planner.search.policy import RecomputePolicy
from planner.search.recompute import Choice, Group

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
    """A split of the chain: the bound on pipeline seconds plus stage 0's tail, and every rank's choice."""

    bound_seconds: float
    ranks: tuple[RankChoice, ...]


@dataclass(frozen=True)
class _Label:
    total: float
    before: float
    rank: RankChoice
    parent: _Label | None


class Partitioner:
    """Splits the chain for one candidate (non-interleaved schedules).

    ``policy`` says which recompute modes the layers of a rank may have.
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
        self._cache: dict[tuple[tuple[int, ...], int], tuple[Choice, float, float, float] | None] = {}

    def solve(self, incumbent_seconds: float) -> list[Partition]:
        """The best splits by bound, best first; only those whose bound beats ``incumbent_seconds``.

        Bounds are exact only without sends and recompute, so a few splits are returned for pricing.
        """
        n = self.layout.num_blocks
        frontier: dict[int, list[_Label]] = {}
        for end in self._ends(0, 0.0, 0.0, 0, incumbent_seconds):
            label = self._extend(None, 0, 0, end, incumbent_seconds)
            if label is not None:
                _keep(frontier.setdefault(end, []), label)
        for rank in range(1, self.pp):
            following: dict[int, list[_Label]] = {}
            for first, labels in frontier.items():
                for label in labels:
                    for end in self._ends(rank, label.before, label.total, first, incumbent_seconds):
                        extended = self._extend(label, rank, first, end, incumbent_seconds)
                        if extended is not None:
                            _keep(following.setdefault(end, []), extended)
            frontier = following
        final = sorted(frontier.get(n, []), key=lambda label: (label.total, label.before))
        return [self._partition(label) for label in final[:PRICED_SPLITS]]

    def _partition(self, label: _Label) -> Partition:
        ranks: list[RankChoice] = []
        step: _Label | None = label
        while step is not None:
            ranks.append(step.rank)
            step = step.parent
        return Partition(label.total, tuple(reversed(ranks)))

    def _ends(self, rank: int, before: float, total: float, first: int, incumbent: float) -> list[int]:
        """Block ranges worth trying: not so long that this rank, nor so short that the rest, is too slow."""
        n, left = self.layout.num_blocks, self.pp - rank - 1
        if left == 0:
            return [n] if first < n else []
        found = []
        for end in range(first + 1, n - left + 1):
            mine = self.rest[first] - self.rest[end]
            if self.factor * (before + self.m * mine) >= incumbent:
                break
            if self.factor * self._spread(self.rest[end], before + mine, left) < incumbent:
                found.append(end)
        return found

    def _spread(self, work: float, before: float, ranks: int) -> float:
        """Least T for ``work`` spread perfectly over ``ranks`` ranks behind ``before`` seconds of fill."""
        keep = (1.0 - 1.0 / self.m) ** ranks
        return before + work / (1.0 - keep)

    def _extend(
        self, label: _Label | None, rank: int, first: int, end: int, incumbent: float
    ) -> _Label | None:
        found = self._price(rank, first, end)
        if found is None:
            return None
        choice, forward, backward, tail = found
        cut_after = self.send_at[end] if rank + 1 < self.pp else 0.0
        cut_before = self.send_at[first] if rank else 0.0
        forward, backward = forward + cut_after, backward + cut_before
        before = label.before if label else tail / self.factor
        after = self._after(rank, end)
        bound = rank_lower_bound(before, forward, backward, after, self.m, self.warmup[rank])
        total = max(bound, label.total if label else 0.0)
        if self.factor * total >= incumbent:
            return None
        groups = self.layout.groups(first, end, (self.warmup[rank],))
        mine = RankChoice(first, end, groups, choice, forward, backward)
        return _Label(total, before + forward + backward, mine, label)

    def _after(self, rank: int, end: int) -> float:
        """Least time of one microbatch on the ranks behind, sends included: down and back again."""
        ranks = self.pp - rank - 1
        sends = 2 * ranks - 1 if ranks else 0
        return self.rest[end] + sends * self.least_send

    def _price(self, rank: int, first: int, end: int) -> tuple[Choice, float, float, float] | None:
        """(recompute choice, forward, backward, tail) of one rank, None when it does not fit."""
        key = (self.layout.kind_counts(first, end), rank)
        if key not in self._cache:
            self._cache[key] = self._price_new(rank, first, end)
        return self._cache[key]

    def _price_new(self, rank: int, first: int, end: int) -> tuple[Choice, float, float, float] | None:
        stages = self.stages
        sharding = stages.row.sharding
        groups = self.layout.groups(first, end, (self.warmup[rank],))
        choice = self.policy.choose(stages, groups, self.limit, sharding)
        if choice is None:
            return None
        items = choice.items(groups, sharding)
        forward, backward = stages.seconds(items)
        tail = stages.tail(items, forward, backward).total if rank == 0 else 0.0
        return choice, forward, backward, tail


def _keep(labels: list[_Label], new: _Label) -> None:
    """Add ``new`` unless dominated; drop what it dominates."""
    for old in labels:
        if old.total <= new.total + SMALL and old.before <= new.before + SMALL:
            return
    labels[:] = [old for old in labels if not (new.total <= old.total and new.before <= old.before)]
    labels.append(new)
