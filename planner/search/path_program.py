"""Integer program for the recomputation of plans on known chunks, by the critical paths of their schedule.

Ranks of several chunks wait for each other chunk by chunk, so what recomputation costs depends on where it
lies. The end of a rank is the longest of very many paths, each linear in the seconds of the chunks; only the
few that matter are written down: the program is solved, its choice replayed, and the critical path to the
last end added, until the choice takes no longer than the program says (cutting planes: Kelley 1960).

Sets: virtual stages c of rank i, groups g of equal blocks of a virtual stage (n_g of them, alive_k
microbatches of each in state k), modes o of recomputation beside none, paths p found so far.

Variables
    x[g, o]    layers of group g with mode o: any share of them for the bound, whole for a decision
    e[c]       ms recomputation adds to the backward of c
    w[i]       GiB of the largest working set in use on rank i
    r[i]       ms of gradient reduction that rank i leaves exposed
    T          ms until the last gradient is reduced, beyond those without recomputation

Objective: minimise T.

Constraints
    1. one mode a layer       sum_o x[g, o] <= n_g                                          (rank_choices)
    2. what it costs          e[c] = sum_{g of c, o} ms[g, o] x[g, o]                       (rank_choices)
    3. largest working set    w[i] >= least + (working[g, o] - least) x[g, o] / n_g         (rank_choices)
    4. memory, for every k    sum_{g, o} alive_k freed[g, o] x[g, o] - w[i] >= over_k       (rank_choices)
    5. whole layers           sum_{c of i} weight_c e[c] >= that of the cheapest whole choice           (_cut)
    6. reduction              r[i] >= R_i - (1 - theft) sum_{c of i} e[c], r[i] >= R_i, e longest    (_reduce)
    7. paths p to the end of i    T >= stragglers (length_p + sum_c count[p, c] e[c]) + r[i]       (add_path)

The weights of 5 are those the paths give the virtual stages in the optimum (the dual of 7), as in the
decomposition of Dantzig and Wolfe (1960): a program whose ranks each choose from the hull of their whole
choices. With shares of layers the optimum bounds every plan on these chunks that fits; ``path_branches``
makes the layers whole.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from operator import itemgetter
from types import ModuleType

import numpy as np

from planner.cost.arrays import Array
from planner.cost.row import KindCost
from planner.schedule.orders import alive_states
from planner.search.choice_front import Layers
from planner.search.chunked_step import ChunkedStep
from planner.search.linear_program import LinearProgram, Optimum, linear_solver
from planner.search.ranges import Ranges
from planner.search.rank_choices import RankChoices, RankRows
from planner.search.recompute import EXACT_KINDS
from planner.units import GIB, MILLI

# Linear programs of one bound.
MOST_ROUNDS = 60
# Rounds with rank cuts of one bound.
MOST_CUTS = 12
# A choice that takes so little longer than the program says is as good as it gets.
CONVERGED = 1e-7
# Share of an optimum that may be the solver's rounding.
TOLERANCE = 2e-8
# Weight that every virtual stage has at least.
LEAST_WEIGHT = 1e-2


@dataclass(frozen=True)
class Path:
    """A way to the end of a rank: ms, less the plain step's, and how often each backward lies on it.

    row: its constraint.
    """

    rank: int
    length: float
    counts: Array
    row: int


class PathProgram:
    """The program of one candidate's chunks, under a memory limit, with the recompute modes ``offered``."""

    def __init__(
        self, solver: ModuleType, step: ChunkedStep, limit_bytes: float, offered: Sequence[int]
    ) -> None:
        self.solver, self.step, self.offered = solver, step, tuple(offered)
        self.limit_bytes = limit_bytes
        self.linear = LinearProgram(solver)
        self.base = max(step.ends) / MILLI
        self.total = self.linear.variable(-math.inf, math.inf, 1.0)
        self.extra = [-1] * len(step.chunks)
        self.reduce = [self.linear.variable(0.0, math.inf) for _ in step.placed]
        self.choices: dict[int, RankChoices] = {}
        self.rows: dict[int, RankRows] = {}
        self.paths: list[Path] = []
        self._known: set[tuple[int, ...]] = set()
        self._ranges = Ranges(step.stages, step.layout)
        for rank in range(len(step.placed)):
            self._add_rank(rank)

    @property
    def kinds(self) -> tuple[KindCost, ...]:
        return self.step.row.kinds

    @property
    def is_unlike(self) -> bool:
        """Whether blocks are of more kinds than a model has that repeats some."""
        return sum(self.step.layout.is_block) > EXACT_KINDS

    def _add_rank(self, rank: int) -> None:
        step, row = self.step, self.step.row
        mine = step.placed[rank]
        spans = [step.chunks[c] for c in mine]
        states = alive_states(row.schedule, rank, row.degrees.pp, row.microbatches, row.virtual_stages)
        needed = self._ranges.state_bytes(spans, states)
        slow = [max(kind.backward_seconds) - kind.backward_seconds[0] for kind in self.kinds]
        longest = [step.layout.sum_over(slow, *span) for span in spans]
        # A rank that need not recompute may still do so, to hide its gradient reduction behind it.
        is_hidden = step.reduce_seconds(rank, sum(longest)) < step.reduce_seconds(rank, 0.0)
        if max(needed) > self.limit_bytes or is_hidden:
            choices = self._rank_choices(rank, states, [one - self.limit_bytes for one in needed])
            self.choices[rank] = choices
            self.rows[rank] = choices.rows(self.linear)
            extra = list(self.rows[rank].extra)
        else:
            extra = [self.linear.variable(0.0, 0.0) for _ in mine]
        for c, variable in zip(mine, extra, strict=True):
            self.extra[c] = variable
        self._reduce(rank, extra, sum(longest))

    def _reduce(self, rank: int, extra: Sequence[int], longest: float) -> None:
        plain, hidden = self.step.reduce_seconds(rank, 0.0), self.step.reduce_seconds(rank, longest)
        shown = 1.0 - self.step.stages.device.constants.overlap_theft
        self.linear.row({self.reduce[rank]: 1.0, **dict.fromkeys(extra, shown)}, plain / MILLI)
        self.linear.row({self.reduce[rank]: 1.0}, hidden / MILLI)

    def _rank_choices(
        self, rank: int, states: Sequence[Sequence[int]], over_bytes: Sequence[float]
    ) -> RankChoices:
        """What a rank may recompute of its layers, in whose fullest moments it is so much over."""
        step = self.step
        slack = 1.0 + step.stages.device.constants.allocator_slack
        spans = [step.chunks[c] for c in step.placed[rank]]
        groups = [step.layout.groups(*span, (1,)) for span in spans]
        held = [self.kinds[group.kind] for chunk in groups for group in chunk]
        plain, least = (max(pick(kind.working_bytes) for kind in held) for pick in (itemgetter(0), min))
        gathered = max(kind.gathered_bytes[0] for kind in held)
        spared = max(0.0, gathered - max(min(kind.gathered_bytes) for kind in held))
        needed = [(over / slack - spared - plain) / GIB for over in over_bytes]
        chunks = [
            [self._layers(group.kind, group.count) for group in chunk if group.is_block] for chunk in groups
        ]
        return RankChoices(
            self.solver,
            chunks,
            np.array(states, dtype=np.float64),
            np.array(needed),
            modes=len(self.offered),
            least_working=least / GIB,
        )

    def _layers(self, kind: int, count: int) -> Layers:
        cost = self.kinds[kind]
        seconds, saved, working = cost.backward_seconds, cost.saved_bytes, cost.working_bytes
        return Layers(
            kind,
            count,
            tuple((seconds[mode] - seconds[0]) / MILLI for mode in self.offered),
            tuple((saved[0] - saved[mode]) / GIB for mode in self.offered),
            tuple(working[mode] / GIB for mode in self.offered),
            working[0] / GIB,
        )

    def bound(self, to_beat_seconds: float, deadline: float = math.inf) -> float:
        """Seconds no plan on these chunks can beat; no closer look once that is ``to_beat_seconds``.

        0 where the solver says nothing. ``deadline``: of the process's CPU seconds.
        """
        best, cuts = 0.0, 0
        if not self.add_path(np.zeros(len(self.extra)), -math.inf):
            return best
        for _ in range(MOST_ROUNDS):
            found = self.linear.solve()
            if found is None:
                break
            best = max(best, self.seconds(found.objective))
            if best >= to_beat_seconds or time.process_time() > deadline:
                break
            if self.add_path(self.extras(found), found.objective):
                continue
            cuts += 1
            if cuts > MOST_CUTS or not self._cut(found):
                break
        return best

    def seconds(self, objective: float) -> float:
        """What the program's optimum says of the step of every plan."""
        return self.fixed_seconds + (self.base + objective) * MILLI * (1.0 - TOLERANCE)

    @property
    def fixed_seconds(self) -> float:
        """Seconds of the step behind the last reduction."""
        return self.step.plain.step_seconds - max(self.step.ends)

    def extras(self, found: Optimum) -> Array:
        """ms that recomputation adds to each virtual stage."""
        values: Array = np.maximum(0.0, found.values[self.extra])
        return values

    def weights(self, found: Optimum) -> Array:
        """What a ms more of each virtual stage adds to the optimum: the paths' counts, by their duals.

        LEAST_WEIGHT at least: where nothing is lost by more, no more is wanted all the same.
        """
        total = np.zeros(len(self.extra))
        for path in self.paths:
            total += max(0.0, float(found.duals[path.row])) * path.counts
        return np.maximum(total, LEAST_WEIGHT)

    def _cut(self, found: Optimum) -> bool:
        """Constraint 5 of every rank at the optimum; whether one of them rules it out."""
        weights, extra, is_new = self.weights(found), self.extras(found), False
        for rank, choices in self.choices.items():
            mine = self.step.placed[rank]
            own = weights[mine]
            cheapest = choices.cheapest(own)
            if cheapest is not None and float(own @ extra[mine]) < cheapest.bound * (1.0 - CONVERGED):
                is_new = True
                terms = {self.extra[c]: float(weight) for c, weight in zip(mine, own, strict=True)}
                self.linear.row(terms, cheapest.bound * (1.0 - TOLERANCE))
        return is_new

    def add_path(self, extra: Array, objective: float) -> bool:
        """Add the path that is critical with these backwards, where it is longer than ``objective`` says.

        False where it is not, or is known, and for a schedule that is too long to follow.
        """
        step, factor = self.step, self.step.model.straggler_factor
        seconds = (extra * MILLI).tolist()
        paths = step.paths(seconds)
        if paths is None:
            return False
        ends = step.reduced(paths.finish, seconds)
        last = max(range(len(ends)), key=ends.__getitem__)
        passes = step.backwards(paths.counts(last))
        is_longer = ends[last] / MILLI - self.base > objective + CONVERGED * self.base
        if (last, *passes) in self._known or not is_longer:
            return False
        self._known.add((last, *passes))
        counts = factor * np.array(passes, dtype=np.float64)
        length = factor * paths.finish[last] / MILLI - float(counts @ extra) - self.base
        terms = {self.extra[c]: -float(count) for c, count in enumerate(counts) if count}
        row = self.linear.row({self.total: 1.0, self.reduce[last]: -1.0, **terms}, length)
        self.paths.append(Path(last, length, counts, row))
        return True


def path_program(step: ChunkedStep, limit_bytes: float, offered: Sequence[int]) -> PathProgram | None:
    """The program of a candidate; None without a solver, or where memory is not one sum of the layers."""
    solver = linear_solver()
    if solver is None or step.model.stack.makes_buffers_when_needed:
        return None
    return PathProgram(solver, step, limit_bytes, offered)
