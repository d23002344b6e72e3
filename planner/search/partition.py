"""Dynamic program over layers and stages: the best split of the chain over pipeline ranks.

State (rank i, blocks placed l) with labels (T, U, S, F, R): S the time of one microbatch on the ranks so far
(fill and drain), F its forward half; T the largest end seen from any of them (``bounds.rank_lower_bound``,
close to the exact 1F1B makespan and never above it) with the gradient reduction behind it, R that of rank
0, which ends last; U the longest optimizer and gather. The step is at least T + U. A rank is offered every
block range whose layers fit the memory limit under their cheapest recompute modes. A label is kept while
no other is at most equal in all five; ranges that cannot beat the incumbent are not tried.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from planner.cost.row import CandidateRow
from planner.cost.stage import StageModel
from planner.cost.tail import Sync, Tail
from planner.schedule.orders import ZERO_BUBBLE, alive_states, warmup_operations
from planner.search.layout import Layout
from planner.search.policy import RecomputePolicy
from planner.search.recompute import Choice, Group
from planner.search.split_bounds import plain_share, rank_lower_bound

SMALL = 1e-12
PRICED_SPLITS = 4


@dataclass(frozen=True)
class RankChoice:
    """One rank's block range, its layers in groups and their recompute choice."""

    first: int
    end: int
    groups: tuple[Group, ...]
    choice: Choice


@dataclass(frozen=True)
class Partition:
    """A split of the chain: the bound on its seconds, tails included, and every rank's choice."""

    bound_seconds: float
    ranks: tuple[RankChoice, ...]


@dataclass(frozen=True, slots=True)
class _Priced:
    """A rank's recompute choice, its least seconds per microbatch (sends excluded) and its tail."""

    choice: Choice
    forward: float
    backward: float
    tail: Tail


class _Label(NamedTuple):
    """What ranks 0..i cost: T, U, S, F and R of the module docstring, seconds; T has the straggler factor.

    ``end``: blocks placed; ``priced`` and ``parent``: the last rank and the ranks before it.
    """

    total: float
    update: float
    before: float
    forward: float
    reduce: float
    end: int = 0
    priced: _Priced | None = None
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
        self.alive = [alive_states(row.schedule, r, self.pp, self.m)[0][0] for r in range(self.pp)]
        # Where weight gradients fill the drain, a rank behind keeps this one waiting by its forwards alone.
        self.has_drain = row.schedule not in ZERO_BUBBLE
        self.filling = 1.0 if self.has_drain else least_forward_share_of(row)
        cheapest = [kind.forward_seconds + min(kind.backward_seconds) for kind in row.kinds]
        n = layout.num_blocks
        self.rest = [layout.sum_over(cheapest, block, n) if block < n else 0.0 for block in range(n + 1)]
        # What the first microbatch takes there and back: whole backwards, or their input gradients alone.
        weights = [0.0 if self.has_drain else kind.weight_seconds for kind in row.kinds]
        turn = [seconds - weight for seconds, weight in zip(cheapest, weights, strict=True)]
        self.around = [layout.sum_over(turn, block, n) if block < n else 0.0 for block in range(n + 1)]
        self.least_send = min(send_at[1:n], default=0.0) if self.pp > 1 else 0.0
        self.shares = [float(plain_share(r, self.m, self.filling)) if r else 0.0 for r in range(self.pp + 1)]
        self._synchronised: dict[tuple[int, ...], Sync] = {}
        self._cache: dict[tuple[tuple[int, ...], int], _Priced | None] = {}

    def solve(self, incumbent_seconds: float) -> list[Partition]:
        """The best splits by bound, best first; only those whose bound beats ``incumbent_seconds``.

        Bounds are exact only without sends and recompute, so a few splits are returned for pricing.
        """
        n = self.layout.num_blocks
        starts = self._earliest_starts()
        if starts is None:
            return []
        incumbent_seconds = min(incumbent_seconds, self._balanced(starts) * (1.0 + SMALL) + SMALL)
        frontier: dict[int, list[_Label]] = {0: [START]}
        for rank in range(self.pp):
            following: dict[int, list[_Label]] = {}
            for first, labels in frontier.items():
                longest = max(self._room(rank, label, incumbent_seconds) for label in labels)
                ends = self._ends(rank, first, starts[rank + 1], longest)
                for label in labels:
                    for extended in self._extended(label, rank, first, ends, incumbent_seconds):
                        _keep(following.setdefault(extended.end, []), extended)
            frontier = following
        final = sorted(frontier.get(n, []), key=lambda label: (label.bound, label.before))
        return [self._partition(label) for label in final[:PRICED_SPLITS]]

    def can_fit(self) -> bool:
        """Whether any split fits the memory limit."""
        return self._earliest_starts() is not None

    def _balanced(self, starts: list[int]) -> float:
        """The bound of a split into equal work, infinite where it does not fit: what others must beat."""
        label, n = START, self.layout.num_blocks
        for rank in range(self.pp):
            behind = self.pp - rank - 1
            goal = self.rest[label.end] * behind / (behind + 1)
            end = bisect.bisect_left(self.rest, -goal, label.end + 1, n - behind, key=lambda rest: -rest)
            end = max(end, starts[rank + 1], label.end + 1) if behind else n
            priced = self._price(rank, label.end, end)
            if priced is None:
                return math.inf
            label = self._extend(label, rank, label.end, end, priced)
        return label.bound

    def _partition(self, label: _Label) -> Partition:
        ranks: list[RankChoice] = []
        step: _Label | None = label
        while step is not None and step.priced is not None:
            rank, first = self.pp - len(ranks) - 1, step.parent.end if step.parent else 0
            groups = self.layout.groups(first, step.end, (self.alive[rank],))
            ranks.append(RankChoice(first, step.end, groups, step.priced.choice))
            step = step.parent
        return Partition(label.bound, tuple(reversed(ranks)))

    def _earliest_starts(self) -> list[int] | None:
        """Per rank the first block it may start at so that it and the ranks behind can hold the rest.

        None when no split fits. Fewer layers never need more memory, so each is found by bisection.
        """
        starts = [self.layout.num_blocks] * (self.pp + 1)
        for rank in reversed(range(self.pp)):
            low, high = rank, starts[rank + 1]
            while low < high:
                middle = (low + high) // 2
                if self._price(rank, middle, starts[rank + 1]) is None:
                    low = middle + 1
                else:
                    high = middle
            if high == starts[rank + 1]:
                return None
            starts[rank] = high
        return starts if starts[0] == 0 else None

    def _room(self, rank: int, label: _Label, incumbent: float) -> float:
        """Seconds a rank behind ``label`` may work for all microbatches and still beat the incumbent."""
        reduce = label.reduce if rank else 0.0
        return (incumbent - label.update - reduce) / self.factor - label.before

    def _ends(self, rank: int, first: int, earliest: int, longest: float) -> list[tuple[int, _Priced]]:
        """Where a rank that starts at ``first`` may end, priced: the rest must fit behind it.

        ``longest``: seconds of work for all microbatches beyond which it cannot pay.
        """
        n, left = self.layout.num_blocks, self.pp - rank - 1
        found = []
        for end in range(max(first + 1, earliest) if left else n, n - left + 1):
            if self.m * (self.rest[first] - self.rest[end]) >= longest:
                break
            priced = self._price(rank, first, end)
            if priced is None:
                break
            found.append((end, priced))
        return found

    def _extended(
        self, label: _Label, rank: int, first: int, ends: list[tuple[int, _Priced]], incumbent: float
    ) -> Iterator[_Label]:
        """The label with one more rank, for every end that may beat the incumbent."""
        left = self.pp - rank - 1
        room = self._room(rank, label, incumbent)
        for end, priced in ends:
            mine = self.rest[first] - self.rest[end]
            if self.m * mine >= room:
                return
            if left and self._spread(self.rest[end], self.filling * mine, left) >= room:
                continue
            extended = self._extend(label, rank, first, end, priced)
            if extended.bound < incumbent:
                yield extended

    def _spread(self, work: float, before: float, ranks: int) -> float:
        """Least T for ``work`` spread perfectly over ``ranks`` ranks behind ``before`` seconds of fill."""
        return before + work * self.shares[ranks]

    def _extend(self, label: _Label, rank: int, first: int, end: int, priced: _Priced) -> _Label:
        tail = priced.tail
        forward = priced.forward + (self.send_at[end] if rank + 1 < self.pp else 0.0)
        backward = priced.backward + (self.send_at[first] if rank else 0.0)
        after, warmup = self._after(rank, end), self.warmup[rank]
        bound = rank_lower_bound(
            label.before, forward, backward, after, self.m, warmup, has_drain=self.has_drain
        )
        first_reduce = label.reduce if rank else tail.reduce
        # This rank itself ends before the backwards of the ranks before it, and then reduces.
        mine = bound - (label.before - label.forward)
        total = max(label.total, self.factor * bound + first_reduce, self.factor * mine + tail.reduce)
        update = max(label.update, tail.optimizer + tail.gather)
        before = label.before + forward + (backward if self.has_drain else 0.0)
        return _Label(total, update, before, label.forward + forward, first_reduce, end, priced, label)

    def _after(self, rank: int, end: int) -> float:
        """Least time of one microbatch on the ranks behind, sends included: down and back again."""
        ranks = self.pp - rank - 1
        sends = 2 * ranks - 1 if ranks else 0
        return self.around[end] + sends * self.least_send

    def _price(self, rank: int, first: int, end: int) -> _Priced | None:
        """One rank priced, None when it does not fit."""
        key = (self.layout.kind_counts(first, end), self.alive[rank])
        if key not in self._cache:
            self._cache[key] = self._price_new(rank, first, end)
        return self._cache[key]

    def _price_new(self, rank: int, first: int, end: int) -> _Priced | None:
        stages = self.stages
        sharding = stages.row.sharding
        groups = self.layout.groups(first, end, (self.alive[rank],))
        choice = self.policy.choose(stages, groups, self.limit, sharding)
        if choice is None:
            return None
        items = choice.items(groups, sharding)
        forward, backward = stages.seconds(items)
        counts = self.layout.kind_counts(first, end)
        if counts not in self._synchronised:
            self._synchronised[counts] = stages.synchronised(items)
        tail = stages.exposed(self._synchronised[counts], forward, backward)
        return _Priced(choice, forward, backward - choice.spared_seconds, tail)


def least_forward_share_of(row: CandidateRow) -> float:
    """The least share of forward in forward plus backward over the layer kinds of one candidate."""
    shares = [
        kind.forward_seconds / (kind.forward_seconds + kind.backward_seconds[0])
        for kind in row.kinds
        if kind.forward_seconds > 0.0
    ]
    return min(shares, default=1.0)


def _keep(labels: list[_Label], new: _Label) -> None:
    """Add ``new`` unless covered; drop what it covers."""
    if any(old.covers(new) for old in labels):
        return
    labels[:] = [old for old in labels if not new.covers(old)]
    labels.append(new)
