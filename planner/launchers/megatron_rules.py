"""The rules a plan must meet to run under Megatron-LM, beside those on the model's shape.

Megatron's own argument check accepts many plans that fail later (virtual stages that do not divide the
layers, expert groups larger than the stage, microbatches the interleaved schedule cannot deal out), so the
rules are stated here. Facts: Megatron-LM core 0.16.1 and 0.20.0 dev, training/arguments.py,
parallel_state.py, pipeline_parallel/schedules.py, transformer/transformer_config.py.
"""

from __future__ import annotations

import math
from itertools import pairwise

from planner.launchers.base import Break, Rule, interleaving_break, nearest_divisor
from planner.launchers.megatron_groups import data_ranks, expert_data_ranks, experts_of, islands
from planner.launchers.megatron_stages import recompute_setting
from planner.model.spec import Attention, MixtureOfExperts
from planner.plan_file.schema import Plan
from planner.strategy.decision import RANK_ORDER, rank_of_stage

OPTIMIZERS = ("adamw", "adam", "sgd-momentum")
OLD_GENERATIONS = ("volta", "turing")


def _world(plan: Plan) -> Break | None:
    d, gpus = plan.decision.degrees, plan.inputs.cluster.gpus
    product = d.tp * d.cp * d.pp * d.dp
    if product == gpus:
        return None
    return Break(
        f"tp {d.tp} x cp {d.cp} x pp {d.pp} x dp {d.dp} = {product} for {gpus} GPUs", f"{product} GPUs"
    )


def _batch(plan: Plan) -> Break | None:
    q, wanted = plan.decision, plan.inputs.workload.global_batch
    unit = q.degrees.dp * q.microbatch_size
    if unit * q.microbatches == q.global_batch == wanted:
        return None
    low = max(unit, wanted // unit * unit)
    return Break(
        f"dp {q.degrees.dp} x microbatch size {q.microbatch_size} x {q.microbatches} microbatches = "
        f"{unit * q.microbatches}, decision says {q.global_batch}, workload {wanted}",
        f"a global batch of {low} with {low // unit} microbatches",
    )


def _whole_nodes(plan: Plan) -> Break | None:
    cluster = plan.inputs.cluster
    group = cluster.profile.node_groups[0]
    if len(cluster.profile.node_groups) > 1:
        return Break(f"{len(cluster.profile.node_groups)} node groups", "one node group")
    per_node = min(group.devices_per_node, cluster.gpus)
    if cluster.gpus % per_node == 0:
        return None
    whole = cluster.gpus // per_node * per_node
    return Break(f"{cluster.gpus} GPUs in nodes of {per_node}", f"{whole} GPUs")


def _rank_order(plan: Plan) -> Break | None:
    order = plan.decision.rank_order
    return None if order == RANK_ORDER else Break(f"rank order {order}", RANK_ORDER)


def _heads(plan: Plan) -> Break | None:
    tp = plan.decision.degrees.tp
    for block in plan.inputs.model.block_kinds.values():
        heads = block.attention.num_heads
        kv = block.attention.num_kv_heads if isinstance(block.attention, Attention) else heads
        if heads % tp:
            return Break(f"{heads} heads over tp {tp}", f"tp {nearest_divisor(heads, tp)}")
        if kv % tp and tp % kv:
            return Break(
                f"{kv} key/value heads and tp {tp}", f"tp {nearest_divisor(math.gcd(heads, kv), tp)}"
            )
    return None


def _widths(plan: Plan) -> Break | None:
    d = plan.decision.degrees
    for block in plan.inputs.model.block_kinds.values():
        ff = block.feed_forward
        if isinstance(ff, MixtureOfExperts):
            pairs = [(ff.shared_ffn_size, d.tp, "tp"), (ff.expert_ffn_size, d.expert_tp, "expert_tp")]
        else:
            pairs = [(ff.ffn_size, d.tp, "tp")]
        for width, degree, name in pairs:
            if width and width % degree:
                return Break(
                    f"feed-forward width {width} over {name} {degree}",
                    f"{name} {nearest_divisor(width, degree)}",
                )
    return None


def _stages(plan: Plan) -> Break | None:
    q = plan.decision
    layers, count = plan.inputs.model.num_layers, q.degrees.pp * q.virtual_stages
    ends = [-1, *(stage.layers[1] for stage in q.stages)]
    follows = all(stage.layers[0] == end + 1 for stage, end in zip(q.stages, ends[:-1], strict=True))
    grows = all(after > before for before, after in pairwise(ends))
    placed = all(
        stage.rank == rank_of_stage(q.schedule, index, q.degrees.pp)
        and stage.has_embedding == (index == 0)
        and stage.has_head == (index == len(q.stages) - 1)
        for index, stage in enumerate(q.stages)
    )
    if len(q.stages) == count and follows and grows and placed and ends[-1] == layers - 1:
        return None
    spans = ", ".join(f"{s.layers[0]}-{s.layers[1]} on rank {s.rank}" for s in q.stages[:12])
    return Break(
        f"{len(q.stages)} virtual stages for pp {q.degrees.pp} x {q.virtual_stages}: {spans}; "
        f"{layers} layers",
        f"{count} stages that hold layers 0 to {layers - 1} once each, stage k on rank k % {q.degrees.pp}",
    )


def _schedule(plan: Plan) -> Break | None:
    q = plan.decision
    if q.schedule == "gpipe":
        return Break("schedule gpipe", "1f1b, which needs less memory for the same bubble")
    if q.schedule == "1f1b":
        if q.virtual_stages == 1:
            return None
        return Break(f"1f1b with {q.virtual_stages} virtual stages", "schedule interleaved")
    if q.schedule != "interleaved":
        return Break(f"schedule {q.schedule}", "schedule interleaved, or 1f1b without virtual stages")
    return interleaving_break(plan)


def _experts(plan: Plan) -> Break | None:
    ep = plan.decision.degrees.ep
    counts = sorted({moe.num_experts for moe in experts_of(plan)})
    if not counts:
        return None if ep == 1 else Break(f"ep {ep} and no experts", "ep 1")
    bad = [count for count in counts if count % ep]
    return Break(f"{bad[0]} experts over ep {ep}", f"ep {nearest_divisor(bad[0], ep)}") if bad else None


def _expert_ranks(plan: Plan) -> Break | None:
    d = plan.decision.degrees
    ranks, used = d.dp * d.cp * d.tp, d.ep * d.expert_tp
    if ranks % used == 0:
        return None
    return Break(
        f"ep {d.ep} x expert_tp {d.expert_tp} in a stage of {ranks} ranks",
        f"ep x expert_tp = {nearest_divisor(ranks, used)}",
    )


def _expert_sequence(plan: Plan) -> Break | None:
    q = plan.decision
    if not plan.inputs.model.is_moe or q.degrees.tp == 1 or q.sequence_parallel:
        return None
    return Break(f"experts with tp {q.degrees.tp} and no sequence parallelism", "sequence parallelism on")


def _sequence(plan: Plan) -> Break | None:
    q, sequence = plan.decision, plan.inputs.workload.sequence_length
    cp, tp = q.degrees.cp, q.degrees.tp
    unit = 2 * cp if cp > 1 else 1
    if q.sequence_parallel and tp > 1:
        unit = math.lcm(unit, cp * tp)
    if sequence % unit == 0:
        return None
    near = max(unit, sequence // unit * unit)
    return Break(f"sequence length {sequence}, cp {cp}, tp {tp}", f"a multiple of {unit}, such as {near}")


def _context_kernel(plan: Plan) -> Break | None:
    cp, kernel = plan.decision.degrees.cp, plan.inputs.workload.attention
    if cp == 1 or kernel == "flash":
        return None
    return Break(f"cp {cp} with {kernel} attention", "flash attention, or cp 1")


def _recompute(plan: Plan) -> Break | None:
    setting = recompute_setting(plan)
    return setting if isinstance(setting, Break) else None


def _layer_choices(plan: Plan) -> Break | None:
    q = plan.decision
    d = q.degrees
    want = (d.tp, d.cp, d.ep, d.dp, q.sharding, q.sequence_parallel)
    for stage in q.stages:
        for run in stage.layer_strategies:
            have = (run.tp, run.cp, run.ep, run.dp, run.sharding, run.sequence_parallel)
            if have != want:
                names = ("tp", "cp", "ep", "dp", "sharding", "sequence_parallel")
                differ = [n for n, h, w in zip(names, have, want, strict=True) if h != w]
                at = f"layers {run.layers[0]} to {run.layers[1]}"
                numbers = ", ".join(f"{n} {have[names.index(n)]}" for n in differ)
                nearest = ", ".join(f"{n} {want[names.index(n)]}" for n in differ)
                return Break(f"{at}: {numbers}", f"{nearest} on every layer")
    ends = q.ends
    if ends is not None and (ends.tp, ends.cp, ends.dp, ends.sharding) != (d.tp, d.cp, d.dp, q.sharding):
        return Break(
            f"embedding and head: tp {ends.tp}, cp {ends.cp}, dp {ends.dp}, sharding {ends.sharding}",
            f"tp {d.tp}, cp {d.cp}, dp {d.dp}, sharding {q.sharding} on them too",
        )
    return None


def _fsdp_pipeline(plan: Plan) -> Break | None:
    q = plan.decision
    if q.sharding not in ("gradients", "parameters") or q.degrees.pp == 1:
        return None
    return Break(f"sharding {q.sharding} with pp {q.degrees.pp}", "sharding optimizer, or pp 1")


def _instances(plan: Plan) -> Break | None:
    q = plan.decision
    if q.sharding == "none" or q.sharding_group == "global" or not plan.inputs.model.is_moe:
        return None
    if expert_data_ranks(plan) == 0:
        return None  # expert-ranks says it
    dense, expert = islands(plan)
    if dense == expert:
        return None
    return Break(
        f"the dense data group ({data_ranks(plan)} ranks) spans {dense} islands, the expert one "
        f"({expert_data_ranks(plan)} ranks) {expert}",
        "sharding over the whole data group",
    )


def _optimizer(plan: Plan) -> Break | None:
    name = plan.inputs.workload.optimizer
    return None if name in OPTIMIZERS else Break(f"optimizer {name}", "adamw")


def _gather_units(plan: Plan) -> Break | None:
    for stage in plan.decision.stages:
        for run in stage.layer_strategies:
            if run.gather_unit != "block":
                first, last = run.layers
                return Break(f"layers {first} to {last} gather by {run.gather_unit}", "gathers by block")
    return None


def _offload(plan: Plan) -> Break | None:
    q, workload = plan.decision, plan.inputs.workload
    if q.offload == "none":
        return None
    if q.sharding not in ("none", "optimizer"):
        return Break(f"sharding {q.sharding} (Megatron-FSDP)", "sharding optimizer")
    if workload.precision != "bf16" or workload.optimizer not in ("adamw", "adam"):
        return Break(f"{workload.precision} with {workload.optimizer}", "bf16 with adamw")
    return None


def _kernels(plan: Plan) -> Break | None:
    generation, workload = plan.inputs.cluster.device.generation, plan.inputs.workload
    if generation not in OLD_GENERATIONS:
        return None
    if workload.attention == "flash":
        return Break(f"flash attention on a {generation} GPU", "unfused attention, or an ampere GPU")
    if plan.inputs.model.is_moe:
        return Break(f"grouped expert products on a {generation} GPU", "an ampere GPU")
    return None


PARALLEL_RULES: tuple[Rule, ...] = (
    Rule("world-identity", "tp * cp * pp * dp is the number of GPUs", _world),
    Rule("batch-identity", "dp * microbatch size * microbatches is the global batch", _batch),
    Rule("whole-nodes", "one kind of node, every node used whole", _whole_nodes),
    Rule("rank-order", "tp fastest, then cp, dp, pp (Megatron's tp-cp-ep-dp-pp)", _rank_order),
    Rule("heads-by-tp", "tp divides the heads, and divides or is a multiple of the key/value heads", _heads),
    Rule("ffn-by-tp", "tp divides feed-forward widths, expert_tp those of experts", _widths),
    Rule("stages-cover-layers", "pp * virtual stages hold every layer once, in order", _stages),
    Rule(
        "schedule",
        "1F1B, or interleaved with pp > 1, virtual stages > 1 and microbatches a multiple of pp",
        _schedule,
    ),
    Rule("experts-by-ep", "ep divides the experts and is 1 without them", _experts),
    Rule("expert-ranks", "ep * expert_tp divides the dp * cp * tp ranks of a stage", _expert_ranks),
    Rule("experts-need-sequence-parallel", "experts with tp > 1 need --sequence-parallel", _expert_sequence),
    Rule("sequence-by-cp", "2 cp, and with sequence parallelism cp tp, divide the sequence", _sequence),
    Rule("context-parallel-kernel", "context parallelism needs a fused attention kernel", _context_kernel),
    Rule(
        "recompute",
        "one mode for all layers, or full on the first N layers of every virtual stage",
        _recompute,
    ),
    Rule("layer-choices", "degrees and sharding are the same for every layer", _layer_choices),
    Rule(
        "fsdp-pipeline",
        "sharded gradients or parameters (Megatron-FSDP) are exported without a pipeline only",
        _fsdp_pipeline,
    ),
    Rule(
        "optimizer-instances",
        "one --num-distributed-optimizer-instances serves dense layers and experts",
        _instances,
    ),
    Rule("optimizer", "optimizers with the plan's state: " + ", ".join(OPTIMIZERS), _optimizer),
    Rule("gather-units", "sharded weights are gathered a block at a time", _gather_units),
    Rule("offload", "an optimizer on the host is bf16 Adam under the distributed optimizer", _offload),
    Rule("kernels", "fused attention and grouped products need compute capability 8.0", _kernels),
)
