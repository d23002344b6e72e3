"""The rules a plan must meet to run under Hetu-Galvatron, with reasons, and those the search needs.

Facts: Hetu-Galvatron of June 2026, galvatron/core/runtime/: hybrid_parallel_config.py (lists, batch),
parallel.py (FSDP per layer), transformer/attention.py (key/value heads by tp), models/builder.py (blocks).
"""

from __future__ import annotations

from dataclasses import replace

from planner.launchers.base import Break
from planner.launchers.base import Rule as PlanRule
from planner.launchers.config_rules import (
    ADAM,
    CAUSAL_SPLIT,
    HALF_PRECISION,
    NO_INTERLEAVING,
    ONE_CHUNK,
    recomputes,
    shardings,
)
from planner.launchers.megatron_model import blocks_in_order
from planner.launchers.megatron_model_rules import MODEL_RULES
from planner.launchers.torch_rules import HEADS, NO_OFFLOAD, RANKS, shared
from planner.model.spec import Attention, MixtureOfExperts
from planner.plan_file.schema import Plan
from planner.strategy.rules import Rule

DP_TYPES = {"none": "ddp", "gradients": "zero2", "parameters": "zero3"}
_MODEL = {rule.name: rule for rule in MODEL_RULES}


def used_shardings(plan: Plan) -> set[str]:
    """Shardings of layers with ranks to shard over; a layer alone on its weights follows any of them."""
    if plan.inputs.profile is None:
        return {plan.decision.sharding, *shardings(plan)}
    runs = [run for stage in plan.decision.stages for run in stage.layer_strategies]
    ends = plan.decision.ends
    alone = {ends.sharding} if ends is not None and ends.dp * ends.cp > 1 else set()
    return {run.sharding for run in runs if run.dp * run.cp > 1} | alone or {"none"}


def base_dp_type(plan: Plan) -> str:
    """default_dp_type: what layers have that do not ask for zero3. Raises ValueError when there is no one."""
    used = used_shardings(plan)
    rest = used - {"parameters"}
    if len(rest) > 1 or "optimizer" in used:
        raise ValueError(f"no default_dp_type for shardings {sorted(used)}")
    return DP_TYPES[rest.pop()] if rest else "zero3"


def _sharding(plan: Plan) -> Break | None:
    used = sorted(used_shardings(plan))
    if "optimizer" in used:
        return Break("sharding optimizer", "sharding gradients (zero2)")
    if "none" in used and "gradients" in used:
        return Break("layers with sharding none beside layers with gradients", "gradients on all of them")
    return None


def _recompute(plan: Plan) -> Break | None:
    count = recomputes(plan).count("selective")
    return Break(f"{count} layers selective", "none or full, layer by layer") if count else None


def _degrees(plan: Plan) -> Break | None:
    if plan.inputs.profile is not None:  # its layers state their own degrees, which the JSON can hold
        return None
    d = plan.decision.degrees
    want = (d.tp, d.cp, d.ep, d.dp, plan.decision.sequence_parallel)
    for stage in plan.decision.stages:
        for run in stage.layer_strategies:
            if (run.tp, run.cp, run.ep, run.dp, run.sequence_parallel) != want:
                return Break(
                    f"layers {run.layers[0]} to {run.layers[1]}: tp {run.tp}, cp {run.cp}, ep {run.ep}, "
                    f"dp {run.dp}",
                    f"tp {d.tp}, cp {d.cp}, ep {d.ep}, dp {d.dp} on every layer",
                )
    return None


def _power_of_two(plan: Plan) -> Break | None:
    runs = [run for stage in plan.decision.stages for run in stage.layer_strategies]
    for tp in {plan.decision.degrees.tp, *(run.tp for run in runs)}:
        if tp & (tp - 1):
            return Break(f"tp {tp}", f"tp {1 << (tp.bit_length() - 1)}")
    return None


def _sequence_parallel(plan: Plan) -> Break | None:
    q = plan.decision
    if q.degrees.tp == 1 or q.sequence_parallel:
        return None
    return Break(f"tp {q.degrees.tp} without sequence parallelism", "sequence parallelism on")


def _island(plan: Plan) -> Break | None:
    q = plan.decision
    if q.sharding == "none" or q.sharding_group == "global":
        return None
    return Break("sharding inside an island", "sharding over the whole data group")


def _blocks(plan: Plan) -> Break | None:
    """GalvatronDecoderLayer and GalvatronMoE*: plain or grouped attention, all dense or all experts."""
    blocks = blocks_in_order(plan.inputs.model)
    kinds = {block.feed_forward.kind for block in blocks}
    if len(kinds) > 1:
        return Break("dense blocks beside blocks with experts", "one kind of block")
    for block in blocks:
        attention, ff = block.attention, block.feed_forward
        found = []
        if not isinstance(attention, Attention):
            found.append("latent attention")
        else:
            found += ["attention sinks"] * attention.sinks
            if attention.window is not None and attention.window < plan.inputs.workload.sequence_length:
                found.append(f"a window of {attention.window} tokens")
        if isinstance(ff, MixtureOfExperts):
            found += ["shared experts"] * bool(ff.shared_ffn_size) + ["a router bias"] * ff.router_bias
            found += ["expert biases"] * ff.bias
        if found:
            return Break(", ".join(found), "causal attention over all tokens, experts without extras")
    return None


def _renamed(name: str, statement: str) -> PlanRule:
    return replace(_MODEL[name], statement=statement)


POWER_OF_TWO = PlanRule("tp-power-of-two", "tp is a power of two", _power_of_two)
POWER_OF_TWO_SEARCH = Rule(
    "tp-power-of-two",
    POWER_OF_TWO.statement,
    "tp",
    lambda c, p: (c.tp & (c.tp - 1)) == 0,
    lambda c, p: f"tp {int(c.tp[0])}",
)
GALVATRON_RULES: tuple[PlanRule, ...] = (
    _renamed("model-kind", "Galvatron trains a causal decoder with a token table and a language-model head"),
    _MODEL["block-order"],
    _MODEL["model-ends"],
    _MODEL["positions"],
    _renamed("activation", "GELU or SwiGLU"),
    _MODEL["equal-blocks"],
    _renamed("biases", "biases on all linear layers, on none, or on queries, keys and values only"),
    PlanRule("blocks", "plain or grouped attention, and dense layers or plain experts throughout", _blocks),
    *shared("world-identity", "batch-identity", "whole-nodes"),
    RANKS,
    POWER_OF_TWO,
    HEADS,
    *shared("ffn-by-tp", "stages-cover-layers"),
    ONE_CHUNK,
    NO_INTERLEAVING,
    *shared("experts-by-ep", "expert-ranks"),
    PlanRule("sequence-parallel", "tensor parallelism always splits the sequence too", _sequence_parallel),
    *shared("sequence-by-cp", "context-parallel-kernel"),
    CAUSAL_SPLIT,
    PlanRule("recompute", "each layer keeps everything or is recomputed whole", _recompute),
    PlanRule("layer-degrees", "degrees are the same for every layer of this planner's plans", _degrees),
    PlanRule("sharding", "one of ddp and zero2, and zero3 for any layer beside it", _sharding),
    PlanRule("island-sharding", "sharding spans the whole data group", _island),
    HALF_PRECISION,
    ADAM,
    NO_OFFLOAD,
    *shared("gather-units"),
    *shared("kernels"),
)
