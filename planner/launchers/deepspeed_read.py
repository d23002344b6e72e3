"""Read a ds_config.json back: what DeepSpeed derives from it, worked out the way it does.

DeepSpeed itself accepts unknown sections (a misspelt zero_optimization trains without sharding) and an
hpZ partition that fits nothing, so both are refused here. Facts: deepspeed/runtime/config.py (batch
parameters, removed keys), deepspeed/utils/groups.py (groups).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypedDict

from planner.errors import InputError, nearest_names

SHARDINGS = ("none", "optimizer", "gradients", "parameters")
REMOVED = ("mics_shard_size", "mics_hierarchical_params_gather", "zeropp_loco_param")
# Top-level sections of DeepSpeed 0.18 and 0.19; those removed in 0.19 are not among them.
SECTIONS = (
    "activation_checkpointing aio autotuning bf16 bfloat16 checkpoint comms_logger "
    "communication_data_type compile csv_monitor data_efficiency data_types dataloader_drop_last "
    "disable_allgather disable_python_gc dump_state expert_parallel flops_profiler fp16 "
    "gradient_accumulation_steps gradient_allreduce_op gradient_clipping gradient_predivide_factor "
    "hybrid_engine managed_gradient_accumulation memory_breakdown optimizer pipeline "
    "prescale_gradients scheduler seq_parallel_communication_data_type sequence_parallel_size "
    "steps_per_print tensor_parallel tensorboard timers torch_autocast train_batch_size "
    "train_micro_batch_size_per_gpu use_data_before_expert_parallelism use_node_local_storage "
    "wall_clock_breakdown wandb weight_quantization zero_allow_untested_optimizer "
    "zero_force_ds_cpu_optimizer zero_optimization"
)
KNOWN = frozenset(SECTIONS.split())


class DeepSpeedDerived(TypedDict):
    """What DeepSpeed makes of the file on ``world_size`` ranks.

    dp: data ranks, world / tp. global_batch: sequences a step, microbatch_size * accumulation * dp.
    shard_ranks: ranks the parameters are gathered from in the backward pass (the hpZ partition, else dp
    with stage 3, else 1).
    """

    world_size: int
    tp: int
    dp: int
    microbatch_size: int
    accumulation: int
    global_batch: int
    sharding: str
    sharding_group: str
    shard_ranks: int
    recompute: str
    precision: str
    optimizer: str


def read_deepspeed(config: Mapping[str, Any], world_size: int) -> DeepSpeedDerived:
    """What the file trains. Raises InputError for what DeepSpeed refuses, and for what it passes over."""
    _known_keys(config)
    tp = _int(_section(config, "tensor_parallel"), "tensor_parallel", "autotp_size", 1) or 1
    if world_size % tp:
        raise InputError(f"{world_size} ranks are not a multiple of tensor_parallel.autotp_size {tp}")
    if _int(config, "", "sequence_parallel_size", 1) != 1:
        raise InputError("sequence_parallel_size (Ulysses) has no counterpart in a plan", allowed=[1])
    size, accumulation = _batch(config, world_size)
    dp = world_size // tp
    zero = _section(config, "zero_optimization")
    stage, partition = _zero(zero, dp, tp)
    return DeepSpeedDerived(
        world_size=world_size,
        tp=tp,
        dp=dp,
        microbatch_size=size,
        accumulation=accumulation,
        global_batch=size * accumulation * dp,
        sharding=SHARDINGS[stage],
        sharding_group="island" if partition > 1 else "global",
        shard_ranks=partition if partition > 1 else dp if stage == 3 else 1,
        recompute="full" if "activation_checkpointing" in config else "none",
        precision=_precision(config),
        optimizer=_optimizer(config),
    )


def _known_keys(config: Mapping[str, Any]) -> None:
    for key in config:
        if key not in KNOWN:
            near = nearest_names(key, KNOWN)
            raise InputError(
                f"unknown section {key!r}: DeepSpeed ignores or refuses it",
                pointer=f"/{key}",
                allowed=near,
                hint=f"nearest: {', '.join(near)}" if near else "",
            )


def _section(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    section = config.get(name, {})
    if not isinstance(section, Mapping):
        raise InputError(f"{name} must be an object, not {section!r}", pointer=f"/{name}")
    return section


def _int(section: Mapping[str, Any], where: str, key: str, default: int | None) -> int | None:
    value = section.get(key, default)
    pointer = f"/{where}/{key}" if where else f"/{key}"
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
        raise InputError(f"must be a whole number, not {value!r}", pointer=pointer)
    return value


def _batch(config: Mapping[str, Any], ranks: int) -> tuple[int, int]:
    """(microbatch size, accumulation), completed from any of the three numbers over all ``ranks``."""
    total = _int(config, "", "train_batch_size", None)
    size = _int(config, "", "train_micro_batch_size_per_gpu", None)
    steps = _int(config, "", "gradient_accumulation_steps", None)
    if total is None and size is None:
        raise InputError(
            "neither train_batch_size nor train_micro_batch_size_per_gpu is given",
            hint="give train_micro_batch_size_per_gpu and gradient_accumulation_steps",
        )
    if size is None and total is not None:
        steps = steps or 1
        size = total // ranks // steps
    elif steps is None and size:
        steps = 1 if total is None else total // size // ranks
    size, steps = size or 0, steps or 0
    if min(size, steps) < 1 or (total is not None and total != size * steps * ranks):
        raise InputError(
            f"train_batch_size {total} is not micro batch {size} x accumulation {steps} x {ranks} ranks "
            "(DeepSpeed counts tp ranks too)",
            pointer="/train_batch_size",
            hint=f"use {max(1, size) * max(1, steps) * ranks}, or leave it out",
        )
    return size, steps


def _zero(zero: Mapping[str, Any], dp: int, tp: int) -> tuple[int, int]:
    """(stage, hpZ partition; 1 when there is none)."""
    for key in REMOVED:
        if key in zero:
            raise InputError(
                f"{key} was removed from DeepSpeed 0.19",
                pointer=f"/zero_optimization/{key}",
                hint="use zero_hpz_partition_size with stage 3",
            )
    stage = _int(zero, "zero_optimization", "stage", 0) or 0
    if stage > 3:
        raise InputError(
            f"stage {stage}", pointer="/zero_optimization/stage", allowed=[0, 1, 2, 3], hint="use stage 3"
        )
    partition = _int(zero, "zero_optimization", "zero_hpz_partition_size", 1) or 1
    if partition > 1 and (stage != 3 or tp > 1 or dp % partition):
        raise InputError(
            f"zero_hpz_partition_size {partition} with stage {stage}, tp {tp} and {dp} data ranks: it needs "
            "stage 3, tp 1 and a divisor of the data ranks",
            pointer="/zero_optimization/zero_hpz_partition_size",
            allowed=[d for d in range(1, dp + 1) if dp % d == 0] if stage == 3 and tp == 1 else [1],
        )
    return stage, partition


def _precision(config: Mapping[str, Any]) -> str:
    bf16 = _section(config, "bf16") or _section(config, "bfloat16")
    found = [
        name
        for name, section in (("bf16", bf16), ("fp16", _section(config, "fp16")))
        if section.get("enabled", False)
    ]
    if len(found) > 1:
        raise InputError("bf16 and fp16 are both enabled", pointer="/fp16/enabled", hint="enable one")
    return found[0] if found else "fp32"


def _optimizer(config: Mapping[str, Any]) -> str:
    """adamw, adam, another name in lower case, or "script" when the training script makes it."""
    section = _section(config, "optimizer")
    name = str(section.get("type", "script")).lower()
    decouples = _section(section, "params").get("adam_w_mode", True)
    return "adamw" if name == "adam" and decouples else name
