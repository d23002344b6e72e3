"""Hugging Face Accelerate: accelerate.yaml, with training_args.json beside it in a folder, as a decision.

Facts: Accelerate 1.15 as ``accelerate_read`` has them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from planner.errors import InputError, nearest_names
from planner.launchers.accelerate_read import AXES, FSDP_KEYS, MESH_KEYS, SIZES, TOP_KEYS
from planner.launchers.deepspeed_import import read_summary
from planner.launchers.imported import MOST_RANKS, Facts, Files, Imported, one_file, whole

# Without a pipeline nothing says how a single stage is scheduled; adamw_torch_fused is written for adam too.
NOT_CARRIED: tuple[str, ...] = ("schedule",)
TRAINING = "training_args.json"
FULL_SHARD = {"FULL_SHARD": "parameters", "SHARD_GRAD_OP": "gradients", "NO_SHARD": "none", "1": "parameters"}
OPTIMIZERS = {
    "adamw_torch_fused": "adamw",
    "adamw_torch": "adamw",
    "adamw_8bit": "adamw-8bit",
    "adafactor": "adafactor",
}


def read_accelerate_files(files: Files, facts: Facts) -> Imported:
    """What the files train, with every broken rule. Raises InputError for what cannot be read."""
    name = one_file(files, "accelerate", ("accelerate.yaml",), (".yaml", ".yml"))
    config = files[name]
    if not isinstance(config, Mapping):
        raise InputError("an Accelerate configuration is a YAML object", file=name)
    training = files.get(TRAINING, {}) if len(files) > 1 else {}
    found = Imported("accelerate", name)
    _known(config, TOP_KEYS, "", found)
    world = whole(config.get("num_processes", facts.world_size), "/num_processes", most=MOST_RANKS)
    found.states("world_size", world, f"num_processes {world}")
    machines = whole(config.get("num_machines", 1), "/num_machines")
    if world % machines:
        found.fault(
            "world-identity",
            f"num_processes {world} is the total of {machines} machines and leaves a remainder",
            f"{max(1, world // machines) * machines}",
        )
    kind = config.get("distributed_type")
    if kind in ("DEEPSPEED", "MEGATRON_LM"):
        found.unpriced.append(f"distributed_type {kind}: import that launcher's own file")
    elif kind not in ("FSDP", "MULTI_GPU", "NO"):
        found.fault("distributed-type", f"distributed_type {kind!r}", "FSDP, MULTI_GPU or NO")
    elif kind == "NO" and world > 1:
        found.fault("distributed-type", f"distributed_type NO with {world} processes", "MULTI_GPU or FSDP")
    _mesh(config, found, world, is_fsdp=kind == "FSDP")
    _sharding(config, found, is_fsdp=kind == "FSDP")
    _precision(config, found)
    _training(training, found)
    read_summary(files, found)
    _recompute(config, training, found, is_fsdp=kind == "FSDP")
    found.pp = found.ep = found.expert_tp = found.virtual_stages = 1
    found.sequence_parallel, found.schedule = False, "1f1b"
    return found


def _mesh(config: Mapping[str, Any], found: Imported, world: int, *, is_fsdp: bool) -> None:
    mesh = _section(config, "parallelism_config")
    _known(mesh, MESH_KEYS, "parallelism_config", found)
    sizes = {axis: whole(mesh.get(key, 1), f"/parallelism_config/{key}") for axis, key in SIZES.items()}
    if not mesh:
        sizes |= {"dp_shard": world} if is_fsdp else {"dp_replicate": world}
    elif not is_fsdp:
        found.fault(
            "mesh-needs-fsdp", "parallelism_config without distributed_type FSDP", "distributed_type FSDP"
        )
    shown = " x ".join(f"{axis} {sizes[axis]}" for axis in AXES if sizes[axis] > 1) or "1"
    product = math.prod(sizes.values())
    if product != world:
        found.fault(
            "world-identity", f"{shown} = {product} ranks, num_processes is {world}", f"{product} processes"
        )
    if sizes["sp"] > 1:
        found.unpriced.append(f"parallelism_config_sp_size {sizes['sp']} (Ulysses)")
    if sizes["sp"] > 1 and sizes["cp"] > 1:
        found.fault("cp-or-sp", f"{shown}: cp and sp exclude each other", "one of them")
    if sizes["tp"] * sizes["cp"] > 1 and sizes["dp_replicate"] > 1 and sizes["dp_shard"] == 1:
        found.fault("replicas-with-tp-or-cp", f"{shown}: tp or cp with replicas only", "dp_shard above 1")
    if mesh and sizes["dp_shard"] * sizes["cp"] == 1 and world > 1:
        found.fault("shard-group", f"{shown}: FSDP2 has no group to shard over", "dp_shard or cp above 1")
    for axis in ("tp", "cp"):
        found.states(axis, sizes[axis], f"parallelism_config_{axis}_size {sizes[axis]}")
    found.dp = sizes["dp_replicate"] * sizes["dp_shard"]
    found.where["dp"] = f"dp_replicate {sizes['dp_replicate']} x dp_shard {sizes['dp_shard']}"
    if is_fsdp and sizes["dp_replicate"] > 1:
        found.shard_ranks = sizes["dp_shard"] * sizes["cp"]
        found.where["shard_ranks"] = f"dp_shard {sizes['dp_shard']} x cp {sizes['cp']}"


def _sharding(config: Mapping[str, Any], found: Imported, *, is_fsdp: bool) -> None:
    if not is_fsdp:
        found.sharding = "none"
        return
    section = _section(config, "fsdp_config")
    _known(section, FSDP_KEYS, "fsdp_config", found)
    version = section.get("fsdp_version", 1)
    for key in ("fsdp_offload_params", "fsdp_activation_checkpointing_offload"):
        if section.get(key):
            found.unpriced.append(key)
    reshard = section.get("fsdp_reshard_after_forward", True)
    if version == 1:
        strategy = str(
            section.get("fsdp_sharding_strategy", reshard if isinstance(reshard, str) else "FULL_SHARD")
        )
        if _section(config, "parallelism_config"):
            found.fault("fsdp-version", "parallelism_config with fsdp_version 1", "fsdp_version 2")
        if strategy not in FULL_SHARD:
            found.unpriced.append(f"fsdp_sharding_strategy {strategy}")
        else:
            found.states("sharding", FULL_SHARD[strategy], f"fsdp_sharding_strategy {strategy}")
        return
    if version != 2:
        found.fault("fsdp-version", f"fsdp_version {version}", "2")
    if not isinstance(reshard, bool):
        found.fault(
            "fsdp-reshard", f"fsdp_reshard_after_forward {reshard!r} is a name of FSDP1", "true or false"
        )
        return
    if "fsdp_sharding_strategy" in section:
        found.fault(
            "fsdp-reshard",
            "fsdp_sharding_strategy is ignored by FSDP2",
            "fsdp_reshard_after_forward",
            is_fatal=False,
        )
    found.states(
        "sharding",
        "parameters" if reshard else "gradients",
        f"fsdp_reshard_after_forward {str(reshard).lower()}",
    )


def _precision(config: Mapping[str, Any], found: Imported) -> None:
    name = config.get("mixed_precision")
    if name in ("bf16", "fp16", "fp8"):
        found.states("precision", name, f"mixed_precision {name}")
    else:
        found.unpriced.append(f"mixed_precision {name or 'no'}: products in fp32")


def _training(training: Mapping[str, Any], found: Imported) -> None:
    size = training.get("per_device_train_batch_size")
    if size is not None:
        value = whole(size, "/per_device_train_batch_size")
        found.states("microbatch_size", value, f"per_device_train_batch_size {value}")
    steps = training.get("gradient_accumulation_steps", 1 if training else None)
    if steps is not None:
        found.states(
            "microbatches",
            whole(steps, "/gradient_accumulation_steps"),
            f"gradient_accumulation_steps {steps}",
        )
    for name in ("bf16", "fp16"):
        if training.get(name) and found.precision not in (None, name):
            found.fault("precision", f"{TRAINING} has {name}, the YAML {found.precision}", "one of them")
    optimizer = training.get("optim")
    if optimizer in OPTIMIZERS:
        found.optimizer = OPTIMIZERS[optimizer]  # adam is written the same way, so a flag may still say adam
    elif optimizer is not None:
        found.unpriced.append(f"optim {optimizer}")


def _recompute(
    config: Mapping[str, Any], training: Mapping[str, Any], found: Imported, *, is_fsdp: bool
) -> None:
    section = _section(config, "fsdp_config") if is_fsdp else {}
    key = "fsdp_activation_checkpointing"
    if key in section or "gradient_checkpointing" in training:
        is_full = bool(section.get(key) or training.get("gradient_checkpointing"))
        words = key if key in section else "gradient_checkpointing"
        found.states("recompute", "full" if is_full else "none", f"{words} {str(is_full).lower()}")
    else:
        found.recompute = "none"
        found.assumptions.append("recompute none: no activation checkpointing is configured")


def _known(section: Mapping[str, Any], known: tuple[str, ...], where: str, found: Imported) -> None:
    for key in section:
        if key not in known:
            near = nearest_names(key, known, 1)
            what = "is ignored by Accelerate" if where else "is refused by Accelerate"
            found.fault("unknown-key", f"{where + '.' if where else ''}{key} {what}", near[0] if near else "")


def _section(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    section = config.get(name) or {}
    if not isinstance(section, Mapping):
        raise InputError(f"must be an object, not {section!r}", pointer=f"/{name}")
    return section
