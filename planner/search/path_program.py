"""Integer program for the recomputation of plans on known chunks, by the critical paths of their schedule.

Ranks of several chunks wait for each other chunk by chunk, so what recomputation costs depends on where it
lies. The end of a rank is the longest of very many paths, each linear in the seconds of the chunks; only the
few that matter are written down: the program is solved, its choice replayed, and the critical path to the
last end added, until the choice takes no longer than the program says (cutting planes: Kelley 1960).

Sets: virtual stages c of rank i, groups g of equal blocks of a virtual stage (n_g of them, alive_k
microbatches of each in state k), modes o of recomputation beside none, paths p found so far.

Variables
    x[g, o]    layers of group g with mode o: any share of them for the bound, whole for a decision
    e[c]       seconds recomputation adds to the backward of c
    w[i]       bytes of the largest working set in use on rank i
    r[i]       seconds of gradient reduction that rank i leaves exposed
    T          seconds until the last gradient is reduced

Objective: minimise T.

Constraints
    1. one mode a layer       sum_o x[g, o] <= n_g                                                  (_group)
    2. what it costs          e[c] = sum_{g of c, o} seconds[g, o] x[g, o]                          (_group)
    3. largest working set    w[i] >= least + (working[g, o] - least) x[g, o] / n_g                 (_group)
    4. memory, for every k    sum_{g, o} alive_k freed[g, o] x[g, o] >= over_k + w[i] - plain      (_memory)
    5. whole layers           sum_{c of i} e[c] >= the rank's own knapsack, where that is exact      (_rank)
    6. reduction              r[i] >= R_i - (1 - theft) sum_{c of i} e[c], r[i] >= R_i, e longest    (_rank)
    7. paths p to the end of i    T >= stragglers (length_p + sum_c count[p, c] e[c]) + r[i]          (_add)

With shares of layers the optimum bounds every plan on these chunks that fits. With whole ones it proposes
decisions, which are priced like any other; what one is over the limit is asked of the next.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from operator import itemgetter
from typing import Any

from planner.cost.row import KindCost
from planner.cost.step import price
from planner.schedule.orders import alive_states
from planner.search.chunked_step import ChunkedStep
from planner.search.integer_program import TIME_LIMIT_SECONDS, solver_library
from planner.search.ranges import Ranges
from planner.search.recompute import EXACT_KINDS
from planner.search.row_decision import row_decision
from planner.strategy.decision import Decision
from planner.units import GIB, MILLI

# Linear programs of one bound, and how many in turn may bring nothing.
MOST_ROUNDS = 28
MOST_IDLE_ROUNDS = 4
# A choice that takes so little longer than the program says is as good as it gets.
CONVERGED = 2e-5
# What the solver may leave of each program with whole layers, of few and of many kinds a virtual stage.
ALIKE_GAPS = (1e-3,)
UNLIKE_GAPS = (1e-3,) * 3
# Share of an optimum that may be the solver's rounding: milliseconds and GiB within 1e-7, ten digits read.
TOLERANCE = 2e-7
# Counted effort, as in ``integer_program``.
MOST_NODES = 3000


class PathProgram:
    """The program of one candidate's chunks, under a memory limit, with the recompute modes ``offered``."""

    def __init__(
        self,
        pulp: Any,
        step: ChunkedStep,
        limit_bytes: float,
        offered: Sequence[int],
        least_extra_seconds: Sequence[float] = (),
    ) -> None:
        """``least_extra_seconds``: of recomputation, by rank, with which it fits (0 if unknown)."""
        self.pulp, self.step_of, self.offered = pulp, step, tuple(offered)
        self.limit_bytes = limit_bytes
        self.problem = pulp.LpProblem("paths", pulp.LpMinimize)
        self.total = pulp.LpVariable("T", lowBound=0)
        self.problem += self.total
        self.extra = [pulp.LpVariable(f"e_{c}", lowBound=0) for c in range(len(step.chunks))]
        self.reduce = [pulp.LpVariable(f"r_{i}", lowBound=0) for i in range(len(step.placed))]
        self.x: dict[tuple[int, int, int], Any] = {}
        self.working: dict[int, Any] = {}
        self.freed: dict[int, list[tuple[Any, float]]] = {}
        self.is_bound = True
        self.paths: set[tuple[int, ...]] = set()
        self._ranges = Ranges(step.stages, step.layout)
        for rank in range(len(step.placed)):
            self._rank(rank, least_extra_seconds[rank] if least_extra_seconds else 0.0)

    @property
    def is_unlike(self) -> bool:
        """Whether blocks are of so many kinds that only their number in each virtual stage is whole."""
        return sum(self.step_of.layout.is_block) > EXACT_KINDS

    @property
    def _kinds(self) -> tuple[KindCost, ...]:
        return self.step_of.row.kinds

    def _rank(self, rank: int, least_extra_seconds: float) -> None:
        step, row = self.step_of, self.step_of.row
        mine = step.placed[rank]
        spans = [step.chunks[c] for c in mine]
        states = alive_states(row.schedule, rank, row.degrees.pp, row.microbatches, row.virtual_stages)
        needed = self._ranges.state_bytes(spans, states)
        slow = [max(kind.backward_seconds) - kind.backward_seconds[0] for kind in self._kinds]
        each = [step.layout.sum_over(slow, *span) for span in spans]
        longest = sum(each)
        if max(needed) > self.limit_bytes:
            self._memory(rank, states, [one - self.limit_bytes for one in needed])
            self.problem += self.pulp.lpSum(self.extra[c] for c in mine) >= least_extra_seconds / MILLI
        else:
            # It need not recompute, but what it hides of its reduction so must not be ruled out.
            for c, most in zip(mine, each, strict=True):
                self.extra[c].upBound = most / MILLI
        plain, hidden = step.reduce_seconds(rank, 0.0), step.reduce_seconds(rank, longest)
        shown = 1.0 - step.stages.device.constants.overlap_theft
        own = self.pulp.lpSum(self.extra[c] for c in mine)
        self.problem += self.reduce[rank] >= plain / MILLI - shown * own
        self.problem += self.reduce[rank] >= hidden / MILLI

    def _memory(self, rank: int, states: Sequence[Sequence[int]], over_bytes: Sequence[float]) -> None:
        step, lp = self.step_of, self.pulp
        slack = 1.0 + step.stages.device.constants.allocator_slack
        kinds = [self._kinds[kind] for kind in self._held(rank)]
        plain, least = (max(pick(kind.working_bytes) for kind in kinds) for pick in (itemgetter(0), min))
        working = self.working[rank] = lp.LpVariable(f"w_{rank}", lowBound=least / GIB)
        freed = [self._group(c, working, least) for c in step.placed[rank]]
        spared = self._spared_bytes(rank)
        for state, over in zip(states, over_bytes, strict=True):
            given = lp.lpSum(alive * bytes_freed for alive, bytes_freed in zip(state, freed, strict=True))
            self.freed.setdefault(rank, []).append((given - working, (over / slack - spared - plain) / GIB))
        for freed_beside, needed in self.freed[rank]:
            self.problem += freed_beside >= needed

    def _group(self, c: int, working: Any, least: float) -> Any:
        """Constraints 1 to 3 of a virtual stage; the GiB it frees for each microbatch alive."""
        lp, step = self.pulp, self.step_of
        freed, added = [], []
        for group in step.layout.groups(*step.chunks[c], (1,)):
            if not group.is_block:
                continue
            kind, taken = self._kinds[group.kind], []
            for mode in self.offered:
                name = f"x_{c}_{group.kind}_{mode}"
                x = self.x[c, group.kind, mode] = lp.LpVariable(name, 0, group.count)
                taken.append(x)
                added.append((kind.backward_seconds[mode] - kind.backward_seconds[0]) / MILLI * x)
                freed.append((kind.saved_bytes[0] - kind.saved_bytes[mode]) / GIB * x)
                more = (kind.working_bytes[mode] - least) / GIB
                if more > 0.0:
                    self.problem += working >= least / GIB + more / group.count * x
            self.problem += lp.lpSum(taken) <= group.count
        self.problem += self.extra[c] == lp.lpSum(added)
        return lp.lpSum(freed)

    def _held(self, rank: int) -> list[int]:
        """The layer kinds of a rank."""
        step = self.step_of
        spans = [step.chunks[c] for c in step.placed[rank]]
        return sorted({group.kind for span in spans for group in step.layout.groups(*span, (1,))})

    def _blocks(self, rank: int) -> list[int]:
        """Those that may be recomputed."""
        return [kind for kind in self._held(rank) if self.step_of.layout.is_block[kind]]

    def _spared_bytes(self, rank: int) -> float:
        """By how much the gathered weights of a rank may be less where its layers are recomputed."""
        kinds = [self._kinds[kind] for kind in self._held(rank)]
        plain = max(kind.gathered_bytes[0] for kind in kinds)
        return max(0.0, plain - max(min(kind.gathered_bytes) for kind in kinds))

    def bound(self, to_beat_seconds: float) -> float:
        """Seconds no plan on these chunks can beat; no closer look once that is ``to_beat_seconds``.

        0 where the solver says nothing.
        """
        best, idle = 0.0, 0
        replayed = self._add([0.0] * len(self.extra))
        for _ in range(MOST_ROUNDS):
            if math.isinf(replayed) or not self._solve():
                break
            found = self._bound_seconds(0.0)
            idle = 0 if found > best * (1.0 + TOLERANCE) else idle + 1
            best = max(best, found)
            known = len(self.paths)
            if best >= to_beat_seconds or idle == MOST_IDLE_ROUNDS:
                break
            replayed = self._add(self._chosen())
            if len(self.paths) == known or replayed <= best * (1.0 + CONVERGED):
                break
        return best

    def decisions(self, to_beat_seconds: float) -> tuple[list[Decision], float]:
        """Decisions with whole layers that fit, and seconds that none can beat (0 where that is unknown).

        Each is behind the critical path of the one before it; none once the bound is ``to_beat_seconds``.
        """
        step, found, best = self.step_of, list[Decision](), 0.0
        if not self.paths:  # too long to follow
            return found, best
        for rank in range(len(step.placed)):
            self._make_whole(rank)
        for gap in UNLIKE_GAPS if self.is_unlike else ALIKE_GAPS:
            if not self._solve(gap):
                break
            best = max(best, self._bound_seconds(gap))
            if best >= to_beat_seconds:
                break
            decision = self._decision()
            prediction = price(step.model, decision, rows={step.row.sharding: step.row})
            over = [stage.memory_bytes["total"] - self.limit_bytes for stage in prediction.stages]
            if max(over) <= 0.0:
                found.append(decision)
                to_beat_seconds = min(to_beat_seconds, prediction.step_seconds)
            for rank, over_bytes in enumerate(over):
                if over_bytes > 0.0 and rank in self.working:
                    self._free_more(rank, over_bytes)
                    self.is_bound = False  # other plans need not free what this asks
            self._add(step.extra_seconds(decision.recompute))
        return found, best

    def _make_whole(self, rank: int) -> None:
        """Whole layers of every mode, and the working set that the least of them needs.

        Of many unlike layers only their number in each virtual stage is whole: which they are matters little.
        """
        if rank not in self.working:
            return
        lp = self.pulp
        for mode in self.offered:
            needed = [self._kinds[kind].working_bytes[mode] for kind in self._blocks(rank)]
            is_used = lp.LpVariable(f"z_{rank}_{mode}", cat="Binary")
            self.problem += self.working[rank] >= min(needed) / GIB * is_used
            for c in self.step_of.placed[rank]:
                taken = [x for (at, _, by), x in self.x.items() if (at, by) == (c, mode)]
                if self.is_unlike:
                    number = lp.LpVariable(f"n_{c}_{mode}", 0, len(taken), cat="Integer")
                    self.problem += lp.lpSum(taken) == number
                for x in taken:
                    self.problem += x <= x.upBound * is_used
                    if not self.is_unlike:
                        x.cat = "Integer"

    def _free_more(self, rank: int, over_bytes: float) -> None:
        """Ask a rank for so many bytes more in every state, and for its largest working set."""
        slack = 1.0 + self.step_of.stages.device.constants.allocator_slack
        blocks = [self._kinds[kind].working_bytes for kind in self._blocks(rank)]
        spread = max(
            max(one[mode] for one in blocks) - min(one[mode] for one in blocks) for mode in self.offered
        )
        more = (over_bytes / slack + spread) / GIB
        self.freed[rank] = [(freed, least + more) for freed, least in self.freed[rank]]
        for freed, least in self.freed[rank]:
            self.problem += freed >= least

    @property
    def _fixed(self) -> float:
        """Seconds of the step behind the last reduction."""
        step = self.step_of
        return step.plain.step_seconds - max(step.ends)

    def _add(self, extra_seconds: Sequence[float]) -> float:
        """The paths that are critical with these backwards; the step's seconds, replayed.

        Infinite for a schedule that is too long to follow.
        """
        step = self.step_of
        paths, factor = step.paths(extra_seconds), step.model.straggler_factor
        if paths is None:
            return math.inf
        own = [sum(extra_seconds[c] for c in mine) for mine in step.placed]
        ends = [
            factor * finish + step.reduce_seconds(rank, own[rank]) for rank, finish in enumerate(paths.finish)
        ]
        last = max(range(len(ends)), key=ends.__getitem__)
        counts, finish = step.backwards(paths.counts[last]), paths.finish[last]
        if (last, *counts) not in self.paths:
            self.paths.add((last, *counts))
            length = finish - sum(n * extra for n, extra in zip(counts, extra_seconds, strict=True))
            on_it = self.pulp.lpSum(factor * n * self.extra[c] for c, n in enumerate(counts) if n)
            self.problem += self.total >= factor * length / MILLI + on_it + self.reduce[last]
        return ends[last] + self._fixed

    def _solve(self, gap: float | None = None) -> bool:
        """Run the bundled CBC, with whole layers up to a relative ``gap``, or with shares of them.

        False where it fails or finds no optimum.
        """
        lp = self.pulp
        command = lp.PULP_CBC_CMD(
            msg=False,
            timeLimit=TIME_LIMIT_SECONDS,
            gapRel=gap,
            threads=1,
            mip=gap is not None,
            maxNodes=MOST_NODES,
        )
        try:
            self.problem.solve(command)
        except lp.PulpSolverError:
            return False
        return bool(self.problem.sol_status == lp.LpSolutionOptimal)

    def _bound_seconds(self, gap: float) -> float:
        """What the program's optimum, known up to ``gap``, says of every plan; 0 where it asks too much."""
        value = float(self.pulp.value(self.total)) * MILLI
        return self._fixed + value * (1.0 - gap) * (1.0 - TOLERANCE) if self.is_bound else 0.0

    def _chosen(self) -> list[float]:
        return [max(0.0, float(extra.value() or 0.0)) * MILLI for extra in self.extra]

    def _decision(self) -> Decision:
        """The layers chosen; of unlike ones those that free the most, so that as many always fit."""
        step, chain = self.step_of, self.step_of.model.chain
        recompute = [0] * step.layout.num_blocks
        for c, (first, end) in enumerate(step.chunks):
            kinds = {block: chain.layers[chain.block_layers[block]] for block in range(first, end)}
            for mode in sorted(self.offered, reverse=True):
                chosen = {key[1]: x for key, x in self.x.items() if (key[0], key[2]) == (c, mode)}
                share = {kind: x.value() or 0.0 for kind, x in chosen.items()}
                left = {
                    kind: round(sum(share.values()) if self.is_unlike else x) for kind, x in share.items()
                }
                for block in sorted(kinds, key=lambda block: (-self._freed(kinds[block], mode), block)):
                    if left.get(kinds[block], 0) and not recompute[block]:
                        recompute[block] = mode
                        for kind in left if self.is_unlike else (kinds[block],):
                            left[kind] -= 1
        has_host_optimizer = step.model.stack.has_host_optimizer
        return row_decision(step.row, step.chunks, tuple(recompute), has_host_optimizer=has_host_optimizer)

    def _freed(self, kind: int, mode: int) -> float:
        """Bytes that recomputing a layer frees for each microbatch alive."""
        return self._kinds[kind].saved_bytes[0] - self._kinds[kind].saved_bytes[mode]


def path_program(
    step: ChunkedStep, limit_bytes: float, offered: Sequence[int], least_extra_seconds: Sequence[float] = ()
) -> PathProgram | None:
    """The program of a candidate; None without a solver, or where memory is not one sum of the layers."""
    pulp = solver_library()
    if pulp is None or step.model.stack.makes_buffers_when_needed:
        return None
    return PathProgram(pulp, step, limit_bytes, offered, least_extra_seconds)
