"""DeepSpeed: ds_config.json (and the files exported beside it) as a decision.

Facts: DeepSpeed 0.18 and 0.19, runtime/config.py, as ``deepspeed_read`` has them. A pipeline is code
(PipelineModule), so its degree is never in the file.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from planner.errors import InputError
from planner.launchers.deepspeed_read import KNOWN, REMOVED, SHARDINGS, read_deepspeed
from planner.launchers.imported import Facts, Files, Imported, one_file
from planner.launchers.run_scripts import machine_size

# The file has no pipeline, so nothing says how a single stage is scheduled.
NOT_CARRIED: tuple[str, ...] = ("schedule",)
_READ_NAMES = (
    "train_batch_size train_micro_batch_size_per_gpu gradient_accumulation_steps bf16 bfloat16 fp16 "
    "zero_optimization optimizer activation_checkpointing tensor_parallel sequence_parallel_size"
)
READ = frozenset(_READ_NAMES.split())
_ZERO_READ_NAMES = (
    "stage zero_hpz_partition_size overlap_comm contiguous_gradients reduce_scatter reduce_bucket_size "
    "allgather_bucket_size sub_group_size stage3_prefetch_bucket_size stage3_param_persistence_threshold "
    "stage3_max_live_parameters stage3_max_reuse_distance stage3_gather_16bit_weights_on_model_save "
    "offload_optimizer offload_param zero_quantized_weights zero_quantized_gradients round_robin_gradients "
    "allgather_partitions load_from_fp32_weights elastic_checkpoint ignore_unused_parameters "
    "legacy_stage1 zero_quantized_nontrainable_weights stage3_use_all_reduce_for_fetch_params "
    "stage3_module_granularity_threshold log_trace_cache_warnings memory_efficient_linear "
    "param_persistence_threshold prefetch_bucket_size max_live_parameters max_reuse_distance "
    "gather_16bit_weights_on_model_save model_persistence_threshold cpu_offload"
)
ZERO_READ = frozenset(_ZERO_READ_NAMES.split())
BATCH = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
OPTIMIZERS = {"adamw": "adamw", "adam": "adam", "fusedadam": "adamw", "sgd": "sgd-momentum"}


def read_deepspeed_files(files: Files, facts: Facts) -> Imported:
    """What the file trains, with every broken rule. Raises InputError for what cannot be read."""
    name = one_file(files, "deepspeed", ("ds_config.json",), (".json",))
    config = files[name]
    if not isinstance(config, Mapping):
        raise InputError("a DeepSpeed configuration is a JSON object", file=name)
    found = Imported("deepspeed", name)
    config = _automatic(config, found)
    is_auto = {key for key in BATCH if files[name].get(key) == "auto"}
    found.world_size = _world(files) or facts.world_size
    _machine(files, found, facts)
    config = _keys(config, found)
    _unpriced(config, found)
    _zero(config, found)
    found.not_read += [key for key in config if key not in READ and key not in ("pipeline",)]
    # A partition that does not fit is a fault already; without it the rest can still be read.
    world = found.world_size
    tp = _section(config, "tensor_parallel").get("autotp_size", 1)
    if world is None:
        _without_world(config, found)
        return found
    if isinstance(tp, int) and tp > 1 and world % tp:
        found.fault("world-identity", f"autotp_size {tp} for {world} GPUs", f"a divisor of {world}")
        return found
    _batch_rule(config, found, world, bool(is_auto))
    is_open = config.get(BATCH[0]) is None and config.get(BATCH[2]) is None and bool(is_auto)
    if is_open or any(fault.rule == "batch-identity" for fault in found.faults):
        _without_world(config, found)  # transformers fills "auto" in: the batch is asked for by a flag
        return found
    if config.get(BATCH[0]) is None and config.get(BATCH[2]) is None:
        found.assumptions.append("gradient_accumulation_steps is not given: DeepSpeed takes 1")
    derived = read_deepspeed(_readable(config, found), world)
    found.states("tp", derived["tp"], f"autotp_size {derived['tp']}")
    found.dp = derived["dp"]
    found.states(
        "microbatch_size",
        derived["microbatch_size"],
        f"train_micro_batch_size_per_gpu {derived['microbatch_size']}",
    )
    found.microbatches = derived["accumulation"]
    found.states("global_batch", derived["global_batch"], f"train_batch_size {derived['global_batch']}")
    found.sharding = derived["sharding"]
    found.where["sharding"] = f"zero stage {SHARDINGS.index(derived['sharding'])}"
    if derived["sharding_group"] == "island":
        found.shard_ranks = derived["shard_ranks"]
    _rest(config, found, derived["precision"], derived["optimizer"])
    return found


def _rest(config: Mapping[str, Any], found: Imported, precision: str, optimizer: str) -> None:
    found.cp = found.ep = found.expert_tp = 1
    found.sequence_parallel, found.schedule, found.virtual_stages = False, "1f1b", 1
    has_section = "activation_checkpointing" in config
    if found.recompute is None:
        found.recompute = "full" if has_section else "none"
        found.assumptions.append(
            "recompute is the training script's: "
            + ("activation_checkpointing is configured, taken as full" if has_section else "taken as none")
            + " (say --recompute to change it)"
        )
        found.where.pop("recompute", None)
    if precision in ("bf16", "fp16"):
        found.states("precision", precision, f"{precision}.enabled")
    elif not any(_section(config, key).get("enabled", False) is None for key in ("bf16", "fp16")):
        found.unpriced.append("neither bf16 nor fp16 is enabled: products in fp32")
    if optimizer in OPTIMIZERS:
        found.states("optimizer", OPTIMIZERS[optimizer], f"optimizer {optimizer}")
    elif optimizer != "script":
        found.unpriced.append(f"optimizer.type {optimizer}")


def _without_world(config: Mapping[str, Any], found: Imported) -> None:
    """What can be said without the number of GPUs, or with a batch that does not add up."""
    tp = _section(config, "tensor_parallel").get("autotp_size", 1)
    found.tp = tp if isinstance(tp, int) and tp > 0 else 1
    stage = _section(config, "zero_optimization").get("stage", 0)
    found.sharding = SHARDINGS[stage] if isinstance(stage, int) and stage < 4 else None
    for key, name in ((BATCH[1], "microbatch_size"), (BATCH[2], "microbatches"), (BATCH[0], "global_batch")):
        if isinstance(config.get(key), int):
            found.states(name, config[key], f"{key} {config[key]}")
    if found.tp > 1:
        found.global_batch = None  # DeepSpeed's number counts tp ranks
    on = [key for key in ("bf16", "fp16") if _section(config, key).get("enabled")]
    _rest(
        config,
        found,
        on[0] if on else "fp32",
        str(_section(config, "optimizer").get("type", "script")).lower(),
    )


def _automatic(config: Mapping[str, Any], found: Imported) -> dict[str, Any]:
    """The file without "auto": transformers fills those in when training starts."""
    cleaned: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            inner = _automatic(value, Imported(found.launcher, found.file))
            autos = sorted(set(value) - set(inner))
            if key in ("bf16", "fp16") and autos:
                found.assumptions.append(f'{key}.enabled is "auto": the training arguments decide')
                inner["enabled"] = None
            cleaned[key] = inner
        elif value == "auto":
            if key in READ:
                found.assumptions.append(f'{key} is "auto": the training arguments decide')
        else:
            cleaned[key] = value
    return cleaned


def _keys(config: Mapping[str, Any], found: Imported) -> dict[str, Any]:
    """The known sections; others are faults, for DeepSpeed trains without them."""
    from planner.errors import nearest_names

    known = {}
    for key, value in config.items():
        if key in KNOWN:
            known[key] = value
            continue
        near = nearest_names(key, KNOWN, 1)
        found.fault(
            "unknown-section", f"{key} is no section of DeepSpeed and is passed over", near[0] if near else ""
        )
    return known


def _unpriced(config: Mapping[str, Any], found: Imported) -> None:
    """Settings that change the decision and have no counterpart."""
    zero = _section(config, "zero_optimization")
    _offload(zero, found)
    for key in ("zero_quantized_weights", "zero_quantized_gradients"):
        if zero.get(key):
            found.unpriced.append(f"zero_optimization.{key}")
    size = config.get("sequence_parallel_size", 1)
    if size not in (None, 1):
        found.unpriced.append(f"sequence_parallel_size {size} (Ulysses)")
    if _section(config, "activation_checkpointing").get("cpu_checkpointing"):
        found.unpriced.append("activation_checkpointing.cpu_checkpointing")
    if "expert_parallel" in config:
        found.unpriced.append("expert_parallel")
    if _section(config, "fp16").get("enabled") and _section(config, "bf16").get("enabled"):
        found.fault("precision", "bf16 and fp16 are both enabled", "one of them")


def _offload(zero: Mapping[str, Any], found: Imported) -> None:
    """offload_optimizer to the host is a choice; a part of it, other places and the weights are unpriced."""
    section = _section(zero, "offload_optimizer")
    device, ratio = section.get("device", "none"), section.get("ratio", 1.0)
    words = f"zero_optimization.offload_optimizer to {device}"
    if device == "cpu" and not zero.get("stage", 0):
        found.fault("offload", f"{words} with stage 0 does nothing", "stage 1")
    elif device == "cpu" and ratio == 1.0 and not section.get("super_offload"):
        found.states("offload", "optimizer", words)
    elif device != "none":
        found.unpriced.append(words + (f", ratio {ratio}" if ratio != 1.0 else ""))
    device = _section(zero, "offload_param").get("device", "none")
    if device != "none":
        found.unpriced.append(f"zero_optimization.offload_param to {device}")


def _zero(config: Mapping[str, Any], found: Imported) -> None:
    zero = _section(config, "zero_optimization")
    stage = zero.get("stage", 0)
    if not isinstance(stage, int) or not 0 <= stage <= 3:
        raise InputError(
            f"stage {stage!r}", file=found.file, pointer="/zero_optimization/stage", allowed=[0, 1, 2, 3]
        )
    for key in zero:
        if key in REMOVED:
            found.fault(
                "removed-key",
                f"zero_optimization.{key} was removed from DeepSpeed 0.19",
                "zero_hpz_partition_size",
            )
        elif key not in ZERO_READ:
            found.fault("unknown-key", f"zero_optimization.{key} is refused by DeepSpeed", "")
    found.where["sharding"] = f"zero_optimization.stage {stage}"
    has_pipeline = "pipeline" in config or (found.pp or 1) > 1
    if has_pipeline and stage > 1:
        found.fault("zero-with-pipeline", f"ZeRO {stage} with a pipeline", "stage 1")
    partition = zero.get("zero_hpz_partition_size", 1)
    tp = _section(config, "tensor_parallel").get("autotp_size", 1)
    world = found.world_size
    if not isinstance(partition, int) or partition <= 1:
        return
    found.where["shard_ranks"] = f"zero_hpz_partition_size {partition}"
    dp = world // tp if world and isinstance(tp, int) and tp else None
    if stage != 3:
        found.fault(
            "hpz-partition", f"zero_hpz_partition_size {partition} with stage {stage} does nothing", "stage 3"
        )
    elif dp is not None and dp % partition:
        divisors = [d for d in range(1, dp + 1) if dp % d == 0]
        found.fault(
            "hpz-partition", f"zero_hpz_partition_size {partition} over {dp} data ranks", f"one of {divisors}"
        )
    elif isinstance(tp, int) and tp > 1:
        found.fault(
            "hpz-partition", f"zero_hpz_partition_size {partition} with autotp_size {tp}", "autotp_size 1"
        )


def _batch_rule(config: Mapping[str, Any], found: Imported, world: int, is_auto: bool) -> None:
    """The three numbers; DeepSpeed divides with a remainder left when one is missing, and counts tp ranks."""
    total, size, steps = (config.get(key) for key in BATCH)
    for key in BATCH:
        if key in config and (not isinstance(config[key], int) or config[key] < 1):
            raise InputError(
                f"must be a whole number, not {config[key]!r}", file=found.file, pointer=f"/{key}"
            )
    if total is None and size is None and not is_auto:
        raise InputError(
            "the microbatch size is not stated (train_micro_batch_size_per_gpu)",
            file=found.file,
            hint="write the number into the file, or give --micro-batch",
        )
    unit = world * (size or 1) * (steps or 1)
    if total is not None and (total % unit or (size and steps and total != unit)):
        found.fault(
            "batch-identity",
            f"train_batch_size {total} for micro batch {size or '?'} x accumulation "
            f"{steps or '?'} x {world} ranks",
            f"train_batch_size {max(unit, total // unit * unit)}",
        )


def _readable(config: Mapping[str, Any], found: Imported) -> dict[str, Any]:
    """The file as ``read_deepspeed`` takes it: without what is a fault or unpriced already."""
    kept = {key: value for key, value in config.items() if key != "sequence_parallel_size"}
    zero = dict(_section(config, "zero_optimization"))
    for key in REMOVED:
        zero.pop(key, None)
    if any(fault.rule == "hpz-partition" for fault in found.faults):
        zero.pop("zero_hpz_partition_size", None)
    kept["zero_optimization"] = zero
    if _section(config, "fp16").get("enabled") and _section(config, "bf16").get("enabled"):
        kept.pop("fp16")
    return kept


def _world(files: Files) -> int | None:
    """GPUs of an exported run.sh in the same folder."""
    script = files.get("run.sh")
    if not isinstance(script, str) or "--nnodes" not in script:
        return None
    nodes, per_node = machine_size(script)
    return nodes * per_node


def _machine(files: Files, found: Imported, facts: Facts) -> None:
    """What an exported summary.json says of the training script."""
    if found.world_size is not None and facts.world_size != found.world_size:
        found.where["world_size"] = f"{found.world_size} GPUs"
    found.states("pp", 1, "no pipeline in a DeepSpeed file")
    found.where.pop("pp")
    found.assumptions.append("no pipeline: DeepSpeed's is code (PipelineModule), not configuration")
    read_summary(files, found)


def read_summary(files: Files, found: Imported) -> None:
    """Sequence length, attention and recompute from an exported summary.json, when there is one."""
    summary = files.get("summary.json")
    settings = summary.get("training_script") if isinstance(summary, Mapping) else None
    if not isinstance(settings, Mapping):
        return
    length = settings.get("sequence_length")
    if isinstance(length, int):
        found.states("sequence_length", length, f"sequence_length {length} (summary.json)")
    kernel = settings.get("attn_implementation")
    if isinstance(kernel, str):
        found.states(
            "attention", "unfused" if kernel == "eager" else "flash", f"attn_implementation {kernel}"
        )
    if isinstance(settings.get("gradient_checkpointing"), bool):
        is_full = settings["gradient_checkpointing"]
        found.states(
            "recompute", "full" if is_full else "none", f"gradient_checkpointing {str(is_full).lower()}"
        )


def _section(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    section = config.get(name) or {}
    if not isinstance(section, Mapping):
        raise InputError(f"must be an object, not {section!r}", pointer=f"/{name}")
    return section
