"""Many complete decisions priced at once: seconds of the step and bytes of the fullest rank.

The same sums as ``step.price``, over arrays: decisions that share a schedule, a number of stages and a number
of microbatches are replayed together, one operation of all of them at a time. For stacks whose fullest moment
is one sum (``RankMemory.kept``) and plans of one sharding, gathered by whole blocks, nothing on the host.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from planner.cost.arrays import Array, IntArray
from planner.cost.data_parallel import moves_seconds, norm_move
from planner.cost.layer import CostTable
from planner.cost.model import CostModel
from planner.cost.row import candidate_row, reserve_bytes
from planner.cost.sends import blocks_sends, boundary_send_seconds, tied_embedding_seconds
from planner.cost.tail import Sync, exposed_tail, sync
from planner.errors import UnsupportedFeature
from planner.schedule.orders import FORWARD, WEIGHT_GRADIENT, alive_states, operation_order, virtual_stage
from planner.strategy.decision import SCHEDULES, rank_of_stage


@dataclass(frozen=True)
class Many:
    """Decisions of one schedule, number of stages, virtual stages and microbatches.

    rows: the row of the cost table each is priced by; ends[c]: the block behind the last one of virtual
    stage c; modes[b]: recompute mode of block b. One column a decision.
    """

    table: CostTable
    rows: IntArray
    schedule: str
    virtual_stages: int
    ends: IntArray
    modes: IntArray


def price_many(model: CostModel, many: Many) -> tuple[Array, Array]:
    """(step seconds, peak bytes) of every decision, as ``step.price`` has them.

    Raises UnsupportedFeature for a stack that makes its buffers when they are needed.
    """
    if model.stack.makes_buffers_when_needed:
        raise UnsupportedFeature(f"many decisions at once are not priced on the {model.stack.name} stack")
    return _Pricer(model, many).price()


class _Pricer:
    def __init__(self, model: CostModel, many: Many) -> None:
        self.model, self.many = model, many
        table, chain = many.table, model.chain
        self.c = table.candidates.take(many.rows)
        self.each = np.arange(len(many.rows))
        self.pp, self.stages = int(self.c.pp[0]), len(many.ends)
        self.m = int(self.c.microbatches(model.problem.workload.global_batch)[0])
        used, self.back = np.unique(many.rows, return_inverse=True)
        schedule = SCHEDULES.index(many.schedule)
        self.row_list = [
            candidate_row(model.problem, table, model.stack, int(row), schedule, many.virtual_stages)
            for row in used
        ]
        # Layers of every block's range, and which virtual stage each layer is on.
        starts = [chain.layer_range(block, block + 1)[0] for block in range(chain.num_blocks)]
        at: IntArray = np.array([*starts, len(chain.layers)])
        self.kinds = np.array(chain.layers)
        self.modes = np.zeros((len(chain.layers), len(self.each)), dtype=np.int64)
        self.modes[list(chain.block_layers)] = many.modes
        bounds = at[many.ends]
        self.stage_of = (np.arange(len(chain.layers))[:, None, None] >= bounds[None]).sum(axis=1)
        self.bounds = np.vstack([np.zeros((1, len(self.each)), dtype=np.int64), bounds])
        # How many layers of every kind each virtual stage has.
        is_kind = self.kinds[None] == np.arange(len(chain.kinds))[:, None]
        before = np.hstack([np.zeros((len(chain.kinds), 1)), np.cumsum(is_kind, axis=1)])
        self.counts = np.diff(before[:, self.bounds], axis=1)
        self.on_rank = [
            [virtual_stage(many.schedule, rank, chunk, self.pp) for chunk in range(many.virtual_stages)]
            for rank in range(self.pp)
        ]
        ranks = np.zeros(self.stages, dtype=np.int64)
        for rank, chunks in enumerate(self.on_rank):
            ranks[chunks] = rank
        self.rank_of = ranks[self.stage_of]

    def values(self, name: str) -> Array:
        """A float of every kind (rows) on every decision."""
        table = np.array([[getattr(kind, name) for kind in row.kinds] for row in self.row_list])
        return np.ascontiguousarray(table[self.back].T)

    def by_mode(self, name: str) -> Array:
        """A value per recompute mode, of every layer on every decision."""
        table = np.array([[getattr(kind, name) for kind in row.kinds] for row in self.row_list])
        result: Array = table[self.back[None, :], self.kinds[:, None], self.modes]
        return result

    def sums(self, layers: Array) -> Array:
        """Sums of a per-layer value over every virtual stage."""
        prefix = np.vstack([np.zeros((1, len(self.each))), np.cumsum(layers, axis=0)])
        ends = prefix[self.bounds, self.each]
        result: Array = ends[1:] - ends[:-1]
        return result

    def of_ranks(self, stages: Array) -> Array:
        return np.array([sum(stages[stage] for stage in chunks) for chunks in self.on_rank])

    def stage_sums(self, name: str) -> Array:
        """Sums over every virtual stage of a value that does not depend on the recompute mode."""
        result: Array = np.einsum("ksn,kn->sn", self.counts, self.values(name))
        return result

    def largest(self, name: str) -> Array:
        """The largest value of the kinds on every rank."""
        values = self.values(name)[:, None]
        stages = np.where(self.counts > 0, values, 0.0).max(axis=0)
        return np.array([stages[chunks].max(axis=0) for chunks in self.on_rank])

    def largest_by_mode(self, layers: Array) -> Array:
        """The largest of a per-layer value on every rank."""
        return np.array([np.where(self.rank_of == rank, layers, 0.0).max(axis=0) for rank in range(self.pp)])

    def price(self) -> tuple[Array, Array]:
        forward = self.stage_sums("forward_seconds")
        backward = self.sums(self.by_mode("backward_seconds"))
        weight = self.stage_sums("weight_seconds")
        finish = self._replay(forward, backward, weight)
        reduce, update = self._tails(self.of_ranks(forward), self.of_ranks(backward))
        factor, constants = self.model.straggler_factor, self.model.constants
        tied = np.array([tied_embedding_seconds(self.model, row) for row in self.row_list])[self.back]
        step = (factor * finish + reduce).max(axis=0) + tied + update.max(axis=0)
        return step + constants.step_overhead_seconds, self._bytes().max(axis=0)

    def _sends(self) -> list[Array]:
        """From every virtual stage to the next."""
        chain, model, found = self.model.chain, self.model, []
        scales = [chain.cut_scale(model.problem.model, cut) for cut in range(1, chain.num_blocks)]
        distinct = sorted(set(scales))
        scale_at = np.array([0, *(distinct.index(scale) for scale in scales), 0])
        for stage in range(self.stages - 1):
            ranks = [rank_of_stage(self.many.schedule, each, self.pp) for each in (stage, stage + 1)]
            if ranks[0] == ranks[1]:
                found.append(np.zeros(len(self.each)))
                continue
            first = min(min(ranks), self.pp - 2) if abs(ranks[0] - ranks[1]) == 1 else self.pp - 2
            cut = np.minimum(np.maximum(1, self.many.ends[stage]), chain.num_blocks - 1)
            seconds = np.array(
                [[boundary_send_seconds(model, row, first, s) for s in distinct] for row in self.row_list]
            )
            found.append(seconds[self.back, scale_at[cut]])
        return [*found, np.zeros(len(self.each))]

    def _replay(self, forward: Array, backward: Array, weight: Array) -> Array:
        """``schedule.timeline.replay`` of all decisions at once: when every rank ends."""
        delay = self._sends()
        before = [0.0 * delay[0], *delay[:-1]]
        if blocks_sends(self.many.schedule):
            forward = forward + np.array(delay)
            backward = backward + np.array(before)
            delay = before = [np.zeros(len(self.each))] * self.stages
        seconds = (forward, backward, backward - weight, weight)
        order = operation_order(self.many.schedule, self.pp, self.m, self.many.virtual_stages)
        zero = np.zeros(len(self.each))
        ready: dict[tuple[bool, int, int], Array] = {(False, 0, i): zero for i in range(self.m)}
        clock, position = [zero] * self.pp, [0] * self.pp
        left = sum(map(len, order))
        while left:
            for rank, operations in enumerate(order):
                now, at = clock[rank], position[rank]
                while at < len(operations):
                    kind, microbatch, chunk = operations[at]
                    stage = self.on_rank[rank][chunk]
                    if kind != WEIGHT_GRADIENT:
                        arrived = ready.pop((kind != FORWARD, stage, microbatch), None)
                        if arrived is None:
                            break
                        now = np.maximum(now, arrived)
                    now = now + seconds[kind][stage]
                    if kind == FORWARD and stage + 1 < self.stages:
                        ready[False, stage + 1, microbatch] = now + delay[stage]
                    elif kind == FORWARD:
                        ready[True, stage, microbatch] = now
                    elif kind != WEIGHT_GRADIENT and stage:
                        ready[True, stage - 1, microbatch] = now + before[stage]
                    at, left = at + 1, left - 1
                clock[rank], position[rank] = now, at
        return np.array(clock)

    def _tails(self, forward: Array, backward: Array) -> tuple[Array, Array]:
        """(reduction, optimizer and gather) left on every rank after its last backward."""
        model, stack = self.model, self.model.stack
        dense, expert, norm = (
            self.of_ranks(self.stage_sums(f"{name}_parameters")) for name in ("dense", "expert", "norm")
        )
        reduce, update = np.zeros(dense.shape), np.zeros(dense.shape)
        has_pipeline = self.pp > 1
        moments = model.problem.workload.moment_bytes_per_parameter
        for code in np.flatnonzero(np.bincount(self.c.sharding)).tolist():
            at = np.flatnonzero(self.c.sharding == code)
            groups = self.many.table.groups.take(self.many.rows[at])
            args = (stack, int(code), has_pipeline, groups, moments)
            total = sync(*args, "dp", dense[:, at]) + sync(*args, "expert_dp", expert[:, at])
            is_sequence = ((self.c.sequence_parallel == 1) & (self.c.tp > 1))[at].astype(np.float64)
            hidden = model.problem.model.hidden_size
            move = norm_move(stack, norm[:, at], hidden, is_sequence, has_pipeline, is_step=True)
            whole = type(move)(move.axis, move.operation, 1.0, move.count * move.whole_bytes)
            total += Sync(reduce=moves_seconds(groups, (whole,)))
            ranks = (self.c.dp * self.c.cp)[at]
            tail = exposed_tail(model.device, stack, ranks, total, forward[:, at], backward[:, at])
            reduce[:, at], update[:, at] = tail.reduce, tail.optimizer + tail.gather
        return reduce, update

    def _bytes(self) -> Array:
        """Bytes every rank holds: ``RankMemory.kept``."""
        constants = self.model.constants
        static = self.of_ranks(self.stage_sums("static_bytes"))
        stage_saved = self.sums(self.by_mode("saved_bytes"))
        saved = []
        for rank, chunks in enumerate(self.on_rank):
            states = alive_states(self.many.schedule, rank, self.pp, self.m, self.many.virtual_stages)
            held = [sum(n * stage_saved[stage] for n, stage in zip(s, chunks, strict=True)) for s in states]
            saved.append(np.maximum.reduce(held))
        working = self.largest_by_mode(self.by_mode("working_bytes"))
        transient = self.largest("transient_bytes")
        gathered = self.largest_by_mode(self.by_mode("gathered_bytes"))
        boundary = np.array([2.0 * row.boundary_bytes * (self.pp > 1) for row in self.row_list])[self.back]
        reserve = np.array([reserve_bytes(constants, row.num_communicators) for row in self.row_list])[
            self.back
        ]
        slack = 1.0 + constants.allocator_slack
        result: Array = (
            static + slack * (np.array(saved) + working + transient + gathered + boundary) + reserve
        )
        return result
