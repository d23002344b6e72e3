"""What the virtual stages of one rank may recompute: as rows of a linear program, and the cheapest choice.

A choice is how many of each group of equal layers have each mode. It fits where in every state k of the
schedule the bytes freed, alive_k microbatches of each virtual stage, cover what the rank is over its limit
and the largest working set in use.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from types import ModuleType

import numpy as np

from planner.cost.arrays import Array
from planner.search.choice_front import Choice, ChoiceFront, Layers, Options
from planner.search.linear_program import LinearProgram

# Joint choices kept on the way to a good one, and to many unlike ones.
BEAM = 100
WIDE_BEAM = 300
# A share of a cost that is rounding.
TOLERANCE = 1e-9


@dataclass(frozen=True)
class Share:
    """A variable: how many layers of the groups ``members`` of a virtual stage have a mode.

    extra, working: ms it adds and GiB of the working set it needs, of one layer.
    """

    variable: int
    chunk: int
    members: tuple[int, ...]
    mode: int
    most: int
    extra: float
    working: float


@dataclass(frozen=True)
class Total:
    """A variable: how many layers of the rank, or of a virtual stage, have a mode, by its ``shares``."""

    variable: int
    shares: tuple[Share, ...]

    @property
    def extra(self) -> float:
        """ms that one layer adds, on average."""
        return sum(share.extra for share in self.shares) / len(self.shares)


@dataclass(frozen=True)
class RankRows:
    """A rank in a linear program.

    extra: variables of the ms by virtual stage; working: that of the largest working set; memory: rows.
    """

    extra: tuple[int, ...]
    shares: tuple[Share, ...]
    totals: tuple[Total, ...]
    working: int
    memory: tuple[int, ...]


class RankChoices:
    """One rank: the layers of its virtual stages, and what it must free.

    alive (states, virtual stages): microbatches; needed (states,): GiB beside the working set, of which
    ``least_working`` is in use whatever is recomputed; modes: how many there are beside none.
    """

    def __init__(
        self,
        solver: ModuleType,
        chunks: Sequence[Sequence[Layers]],
        alive: Array,
        needed: Array,
        *,
        modes: int,
        least_working: float,
    ) -> None:
        self.solver, self.chunks, self.modes = solver, chunks, modes
        self.alive, self.needed, self.least_working = alive, needed, least_working

    def rows(self, program: LinearProgram) -> RankRows:
        """The rank in ``program``, with shares of layers."""
        working = program.variable(self.least_working, math.inf)
        extra: list[int] = []
        shares: list[Share] = []
        totals: list[Total] = []
        freed: list[dict[int, float]] = []
        for chunk, groups in enumerate(self.chunks):
            mine = _shares(program, chunk, groups, self.modes)
            for share in mine:
                more = share.working - self.least_working
                if more > 0.0:
                    program.row({working: 1.0, share.variable: -more / share.most}, self.least_working)
            extra.append(program.variable(0.0, math.inf))
            program.row({extra[-1]: -1.0, **{share.variable: share.extra for share in mine}}, 0.0, 0.0)
            freed.append({one.variable: groups[one.members[0]].freed[one.mode] for one in mine})
            shares += mine
            totals += _totals(program, mine)
        totals += _totals(program, shares)
        memory = []
        for alive, needed in zip(self.alive, self.needed, strict=True):
            terms = {working: -1.0}
            for number, bytes_freed in zip(alive.tolist(), freed, strict=True):
                terms |= {variable: number * each for variable, each in bytes_freed.items() if number}
            memory.append(program.row(terms, float(needed)))
        return RankRows(tuple(extra), tuple(shares), tuple(totals), working, tuple(memory))

    def cheapest(self, weights: Array) -> Choice | None:
        """The choice of the least sum of weight x extra ms, exact or with its bound; None without one.

        A good one is looked for first, then all that could be better.
        """
        front = self._front(weights)
        if front is None:
            return None
        near = front.near(BEAM)
        below = near[0].weight * (1.0 - TOLERANCE) if near else math.inf
        found, bound = front.lightest(below)
        best = found or (near[0] if near else None)
        return None if best is None else Choice(bound, best.weight, best.extra, best.taken)

    def around(self, weights: Array, aim: Array, surplus: Array) -> list[Choice]:
        """Choices of many kinds that are cheap, also where ms beyond ``aim`` weigh ``surplus`` more."""
        fronts = self._front(weights), self._front(weights, aim, surplus)
        return [one for front in fronts if front for one in front.near(WIDE_BEAM, is_varied=True)]

    def _front(
        self, weights: Array, aim: Array | None = None, surplus: Array | None = None
    ) -> ChoiceFront | None:
        """Costs of every option, and the multipliers of the linear program with these weights."""
        if self._options is None:
            return None
        program, rows = self._program
        costs = [weight * one.extra for weight, one in zip(weights, self._options, strict=True)]
        if aim is not None and surplus is not None:
            beyond = [np.maximum(0.0, one.extra - at) for one, at in zip(self._options, aim, strict=True)]
            costs = [cost + more * by for cost, more, by in zip(costs, surplus, beyond, strict=True)]
            weights = weights + surplus
        for variable, weight in zip(rows.extra, weights, strict=True):
            program.cost(variable, float(weight))
        relaxed = program.solve()
        if relaxed is None:
            return None
        multipliers = np.maximum(0.0, relaxed.duals[list(rows.memory)])
        return ChoiceFront(self._options, costs, self.alive, self.needed, multipliers)

    @cached_property
    def _options(self) -> list[Options] | None:
        options = [Options.of(groups, self.modes, self.least_working) for groups in self.chunks]
        known = [one for one in options if one is not None]
        return known if len(known) == len(options) else None

    @cached_property
    def _program(self) -> tuple[LinearProgram, RankRows]:
        program = LinearProgram(self.solver)
        return program, self.rows(program)


def _shares(program: LinearProgram, chunk: int, groups: Sequence[Layers], modes: int) -> list[Share]:
    """Variables of one virtual stage, one mode a layer.

    Groups to which the first mode does the same have one variable of it: any of their layers may have it.
    """
    alike: dict[tuple[float, float, float], list[int]] = {}
    for index, group in enumerate(groups):
        alike.setdefault((group.extra[0], group.freed[0], group.working[0]), []).append(index)
    shares: list[Share] = []
    for members in alike.values():
        terms: dict[int, float] = {}
        for mode in range(modes):
            for own in [tuple(members)] if mode == 0 else [(index,) for index in members]:
                first, count = groups[own[0]], sum(groups[index].count for index in own)
                variable = program.variable(0.0, count)
                terms[variable] = 1.0
                extra, working = first.extra[mode], first.working[mode]
                shares.append(Share(variable, chunk, own, mode, count, extra, working))
        program.row(terms, 0.0, sum(groups[index].count for index in members))
    return shares


def _totals(program: LinearProgram, shares: Sequence[Share]) -> list[Total]:
    """Of every mode that several shares have."""
    found = []
    for mode in sorted({share.mode for share in shares}):
        own = tuple(share for share in shares if share.mode == mode)
        if len(own) > 1:
            variable = program.variable(0.0, sum(share.most for share in own))
            program.row({variable: -1.0, **{share.variable: 1.0 for share in own}}, 0.0, 0.0)
            found.append(Total(variable, own))
    return found
