"""A candidate on chunks that are known: its step as a function of what recomputation adds to each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from planner.cost.model import CostModel
from planner.cost.row import CandidateRow
from planner.cost.sends import send_times
from planner.cost.stage import StageModel
from planner.cost.step import Prediction, price
from planner.cost.tail import Sync
from planner.schedule.critical_path import CriticalPaths
from planner.schedule.orders import BACKWARD, INPUT_GRADIENT, ZERO_BUBBLE, virtual_stage
from planner.schedule.steady import program
from planner.schedule.timeline import Seconds
from planner.search.layout import Layout
from planner.search.recompute import plain_items
from planner.search.row_decision import row_decision

# Operations of a schedule beyond which its critical paths are not followed: that would take half a second.
MOST_OPERATIONS = 60_000
# Seconds by which a path is longer where its backwards are: beyond rounding, and no matter.
TINY = 1e-10


@dataclass(frozen=True)
class ChunkedStep:
    """The step of one candidate whose virtual stages hold the blocks ``chunks``."""

    model: CostModel
    layout: Layout
    row: CandidateRow
    chunks: tuple[tuple[int, int], ...]

    @cached_property
    def stages(self) -> StageModel:
        return self.model.stage_model({self.row.sharding: self.row})

    @cached_property
    def plain(self) -> Prediction:
        """The step without recomputation, whether it fits or not."""
        modes = (0,) * self.layout.num_blocks
        has_host_optimizer = self.model.stack.has_host_optimizer
        decision = row_decision(self.row, self.chunks, modes, has_host_optimizer=has_host_optimizer)
        return price(self.model, decision, rows={self.row.sharding: self.row})

    @cached_property
    def placed(self) -> list[list[int]]:
        """The virtual stages of every rank, by chunk."""
        pp, degree = self.row.degrees.pp, self.row.virtual_stages
        return [
            [virtual_stage(self.row.schedule, rank, chunk, pp) for chunk in range(degree)]
            for rank in range(pp)
        ]

    def reduce_seconds(self, rank: int, extra_seconds: float) -> float:
        """The gradient reduction of a rank left exposed where its backwards are so much longer."""
        stage, total = self.plain.stages[rank], self._synchronised[rank]
        backward = stage.backward_seconds + extra_seconds
        return float(self.stages.exposed(total, stage.forward_seconds, backward).reduce)

    @cached_property
    def _synchronised(self) -> list[Sync]:
        """What each rank synchronises once per step."""
        found = []
        for mine in self.placed:
            groups = tuple(g for at in mine for g in self.layout.groups(*self.chunks[at], (1,)))
            found.append(self.stages.synchronised(plain_items(groups, self.row.sharding)))
        return found

    def extra_seconds(self, recompute: Sequence[int]) -> list[float]:
        """What a recompute mode of every block adds to the backward of each virtual stage."""
        chain, kinds = self.model.chain, self.row.kinds
        added = []
        for first, end in self.chunks:
            chosen = [
                (kinds[chain.layers[chain.block_layers[block]]], recompute[block])
                for block in range(first, end)
            ]
            added.append(sum(k.backward_seconds[mode] - k.backward_seconds[0] for k, mode in chosen))
        return added

    def paths(self, extra_seconds: Sequence[float]) -> CriticalPaths | None:
        """The critical paths where the backward of each virtual stage takes so much longer.

        None where the schedule has more than MOST_OPERATIONS.
        """
        row, stages = self.row, len(self.chunks)
        parts = 3 if row.schedule in ZERO_BUBBLE else 2
        if parts * stages * row.microbatches > MOST_OPERATIONS:
            return None
        order = program(row.schedule, row.degrees.pp, row.microbatches, row.virtual_stages)
        backward = [b + more for b, more in zip(self._backward, extra_seconds, strict=True)]
        delays = self._sends, [0.0, *self._sends[:-1]]
        return CriticalPaths(order, Seconds(self._forward, backward, *delays, self._weight))

    def reduced(self, finish: Sequence[float], extra_seconds: Sequence[float]) -> list[float]:
        """When each rank has reduced its gradients that ends its passes at ``finish``."""
        factor = self.model.straggler_factor
        own = [sum(extra_seconds[stage] for stage in mine) for mine in self.placed]
        return [factor * end + self.reduce_seconds(rank, own[rank]) for rank, end in enumerate(finish)]

    def backwards(self, counts: Sequence[int]) -> Sequence[int]:
        """Of ``CriticalPaths.counts`` those that recomputation makes longer, by virtual stage."""
        kind = INPUT_GRADIENT if self.row.schedule in ZERO_BUBBLE else BACKWARD
        stages = len(self.chunks)
        return counts[kind * stages : (kind + 1) * stages]

    def plain_bound(self) -> float:
        """Seconds no plan on these chunks can beat: the step without recomputation, replayed.

        Longer backwards end no rank sooner, but they hide more of its gradient reduction: ``_hiding`` says of
        how much longer ones that is worth something.
        """
        longest = [max(kind.backward_seconds) - kind.backward_seconds[0] for kind in self.row.kinds]
        extra = [self.layout.sum_over(longest, *span) for span in self.chunks]
        drained = 0.0
        for end, rank in sorted(((end, rank) for rank, end in enumerate(self.ends)), reverse=True):
            if end <= drained:
                break
            reduce = self.reduce_seconds(rank, self._hiding(rank, extra))
            drained = max(drained, end - self.plain.stages[rank].tail.reduce + reduce)
        return self.plain.step_seconds - max(self.ends) + drained

    def _hiding(self, rank: int, extra: list[float]) -> float:
        """Seconds that a rank's backwards may be longer before its end is put off by more than they hide.

        ``extra``: at most, by virtual stage. The rank works through its backwards m times behind its first
        forward, so no more than m-ths of its idle seconds. One on the critical path to its end (of equal
        paths, that which most of them are on) puts that off by all it adds, whatever the others add: so no
        more than those that are not.
        """
        timeline, mine = self.plain.timeline, self.placed[rank]
        begin = sum(self._forward[:rank]) + sum(self._sends[:rank])
        idle = max(0.0, timeline.finish[rank] - timeline.busy[rank] - begin) / self.row.microbatches
        paths = self.paths([TINY * (stage in mine) for stage in range(len(extra))])
        if paths is None:
            return min(idle, sum(extra[stage] for stage in mine))
        counts = self.backwards(paths.counts(rank))
        free = sum(extra[stage] for stage in mine if not counts[stage])
        return min(idle, TINY * sum(counts) + free)

    @cached_property
    def ends(self) -> list[float]:
        """When each rank has reduced its gradients, without recomputation."""
        ends = zip(self.plain.timeline.finish, self.plain.stages, strict=True)
        return [self.model.straggler_factor * end + stage.tail.reduce for end, stage in ends]

    @cached_property
    def _sends(self) -> list[float]:
        return send_times(self.model, self.row, self.chunks)

    @cached_property
    def _forward(self) -> list[float]:
        return self._sums([kind.forward_seconds for kind in self.row.kinds])

    @cached_property
    def _backward(self) -> list[float]:
        return self._sums([kind.backward_seconds[0] for kind in self.row.kinds])

    @cached_property
    def _weight(self) -> list[float]:
        """Where the schedule splits the backward: its weight gradients."""
        has_halves = self.row.schedule in ZERO_BUBBLE
        return self._sums([kind.weight_seconds for kind in self.row.kinds]) if has_halves else []

    def _sums(self, values: list[float]) -> list[float]:
        return [self.layout.sum_over(values, *span) for span in self.chunks]
