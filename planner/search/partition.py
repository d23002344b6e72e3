"""Dynamic program over layers and stages: the best split of the chain over pipeline ranks.

State (rank i, blocks placed l) with labels (T, U, S, F, R): S the time of one microbatch on the ranks so far
(fill and drain), F its forward half; T the largest end seen from any of them (``bounds.rank_lower_bound``,
close to the exact 1F1B makespan and never above it) with the gradient reduction behind it, R that of rank
0, which ends last (0 for zero bubble, where it need not); U the longest optimizer and gather. The step is
at least T + U. Zero bubble adds V, forwards and input gradients of the ranks so far (the way of the last
microbatch back to rank 0), and L, what rank 0 does when that arrives: its last weight gradient and its
reduction. A rank is offered every block range whose layers fit the memory limit under their cheapest
recompute modes. A label is kept while no other covers it (``labels.Label.covers``); ranges that cannot beat
the incumbent are not tried.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate

from planner.cost.row import CandidateRow
from planner.cost.sends import blocks_sends
from planner.cost.stage import StageModel
from planner.schedule.orders import ZERO_BUBBLE, alive_states, warmup_operations
from planner.search.knapsack import cheapest_modes
from planner.search.labels import SMALL, Label, Priced, keep
from planner.search.layout import Layout
from planner.search.policy import RecomputePolicy
from planner.search.ranges import Ranges
from planner.search.recompute import Choice, Group
from planner.search.split_bounds import (
    WEIGHTS_DELAYED,
    plain_share,
    rank_lower_bound,
    zero_bubble_return_bound,
)

PRICED_SPLITS = 4
# With no more splits than these the price of every one decides, not its bound.
FEW_SPLITS = 20


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


START = Label(0.0, 0.0, 0.0, 0.0, 0.0)


class Partitioner:
    """Splits the chain for one candidate (non-interleaved schedules).

    ``policy`` says which recompute modes the layers of a rank may have; ``is_exact``: where its choice is a
    relaxation rounded up, the ranges that may be part of a faster plan get the exact one.
    """

    def __init__(
        self,
        stages: StageModel,
        layout: Layout,
        limit_bytes: float,
        straggler_factor: float,
        sends: list[list[float]],
        policy: RecomputePolicy,
        *,
        is_exact: bool = False,
    ) -> None:
        self.is_exact = is_exact
        self.stages, self.layout, self.limit = stages, layout, limit_bytes
        self.factor = straggler_factor
        self.sends, self.is_blocking = sends, blocks_sends(stages.row.schedule)
        self.policy = policy
        row = stages.row
        self.pp, self.m = row.degrees.pp, row.microbatches
        self.warmup = [warmup_operations(row.schedule, r, self.pp, self.m) for r in range(self.pp)]
        self.alive = [alive_states(row.schedule, r, self.pp, self.m)[0][0] for r in range(self.pp)]
        # Where weight gradients fill the drain, a rank behind keeps this one waiting by its forwards alone.
        self.has_drain = row.schedule not in ZERO_BUBBLE
        self.filling = 1.0 if self.has_drain else least_forward_share_of(row)
        self.ranges = Ranges(stages, layout)
        cheapest = self.ranges.prefix(
            [kind.forward_seconds + min(kind.backward_seconds) for kind in row.kinds]
        )
        n = layout.num_blocks
        self.ahead = (
            cheapest if self.has_drain else self.ranges.prefix([k.forward_seconds for k in row.kinds])
        )
        self.rest = [cheapest[n] - sums for sums in cheapest]
        # What the first microbatch takes there and back: whole backwards, or their input gradients alone.
        weights = [0.0 if self.has_drain else kind.weight_seconds for kind in row.kinds]
        turn = self.ranges.prefix(
            [
                kind.forward_seconds + min(kind.backward_seconds) - weight
                for kind, weight in zip(row.kinds, weights, strict=True)
            ]
        )
        self.turns, self.around = turn, [turn[n] - sums for sums in turn]
        self.delay = WEIGHTS_DELAYED.get(row.schedule, 0)
        # The least sends between rank 0 and every rank.
        least = {id(at_cut): min(at_cut[1:n], default=0.0) for at_cut in {id(s): s for s in sends}.values()}
        self.least_sends = [0.0, *accumulate(least[id(at_cut)] for at_cut in sends[: self.pp - 1])]
        self.shares = [float(plain_share(r, self.m, self.filling)) if r else 0.0 for r in range(self.pp + 1)]
        self._cache: dict[tuple[tuple[int, ...], int], tuple[Choice, float] | None] = {}
        self._priced: dict[tuple[int, int, int], Priced | None] = {}

    def solve(self, incumbent_seconds: float) -> list[Partition]:
        """The best splits by bound, best first; only those whose bound beats ``incumbent_seconds``.

        Bounds are exact only without sends and recompute, so a few splits are returned for pricing; where
        there are no more than FEW_SPLITS, all of them.
        """
        n = self.layout.num_blocks
        is_few = math.comb(n - 1, self.pp - 1) <= FEW_SPLITS
        starts = self._earliest_starts(incumbent_seconds)
        if starts is None:
            return []
        balanced = math.inf if is_few else self._balanced(starts) * (1.0 + SMALL) + SMALL
        if balanced < incumbent_seconds:
            incumbent_seconds = balanced
            starts = self._earliest_starts(incumbent_seconds)
            if starts is None:
                return []
        frontier: dict[int, list[Label]] = {0: [START]}
        for rank in range(self.pp):
            following: dict[int, list[Label]] = {}
            for first, labels in frontier.items():
                longest = max(self._room(rank, label, incumbent_seconds) for label in labels)
                ends = self._ends(rank, first, starts[rank + 1], longest)
                for label in labels:
                    for extended in self._extended(label, rank, first, ends, incumbent_seconds):
                        known = following.setdefault(extended.end, [])
                        if is_few:
                            known.append(extended)
                        else:
                            keep(known, extended, self.factor, has_drain=self.has_drain)
            frontier = following
        final = sorted(frontier.get(n, []), key=lambda label: (label.bound, label.before))
        return [self._partition(label) for label in final[: FEW_SPLITS if is_few else PRICED_SPLITS]]

    def can_fit(self) -> bool:
        """Whether any split fits the memory limit."""
        return self._earliest_starts(math.inf) is not None

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

    def _partition(self, label: Label) -> Partition:
        ranks: list[RankChoice] = []
        step: Label | None = label
        while step is not None and step.priced is not None:
            rank, first = self.pp - len(ranks) - 1, step.parent.end if step.parent else 0
            groups = self.layout.groups(first, step.end, (self.alive[rank],))
            choice = step.priced.choice or Choice(0.0, tuple((0, 0) for _ in groups))
            ranks.append(RankChoice(first, step.end, groups, choice))
            step = step.parent
        return Partition(label.bound, tuple(reversed(ranks)))

    def _earliest_starts(self, incumbent: float) -> list[int] | None:
        """Per rank the first block it may start at so that it and the ranks behind can hold the rest.

        In memory, and in time: a rank that starts there must beat the incumbent behind the cheapest ranks
        before it. None when no split does. Fewer layers on a rank never need more memory or end later (what
        waits less in front of it is work taken off it ``microbatches`` times), so each start is found by
        bisection, and the earliest start of a rank is earliest for all before it.
        """
        starts = [self.layout.num_blocks] * (self.pp + 1)
        for rank in reversed(range(self.pp)):
            low, high = rank, starts[rank + 1]
            if rank == 0:
                return starts if self._holds(0, 0, high, incumbent) else None
            while low < high:
                middle = (low + high) // 2
                if self._holds(rank, middle, starts[rank + 1], incumbent):
                    high = middle
                else:
                    low = middle + 1
            if high == starts[rank + 1]:
                return None
            starts[rank] = high
        return starts

    def _holds(self, rank: int, first: int, end: int, incumbent: float) -> bool:
        """Whether a rank with this range fits the limit and may beat the incumbent."""
        # Fill and drain pass every boundary before this rank; the last one is in this rank's own backward.
        drained = self.least_sends[rank - 1] if self.has_drain and rank else 0.0
        before = self.ahead[first] + self.least_sends[rank] + drained
        mine = self.m * (self.rest[first] - self.rest[end])
        if self.factor * (before + mine) >= incumbent:
            return False
        priced = self._price(rank, first, end)
        if priced is None or self.factor * self._bound(rank, first, end, before, priced) >= incumbent:
            return False
        if self.has_drain:
            return True
        turn = self.turns[first] + 2.0 * self.least_sends[rank]
        end_seconds = self._way_back(rank, first, end, turn, priced) + self.ranges.weight_seconds(0, 1)
        return self.factor * end_seconds < incumbent

    def _room(self, rank: int, label: Label, incumbent: float) -> float:
        """Seconds a rank behind ``label`` may work for all microbatches and still beat the incumbent."""
        reduce = label.reduce if rank else 0.0
        return (incumbent - label.update - reduce) / self.factor - label.before

    def _ends(self, rank: int, first: int, earliest: int, longest: float) -> list[tuple[int, Priced]]:
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
        self, label: Label, rank: int, first: int, ends: list[tuple[int, Priced]], incumbent: float
    ) -> Iterator[Label]:
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
            if extended.bound < incumbent and self.is_exact and self._settle(rank, first, end, priced):
                extended = self._extend(label, rank, first, end, priced)
            if extended.bound < incumbent:
                yield extended

    def _spread(self, work: float, before: float, ranks: int) -> float:
        """Least T for ``work`` spread perfectly over ``ranks`` ranks behind ``before`` seconds of fill."""
        return before + work * self.shares[ranks]

    def _extend(self, label: Label, rank: int, first: int, end: int, priced: Priced) -> Label:
        if priced.tail is None:
            priced.tail = self.ranges.tail(first, end, priced.extra)
        tail = priced.tail
        bound = self._bound(rank, first, end, label.before, priced)
        first_reduce = (label.reduce if rank else tail.reduce) if self.has_drain else 0.0
        # This rank itself ends before the backwards of the ranks before it, and then reduces.
        mine = bound - (label.before - label.forward)
        total = max(label.total, self.factor * bound + first_reduce, self.factor * mine + tail.reduce)
        turn = last = 0.0
        if not self.has_drain:
            weight = self.ranges.weight_seconds(first, end)
            last = label.last if rank else self.factor * weight + tail.reduce
            total = max(total, self.factor * self._way_back(rank, first, end, label.turn, priced) + last)
            turn = label.turn + priced.forward + priced.backward - weight + 2.0 * self.sends[rank][end]
        update = max(label.update, tail.optimizer + tail.gather)
        send = self.sends[rank][end]
        forward = priced.forward + send
        backward = priced.backward + (self.sends[rank - 1][first] if rank else 0.0)
        before = label.before + forward + (backward if self.has_drain else 0.0)
        passed = label.forward + forward
        return Label(total, update, before, passed, first_reduce, turn, last, end, priced, label)

    def _way_back(self, rank: int, first: int, end: int, turn: float, priced: Priced) -> float:
        """``zero_bubble_return_bound`` of one rank behind ranks of ``turn`` seconds."""
        weight, seconds = self.ranges.weight_seconds(first, end), priced.forward + priced.backward
        return zero_bubble_return_bound(turn, seconds, weight, self.m, rank, self.delay)

    def _bound(self, rank: int, first: int, end: int, before: float, priced: Priced) -> float:
        """When the step can end at the earliest, judged from one rank behind ``before`` seconds."""
        forward, backward = priced.forward, priced.backward
        if self.is_blocking:
            forward += self.sends[rank][end]
            backward += self.sends[rank - 1][first] if rank else 0.0
        after, warmup = self._after(rank, end), self.warmup[rank]
        return rank_lower_bound(before, forward, backward, after, self.m, warmup, has_drain=self.has_drain)

    def _after(self, rank: int, end: int) -> float:
        """Least time of one microbatch on the ranks behind, sends included: down and back again."""
        sends = self.least_sends[-1] - self.least_sends[rank]
        # Where sends block, the one down to the next rank is part of this rank's own forward.
        own = self.sends[rank][end] if self.is_blocking else 0.0
        return self.around[end] + max(0.0, 2.0 * sends - own)

    def _price(self, rank: int, first: int, end: int) -> Priced | None:
        """One rank priced, None when it does not fit."""
        alive = self.alive[rank]
        key = (first, end, alive)
        if key not in self._priced:
            self._priced[key] = self._price_new(rank, first, end)
        return self._priced[key]

    def _price_new(self, rank: int, first: int, end: int) -> Priced | None:
        ranges, plain_bytes = self.ranges, None
        forward, backward = ranges.forward_seconds(first, end), ranges.backward_seconds(first, end)
        if self.policy.is_plain_first:
            plain_bytes = ranges.plain_bytes(first, end, self.alive[rank])
            if plain_bytes is not None and plain_bytes <= self.limit:
                return Priced(None, forward, backward, 0.0)
        key = (self.layout.kind_counts(first, end), self.alive[rank])
        if key not in self._cache:
            self._cache[key] = self._chosen(rank, first, end, plain_bytes)
        found = self._cache[key]
        if found is None:
            return None
        choice, extra = found
        return Priced(choice, forward, backward + extra - choice.spared_seconds, extra)

    def _settle(self, rank: int, first: int, end: int, priced: Priced) -> bool:
        """Put the exact recompute choice in the place of a rounded one; False where it is exact already."""
        plain_bytes = self.ranges.plain_bytes(first, end, self.alive[rank])
        if priced.choice is None or not priced.choice.spared_seconds or plain_bytes is None:
            return False
        over_bytes = (plain_bytes - self.limit) / (1.0 + self.stages.device.constants.allocator_slack)
        groups = self.layout.groups(first, end, (self.alive[rank],))
        kinds = self.stages.row.kinds
        choice = cheapest_modes(kinds, groups, over_bytes, self.policy.offered, priced.choice)
        plain = priced.backward - priced.extra + priced.choice.spared_seconds
        priced.choice, priced.extra, priced.tail = choice, choice.extra_seconds, None
        priced.backward = plain + choice.extra_seconds - choice.spared_seconds
        return True

    def _chosen(
        self, rank: int, first: int, end: int, plain_bytes: float | None
    ) -> tuple[Choice, float] | None:
        """The recompute choice of a rank and its extra seconds."""
        stages, sharding = self.stages, self.stages.row.sharding
        groups = self.layout.groups(first, end, (self.alive[rank],))
        choice = self.policy.choose(stages, groups, self.limit, sharding, plain_bytes=plain_bytes)
        if choice is None:
            return None
        kinds = stages.row.kinds
        extra = 0.0
        for group, (selective, full) in zip(groups, choice.counts, strict=True):
            seconds = kinds[group.kind].backward_seconds
            extra += selective * (seconds[1] - seconds[0]) + full * (seconds[2] - seconds[0])
        return choice, extra


def least_forward_share_of(row: CandidateRow) -> float:
    """The least share of forward in forward plus backward over the layer kinds of one candidate."""
    shares = [
        kind.forward_seconds / (kind.forward_seconds + kind.backward_seconds[0])
        for kind in row.kinds
        if kind.forward_seconds > 0.0
    ]
    return min(shares, default=1.0)
