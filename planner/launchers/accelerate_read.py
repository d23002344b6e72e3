"""Read accelerate.yaml and training_args.json back: what Accelerate derives from them.

Accelerate itself passes over unknown keys inside fsdp_config and parallelism_config (``tpp_size`` trains
without tensor parallelism), and compares the mesh with the processes only when training starts; both are
refused here. Facts: Accelerate 1.15, commands/config/config_args.py, parallelism_config.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, TypedDict

from planner.errors import InputError, nearest_names

AXES = ("dp_replicate", "dp_shard", "tp", "cp", "sp")
SIZES = {axis: f"parallelism_config_{axis}_size" for axis in AXES}
MESH_KEYS = (
    *SIZES.values(),
    *(f"parallelism_config_{name}" for name in ("cp_backend", "cp_comm_strategy", "sp_backend")),
    *(f"parallelism_config_sp_{name}" for name in ("seq_length", "seq_length_is_variable")),
    "parallelism_config_sp_attn_implementation",
)
_FSDP_NAMES = (
    "activation_checkpointing_offload "
    "version reshard_after_forward auto_wrap_policy transformer_layer_cls_to_wrap min_num_params "
    "activation_checkpointing offload_params state_dict_type cpu_ram_efficient_loading ignored_modules "
    "backward_prefetch forward_prefetch sharding_strategy sync_module_states use_orig_params"
)
_TOP_NAMES = (
    "compute_environment distributed_type mixed_precision num_machines num_processes machine_rank "
    "rdzv_backend same_network main_training_function use_cpu debug fsdp_config parallelism_config "
    "main_process_ip main_process_port gpu_ids downcast_bf16 enable_cpu_affinity dynamo_config "
    "deepspeed_config megatron_lm_config mpirun_config fp8_config command_file commands tpu_env tpu_name "
    "tpu_use_cluster tpu_use_sudo tpu_vm tpu_zone"
)
FSDP_KEYS = tuple(f"fsdp_{name}" for name in _FSDP_NAMES.split())
TOP_KEYS = tuple(_TOP_NAMES.split())


class AccelerateDerived(TypedDict):
    """What Accelerate makes of the files.

    dp: data ranks that read different sequences, dp_replicate * dp_shard. shard_ranks: dp_shard * cp, 1
    without sharding. global_batch: microbatch_size * accumulation * dp.
    """

    world_size: int
    dp: int
    dp_replicate: int
    dp_shard: int
    tp: int
    cp: int
    shard_ranks: int
    microbatch_size: int
    accumulation: int
    global_batch: int
    sharding: str
    sharding_group: str
    recompute: str
    precision: str


def read_accelerate(config: Mapping[str, Any], training: Mapping[str, Any]) -> AccelerateDerived:
    """What the two files train. Raises InputError for contradictions and for keys that are passed over."""
    _known(config, TOP_KEYS, "")
    world = _size(config, "num_processes", "")
    machines = _size(config, "num_machines", "", 1)
    if world % machines:
        raise InputError(
            f"num_processes {world} (of all machines) over {machines} machines leaves a remainder"
        )
    kind = config.get("distributed_type")
    if kind not in ("FSDP", "MULTI_GPU", "NO"):
        raise InputError(f"distributed_type {kind!r}", allowed=["FSDP", "MULTI_GPU", "NO"])
    if kind == "NO" and world > 1:
        raise InputError(f"distributed_type NO with {world} processes", hint="use MULTI_GPU or FSDP")
    sizes = _mesh(config, kind == "FSDP", world)
    fsdp = _section(config, "fsdp_config") if kind == "FSDP" else {}
    sharding = _fsdp(fsdp) if kind == "FSDP" else "none"
    size = _size(training, "per_device_train_batch_size", "")
    steps = _size(training, "gradient_accumulation_steps", "", 1)
    dp = sizes["dp_replicate"] * sizes["dp_shard"]
    is_full = bool(fsdp.get("fsdp_activation_checkpointing", False) or training.get("gradient_checkpointing"))
    return AccelerateDerived(
        world_size=world,
        dp=dp,
        dp_replicate=sizes["dp_replicate"],
        dp_shard=sizes["dp_shard"],
        tp=sizes["tp"],
        cp=sizes["cp"],
        shard_ranks=sizes["dp_shard"] * sizes["cp"] if sharding != "none" else 1,
        microbatch_size=size,
        accumulation=steps,
        global_batch=size * steps * dp,
        sharding=sharding,
        sharding_group="island" if sharding != "none" and sizes["dp_replicate"] > 1 else "global",
        recompute="full" if is_full else "none",
        precision=str(config.get("mixed_precision") or "no"),
    )


def _mesh(config: Mapping[str, Any], is_fsdp: bool, world: int) -> dict[str, int]:
    """Size of every axis, checked against each other and against the number of processes."""
    mesh = _section(config, "parallelism_config")
    _known(mesh, MESH_KEYS, "parallelism_config")
    if not mesh:
        one = dict.fromkeys(AXES, 1)
        return one | ({"dp_shard": world} if is_fsdp else {"dp_replicate": world})
    if not is_fsdp:
        raise InputError("parallelism_config needs distributed_type FSDP and fsdp_version 2")
    sizes = {axis: _size(mesh, key, "parallelism_config", 1) for axis, key in SIZES.items()}
    shown = " x ".join(f"{axis} {size}" for axis, size in sizes.items() if size > 1) or "1"
    if math.prod(sizes.values()) != world:
        raise InputError(
            f"{shown} = {math.prod(sizes.values())} ranks, num_processes is {world}",
            pointer="/parallelism_config",
        )
    if sizes["sp"] > 1:
        raise InputError(
            "sp (Ulysses) has no counterpart in a plan", pointer=f"/parallelism_config/{SIZES['sp']}"
        )
    if sizes["tp"] * sizes["cp"] > 1 and sizes["dp_replicate"] > 1 and sizes["dp_shard"] == 1:
        raise InputError(
            f"{shown}: tp or cp with replicas only", pointer="/parallelism_config", hint="use dp_shard"
        )
    if sizes["dp_shard"] * sizes["cp"] == 1 and world > 1:
        raise InputError(f"{shown}: FSDP2 has no group to shard over", hint="dp_shard or cp above 1")
    return sizes


def _fsdp(section: Mapping[str, Any]) -> str:
    """The plan's word for the sharding of an fsdp_config."""
    _known(section, FSDP_KEYS, "fsdp_config")
    if section.get("fsdp_version", 1) != 2:
        raise InputError(
            f"fsdp_version {section.get('fsdp_version', 1)}", pointer="/fsdp_config/fsdp_version", allowed=[2]
        )
    reshard = section.get("fsdp_reshard_after_forward", True)
    if not isinstance(reshard, bool):
        raise InputError(
            f"{reshard!r} is a name of FSDP1",
            pointer="/fsdp_config/fsdp_reshard_after_forward",
            allowed=[True, False],
        )
    return "parameters" if reshard else "gradients"


def _known(section: Mapping[str, Any], known: tuple[str, ...], where: str) -> None:
    for key in section:
        if key not in known:
            near = nearest_names(key, known)
            raise InputError(
                f"unknown key {key!r}{': Accelerate ignores it' if where else ''}",
                pointer=f"/{where}/{key}" if where else f"/{key}",
                allowed=near,
                hint=f"nearest: {', '.join(near)}" if near else "",
            )


def _section(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    section = config.get(name) or {}
    if not isinstance(section, Mapping):
        raise InputError(f"must be an object, not {section!r}", pointer=f"/{name}")
    return section


def _size(section: Mapping[str, Any], key: str, where: str, default: int | None = None) -> int:
    value = section.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        pointer = f"/{where}/{key}" if where else f"/{key}"
        raise InputError(f"must be a positive whole number, not {value!r}", pointer=pointer)
    return value
