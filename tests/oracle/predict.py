"""The planner's side of a case: the same rank priced on the torchtitan stack."""

from __future__ import annotations

from dataclasses import dataclass

from cases import SIZES, Case

from planner.cost.decision_rows import decision_rows, rank_items
from planner.cost.model import CostModel
from planner.cost.step import price
from planner.cost.traffic import rank_traffic
from planner.search.layout import balanced_chunks
from planner.strategy.decision import GATHER_UNITS, RECOMPUTES, SHARDINGS, Decision, Degrees

CAUSAL_HALF = 2.0  # the planner counts a causal mask's half of the scores, PyTorch's kernel is asked for all


@dataclass(frozen=True)
class Predicted:
    """The planner's figures for one rank; meanings as in ``measure.Measured``."""

    parameter_bytes: float
    gradient_bytes: float
    optimizer_bytes: float
    saved_bytes: float
    peak_bytes: float
    collectives: dict[tuple[str, str], tuple[float, float]]
    matmul_flop: float
    attention_flop: float
    moments: dict[str, float]


def chunk_of(case: Case) -> tuple[int, int]:
    """The blocks [first, end) of the case's rank."""
    return balanced_chunks(case.layers, case.pp)[case.rank]


def decision_of(case: Case) -> Decision:
    return Decision(
        degrees=Degrees(dp=case.dp, tp=case.tp, pp=case.pp),
        sequence_parallel=case.tp > 1,
        sharding=SHARDINGS.index(case.sharding),
        sharding_group=0,
        schedule="1f1b",
        virtual_stages=1,
        microbatch_size=case.microbatch_size,
        microbatches=case.microbatches,
        chunks=balanced_chunks(case.layers, case.pp),
        recompute=(RECOMPUTES.index(case.recompute),) * case.layers,
        layer_units=(GATHER_UNITS.index(case.unit),) * case.layers if case.unit != "block" else (),
    )


def cost_model(build, case: Case, constants) -> CostModel:
    sizes = SIZES[case.model]
    block = build.block(hidden=sizes.hidden, heads=sizes.heads, kv_heads=sizes.kv_heads, ffn=sizes.ffn)
    model = build.model(
        case.layers, {"block": block}, hidden=sizes.hidden, vocab=sizes.vocab, tied=sizes.tied
    )
    cluster = build.cluster(case.dp * case.tp * case.pp, build.profile(per_node=8, nodes=256))
    batch = case.dp * case.microbatch_size * case.microbatches
    return build.cost_model(
        model, cluster, sequence=case.sequence, batch=batch, constants=constants, stack="torchtitan"
    )


def predict(build, case: Case, constants) -> Predicted:
    """The rank's bytes, FLOP and collectives. ``constants`` without slack: tensors, not an allocator."""
    model, decision = cost_model(build, case, constants), decision_of(case)
    rows = decision_rows(model, decision)
    stages = model.stage_model(rows)
    items = [item for _, chunk in rank_items(model, decision, case.rank) for item in chunk]
    states = [(item.count, stages.kind(item).state_bytes) for item in items]
    block = next(item for item in items if stages.kind(item).role == "block")
    memory = price(model, decision).stages[case.rank].memory_bytes
    traffic = rank_traffic(model, decision, case.rank)
    static = [sum(count * state[i] for count, state in states) for i in range(3)]
    return Predicted(
        *static,
        saved_bytes=stages.kind(block).saved_bytes[block.mode],
        peak_bytes=memory["total"] - memory["reserve"],
        collectives={(c.axis, c.operation): (c.count, c.whole_bytes) for c in traffic.collectives},
        matmul_flop=traffic.matmul_flop + traffic.recomputed_matmul_flop,
        attention_flop=CAUSAL_HALF * (traffic.attention_flop + traffic.recomputed_attention_flop),
        moments={m.name: m.total - m.bytes["reserve"] for m in stages.moments(items)},
    )
