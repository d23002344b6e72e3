"""What one rank sends and computes in an optimizer step: collectives with their bytes, and FLOP.

Both come from the code that prices seconds. Collectives are the moves behind the priced communication; FLOP
are the same layer formulas run on a device that counts instead of timing. A profiler, or PyTorch's own
dispatcher, can be compared with them one by one.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from planner.cost.arrays import Number
from planner.cost.compute import Device
from planner.cost.data_parallel import step_moves
from planner.cost.decision_rows import decision_candidates, decision_rows, layout_changes, rank_items
from planner.cost.gather_units import unit_shares
from planner.cost.groups import rank_groups
from planner.cost.layer import LayerPricer
from planner.cost.memory import Item
from planner.cost.model import CostModel
from planner.cost.part import Move
from planner.cost.row import CandidateRow
from planner.cost.sends import sent_bytes
from planner.model.chain import LayerKind
from planner.strategy.decision import (
    RECOMPUTE_FULL,
    RECOMPUTE_SELECTIVE,
    Decision,
    rank_of_stage,
    row_code,
    row_parts,
)


@dataclass(frozen=True)
class Collective:
    """``count`` collectives of one operation on one axis per step, ``whole_bytes`` in total.

    whole_bytes is the gathered side: the all-gather's output, the reduce-scatter's and the all-reduce's
    input, all that a rank holds in an all-to-all, the tensor itself for a send.
    """

    axis: str
    operation: str
    count: float
    whole_bytes: float


@dataclass(frozen=True)
class RankTraffic:
    """Collectives and FLOP of one rank in one optimizer step.

    matmul_flop: matrix products of forward and backward; attention_flop: the fused kernels' (a causal mask
    counts half, as in MFU; counters that ignore the mask see twice that); recomputed_*: done again.
    """

    collectives: tuple[Collective, ...]
    matmul_flop: float
    attention_flop: float
    recomputed_matmul_flop: float
    recomputed_attention_flop: float

    @property
    def flop(self) -> float:
        """All FLOP of the step, recomputation included."""
        model = self.matmul_flop + self.attention_flop
        return model + self.recomputed_matmul_flop + self.recomputed_attention_flop


@dataclass(frozen=True)
class CountingDevice(Device):
    """A device whose kernels take as many seconds as they have FLOP of the kind it counts.

    Everything else (memory traffic, launches, tile losses) is zero, so a formula written in seconds adds
    up FLOP.
    """

    counts_attention: bool = False

    def stream_seconds(self, num_bytes: Number) -> Number:
        return 0.0 * num_bytes

    def start_seconds(self) -> float:
        return 0.0

    def matmul_seconds(
        self,
        m: Number,
        n: Number,
        k: Number,
        batch: Number = 1.0,
        *,
        is_half: bool = False,
        casts: bool = True,
    ) -> Number:
        return (0.0 if self.counts_attention else 2.0) * m * n * k * batch

    def flash_seconds(self, flop: Number, num_bytes: Number, pieces: Number, *, backward: bool) -> Number:
        return (1.0 if self.counts_attention else 0.0) * flop


def rank_traffic(model: CostModel, decision: Decision, rank: int) -> RankTraffic:
    """Collectives and FLOP of pipeline rank ``rank`` under ``decision``."""
    rows = decision_rows(model, decision)
    items = [item for _, chunk in rank_items(model, decision, rank) for item in chunk]
    found = [
        *_layer_collectives(model, decision, rows, items),
        *_step_collectives(model, rows, items),
        *_sends(model, decision, next(iter(rows.values())), rank),
        *_changes(model, decision, next(iter(rows.values())), rank),
    ]
    matmul, again = _flop(model, decision, list(rows), items, counts_attention=False)
    attention, attention_again = _flop(model, decision, list(rows), items, counts_attention=True)
    sizes = [_group_sizes(row) for row in rows.values()]
    ranks = {axis: max(size[axis] for size in sizes) for axis in sizes[0]}
    found = [one for one in found if ranks[one.axis] > 1]
    return RankTraffic(_merged(found), matmul, attention, again, attention_again)


def _group_sizes(row: CandidateRow) -> dict[str, float]:
    """Ranks of the group behind every axis: one rank alone moves nothing."""
    g = row.groups
    sizes = {"tp": g.tp, "cp": g.cp, "ep": g.ep, "expert_tp": g.expert_tp}
    sizes |= {"dp": g.data, "dp_outer": g.data_outer}
    sizes |= {"expert_dp": g.expert_data, "expert_dp_outer": g.expert_data_outer}
    return {"pp": float(row.degrees.pp)} | {axis: float(group.size) for axis, group in sizes.items()}


def _pricers(
    model: CostModel, decision: Decision, codes: list[int], device: Device
) -> dict[int, LayerPricer]:
    """Pricers of cost rows, by code."""
    pricers = {}
    for code in codes:
        candidates = decision_candidates(decision, [code])
        groups = rank_groups(model.problem, model.constants, candidates)
        pricers[code] = LayerPricer(model.problem, device, model.stack, candidates, groups)
    return pricers


def _layer_collectives(
    model: CostModel, decision: Decision, rows: dict[int, CandidateRow], items: list[Item]
) -> Iterable[Collective]:
    """Collectives of every microbatch: inside the layers, and of their sharded weights."""
    pricers = _pricers(model, decision, _whole_codes(decision), model.device)
    for item in items:
        pricer, kind = pricers[row_code(item.sharding, tensor=item.tensor)], model.chain.kinds[item.kind]
        moves: tuple[Move, ...] = pricer.part(kind, pricer.setting(kind)).moved
        for move in moves:
            times = 1.0
            if item.mode and kind.role == "block":
                times += move.is_repeated[item.mode - RECOMPUTE_SELECTIVE]
            yield _collective(move, item.count * decision.microbatches * times)
        yield from _weight_collectives(model, pricer, kind, item, decision.microbatches)
        yield _collective(pricer.norm_move(kind, is_step=False), item.count * decision.microbatches)


def _weight_collectives(
    model: CostModel, pricer: LayerPricer, kind: LayerKind, item: Item, microbatches: int
) -> Iterable[Collective]:
    """Gathers and reductions of a layer's sharded weights, unit by unit. Recompute repeats none of them."""
    dense, expert = pricer.parameters(kind)
    for share in unit_shares(kind.block, model.problem.model.hidden_size, item.unit):
        forward, backward = pricer.data_moves(kind, dense * share, expert * share)
        for move in (*forward, *backward):
            yield _collective(move, item.count * microbatches)


def _whole_codes(decision: Decision) -> list[int]:
    """Cost rows in use as they are with whole blocks gathered, that of embedding and head first."""
    parts = map(row_parts, decision.row_codes())
    return list(dict.fromkeys(row_code(sharding, tensor=tensor) for sharding, _, tensor in parts))


def _step_collectives(
    model: CostModel, rows: dict[int, CandidateRow], items: list[Item]
) -> Iterable[Collective]:
    """Reductions and gathers once per step, layer by layer (stacks fuse them into buckets)."""
    for item in items:
        row = rows[item.key]
        kind, groups = row.kinds[item.kind], row.groups
        size_of = {
            "dp": groups.data.size,
            "expert_dp": groups.expert_data.size,
            "dp_outer": groups.data_outer.size,
            "expert_dp_outer": groups.expert_data_outer.size,
        }
        for axis, elements, size in (
            ("dp", kind.dense_parameters, groups.shard_size),
            ("expert_dp", kind.expert_parameters, groups.expert_shard_size),
        ):
            moves = step_moves(model.stack, row.sharding, row.degrees.pp > 1, axis, elements, size)
            for move in moves[0] + moves[1]:
                if size_of[move.axis] > 1:
                    yield _collective(move, item.count)
    for move in model.stage_model(rows).norm_moves(items):
        yield _collective(move, 1.0)


def _sends(model: CostModel, decision: Decision, row: CandidateRow, rank: int) -> Iterable[Collective]:
    """Hidden states sent forward, and their gradients sent back, by this rank; none where a V turns on it."""
    chunks, pp = decision.chunks, decision.degrees.pp
    ranks = [rank_of_stage(decision.schedule, stage, pp) for stage in range(len(chunks))]
    for stage in range(len(chunks)) if pp > 1 else ():
        for boundary in (stage, stage - 1) if ranks[stage] == rank else ():
            if 0 <= boundary < len(chunks) - 1 and ranks[boundary] != ranks[boundary + 1]:
                scale = model.chain.cut_scale(model.problem.model, chunks[boundary][1])
                total = decision.microbatches * sent_bytes(model, row) * scale
                yield Collective("pp", "send", decision.microbatches, total)


def _changes(model: CostModel, decision: Decision, row: CandidateRow, rank: int) -> Iterable[Collective]:
    """All-gathers of hidden states between layers of different tensor degrees, both ways."""
    for stage, change in enumerate(layout_changes(model, decision, row)):
        if rank_of_stage(decision.schedule, stage, decision.degrees.pp) == rank:
            for _, whole in change.gathers:
                yield Collective("tp", "all_gather", decision.microbatches, decision.microbatches * whole)


def _collective(move: Move, times: float) -> Collective:
    count = float(_number(move.count)) * times
    return Collective(move.axis, move.operation, count, count * float(_number(move.whole_bytes)))


def _number(value: Any) -> Any:
    """The single candidate's entry of an array, or the float itself."""
    return value[0] if hasattr(value, "__len__") else value


def _merged(found: list[Collective]) -> tuple[Collective, ...]:
    totals: dict[tuple[str, str], list[float]] = {}
    for one in found:
        if one.count and one.whole_bytes:
            total = totals.setdefault((one.axis, one.operation), [0.0, 0.0])
            total[0] += one.count
            total[1] += one.whole_bytes
    return tuple(Collective(*key, *total) for key, total in totals.items())


def _flop(
    model: CostModel, decision: Decision, codes: list[int], items: list[Item], *, counts_attention: bool
) -> tuple[float, float]:
    """(model, recomputed) FLOP of matrix products, or of attention kernels, in one step of the rank."""
    d = model.device
    device = CountingDevice(
        d.matmul_flop_per_s,
        d.half_flop_per_s,
        d.bytes_per_s,
        d.multiprocessors,
        d.is_fp8,
        d.constants,
        d.host,
        counts_attention=counts_attention,
    )
    pricers = _pricers(model, decision, codes[:1], device)
    pricer = pricers[codes[0]]
    total = repeated = 0.0
    for item in items:
        kind = model.chain.kinds[item.kind]
        part = pricer.part(kind, pricer.setting(kind))
        times = item.count * decision.microbatches
        total += times * float(_number(part.forward_compute + part.backward_compute))
        if kind.role != "block":
            continue
        if item.mode == RECOMPUTE_FULL:
            repeated += times * float(_number(part.forward_compute - part.spared_compute))
        elif item.mode == RECOMPUTE_SELECTIVE:
            repeated += times * float(_number(part.selective_recompute))
    return total, repeated
