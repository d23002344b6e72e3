"""One candidate solved: stages and recompute chosen, a decision built, its bound known."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from planner.cost.row import CandidateRow
from planner.cost.stage import StageModel
from planner.cost.step import CostModel, blocks_sends, send_times, tied_embedding_seconds
from planner.schedule.orders import in_flight
from planner.search.layout import Layout, balanced_chunks, end_weights
from planner.search.partition import Partitioner, RecomputePolicy
from planner.search.recompute import Choice, Group, plain_items
from planner.strategy.decision import RECOMPUTE_FULL, RECOMPUTE_SELECTIVE, Decision


@dataclass(frozen=True)
class Solved:
    """A candidate's best decision and a lower bound on every plan of that candidate, seconds."""

    decision: Decision
    bound_seconds: float


@dataclass(frozen=True)
class CandidateSolver:
    """Solves candidates of one problem under a memory limit (bytes)."""

    model: CostModel
    layout: Layout
    limit_bytes: float
    policies: tuple[RecomputePolicy, ...]

    def solve(self, row: CandidateRow, incumbent_seconds: float) -> Solved | None:
        """The best decision of this candidate, or None when none fits or none beats the incumbent.

        ``policies`` are tried in order of growing recompute; with several (a launcher that takes one
        setting for all layers) the best of all is kept.
        """
        best: Solved | None = None
        for policy in self.policies:
            cutoff = min(incumbent_seconds, best.bound_seconds if best else incumbent_seconds)
            found = self._solve(row, policy, cutoff)
            if found is not None and (best is None or found.bound_seconds < best.bound_seconds):
                best = found
        return best

    def _solve(self, row: CandidateRow, policy: RecomputePolicy, incumbent: float) -> Solved | None:
        stages = self.model.stage_model({row.sharding: row})
        fixed = tied_embedding_seconds(self.model, row) + self.model.constants.step_overhead_seconds
        if row.schedule == "interleaved":
            return self._interleaved(row, stages, policy, incumbent - fixed, fixed)
        partition = Partitioner(
            stages, self.layout, self.limit_bytes, self.model.straggler_factor, self._sends(row), policy
        ).solve(incumbent - fixed)
        if partition is None:
            return None
        chunks = tuple((rank.first, rank.end) for rank in partition.ranks)
        picks = [[(r.first, r.end, r.groups, r.choice)] for r in partition.ranks]
        bound = self.model.straggler_factor * partition.bound_seconds + fixed
        return Solved(self._decision(row, chunks, picks), bound)

    def _sends(self, row: CandidateRow) -> list[float]:
        """Cheapest send over any boundary, by the block the cut lies before: a bound for every stage."""
        n, pp = self.layout.num_blocks, row.degrees.pp
        if pp == 1 or not blocks_sends(row.schedule):
            return [0.0] * (n + 1)
        probe = tuple((i, i + 1) for i in range(pp))
        plain = min(send_times(self.model, row, probe)[:-1])
        scale = [self.model.chain.cut_scale(self.model.problem.model, b) for b in range(1, n)]
        base = self.model.chain.cut_scale(self.model.problem.model, 1)
        return [0.0, *(plain * max(1.0, s / base) if s != base else plain for s in scale), 0.0]

    def _interleaved(
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
        fill = worst = 0.0
        picks: list[list[tuple[int, int, tuple[Group, ...], Choice]]] = []
        for rank in range(pp):
            held = in_flight(row.schedule, rank, pp, m, v)
            spans = [chunks[chunk * pp + rank] for chunk in range(v)]
            parts = [self.layout.groups(*span, held[i]) for i, span in enumerate(spans)]
            merged = merge_groups(parts)
            plain = sum(stages.seconds(plain_items(merged, row.sharding)))
            room = (incumbent / factor - fill) / m - plain
            if room <= 0.0:
                return None
            choice = policy.choose(stages, merged, self.limit_bytes, row.sharding, room)
            if choice is None:
                return None
            split = split_choice(parts, merged, choice)
            chunk_items = [c.items(p, row.sharding) for c, p in zip(split, parts, strict=True)]
            items = [item for chunk in chunk_items for item in chunk]
            forward, backward = stages.seconds(items)
            tail = stages.tail(items, forward, backward).total if rank == 0 else 0.0
            fill += tail / factor
            worst = max(worst, fill + m * (forward + backward))
            fill += sum(stages.seconds(chunk_items[0]))
            if factor * worst >= incumbent:
                return None
            picks.append([(*span, p, c) for span, p, c in zip(spans, parts, split, strict=True)])
        return Solved(self._decision(row, chunks, picks), factor * worst + fixed)

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
        return Decision(
            degrees=row.degrees,
            sequence_parallel=row.sequence_parallel and row.degrees.tp > 1,
            sharding=row.sharding,
            sharding_group=row.sharding_group,
            schedule=row.schedule,
            virtual_stages=row.virtual_stages,
            microbatch_size=row.microbatch_size,
            microbatches=row.microbatches,
            chunks=chunks,
            recompute=tuple(recompute),
        )

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
    total: dict[tuple[int, int, bool], int] = {}
    for part in parts:
        for group in part:
            key = (group.kind, group.in_flight, group.is_block)
            total[key] = total.get(key, 0) + group.count
    return tuple(Group(kind, n, held, block) for (kind, held, block), n in total.items())


def split_choice(parts: list[tuple[Group, ...]], merged: tuple[Group, ...], choice: Choice) -> list[Choice]:
    """The rank's choice dealt back to its chunks, first chunks first."""
    left = {(g.kind, g.in_flight): list(counts) for g, counts in zip(merged, choice.counts, strict=True)}
    result = []
    for part in parts:
        counts = []
        for group in part:
            pool = left[(group.kind, group.in_flight)]
            full = min(pool[1], group.count)
            selective = min(pool[0], group.count - full)
            pool[0] -= selective
            pool[1] -= full
            counts.append((selective, full))
        result.append(Choice(0.0, tuple(counts)))
    return result
