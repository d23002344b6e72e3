"""The rules a plan must meet to run under torchtitan, with reasons, and the ones the search must know.

Facts: torchtitan 0.3.0 and main of August 2026: trainer.py, models/common/{decoder,moe_sharding}.py,
distributed/{fsdp,parallel_dims,pipeline_parallel}.py; torch 2.13 distributed/pipelining/stage.py.

The data axis is FSDP2 in every mode. Without a pipeline it reduces after every microbatch (never: gradients;
always: parameters). Under a pipeline it keeps weights and whole gradients until the last microbatch and
reduces once: that is sharding of the optimizer state, whatever the setting says.
"""

from __future__ import annotations

from planner.launchers.base import Break, Rule, nearest_divisor
from planner.launchers.megatron_groups import data_ranks, islands
from planner.launchers.torch_rules import HEADS, NO_OFFLOAD, PRECISION, RANKS, SCHEDULES, TIED, shared
from planner.launchers.torchtitan_models import FLAVORS, LONGEST, flavor_of, shape_of
from planner.plan_file.schema import Plan
from planner.strategy.candidates import BoolArray, Candidates, Problem
from planner.strategy.decision import (
    GROUP_ISLAND,
    SHARDING_NONE,
    SHARDING_OPTIMIZER,
)
from planner.strategy.rules import Rule as SearchRule

SHARDING_STATEMENT = (
    "optimizer state is sharded under a pipeline, gradients or parameters without one; cp ranks always shard"
)


def data_mesh(plan: Plan) -> tuple[int, int]:
    """(dp_replicate, dp_shard) for an expressible plan; the shard group spans dp_shard x cp ranks."""
    d, q = plan.decision.degrees, plan.decision
    if q.sharding == "none":
        return d.dp, 1
    if q.sharding_group == "global":
        return 1, d.dp
    outer = islands(plan)[0]
    return outer, max(1, d.dp // outer)


def _shipped(plan: Plan) -> Break | None:
    model = plan.inputs.model
    if flavor_of(model) is not None:
        return None
    names = ", ".join(f"{flavor.module} {flavor.flavor}" for flavor in FLAVORS)
    shape = shape_of(model)
    at = f"{model.name}: {model.num_layers} layers of {model.hidden_size}, vocabulary {model.vocab_size}"
    return Break(at if shape else f"{model.name}: not a decoder of their kind", names)


def _length(plan: Plan) -> Break | None:
    flavor, length = flavor_of(plan.inputs.model), plan.inputs.workload.sequence_length
    if flavor is None or length <= LONGEST[flavor.module]:
        return None
    most = LONGEST[flavor.module]
    return Break(f"sequence length {length}, {flavor.module} reaches {most}", f"sequence length {most}")


def _sharding(plan: Plan) -> Break | None:
    q, pp = plan.decision, plan.decision.degrees.pp
    ranks = data_ranks(plan)
    if q.sharding == "none":
        cp = q.degrees.cp
        return None if cp == 1 else Break(f"sharding none with cp {cp}", "cp 1, or sharded weights")
    if ranks == 1:  # torchtitan applies FSDP2 only to a data group, whatever the experts' group is
        return Break(f"sharding {q.sharding} over one data rank", "sharding none, or more data ranks")
    if (q.sharding == "optimizer") == (pp > 1):
        return None
    nearest = "sharding optimizer, or pp 1" if pp > 1 else "sharding gradients, or pp above 1"
    return Break(f"sharding {q.sharding} over {ranks} ranks with pp {pp}", nearest)


def _island(plan: Plan) -> Break | None:
    q, dp = plan.decision, plan.decision.degrees.dp
    if q.sharding == "none" or q.sharding_group == "global":
        return None
    outer = islands(plan)[0]
    if dp % outer == 0:
        return None
    return Break(
        f"{data_ranks(plan)} data ranks over {outer} islands with dp {dp}", "sharding over all data ranks"
    )


def _experts(plan: Plan) -> Break | None:
    d = plan.decision.degrees
    ranks = data_mesh(plan)[1] * d.cp * d.tp
    if not plan.inputs.model.is_moe or ranks % d.ep == 0:
        return None
    return Break(f"ep {d.ep} inside {ranks} ranks (dp_shard x cp x tp)", f"ep {nearest_divisor(ranks, d.ep)}")


def _expert_tp(plan: Plan) -> Break | None:
    d = plan.decision.degrees
    wanted = d.tp if d.ep == 1 else 1
    if not plan.inputs.model.is_moe or d.expert_tp == wanted:
        return None
    return Break(f"expert_tp {d.expert_tp} with ep {d.ep} and tp {d.tp}", f"expert_tp {wanted}")


def _expert_sequence(plan: Plan) -> Break | None:
    q = plan.decision
    if not plan.inputs.model.is_moe or q.degrees.tp == 1 or q.sequence_parallel:
        return None
    return Break(f"experts with tp {q.degrees.tp} and no sequence parallelism", "sequence parallelism on")


def sequence_unit(tp: int, cp: int, is_split: bool) -> int:
    """What must divide the sequence: tp when it is split over tp, times 2 cp with context parallelism."""
    return (tp if is_split else 1) * (2 * cp if cp > 1 else 1)


def _sequence(plan: Plan) -> Break | None:
    q, length = plan.decision, plan.inputs.workload.sequence_length
    unit = sequence_unit(q.degrees.tp, q.degrees.cp, q.sequence_parallel)
    if length % unit == 0:
        return None
    near = max(unit, length // unit * unit)
    return Break(
        f"sequence length {length}, tp {q.degrees.tp}, cp {q.degrees.cp}", f"a multiple, such as {near}"
    )


def _recompute(plan: Plan) -> Break | None:
    modes = sorted({run.recompute for stage in plan.decision.stages for run in stage.layer_strategies})
    return None if len(modes) == 1 else Break(f"modes {', '.join(modes)}", "one mode for all layers")


def _optimizer(plan: Plan) -> Break | None:
    name = plan.inputs.workload.optimizer
    return None if name == "adamw" else Break(f"optimizer {name}", "adamw")


def _attention(plan: Plan) -> Break | None:
    kernel = plan.inputs.workload.attention
    return None if kernel == "flash" else Break(f"{kernel} attention", "flash attention")


TORCHTITAN_RULES: tuple[Rule, ...] = (
    Rule("shipped-model", "the model has the shape of one torchtitan ships", _shipped),
    Rule("sequence-length", "the sequence fits torchtitan's rotary tables", _length),
    *shared("world-identity", "batch-identity", "whole-nodes", "ffn-by-tp"),
    *shared("stages-cover-layers", "experts-by-ep", "layer-choices", "kernels"),
    RANKS,
    HEADS,
    SCHEDULES,
    TIED,
    PRECISION,
    NO_OFFLOAD,
    *shared("gather-units"),
    Rule("sequence-by-mesh", "tp (with sequence parallelism) x 2 cp divides the sequence", _sequence),
    Rule(
        "sharding-mode",
        SHARDING_STATEMENT,
        _sharding,
    ),
    Rule("island-mesh", "an island's shard group is dp_shard x cp ranks", _island),
    Rule("expert-ranks", "ep divides dp_shard x cp x tp", _experts),
    Rule("expert-tp", "experts are split over tp without ep, over ep alone with it", _expert_tp),
    Rule("experts-need-sequence-parallel", "experts with tp > 1 need sequence parallelism", _expert_sequence),
    Rule("recompute", "one activation checkpointing policy serves the whole model", _recompute),
    Rule("optimizer", "the exported optimizer is AdamW", _optimizer),
    Rule("attention-kernel", "attention is a fused kernel (FlexAttention)", _attention),
)


def _sharding_holds(c: Candidates, p: Problem) -> BoolArray:
    is_optimizer = c.sharding == SHARDING_OPTIMIZER
    result: BoolArray = ((c.sharding == SHARDING_NONE) & (c.cp == 1)) | (
        (c.sharding != SHARDING_NONE) & (is_optimizer == (c.pp > 1)) & (c.data_ranks() > 1)
    )
    return result


def _shards(c: Candidates, p: Problem) -> BoolArray:
    """Whether cp divides the island's shard group, where there is one."""
    result: BoolArray = (c.sharding_group != GROUP_ISLAND) | (c.island_shard_size(p.cluster) % c.cp == 0)
    return result


def _experts_hold(c: Candidates, p: Problem) -> BoolArray:
    inner = c.island_shard_size(p.cluster)
    shards = (c.sharding_group == GROUP_ISLAND) * inner + (c.sharding_group != GROUP_ISLAND) * c.dp * c.cp
    ranks = c.tp * ((c.sharding == SHARDING_NONE) * 1 + (c.sharding != SHARDING_NONE) * shards)
    is_wanted = c.expert_tp == (c.ep == 1) * c.tp + (c.ep > 1)
    result: BoolArray = (not p.model.is_moe) | ((ranks % c.ep == 0) & is_wanted)
    return result


def _sequence_holds(c: Candidates, p: Problem) -> BoolArray:
    split = c.sequence_parallel * (c.tp - 1) + 1
    whole = split * (2 * c.cp * (c.cp > 1) + (c.cp == 1))
    result: BoolArray = p.workload.sequence_length % whole == 0
    return result


def _numbers(c: Candidates, p: Problem) -> str:
    names = ("tp", "cp", "pp", "dp", "ep", "expert_tp")
    return ", ".join(f"{name} {int(getattr(c, name)[0])}" for name in names)


SEARCH_RULES: tuple[SearchRule, ...] = (
    SearchRule("torchtitan-sharding", SHARDING_STATEMENT, "sharding", _sharding_holds, _numbers),
    SearchRule(
        "torchtitan-island", "an island's shard group is dp_shard x cp ranks", "cp", _shards, _numbers
    ),
    SearchRule(
        "torchtitan-experts",
        "ep divides dp_shard x cp x tp; experts are split over tp only without ep",
        "ep",
        _experts_hold,
        _numbers,
    ),
    SearchRule(
        "torchtitan-sequence",
        "tp (with sequence parallelism) x 2 cp divides the sequence",
        "cp",
        _sequence_holds,
        _numbers,
    ),
)
