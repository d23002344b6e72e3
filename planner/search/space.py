"""The search space, opened lazily in the order of lower bounds.

A *base* is a mesh with a microbatch size; its bound holds for every sharding and schedule of it. Bases are
priced in slices and only their bounds are kept; they are expanded and priced in waves when the search
reaches their bound, and their candidates bounded in full when it reaches the rough bound of those. So the
certificate covers everything while few candidates are ever held: what was never opened is bounded by its
base.
"""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass, replace

import numpy as np

from planner.cost.arrays import Array, IntArray
from planner.cost.layer import CostTable, cost_table
from planner.cost.model import CostModel
from planner.cost.row import CandidateRow, candidate_row
from planner.search.bounds import base_lower_bound, schedule_lower_bound, spread_lower_bound
from planner.search.kind_values import KindValues
from planner.search.layout import Layout
from planner.search.memory_bounds import largest_microbatch, least_memory, memory_lower_bound
from planner.search.reach import may_end_within
from planner.search.tree import (
    Funnel,
    Pins,
    enumerate_meshes,
    expand_microbatch_sizes,
    expand_schedules,
    expand_shardings,
    sharding_codes,
)
from planner.strategy.candidates import Candidates
from planner.strategy.decision import SCHEDULES
from planner.strategy.kind import Kind, kind_of
from planner.strategy.limits import Limits

ONE_F_ONE_B = SCHEDULES.index("1f1b")
SLICE = 16384
FIRST_WAVE = 256
LARGEST_WAVE = 4096
REFINED = 512
# A wave is sieved again when the best plan is this much faster.
SIEVED_AGAIN = 0.998


@dataclass(frozen=True)
class Opened:
    """One candidate, fully bounded: where it lies, its bound (seconds)."""

    wave: int
    index: int
    bound_seconds: float


@dataclass(frozen=True)
class _Wave:
    """Candidates bounded together, in the order of their bounds; ``origin`` is each one's row of ``table``.

    ``rows``: of the table, those asked for. is_rough: only the work spread perfectly is counted yet.
    """

    table: CostTable
    rows: dict[int, CandidateRow]
    values: KindValues
    candidates: Candidates
    origin: IntArray
    bounds: Array
    order: IntArray
    is_rough: bool


class Space:
    """Candidates of one problem, smallest lower bound first."""

    def __init__(self, model: CostModel, limits: Limits, pins: Pins, funnel: Funnel) -> None:
        self.model, self.limits, self.pins, self.funnel = model, limits, pins, funnel
        self.layout = Layout(model.chain)
        self.codes = sharding_codes(limits, pins)
        self.expanded = Funnel()
        self.waves: list[_Wave] = []
        self._ready: list[tuple[float, int, int]] = []
        self._rough: list[tuple[float, int, int]] = []
        self._meshes = enumerate_meshes(model.problem, limits, pins, funnel)
        self._bases = self._fitting_bases()
        self._bounds, self._least = self._bound_bases()
        self._order = self._fitting_order()
        self._sieved: dict[int, float] = {}
        self._num_slow = 0
        self._next = 0
        self._size = FIRST_WAVE

    def __len__(self) -> int:
        """Bases that may fit the memory limit."""
        return len(self._order)

    @property
    def has_candidates(self) -> bool:
        """Whether the decision tree left anything, memory apart."""
        return len(self._meshes) > 0

    def pop(self, best_seconds: float = math.inf, *, is_diving: bool = False) -> Opened | None:
        """The candidate with the smallest bound of those not popped, None when there is none left.

        ``best_seconds``: the best plan so far; what it beats is opened a few at a time. ``is_diving``: one at
        hand that may beat it goes first, whatever the bounds of what is not opened.
        """
        while True:
            ready = self._ready[0][0] if self._ready else math.inf
            rough = self._rough[0][0] if self._rough else math.inf
            base = math.inf
            if self._next < len(self._order):
                base = float(self._bounds[self._order[self._next]])
            if self._ready and (ready <= min(rough, base) or (is_diving and ready < best_seconds)):
                bound, number, position = heapq.heappop(self._ready)
                asked = self._sieved.get(number, math.inf) * SIEVED_AGAIN
                if not is_diving and ready < best_seconds < asked:
                    self._sieve(number, position, best_seconds)
                    continue
                self._push(number, position + 1)
                return Opened(number, int(self.waves[number].order[position]), bound)
            if self._rough and rough <= base:
                _, number, position = heapq.heappop(self._rough)
                self._refine(number, position, best_seconds)
            elif self._next < len(self._order):
                self._open_wave(best_seconds)
            else:
                return None

    def smallest_bound(self) -> float:
        """The smallest bound of anything not popped, infinite when all was."""
        head = min((heap[0][0] for heap in (self._ready, self._rough) if heap), default=math.inf)
        if self._next == len(self._order):
            return head
        return min(head, float(self._bounds[self._order[self._next]]))

    def floor_seconds(self) -> float:
        """Seconds no plan of any base can beat, whether or not it fits the memory limit; 0 without bases."""
        return float(self._bounds.min()) if len(self._bounds) else 0.0

    def row(self, opened: Opened) -> CandidateRow:
        """The candidate's slice of the cost table."""
        wave, index = self.waves[opened.wave], opened.index
        at, code = int(wave.origin[index]), int(wave.candidates.schedule[index])
        virtual_stages = int(wave.candidates.virtual_stages[index])
        if at not in wave.rows:
            problem, stack = self.model.problem, self.model.stack
            wave.rows[at] = candidate_row(problem, wave.table, stack, at, code, virtual_stages)
        return replace(wave.rows[at], schedule=SCHEDULES[code], virtual_stages=virtual_stages)

    def kind(self, opened: Opened) -> Kind:
        """What makes a candidate another answer than the next one (``strategy.kind``)."""
        c, index = self.waves[opened.wave].candidates, opened.index
        return kind_of(
            tp=int(c.tp[index]),
            pp=int(c.pp[index]),
            cp=int(c.cp[index]),
            ep=int(c.ep[index]),
            expert_tp=int(c.expert_tp[index]),
            schedule=SCHEDULES[int(c.schedule[index])],
            sharding=int(c.sharding[index]),
        )

    def num_left(self) -> int:
        """Candidates opened and not popped, and bases not opened."""
        return (
            len(self._order)
            - self._next
            + sum(len(self.waves[number].order) - at for _, number, at in self._ready + self._rough)
        )

    def close(self, solved: int) -> None:
        """Write what was opened, and what never had to be, into the funnel."""
        left = len(self._order) - self._next
        reason = "the bound of the base passes the best plan: neither sharded nor scheduled"
        self.funnel.add("base-bound", self._next, reason, left)
        self.expanded.steps = [
            s for s in self.expanded.steps if s["cut"] or s["step"] in ("sharding", "schedule")
        ]
        self.funnel.steps += self.expanded.steps
        popped = sum(len(wave.order) for wave in self.waves if not wave.is_rough)
        if self._num_slow:
            reason = "no split ends every rank before the best plan"
            self.funnel.add("split-reach", popped, reason, self._num_slow)
        self.funnel.add("solved", solved, "stages and recompute chosen by dynamic program", popped - solved)

    @property
    def num_bases(self) -> int:
        """Bases in all, whether they fit or not."""
        return len(self._least)

    def least_bytes(self, number: int) -> float:
        """Bytes that base ``number``, in the order of least memory, must hold at least."""
        return float(np.partition(self._least, number)[number])

    def without_pipeline(self) -> Candidates:
        """The bases of one stage that may fit the memory limit, in the order of their bounds."""
        return self._bases.take(self._order[self._bases.pp[self._order] == 1])

    def smallest(self, first: int = 0) -> tuple[CostTable, Array]:
        """A wave of bases with all their shardings, priced, and their memory bounds (bytes).

        Bases are in the order of their least memory; the wave begins at number ``first`` of them.
        """
        nearest = np.argsort(self._least, kind="stable")[first : first + FIRST_WAVE]
        c, _ = expand_shardings(
            self._bases.take(nearest), self.model.problem, self.limits, self.pins, Funnel()
        )
        table = self._priced(c)
        return table, memory_lower_bound(self.model, table)

    def _fitting_bases(self) -> Candidates:
        """Meshes crossed with microbatch sizes; sizes cut that no sharding or recompute makes fit."""
        one = self._meshes
        if not len(one):
            return one
        tables = [self._priced(one.replace(microbatch_size=one.microbatch_size * n)) for n in (1, 2)]
        largest = largest_microbatch(self.model, tables[0], tables[1], self.codes, self.limits)
        kept = expand_microbatch_sizes(one, self.model.problem, self.pins, largest, self.funnel)
        if len(kept):
            return kept
        # Nothing fits: keep the smallest size of each mesh for the error to start from.
        smallest = expand_microbatch_sizes(one, self.model.problem, self.pins, largest * 0 + 1, Funnel())
        return smallest if len(smallest) else one

    def _bound_bases(self) -> tuple[Array, Array]:
        """Seconds no plan of each base can beat, and bytes it must hold at least."""
        seconds, least = [np.zeros(0)], [np.zeros(0)]
        for first in range(0, len(self._bases), SLICE):
            table = self._priced(self._bases.take(np.arange(first, min(first + SLICE, len(self._bases)))))
            seconds.append(base_lower_bound(self.model, table, self.codes, self.limits))
            fixed, kept = least_memory(self.model, table, self.codes, self.limits)
            least.append(fixed + kept)
        return np.concatenate(seconds), np.concatenate(least)

    def _fitting_order(self) -> IntArray:
        fits = self._least <= self.model.problem.memory_limit_bytes
        kept = np.flatnonzero(fits)
        cut = len(fits) - len(kept)
        reason = "mean memory with full recompute and the deepest sharding passes the limit"
        self.funnel.add("base-memory", len(kept), reason, cut)
        order: IntArray = kept[np.argsort(self._bounds[kept], kind="stable")]
        return order

    def _priced(self, c: Candidates) -> CostTable:
        model = self.model
        return cost_table(model.problem, model.chain, c, model.device, model.stack)

    def _open_wave(self, best_seconds: float) -> None:
        """Expand, price and bound the next bases: no more of those the best plan beats than FIRST_WAVE."""
        model, step = self.model, Funnel()
        needed = int(np.searchsorted(self._bounds[self._order[self._next :]], best_seconds))
        size = min(self._size, max(FIRST_WAVE, needed))
        chosen = self._order[self._next : self._next + size]
        self._next += len(chosen)
        self._size = min(LARGEST_WAVE, 2 * self._size)
        sharded, base = expand_shardings(
            self._bases.take(chosen), model.problem, self.limits, self.pins, step
        )
        table = self._priced(sharded)
        fits = memory_lower_bound(model, table) <= model.problem.memory_limit_bytes
        kept = np.flatnonzero(fits)
        reason = "mean memory with full recompute passes the limit"
        step.add("memory-bound", len(kept), reason, len(fits) - len(kept))
        scheduled, local = expand_schedules(sharded.take(kept), model.problem, self.limits, self.pins, step)
        origin = kept[local]
        values = KindValues.of(model, table, np.arange(len(table.candidates)))
        bounds = spread_lower_bound(model, table, scheduled, origin)
        bounds = np.maximum(bounds, self._bounds[chosen][base[origin]])
        order = np.argsort(bounds, kind="stable")
        self.expanded.absorb(step)
        self.waves.append(_Wave(table, {}, values, scheduled, origin, bounds, order, is_rough=True))
        self._push(len(self.waves) - 1, 0)

    def _refine(self, number: int, position: int, best_seconds: float) -> None:
        """Bound the next candidates of a rough wave in full."""
        rough, step = self.waves[number], Funnel()
        left = rough.order[position:]
        needed = int(np.searchsorted(rough.bounds[left], best_seconds)) if math.isfinite(best_seconds) else 0
        chosen = left[: min(LARGEST_WAVE, max(REFINED, needed))]
        candidates, origin = rough.candidates.take(chosen), rough.origin[chosen]
        bounds = schedule_lower_bound(self.model, rough.table, rough.values, self.layout, candidates, origin)
        bounds = np.maximum(bounds, rough.bounds[chosen])
        order = np.argsort(bounds, kind="stable")
        finite: IntArray = order[np.isfinite(bounds[order])]
        reason = "balanced chunks do not fit the limit with full recompute"
        step.add("chunk-memory", len(finite), reason, len(order) - len(finite))
        self.expanded.absorb(step)
        self._push(number, position + len(chosen))
        self.waves.append(
            _Wave(rough.table, rough.rows, rough.values, candidates, origin, bounds, finite, is_rough=False)
        )
        self._push(len(self.waves) - 1, 0)

    def _sieve(self, number: int, position: int, best_seconds: float) -> None:
        """Drop the candidates of a wave, from a position on, of which no split beats the best plan.

        The solver would find the same one by one, with the best plan as its incumbent.
        """
        self._sieved[number] = best_seconds
        wave = self.waves[number]
        left = wave.order[position:]
        is_asked = (wave.bounds[left] < best_seconds) & (wave.candidates.pp[left] > 1)
        asked = left[is_asked & (wave.candidates.schedule[left] == ONE_F_ONE_B)]
        is_slow = np.zeros(len(wave.bounds), dtype=bool)
        if len(asked):
            chosen, rows = wave.candidates.take(asked), wave.origin[asked]
            args = (self.model, wave.table, wave.values, self.layout, chosen, rows, best_seconds)
            is_slow[asked] = ~may_end_within(*args)
        kept = left[~is_slow[left]]
        self._num_slow += int(is_slow.sum())
        self.waves[number] = replace(wave, order=np.concatenate([wave.order[:position], kept]))
        self._push(number, position)

    def _push(self, number: int, position: int) -> None:
        wave = self.waves[number]
        if position < len(wave.order):
            heap = self._rough if wave.is_rough else self._ready
            heapq.heappush(heap, (float(wave.bounds[wave.order[position]]), number, position))
