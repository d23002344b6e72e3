"""The analytical model as the cost table of per-layer strategies (``layered_table``).

Every number is read off the candidate rows that price uniform plans: a strategy is one row (a tensor degree
and a sharding) with one recompute mode. The table is a lower bound on ``price`` of every decision it holds:

    exact         forward, backward, bytes, sends, layout changes inside a stage, the update and the constant
                  of a step
    from below    the exposed reduction: overlap_theft of its transfer, or the transfer less the share of one
                  backward that hides it, whichever is more in the setting (all of it on a stack that hides
                  none, or where one bucket holds every layer); without latency and last bucket
    left out      layout changes across a cut

so the least step of the table bounds every plan, and a plan is what ``price`` says of the decision found.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from planner.cost.data_parallel import moves_seconds, norm_move
from planner.cost.layered_table import EndCosts, LayerCosts, LayeredSetting
from planner.cost.layout_change import layout_change
from planner.cost.model import CostModel
from planner.cost.row import CandidateRow, KindCost, communicators, reserve_bytes
from planner.cost.sends import send_times, tied_embedding_seconds
from planner.cost.tail import sync
from planner.model.chain import LayerChain
from planner.strategy.layered import LayerChoice

# Bytes so many that latency is nothing beside them: seconds of so many over them are the rate.
MANY = 1e18


def is_one_chain(chain: LayerChain) -> bool:
    """Whether a model is one stack of blocks between one embedding and one head: what the table can say."""
    roles = [chain.kinds[kind].role for kind in chain.layers]
    return roles == ["embedding", *["block"] * chain.num_blocks, "head"]


def row_choice(row: CandidateRow, mode: int = 0) -> LayerChoice:
    """The strategy a row and a recompute mode are; the table's sp is the ring's cp."""
    d = row.degrees
    return LayerChoice(d.tp, d.cp, d.dp, row.sharding, mode)


def fill_setting(model: CostModel, rows: Sequence[CandidateRow], modes: Sequence[int]) -> LayeredSetting:
    """The table of one (pp, microbatches): layers and ends choose among ``rows``, layers among ``modes`` too.

    All rows have one pp, cp, ep and number of microbatches, and split the sequence wherever tp > 1. Raises
    ValueError for rows that differ in them, or a model that is not one chain.
    """
    same = {(r.degrees.pp, r.degrees.cp, r.degrees.ep, r.microbatches, r.boundary_bytes) for r in rows}
    if len(same) != 1 or not is_one_chain(model.chain):
        raise ValueError("rows of one setting, of a model that is one chain")
    filler = _Filler(model, rows)
    chain, pp = model.chain, rows[0].degrees.pp
    blocks = sorted({chain.layers[layer] for layer in chain.block_layers})
    kind_of = {kind: index for index, kind in enumerate(blocks)}
    strategies = [(row, mode) for row in rows for mode in modes]
    columns = [[filler.layer(row, row.kinds[kind], mode) for row, mode in strategies] for kind in blocks]
    costs = np.array(columns)
    embedding, head = chain.layers[0], chain.layers[-1]
    sends = send_times(model, rows[0], tuple((i, i + 1) for i in range(pp)))
    factor = model.straggler_factor
    widths = sorted({row.degrees.tp for row in rows})
    changes = [[filler.change(a, b) for b in widths] for a in widths]
    overhead = model.constants.step_overhead_seconds
    boundary = 2.0 * rows[0].boundary_bytes * filler.slack if pp > 1 else 0.0
    return LayeredSetting(
        pp=pp,
        microbatches=rows[0].microbatches,
        layers=tuple(kind_of[chain.layers[layer]] for layer in chain.block_layers),
        strategies=tuple(row_choice(row, mode) for row, mode in strategies),
        ends=tuple(row_choice(row) for row in rows),
        costs=LayerCosts(*(costs[:, :, i] for i in range(7))),
        first=filler.end(embedding),
        last=filler.end(head),
        layout=np.array([widths.index(row.degrees.tp) for row, _ in strategies], dtype=np.intp),
        end_layout=np.array([widths.index(row.degrees.tp) for row in rows], dtype=np.intp),
        change_forward_seconds=np.array([[c[0] for c in line] for line in changes]),
        change_backward_seconds=np.array([[c[1] for c in line] for line in changes]),
        reserve_bytes=reserve_bytes(model.constants, 1) + boundary,
        stage_forward_seconds=tuple(factor * seconds for seconds in sends),
        stage_backward_seconds=tuple(factor * seconds for seconds in (0.0, *sends[:-1])),
        constant_seconds=tuple(overhead + tied_embedding_seconds(model, row) for row in rows),
        group=tuple(index for index in range(len(rows)) for _ in modes),
        shared_bytes=SharedBytes(model, tuple(rows), tuple(blocks), embedding, head),
    )


@dataclass(frozen=True)
class _Filler:
    """Numbers of one setting's rows."""

    model: CostModel
    rows: Sequence[CandidateRow]
    moved: dict[tuple[int, int], tuple[float, float, float]] = field(default_factory=dict)

    @cached_property
    def is_one_bucket(self) -> bool:
        """Whether all layers of any row fit one bucket, which nothing hides (``tail.exposed_tail``)."""
        stack, chain = self.model.stack, self.model.chain
        return all(
            sum(row.kinds[k].dense_parameters + row.kinds[k].expert_parameters for k in chain.layers)
            <= max(
                stack.bucket_parameters,
                stack.bucket_parameters_per_rank * row.degrees.dp * row.degrees.cp,
            )
            for row in self.rows
        )

    @cached_property
    def is_left_over(self) -> bool:
        """Whether reductions outlast one backward, all layers on the row that is fastest without memory."""
        chain, share = self.model.chain, 1.0 - self.model.constants.overlap_theft

        def whole(row: CandidateRow) -> float:
            return sum(
                row.kinds[kind].forward_seconds + row.kinds[kind].backward_seconds[0] for kind in chain.layers
            )

        row = min(self.rows, key=whole)
        kinds = [row.kinds[kind] for kind in chain.layers]
        transfer = sum(self.transfer(row, kind)[0] for kind in kinds)
        return share * transfer > share * sum(kind.backward_seconds[0] for kind in kinds)

    @property
    def slack(self) -> float:
        return 1.0 + self.model.constants.allocator_slack

    def layer(self, row: CandidateRow, kind: KindCost, mode: int) -> tuple[float, ...]:
        """The columns of ``LayerCosts``."""
        factor = self.model.straggler_factor
        reduce, update = self.tail(row, kind, mode)
        return (
            factor * kind.forward_seconds,
            factor * kind.backward_seconds[mode],
            reduce,
            kind.static_bytes,
            kind.saved_bytes[mode] * self.slack,
            kind.working_bytes[mode] * self.slack,
            update,
        )

    def end(self, position: int) -> EndCosts:
        """The costs of an embedding or head with every row."""
        columns = np.array([self.layer(row, row.kinds[position], 0) for row in self.rows])
        return EndCosts(*(columns[:, i] for i in (0, 1, 2, 3, 4, 6)))

    def tail(self, row: CandidateRow, kind: KindCost, mode: int) -> tuple[float, float]:
        """(reduction, update) of one layer: the least it adds to its rank's, gathers among the update.

        Both forms of the reduction are linear parts of ``collectives.exposed_seconds``.
        """
        model, stack, theft = self.model, self.model.stack, self.model.constants.overlap_theft
        reduce, gather, traffic = self.transfer(row, kind)
        if stack.hides_gradient_reduction:
            left = reduce - (1.0 - theft) * kind.backward_seconds[mode]
            reduce = reduce if self.is_one_bucket else left if self.is_left_over else theft * reduce
        if stack.hides_parameter_gather:
            gather *= theft
        optimizer = model.device.stream_seconds(traffic) * model.constants.optimizer_bytes_factor
        return reduce, float(optimizer) + gather

    def transfer(self, row: CandidateRow, kind: KindCost) -> tuple[float, float, float]:
        """(reduction seconds, gather seconds, bytes of the update) of one layer, latency aside."""
        key = (id(row), id(kind))
        if key not in self.moved:
            self.moved[key] = self._transfer(row, kind)
        return self.moved[key]

    def _transfer(self, row: CandidateRow, kind: KindCost) -> tuple[float, float, float]:
        model, stack = self.model, self.model.stack
        moments, has_pipeline = model.problem.workload.moment_bytes_per_parameter, row.degrees.pp > 1
        reduce = gather = traffic = 0.0
        for axis, elements in (("dp", kind.dense_parameters), ("expert_dp", kind.expert_parameters)):
            if elements:
                many = sync(stack, row.sharding, has_pipeline, row.groups, moments, axis, MANY)
                reduce += float(many.reduce) * elements / MANY
                gather += float(many.gather) * elements / MANY
                traffic += float(many.traffic) * elements / MANY
        return reduce + self.norm_seconds(row, kind), gather, traffic

    def norm_seconds(self, row: CandidateRow, kind: KindCost) -> float:
        """The transfer of one layer's norm weights among the others', once a step."""
        is_sequence = float(row.sequence_parallel and row.degrees.tp > 1)
        has_pipeline, hidden = row.degrees.pp > 1, row.hidden_size
        move = norm_move(
            self.model.stack, kind.norm_parameters, hidden, is_sequence, has_pipeline, is_step=True
        )
        own = float(move.count) * float(move.whole_bytes)
        if not own:
            return 0.0
        many = moves_seconds(row.groups, (replace(move, count=1.0, whole_bytes=MANY),))
        return float(many) * own / MANY

    def change(self, before: int, after: int) -> tuple[float, float]:
        """(forward, backward) seconds of a change between tensor degrees."""
        row, model = self.rows[0], self.model
        cp, factor = row.degrees.cp, model.straggler_factor
        found = layout_change(
            model.problem.cluster, model.constants, before * cp, after * cp, row.boundary_bytes
        )
        return factor * found.forward_seconds, factor * found.backward_seconds


@dataclass(frozen=True)
class SharedBytes:
    """What a stage needs once for all rows in use: the largest buffers, and process groups.

    Called with (stage, end row, bit mask of the rows of its layers).
    """

    model: CostModel
    rows: tuple[CandidateRow, ...]
    blocks: tuple[int, ...]
    embedding: int
    head: int
    known: dict[tuple[int, int, int], float] = field(default_factory=dict, compare=False)

    def __call__(self, stage: int, end: int, mask: int) -> float:
        """Bytes; a change of layout between the rows counts, one across a cut does not."""
        key = (stage, end, mask)
        if key not in self.known:
            self.known[key] = self._bytes(stage, end, mask)
        return self.known[key]

    def _bytes(self, stage: int, end: int, mask: int) -> float:
        constants, own = self.model.constants, self.rows[end]
        used = [row for index, row in enumerate(self.rows) if mask >> index & 1]
        kinds = [row.kinds[kind] for row in used for kind in self.blocks]
        if stage == 0:
            kinds.append(own.kinds[self.embedding])
        if stage == own.degrees.pp - 1:
            kinds.append(own.kinds[self.head])
        if stage in (0, own.degrees.pp - 1):
            used.append(own)
        transient = max((kind.transient_bytes for kind in kinds), default=0.0)
        # Whole blocks are gathered in every mode of recompute alike.
        gathered = max((min(kind.gathered_bytes) for kind in kinds), default=0.0)
        widths = {row.degrees.tp * row.degrees.cp for row in used}
        if len(widths) > 1:
            transient = max(transient, max(widths) * own.boundary_bytes)
        groups = set().union(*(communicators(degrees) for degrees in {row.degrees for row in used}))
        slack = 1.0 + constants.allocator_slack
        return (transient + gathered) * slack + len(groups) * constants.communicator_bytes
