"""Choices of recomputation for the virtual stages of a rank, joined stage by stage.

Of a virtual stage only undominated choices count: none other adds fewer ms, frees as much and needs as small
a working set. A joint choice is dropped where the Lagrangian bound of what is left, at given multipliers of
the states' memory, cannot bring it below the best one known (branch and bound on fronts: Nemhauser and
Ullmann 1969; Kellerer, Pferschy and Pisinger, Knapsack Problems, 2004, chapter 11). The last virtual stage is
looked up: the lightest of its choices that frees what is still missing.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from planner.cost.arrays import Array, IntArray

# Choices of a virtual stage beyond which nothing is said of its rank; joint ones kept, over all stages.
MOST_OPTIONS = 2_000
MOST_JOINT = 100_000
# Joint choices kept of each number of layers in the dearest mode, where many unlike ones are wanted.
EACH_PATTERN = 3
# GiB that are rounding.
TOLERANCE = 1e-9


@dataclass(frozen=True)
class Layers:
    """``count`` equal layers of a virtual stage.

    Of each mode: ms added to a backward, GiB freed for a microbatch, GiB of its working set; and that of a
    layer that is not recomputed.
    """

    kind: int
    count: int
    extra: tuple[float, ...]
    freed: tuple[float, ...]
    working: tuple[float, ...]
    plain_working: float


@dataclass(frozen=True)
class Choice:
    """What a rank recomputes.

    weight: the cost it was chosen for; bound: no choice of the rank has less; extra: ms by virtual stage;
    taken[virtual stage][group, mode]: layers.
    """

    bound: float
    weight: float
    extra: Array
    taken: tuple[IntArray, ...]


@dataclass(frozen=True)
class Options:
    """Undominated choices of a virtual stage: of each its extra ms, GiB freed, working set and layers.

    taken (choices, groups, modes).
    """

    extra: Array
    freed: Array
    working: Array
    taken: IntArray

    @staticmethod
    def of(groups: Sequence[Layers], modes: int, least_working: float) -> Options | None:
        """All of them; None where they are more than MOST_OPTIONS."""
        none = np.zeros(1)
        found = Options(none, none, none + least_working, np.zeros((1, 0, modes), dtype=np.int64))
        for group in groups:
            found = found._with(group)._undominated()
            if len(found.extra) > MOST_OPTIONS:
                return None
        return found

    def _with(self, group: Layers) -> Options:
        """Each of them beside each choice of another group."""
        modes, numbers = len(group.extra), range(group.count + 1)
        rows = [row for row in itertools.product(numbers, repeat=modes) if sum(row) <= group.count]
        taken = np.array(rows, dtype=np.int64)
        working = np.where(taken > 0, np.array(group.working), 0.0).max(axis=1)
        plain = np.where(taken.sum(axis=1) < group.count, group.plain_working, 0.0)
        return Options(
            np.add.outer(self.extra, taken @ np.array(group.extra)).ravel(),
            np.add.outer(self.freed, taken @ np.array(group.freed)).ravel(),
            np.maximum.outer(self.working, np.maximum(working, plain)).ravel(),
            np.concatenate(
                [np.repeat(self.taken, len(rows), axis=0), np.tile(taken[:, None], (len(self.extra), 1, 1))],
                axis=1,
            ),
        )

    def _undominated(self) -> Options:
        kept: list[int] = []
        corners: list[tuple[float, float]] = []
        order = np.lexsort((self.working, -self.freed, self.extra)).tolist()
        freed, working = self.freed.tolist(), self.working.tolist()
        for index in order:
            gain, need = freed[index], working[index]
            if any(more >= gain and less <= need for more, less in corners):
                continue
            corners = [corner for corner in corners if corner[0] > gain or corner[1] < need]
            corners.append((gain, need))
            kept.append(index)
        return Options(self.extra[kept], self.freed[kept], self.working[kept], self.taken[kept])


@dataclass
class _Joint:
    """Joint choices of the virtual stages so far.

    reduced: cost less what the freed bytes are worth; freed: GiB by state; pattern: a number that tells those
    with other numbers of layers in the dearest mode apart.
    """

    reduced: Array
    cost: Array
    freed: Array
    working: Array
    picks: IntArray
    pattern: IntArray

    def taken(self, index: IntArray) -> _Joint:
        return _Joint(*(value[index] for value in vars(self).values()))


class ChoiceFront:
    """Joint choices of a rank under a cost of every option.

    options, costs: by virtual stage; alive (states, virtual stages); needed: GiB that each state must free
    beside the largest working set; multipliers >= 0: what a GiB of it is worth (any bound the choices, those
    of the linear program best).
    """

    def __init__(
        self,
        options: Sequence[Options],
        costs: Sequence[Array],
        alive: Array,
        needed: Array,
        multipliers: Array,
    ) -> None:
        self.options, self.costs, self.alive, self.needed = options, costs, alive, needed
        self.reduced = [
            cost - float(multipliers @ alive[:, at]) * one.freed
            for at, (cost, one) in enumerate(zip(costs, options, strict=True))
        ]
        # Virtual stages whose choices differ most come first, so that what is dropped is dropped early.
        spread = [float(np.sort(values)[:4][-1] - values.min()) for values in self.reduced]
        self.order = sorted(range(len(options)), key=lambda at: -spread[at])
        self.base, self.per_working = float(multipliers @ needed), float(multipliers.sum())
        # Of the virtual stages from each on: the least reduced cost, and the most freed by state.
        self.ahead, self.most = [0.0], [np.zeros(len(needed))]
        for at in reversed(self.order):
            self.ahead.insert(0, self.ahead[0] + float(self.reduced[at].min()))
            self.most.insert(0, self.most[0] + alive[:, at] * float(options[at].freed.max()))

    def lightest(self, below: float) -> tuple[Choice | None, float]:
        """(the choice of the least cost below ``below``, a bound on every choice not shown to be above it).

        Exact, bound ``below`` or the cost found, unless more than its share of MOST_JOINT a stage was left.
        """
        joint, bound, most = self._start(), below, max(1, MOST_JOINT // len(self.order))
        for step in range(len(self.order) - 1):
            joint, least = self._extended(joint, step, below, most)
            bound = min(bound, least)
        entries = self._ends(joint, below, every=False)
        if not entries:
            return None, bound
        found = self._choice(joint, *min(entries))
        return found, min(bound, found.weight)

    def near(self, beam: int, *, is_varied: bool = False) -> list[Choice]:
        """The cheapest of ``beam`` promising choices, best first; ``is_varied``: some of every pattern."""
        joint = self._start()
        for step in range(len(self.order) - 1):
            joint, _ = self._extended(joint, step, math.inf, None)
            least = joint.reduced + self.ahead[step + 1] + self.per_working * joint.working
            order = np.argsort(least, kind="stable")
            if is_varied:
                order = order[_first_of_each(joint.pattern[order], EACH_PATTERN)]
            joint = joint.taken(np.sort(order[:beam]))
        entries = sorted(self._ends(joint, math.inf, every=True))
        return [self._choice(joint, *entry) for entry in entries[:beam]]

    def _start(self) -> _Joint:
        none = np.zeros(1, dtype=np.int64)
        least = np.full(1, min(float(one.working.min()) for one in self.options))
        zeros = np.zeros((1, len(self.needed)))
        return _Joint(np.zeros(1), np.zeros(1), zeros, least, np.zeros((1, 0), dtype=np.int64), none)

    def _extended(self, joint: _Joint, step: int, below: float, most: int | None) -> tuple[_Joint, float]:
        """Joint choices with one more virtual stage; the bound of those dropped as more than ``most``."""
        at = self.order[step]
        mine = self.options[at]
        working = np.maximum.outer(joint.working, mine.working)
        reduced = np.add.outer(joint.reduced, self.reduced[at])
        least = reduced + (self.ahead[step + 1] + self.base) + self.per_working * working
        old, new = np.nonzero(least < below)
        bound = math.inf
        if most is not None and len(old) > most:
            order = np.argsort(least[old, new], kind="stable")
            bound = float(least[old, new][order[most]])
            old, new = old[order[:most]], new[order[:most]]
        freed = joint.freed[old] + mine.freed[new][:, None] * self.alive[:, at]
        reach = freed + self.most[step + 1]
        fits = np.all(reach >= self.needed + working[old, new][:, None] - TOLERANCE, axis=1)
        old, new = old[fits], new[fits]
        dearest = mine.taken[:, :, -1].sum(axis=1)
        return _Joint(
            reduced[old, new],
            joint.cost[old] + self.costs[at][new],
            freed[fits],
            working[old, new],
            np.hstack([joint.picks[old], new[:, None]]),
            joint.pattern[old] * 31 + dearest[new],
        ), bound

    def _ends(self, joint: _Joint, below: float, *, every: bool) -> list[tuple[float, int, int]]:
        """(cost, entry of ``joint``, option of the last virtual stage): the lightest, or every entry's."""
        at = self.order[-1]
        mine, alive = self.options[at], self.alive[:, at]
        counts = alive > 0
        entries: list[tuple[float, int, int]] = []
        if not len(joint.cost):
            return entries
        for level in np.unique(mine.working):
            usable = np.flatnonzero(mine.working <= level)
            usable = usable[np.argsort(mine.freed[usable], kind="stable")]
            costs = self.costs[at][usable]
            # The lightest of those that free as much or more.
            lightest = np.minimum.accumulate(costs[::-1])[::-1]
            missing = self.needed + np.maximum(joint.working, level)[:, None] - joint.freed
            fits = np.all(missing[:, ~counts] <= TOLERANCE, axis=1)
            share = np.max(missing[:, counts] / alive[counts], axis=1, initial=0.0)
            place = np.searchsorted(mine.freed[usable], share - TOLERANCE)
            fits &= place < len(usable)
            place = np.minimum(place, len(usable) - 1)
            total = np.where(fits, joint.cost + lightest[place], math.inf)
            chosen = np.flatnonzero(total < below) if every else [np.argmin(total)]
            for entry in map(int, chosen):
                if total[entry] < below:
                    first = place[entry]
                    option = int(usable[first + int(np.argmin(costs[first:]))])
                    entries.append((float(total[entry]), entry, option))
        return entries

    def _choice(self, joint: _Joint, cost: float, entry: int, last: int) -> Choice:
        chosen = dict(zip(self.order, [*joint.picks[entry].tolist(), last], strict=True))
        extra = np.array([one.extra[chosen[at]] for at, one in enumerate(self.options)])
        taken = tuple(one.taken[chosen[at]] for at, one in enumerate(self.options))
        return Choice(cost, cost, extra, taken)


def _first_of_each(keys: IntArray, most: int) -> IntArray:
    """Indices of the first ``most`` of every key, in order."""
    order = np.argsort(keys, kind="stable")
    sorted_keys = keys[order]
    starts = np.flatnonzero(np.concatenate([[True], sorted_keys[1:] != sorted_keys[:-1]]))
    place = np.arange(len(keys)) - np.repeat(starts, np.diff(np.append(starts, len(keys))))
    return np.sort(order[place < most])
