"""Whole layers for a path program, by branch and bound.

Nodes are solved in the order of their bounds. Each is the linear program with numbers of layers within
limits; critical paths are added on the way and hold everywhere. A node branches on the number that moves the
step most: first how many layers of a virtual stage have a mode, then which. Plans come from the whole choices
near the first optimum (``path_choices``) and from nodes whose numbers are whole; every one is priced like any
other.
"""

from __future__ import annotations

import heapq
import math
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import count

import numpy as np

from planner.cost.arrays import IntArray
from planner.cost.step import price
from planner.search.linear_program import Optimum
from planner.search.path_choices import PathChoices
from planner.search.path_program import PathProgram
from planner.search.rank_choices import RankRows
from planner.search.row_decision import row_decision
from planner.strategy.decision import Decision

# Counted effort: nodes, and those beyond which only a gap that small is worth more, between unlike layers:
# where they are alike very many choices are as good, and what is left then stays.
MOST_NODES = 2_500
FEW_NODES = 150
SMALL_GAP = 1e-4
# Critical paths looked for at a node; where it adds none, the next twice as many nodes on are left out.
MOST_PATHS = 4
MOST_LEFT_OUT = 32
# Numbers of layers that far from whole ones are whole.
WHOLE = 1e-6
# How much rather the number of layers is settled than which they are.
TOTALS_FIRST = 10.0
Limits = dict[int, tuple[float, float]]


@dataclass(order=True)
class Node:
    """Numbers of layers within ``limits``: no plan there takes less than ``bound`` seconds."""

    bound: float
    number: int
    limits: Limits = field(compare=False)


@dataclass(frozen=True)
class Number:
    """A variable that is whole in every plan: layers of the virtual ``stages`` with one mode.

    effect: how much one of them matters: the ms it adds, more of those to be settled first.
    """

    variable: int
    stages: tuple[int, ...]
    effect: float


class PathBranches:
    """Branch and bound on the numbers of layers of ``program``, whose ``bound`` is known.

    decisions: the plans found that fit, the fastest first.
    """

    def __init__(self, program: PathProgram, to_beat_seconds: float, proved_gap: float) -> None:
        self.program, self.best, self.proved_gap = program, to_beat_seconds, proved_gap
        self.decisions: list[Decision] = []
        self.numbers = [
            number
            for rank, rows in program.rows.items()
            for number in _numbers(program.step.placed[rank], rows)
        ]
        self.variables = [number.variable for number in self.numbers]
        self._free = {at: (program.linear.lows[at], program.linear.highs[at]) for at in self.variables}
        self._effect = np.array([number.effect for number in self.numbers])
        # What each virtual stage's weight is to a number's: those of its stages on average.
        self._share = np.zeros((len(self.numbers), len(program.extra)))
        for index, number in enumerate(self.numbers):
            self._share[index, list(number.stages)] = 1.0 / len(number.stages)
        self._changed: Limits = {}
        # Nodes whose critical path was not looked for, and how many are left out.
        self._left_out, self._wait = 0, 1
        # The smallest bound of a node that holds no plan worth finding.
        self._dropped = math.inf
        # Plans priced, and whether they fit.
        self._fits: dict[tuple[int, ...], bool] = {}

    def run(self, deadline: float = math.inf) -> float:
        """Seconds no plan on these chunks can beat, of the effort allowed."""
        if not self.program.paths or not self.numbers:
            return 0.0
        numbered = count()
        nodes = [Node(0.0, next(numbered), {})]
        for tried in range(MOST_NODES):
            if not nodes or nodes[0].bound >= self._enough or time.process_time() > deadline:
                break
            is_near = self.program.is_unlike and nodes[0].bound >= self.best * (1.0 - SMALL_GAP)
            if tried >= FEW_NODES and not is_near:
                break
            node = heapq.heappop(nodes)
            for bound, limits in self._branched(node, tried):
                heapq.heappush(nodes, Node(bound, next(numbered), limits))
        return min([self.best, self._dropped, *(node.bound for node in nodes)])

    @property
    def _enough(self) -> float:
        """A bound from which on a node holds no better plan."""
        return self.best * (1.0 - self.proved_gap)

    def _branched(self, node: Node, tried: int) -> Iterable[tuple[float, Limits]]:
        """The node's parts and a bound of both; none where it holds no better plan."""
        found = self._solved(node.limits)
        if found is None:
            if not self.program.linear.is_infeasible:
                self._dropped = min(self._dropped, node.bound)
            return []
        if tried == 0:
            near = PathChoices(self.program, found).best()
            if near is not None:
                self._offer({rank: choice.taken for rank, choice in near.items()})
                found = self.program.linear.solve() or found
        bound = max(node.bound, self.program.seconds(found.objective))
        values = found.values[self.variables]
        off = np.abs(values - np.round(values))
        is_whole = bool(off.max() <= WHOLE)
        fits = is_whole and self._offer(self._taken(found))
        if bound >= self._enough:
            self._dropped = min(self._dropped, bound)
            return []
        weights = self._share @ self.program.weights(found)
        if not is_whole:
            chosen = int(np.argmax(weights * self._effect * np.where(off > WHOLE, off, 0.0)))
        else:
            # These numbers do not fit after all, or take longer than the paths known say: all others.
            width = np.array([self._width(node.limits, at) for at in self.variables])
            chosen = int(np.argmax(weights * self._effect * (width > 0.0)))
            if not width[chosen]:
                if not fits and self._leaves_open(found):
                    self._dropped = min(self._dropped, bound)
                return []
        return [
            (bound, {**node.limits, self.variables[chosen]: part})
            for part in self._parts(node.limits, self.variables[chosen], float(values[chosen]))
        ]

    def _leaves_open(self, found: Optimum) -> bool:
        """Whether layers of several groups have the first mode and it is not said which."""
        return any(
            WHOLE < found.values[share.variable] < share.most - WHOLE
            for rows in self.program.rows.values()
            for share in rows.shares
            if len(share.members) > 1
        )

    def _width(self, limits: Limits, variable: int) -> float:
        low, high = limits.get(variable, self._free[variable])
        return high - low

    def _parts(self, limits: Limits, variable: int, value: float) -> list[tuple[float, float]]:
        """The limits of a number on either side of ``value``, and on it where that is whole."""
        low, high = limits.get(variable, self._free[variable])
        nearest = float(round(value))
        if abs(value - nearest) > WHOLE:
            return [(low, math.floor(value)), (math.ceil(value), high)]
        parts = [(low, nearest - 1.0), (nearest, nearest), (nearest + 1.0, high)]
        return [(first, last) for first, last in parts if first <= last]

    def _solved(self, limits: Limits) -> Optimum | None:
        """The optimum within ``limits``, mostly behind its critical paths; None where no plan is within."""
        linear = self.program.linear
        for variable in {**self._changed, **limits}:
            linear.within(variable, *limits.get(variable, self._free[variable]))
        self._changed = limits
        for rank, rows in self.program.rows.items():
            used = [share.working for share in rows.shares if linear.lows[share.variable] >= 1.0]
            linear.within(rows.working, max([self.program.choices[rank].least_working, *used]), math.inf)
        found = linear.solve()
        self._left_out += 1
        if self._left_out < self._wait:
            return found
        self._left_out, self._wait = 0, min(MOST_LEFT_OUT, 2 * self._wait)
        for _ in range(MOST_PATHS):
            if found is None or self.program.seconds(found.objective) >= self._enough:
                break
            if not self.program.add_path(self.program.extras(found), found.objective):
                break
            self._wait, found = 1, linear.solve()
        return found

    def _taken(self, found: Optimum) -> dict[int, list[IntArray]]:
        """Layers of every rank, by virtual stage, group and mode, of whole values."""
        taken = dict[int, list[IntArray]]()
        for rank, rows in self.program.rows.items():
            choices = self.program.choices[rank]
            mine: list[IntArray] = [
                np.zeros((len(groups), choices.modes), dtype=np.int64) for groups in choices.chunks
            ]
            # The first mode's variable is of any layers that have no other one.
            for share in sorted(rows.shares, key=lambda share: -share.mode):
                left, groups = round(found.values[share.variable]), choices.chunks[share.chunk]
                for group in share.members:
                    room = groups[group].count - int(mine[share.chunk][group].sum())
                    mine[share.chunk][group, share.mode] = min(left, room)
                    left -= min(left, room)
            taken[rank] = mine
        return taken

    def _offer(self, taken: Mapping[int, Iterable[IntArray]]) -> bool:
        """Price the plan with so many layers in each mode; keep it where it fits and is the best.

        Whether it fits.
        """
        program, step = self.program, self.program.step
        chain = step.model.chain
        recompute = [0] * step.layout.num_blocks
        for rank, stages in taken.items():
            groups_of, placed = program.choices[rank].chunks, step.placed[rank]
            for stage, groups, layers in zip(placed, groups_of, stages, strict=True):
                left = {group.kind: counts.tolist() for group, counts in zip(groups, layers, strict=True)}
                for block in range(*step.chunks[stage]):
                    counts = left[chain.layers[chain.block_layers[block]]]
                    # The first blocks have the dearest mode: launchers count from the front.
                    for mode in reversed(range(len(counts))):
                        if counts[mode]:
                            recompute[block], counts[mode] = program.offered[mode], counts[mode] - 1
                            break
        modes = tuple(recompute)
        if modes not in self._fits:
            has_host = step.model.stack.has_host_optimizer
            decision = row_decision(step.row, step.chunks, modes, has_host_optimizer=has_host)
            prediction = price(step.model, decision, rows={step.row.sharding: step.row})
            self._fits[modes] = prediction.peak_memory_bytes <= program.limit_bytes
            if self._fits[modes] and prediction.step_seconds < self.best:
                self.best = prediction.step_seconds
                self.decisions.insert(0, decision)
        return self._fits[modes]


def _numbers(placed: list[int], rows: RankRows) -> Iterator[Number]:
    """The whole numbers of a rank with the virtual stages ``placed``."""
    for total in rows.totals:
        stages = sorted({share.chunk for share in total.shares})
        preference = TOTALS_FIRST if len(stages) == 1 else TOTALS_FIRST**2
        yield Number(total.variable, tuple(placed[chunk] for chunk in stages), total.extra * preference)
    for share in rows.shares:
        yield Number(share.variable, (placed[share.chunk],), share.extra)
