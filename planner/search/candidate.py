"""One candidate solved: stages and recompute chosen, a decision built, its bound known."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from planner.cost.model import CostModel
from planner.cost.row import CandidateRow
from planner.cost.sends import boundary_send_seconds, send_times, tied_embedding_seconds
from planner.cost.stage import StageModel
from planner.cost.tail import Sync, Tail
from planner.schedule.orders import ZERO_BUBBLE, alive_states, virtual_stage
from planner.search.chunked_step import ChunkedStep
from planner.search.layout import Layout, balanced_chunks, end_weights
from planner.search.partition import Partitioner
from planner.search.path_program import PathProgram, path_program
from planner.search.policy import RecomputePolicy
from planner.search.ranges import Ranges
from planner.search.recompute import Choice, Group
from planner.search.row_decision import row_decision
from planner.strategy.decision import RECOMPUTE_FULL, RECOMPUTE_SELECTIVE, Decision

MOMENT_TRIES = 5


@dataclass(frozen=True)
class Solved:
    """A candidate's best decisions, the bound of each, and one on every plan of that candidate, seconds."""

    decisions: tuple[Decision, ...]
    bounds: tuple[float, ...]
    bound_seconds: float


@dataclass(frozen=True)
class CandidateSolver:
    """Solves candidates of one problem under a memory limit (bytes).

    ``is_exact``: recompute of many kinds of layers is settled exactly (``knapsack``), which takes longer.
    """

    model: CostModel
    layout: Layout
    limit_bytes: float
    policies: tuple[RecomputePolicy, ...]
    split_policies: tuple[RecomputePolicy, ...]

    is_exact: bool = False

    def solve(self, row: CandidateRow, incumbent_seconds: float) -> Solved | None:
        """The best decision of this candidate, or None when none fits or none beats the incumbent.

        ``policies`` are tried in order of growing recompute; with several (a launcher that takes one
        setting for all layers) the best of all is kept.
        """
        best: Solved | None = None
        for policy in self._policies_of(row):
            found = (
                self._by_stage(row, policy, incumbent_seconds)
                if policy.is_by_stage
                else self._solve(row, policy, incumbent_seconds)
            )
            if found is None:
                continue
            if best is None:
                best = found
            else:
                bound = min(best.bound_seconds, found.bound_seconds)
                best = Solved(best.decisions + found.decisions, best.bounds + found.bounds, bound)
        return best

    def can_fit(self, row: CandidateRow) -> bool:
        """Whether any plan of the candidate fits; the best one is not asked for where that costs more."""
        stages = self.model.stage_model({row.sharding: row})
        for policy in self._policies_of(row):
            if row.virtual_stages > 1 or policy.is_by_stage:
                if self._solve(row, policy, math.inf) is not None:
                    return True
            elif self._partitioner(row, stages, policy).can_fit():
                return True
        return False

    def _policies_of(self, row: CandidateRow) -> tuple[RecomputePolicy, ...]:
        """The recompute settings its schedule may use."""
        return self.split_policies if row.schedule in ZERO_BUBBLE else self.policies

    def _partitioner(self, row: CandidateRow, stages: StageModel, policy: RecomputePolicy) -> Partitioner:
        factor = self.model.straggler_factor
        sends = self._sends(row)
        return Partitioner(
            stages, self.layout, self.limit_bytes, factor, sends, policy, is_exact=self.is_exact
        )

    def _by_stage(self, row: CandidateRow, policy: RecomputePolicy, incumbent: float) -> Solved | None:
        """One count of first layers for all ranks: that of the fullest rank when each has its own.

        The relaxation gives the bound, the count and (solved again with it, and with one layer less) the
        decisions. None when the count puts the candidate behind the incumbent.
        """
        relaxed = self._solve(row, policy, incumbent)
        if relaxed is None:
            return None
        pp, found = row.degrees.pp, list[Solved]()
        depths = [
            max(sum(1 for mode in d.recompute[first:end] if mode) for first, end in d.chunks)
            for d in relaxed.decisions
        ]
        if pp * row.virtual_stages == 1 or max(depths) == 0:
            return relaxed
        for count in sorted({max(0, min(depths) - 1), *depths}):
            exact = self._solve(row, RecomputePolicy("block", count), incumbent)
            found += [exact] if exact is not None else []
        if not found:
            return None
        decisions = tuple(decision for each in found for decision in each.decisions)
        bounds = tuple(bound for each in found for bound in each.bounds)
        return Solved(decisions, bounds, relaxed.bound_seconds)

    def _solve(self, row: CandidateRow, policy: RecomputePolicy, incumbent: float) -> Solved | None:
        stages = self.model.stage_model({row.sharding: row})
        fixed = tied_embedding_seconds(self.model, row) + self.model.constants.step_overhead_seconds
        if row.virtual_stages > 1:
            return self._chunked(row, stages, policy, incumbent - fixed, fixed)
        partitions = self._partitioner(row, stages, policy).solve(incumbent - fixed)
        if not partitions:
            return None
        decisions = []
        for partition in partitions:
            chunks = tuple((rank.first, rank.end) for rank in partition.ranks)
            picks = [[(r.first, r.end, r.groups, r.choice)] for r in partition.ranks]
            decisions.append(self._decision(row, chunks, picks))
        bounds = tuple(partition.bound_seconds + fixed for partition in partitions)
        return Solved(tuple(decisions), bounds, bounds[0])

    def _sends(self, row: CandidateRow) -> list[list[float]]:
        """Seconds of a send from every rank to the next, by the block the cut lies before.

        Ranks whose sends cost the same have one list between them.
        """
        n, pp = self.layout.num_blocks, row.degrees.pp
        scales = self.layout.cut_scales(self.model.problem.model)
        distinct = sorted(set(scales))
        known: dict[tuple[float, ...], list[float]] = {}
        found = []
        for rank in range(pp - 1):
            seconds = tuple(boundary_send_seconds(self.model, row, rank, scale) for scale in distinct)
            if seconds not in known:
                by_scale = dict(zip(distinct, seconds, strict=True))
                known[seconds] = [0.0, *map(by_scale.__getitem__, scales), 0.0]
            found.append(known[seconds])
        return [*found, [0.0] * (n + 1)]

    def _chunked(
        self,
        row: CandidateRow,
        stages: StageModel,
        policy: RecomputePolicy,
        incumbent: float,
        fixed: float,
    ) -> Solved | None:
        """Balanced chunks, recompute per rank; the bound is the slowest rank behind its fill."""
        pp, v, m = row.degrees.pp, row.virtual_stages, row.microbatches
        chunks = interleaved_chunks(self.layout, row)
        factor = self.model.straggler_factor
        sends = send_times(self.model, row, chunks)
        ranges = Ranges(stages, self.layout)
        placed = [
            [chunks[virtual_stage(row.schedule, rank, chunk, pp)] for chunk in range(v)] for rank in range(pp)
        ]
        total, tails = ranges.rank_tails(placed)
        fill = forward_fill = first_reduce = update = worst = 0.0
        picks: list[list[tuple[int, int, tuple[Group, ...], Choice]]] = []
        for rank, spans in enumerate(placed):
            states = alive_states(row.schedule, rank, pp, m, v)
            forward = sum(ranges.forward_seconds(*span) for span in spans)
            backward = sum(ranges.backward_seconds(*span) for span in spans)
            room = ((incumbent - first_reduce - update) / factor - fill) / m - forward - backward
            if room <= 0.0:
                return None
            tail = Tail(tails.reduce[rank], tails.optimizer[rank], tails.gather[rank])
            plain_bytes = ranges.chunks_bytes(spans, states) if policy.is_plain_first else None
            spared = 0.0
            if plain_bytes is None or plain_bytes > self.limit_bytes:
                chosen = self._chunk_choices(stages, policy, spans, states, room)
                if chosen is None:
                    return None
                pick, extra, spared = chosen
                picks.append(pick)
                backward += extra
                whole = Sync(total.reduce[rank], 0.0, total.traffic[rank], total.elements[rank])
                reduce = stages.exposed(whole, forward, backward).reduce
                tail = Tail(reduce, tail.optimizer, tail.gather)
            # Without a drain rank 0 need not end last: nothing but its own end stands before its reduction.
            has_drain = row.schedule not in ZERO_BUBBLE
            first_reduce = (first_reduce if rank else tail.reduce) if has_drain else 0.0
            update = max(update, tail.optimizer + tail.gather)
            busy = m * (forward + backward - spared) + self._turn(row, chunks, rank, fill)
            ends = (factor * (fill + busy) + first_reduce, factor * (forward_fill + busy) + tail.reduce)
            worst = max(worst, *ends)
            # The first microbatch travels down and the last one back up over this boundary.
            send = sends[rank]
            down = ranges.forward_seconds(*spans[0]) + send
            drain = 0.0 if row.schedule in ZERO_BUBBLE else ranges.backward_seconds(*spans[0]) + send
            fill, forward_fill = fill + down + drain, forward_fill + down
            if worst + update >= incumbent:
                return None
        bound = float(worst + update + fixed)
        return Solved((self._decision(row, chunks, picks),), (bound,), bound)

    def _chunk_choices(
        self,
        stages: StageModel,
        policy: RecomputePolicy,
        spans: list[tuple[int, int]],
        states: tuple[tuple[int, ...], ...],
        room: float,
    ) -> tuple[list[tuple[int, int, tuple[Group, ...], Choice]], float, float] | None:
        """Every chunk's recompute choice on one rank, their extra seconds, and what of it a bound spares.

        The bound is that of the cheaper choice that counts the end of the warm-up alone.
        """
        sharding = stages.row.sharding
        parts = self._parts(spans, states)
        flat = tuple(group for part in parts for group in part)
        merged = flat if policy.is_by_stage else merge_groups(parts)
        least = policy.choose(stages, merged, self.limit_bytes, sharding, room)
        choice = self._fitting(stages, merged, policy, sharding, room, least)
        if least is None or choice is None:
            return None
        split = deal_choice(parts, choice) if policy.is_by_stage else split_choice(parts, merged, choice)
        pick = [(*span, part, one) for span, part, one in zip(spans, parts, split, strict=True)]
        kinds, extra = stages.row.kinds, 0.0
        for group, (selective, full) in zip(merged, choice.counts, strict=True):
            seconds = kinds[group.kind].backward_seconds
            extra += selective * (seconds[1] - seconds[0]) + full * (seconds[2] - seconds[0])
        return pick, extra, choice.extra_seconds - least.extra_seconds + least.spared_seconds

    def _parts(
        self, spans: list[tuple[int, int]], states: tuple[tuple[int, ...], ...]
    ) -> list[tuple[Group, ...]]:
        """The layers of a rank's chunks in groups, with the microbatches alive in every state."""
        return [
            self.layout.groups(*span, tuple(state[i] for state in states)) for i, span in enumerate(spans)
        ]

    def chunked_step(self, row: CandidateRow) -> ChunkedStep:
        """The step of a candidate on its balanced chunks."""
        return ChunkedStep(self.model, self.layout, row, interleaved_chunks(self.layout, row))

    def path_program(self, row: CandidateRow, step: ChunkedStep) -> PathProgram | None:
        """The program of recomputation on those chunks; None where layers are not free to choose theirs."""
        policies = self._policies_of(row)
        if len(policies) != 1 or policies[0].mode != "free":
            return None
        return path_program(step, self.limit_bytes, policies[0].offered)

    def _turn(self, row: CandidateRow, chunks: tuple[tuple[int, int], ...], rank: int, fill: float) -> float:
        """Idle seconds of a rank of the V before its first backward, beyond ``fill``; 0 for other schedules.

        Its first input gradient waits for microbatch 0 to pass every chunk down and the later ones back; only
        the forwards of the warm-up can be done until then.
        """
        if row.schedule != "zb-v":
            return 0.0
        pp, m = row.degrees.pp, row.microbatches
        second = 2 * pp - 1 - rank
        forward = [self._forward(row, chunks[c]) for c in range(2 * pp)]
        back = sum(self._input_gradient(row, chunks[c]) for c in range(second + 1, 2 * pp))
        done = min(m, second) * forward[rank] + min(m, rank + 1) * forward[second]
        return max(0.0, sum(forward) + back - done - fill)

    def _forward(self, row: CandidateRow, span: tuple[int, int]) -> float:
        return self.layout.sum_over([kind.forward_seconds for kind in row.kinds], *span)

    def _input_gradient(self, row: CandidateRow, span: tuple[int, int]) -> float:
        least = [min(kind.backward_seconds) - kind.weight_seconds for kind in row.kinds]
        return self.layout.sum_over(least, *span)

    def _fitting(
        self,
        stages: StageModel,
        groups: tuple[Group, ...],
        policy: RecomputePolicy,
        sharding: int,
        room: float,
        choice: Choice | None,
    ) -> Choice | None:
        """A choice that fits at every moment: the limit is lowered by what a later moment is over."""
        limit = self.limit_bytes
        for _ in range(MOMENT_TRIES):
            if choice is None:
                return None
            over = stages.memory(choice.items(groups, sharding))["total"] - self.limit_bytes
            if over <= 0.0:
                return choice
            limit -= over
            choice = policy.choose(stages, groups, limit, sharding, room)
        return None

    def _decision(
        self,
        row: CandidateRow,
        chunks: tuple[tuple[int, int], ...],
        picks: list[list[tuple[int, int, tuple[Group, ...], Choice]]],
    ) -> Decision:
        recompute = [0] * self.layout.num_blocks
        for rank in picks:
            for first, end, groups, choice in rank:
                self._assign(recompute, first, end, groups, choice)
        has_host_optimizer = self.model.stack.has_host_optimizer
        return row_decision(row, chunks, tuple(recompute), has_host_optimizer=has_host_optimizer)

    def _assign(
        self, recompute: list[int], first: int, end: int, groups: tuple[Group, ...], choice: Choice
    ) -> None:
        """Full recompute on the first layers of a kind, then selective: launchers count from the front."""
        chain = self.model.chain
        left = {g.kind: list(counts) for g, counts in zip(groups, choice.counts, strict=True)}
        for block in range(first, end):
            counts = left[chain.layers[chain.block_layers[block]]]
            if counts[1]:
                recompute[block], counts[1] = RECOMPUTE_FULL, counts[1] - 1
            elif counts[0]:
                recompute[block], counts[0] = RECOMPUTE_SELECTIVE, counts[0] - 1


def interleaved_chunks(layout: Layout, row: CandidateRow) -> tuple[tuple[int, int], ...]:
    """The balanced chunks of an interleaved candidate: embedding and head count as blocks of their cost."""
    chain = layout.chain
    cost = [kind.forward_seconds + kind.backward_seconds[0] for kind in row.kinds]
    first, last = (float(x) for x in end_weights(chain, [np.array(c) for c in cost]))
    return balanced_chunks(layout.num_blocks, row.degrees.pp * row.virtual_stages, int(first), int(last))


def merge_groups(parts: list[tuple[Group, ...]]) -> tuple[Group, ...]:
    """Groups of all chunks of a rank, equal kind and in-flight count joined."""
    total: dict[tuple[int, tuple[int, ...], bool], int] = {}
    for part in parts:
        for group in part:
            key = (group.kind, group.alive, group.is_block)
            total[key] = total.get(key, 0) + group.count
    return tuple(Group(kind, n, alive, block) for (kind, alive, block), n in total.items())


def deal_choice(parts: list[tuple[Group, ...]], choice: Choice) -> list[Choice]:
    """A choice over the groups of all chunks, in order, cut into one choice a chunk."""
    counts = iter(choice.counts)
    return [Choice(0.0, tuple(next(counts) for _ in part)) for part in parts]


def split_choice(parts: list[tuple[Group, ...]], merged: tuple[Group, ...], choice: Choice) -> list[Choice]:
    """The rank's choice dealt back to its chunks, first chunks first."""
    left = {(g.kind, g.alive): list(counts) for g, counts in zip(merged, choice.counts, strict=True)}
    result = []
    for part in parts:
        counts = []
        for group in part:
            pool = left[(group.kind, group.alive)]
            full = min(pool[1], group.count)
            selective = min(pool[0], group.count - full)
            pool[0] -= selective
            pool[1] -= full
            counts.append((selective, full))
        result.append(Choice(0.0, tuple(counts)))
    return result
