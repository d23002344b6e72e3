"""torchtitan: a configuration module or flag list, of 0.3 or main, as a decision.

Facts: torchtitan 0.3.0 and main of August 2026: trainer.py (accumulation), parallel_dims.py (mesh),
distributed/pipeline_parallel.py (virtual stages and the layers of each).
"""

from __future__ import annotations

import math
from typing import Any

from planner.errors import InputError
from planner.launchers.imported import MOST_RANKS, Facts, Files, Imported, whole
from planner.launchers.torchtitan_models import FLAVORS, flavor_of
from planner.launchers.torchtitan_stages_import import number, read_schedule
from planner.launchers.torchtitan_words import Settings, read_settings

NOT_CARRIED: tuple[str, ...] = ()
DEGREES = {
    "tp": "tensor_parallel_degree",
    "pp": "pipeline_parallel_degree",
    "cp": "context_parallel_degree",
    "ep": "expert_parallel_degree",
}
READ = {
    "parallelism": {
        *DEGREES.values(),
        "data_parallel_replicate_degree",
        "data_parallel_shard_degree",
        "fsdp_reshard_after_forward",
        "enable_sequence_parallel",
        "pipeline_parallel_schedule",
        "pipeline_parallel_layers_per_stage",
        "pipeline_parallel_first_stage_less_layers",
        "pipeline_parallel_last_stage_less_layers",
        "pipeline_parallel_microbatch_size",
        "num_pp_microbatches",
        "module_fqns_per_model_part",
    },
    "training": {
        "local_batch_size",
        "global_batch_size",
        "seq_len",
        "num_tokens_per_microbatch_per_dp_rank",
        "num_tokens_per_train_step",
        "max_context_length",
        "disable_cuda_graphs",
    },
}
# Settings of the parallelism section that are known and change no decision.
HARMLESS = {
    "context_parallel_load_balancer",
    "context_parallel_rotate_method",
    "spmd_backend",
    "enable_async_tensor_parallel",
    "disable_loss_parallel",
    "expert_parallel_comm_backend",
    "enable_compiled_autograd",
    "pipeline_parallel_schedule_csv",
    "expert_tensor_parallel_degree",
}
MAIN = "plan_main"


def read_torchtitan(files: Files, facts: Facts) -> Imported:
    """What the module or the flags train, with every broken rule. Raises InputError for the unreadable."""
    settings = read_settings(files)
    found = Imported("torchtitan", settings.file)
    mesh = settings.sections.get("parallelism", {})
    if settings.registry is not None:
        flavor = next((f for f in FLAVORS if (f.module, f.flavor) == settings.registry), None)
        found.model_hint = flavor or settings.registry
        if flavor is not None:
            found.shape["layers"] = flavor.shape[0]
    if settings.base and not settings.is_complete:
        found.assumptions.append(
            f"what {settings.file} does not set is {settings.base}'s and must be given by flags"
        )
    layers = found.shape.get("layers") or facts.num_layers
    _degrees(settings, mesh, found, facts)
    read_schedule(mesh, found, layers)
    _sharding(mesh, found)
    _batches(settings, mesh, found)
    _recompute(settings, found)
    _graphs(settings, found)
    _others(settings, found)
    found.precision, found.optimizer, found.attention = "bf16", "adamw", "flash"
    if facts.model is not None and flavor_of(facts.model) is None:
        found.not_read.append(f"--model {facts.model.name} has no shape torchtitan ships")
    return found


def _degrees(settings: Settings, mesh: dict[str, Any], found: Imported, facts: Facts) -> None:
    for name, key in DEGREES.items():
        if key in mesh:
            value = whole(mesh[key], f"parallelism.{key}", most=MOST_RANKS)
            found.states(name, value, f"{key} {value}")
        elif settings.is_complete or name in ("cp", "ep"):
            setattr(found, name, 1)
            if not settings.is_complete:
                found.assumptions.append(f"{key} is not set: 1")
    replicas = number(mesh, "data_parallel_replicate_degree", 1) or 1
    shards = number(mesh, "data_parallel_shard_degree", -1) or -1
    used = math.prod(getattr(found, name) or 1 for name in ("tp", "pp", "cp"))
    world = facts.world_size
    if shards == -1:
        if world is None:
            return
        if world % (used * replicas):
            found.fault(
                "world-identity",
                f"tp x pp x cp x dp_replicate = {used * replicas} for {world} GPUs",
                f"a divisor of {world}",
            )
            return
        shards = world // (used * replicas)
        found.assumptions.append(f"data_parallel_shard_degree -1: the rest of {world} GPUs, {shards}")
    found.dp = replicas * shards
    found.where["dp"] = f"dp_replicate {replicas} x dp_shard {shards}"
    found.shard_ranks = shards * (found.cp or 1) if replicas > 1 and shards * (found.cp or 1) > 1 else None
    if found.shard_ranks:
        found.where["shard_ranks"] = f"dp_shard {shards} x cp {found.cp}"
    if found.tp is not None and found.pp is not None:
        found.states("world_size", used * found.dp, f"a mesh of {used * found.dp} ranks")
    is_split = mesh.get("enable_sequence_parallel", True)
    found.sequence_parallel = bool(is_split) and (found.tp or 1) > 1
    tp, cp, ep = found.tp or 1, found.cp or 1, found.ep or 1
    found.expert_tp = tp if ep == 1 else 1
    if (shards * cp * tp) % ep:
        found.fault("expert-ranks", f"ep {ep} inside dp_shard {shards} x cp {cp} x tp {tp}", "a divisor")
    if found.dp > 1 and shards * cp == 1:
        found.sharding = "none"


def _sharding(mesh: dict[str, Any], found: Imported) -> None:
    """What FSDP2 keeps: with a pipeline whole weights and gradients until the last microbatch."""
    reshard = mesh.get("fsdp_reshard_after_forward", "default")
    if reshard not in ("default", "always", "never"):
        found.fault("reshard", f"fsdp_reshard_after_forward {reshard!r}", "default, always or never")
        return
    words = f"fsdp_reshard_after_forward {reshard}"
    if found.sharding == "none" or (found.dp is not None and found.dp * (found.cp or 1) == 1):
        found.sharding = "none"
    elif (found.pp or 1) > 1:
        if reshard == "always":
            found.unpriced.append(f"{words} under a pipeline: weights gathered for every microbatch")
        found.states("sharding", "optimizer", f"FSDP2 under a pipeline ({words})")
    else:
        found.states("sharding", "gradients" if reshard == "never" else "parameters", words)


def _batches(settings: Settings, mesh: dict[str, Any], found: Imported) -> None:
    """Batch and sequence; a module that has both versions must mean the same by them."""
    results = []
    versions = settings.versions or {
        "": {"training": settings.sections.get("training", {}), "parallelism": mesh}
    }
    for version, sections in versions.items():
        training, parallel = sections.get("training", {}), sections.get("parallelism", {})
        is_main = version == MAIN or "num_tokens_per_microbatch_per_dp_rank" in training
        read = _main if is_main else _release
        results.append(read(training, parallel, found))
    if any(result != results[0] for result in results):
        found.fault("versions", f"plan and plan_main differ: {results[0]} against {results[1]}", "one batch")
    size, count, batch, length = results[0]
    for name, value in (
        ("microbatch_size", size),
        ("global_batch", batch),
        ("sequence_length", length),
    ):
        if value is not None:
            found.states(name, value, f"{name.replace('_', ' ')} {value}")
    if count is not None:
        found.microbatches = count


Batch = tuple[int | None, int | None, int | None, int | None]


def _release(training: dict[str, Any], parallel: dict[str, Any], found: Imported) -> Batch:
    """0.3.0, in sequences: (microbatch size, microbatches, global batch, sequence length)."""
    local, batch = number(training, "local_batch_size"), number(training, "global_batch_size", -1) or -1
    length = number(training, "seq_len")
    if local is None:
        return None, None, batch if batch > 0 else None, length
    is_piped = (found.pp or 1) > 1
    size = (number(parallel, "pipeline_parallel_microbatch_size", 1) or 1) if is_piped else local
    if local % size:
        found.fault(
            "batch-identity",
            f"local_batch_size {local} in microbatches of {size}",
            f"{max(size, local // size * size)}",
        )
        return size, None, None, length
    return _steps(size, local // size, batch, length, found)


def _main(training: dict[str, Any], parallel: dict[str, Any], found: Imported) -> Batch:
    """main, in tokens."""
    length = number(training, "max_context_length")
    tokens = number(training, "num_tokens_per_microbatch_per_dp_rank")
    step = number(training, "num_tokens_per_train_step", -1) or -1
    if tokens is None or length is None:
        return None, None, None, length
    if tokens % length or (step > 0 and step % length):
        bad, key = (tokens, "microbatch") if tokens % length else (step, "step")
        found.fault(
            "batch-identity",
            f"{bad} tokens a {key} are not whole sequences of {length}",
            f"{max(1, bad // length) * length}",
        )
        return None, None, None, length
    calls = (number(parallel, "num_pp_microbatches", 1) or 1) if (found.pp or 1) > 1 else 1
    return _steps(tokens // length, calls, step // length if step > 0 else -1, length, found)


def _steps(size: int, calls: int, batch: int, length: int | None, found: Imported) -> Batch:
    if found.dp is None:
        return size, None, batch if batch > 0 else None, length
    unit = size * calls * found.dp
    if batch <= 0:
        found.assumptions.append(f"the global batch is not set: {unit}, without accumulation")
        batch = unit
    if batch % unit:
        found.fault(
            "batch-identity",
            f"global batch {batch} for dp {found.dp} x {calls} microbatches of {size} = {unit}",
            f"{max(unit, batch // unit * unit)}",
        )
        return size, None, None, length
    return size, batch // unit * calls, batch, length


def _recompute(settings: Settings, found: Imported) -> None:
    mode = settings.recompute
    if mode in ("none", "selective", "full"):
        found.states("recompute", mode, f"activation checkpointing {mode}")
    elif mode is not None:
        found.unpriced.append(f"activation checkpointing {mode}")


def _graphs(settings: Settings, found: Imported) -> None:
    """CUDA graphs refuse pipelines, and experts over ranks with the standard dispatcher."""
    training = settings.sections.get("training", {})
    if training.get("disable_cuda_graphs") is False and ((found.pp or 1) > 1 or (found.ep or 1) > 1):
        found.fault(
            "cuda-graphs",
            f"CUDA graphs with pp {found.pp}, ep {found.ep}",
            "training.disable_cuda_graphs = True",
        )


def _others(settings: Settings, found: Imported) -> None:
    import difflib

    for section, values in settings.sections.items():
        known = READ.get(section, set())
        for key in values:
            if key in known:
                continue
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.85)
            if section == "parallelism" and key not in HARMLESS:
                found.fault(
                    "unknown-key", f"parallelism.{key} is no setting of torchtitan", near[0] if near else ""
                )
            else:
                found.not_read.append(f"{section}.{key}")
    known_names = {name for names in READ.values() for name in names}
    for name in settings.unknown:
        if name.partition(".")[2] in known_names and not settings.versions:
            raise InputError(f"{name} is not a plain value", file=found.file, hint="write the number")
