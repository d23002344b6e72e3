"""Megatron-LM and Megatron Bridge: a launch script, argument list, flags.json or override list, read.

What Megatron-LM derives from the flags is worked out as it does, and what its argument check accepts though
it cannot run, or runs as something else, is recorded as a fault. Facts: Megatron-LM core 0.16.1 and 0.20 dev:
training/arguments.py, parallel_state.py, pipeline_parallel/schedules.py, distributed_data_parallel_config.py.
"""

from __future__ import annotations

from pydantic import ValidationError

from planner.launchers.imported import Facts, Files, Imported
from planner.launchers.megatron_model_import import MODEL_FLAGS, read_model, stated_shape
from planner.launchers.megatron_offload_import import OFFLOAD_FLAGS, read_offload
from planner.launchers.megatron_recompute_import import RECOMPUTE_FLAGS, read_recompute
from planner.launchers.megatron_sharding_import import SHARDING_FLAGS, read_sharding
from planner.launchers.megatron_stages_import import STAGE_FLAGS, read_stages
from planner.launchers.megatron_words import CONNECTIONS, CommandLine, read_command_line

# What neither the flags nor the script carry of a decision: nothing. (Sequence parallelism at tp 1 is off.)
NOT_CARRIED: tuple[str, ...] = ()
_PARALLEL_FLAGS_TEXT = (
    "--tensor-model-parallel-size --pipeline-model-parallel-size --context-parallel-size "
    "--expert-model-parallel-size --expert-tensor-parallel-size --sequence-parallel --micro-batch-size "
    "--global-batch-size --cp-comm-type --hierarchical-context-parallel-sizes --bf16 --fp16 --fp8-format "
    "--fp8-recipe --accumulate-allreduce-grads-in-fp32 --optimizer --attention-backend --use-flash-attn "
    "--transformer-impl"
)
PARALLEL_FLAGS = tuple(_PARALLEL_FLAGS_TEXT.split())
READ = frozenset(
    (*PARALLEL_FLAGS, *STAGE_FLAGS, *RECOMPUTE_FLAGS, *SHARDING_FLAGS, *OFFLOAD_FLAGS, *MODEL_FLAGS)
)
# Settings that change what is trained where and have no counterpart in a decision.
UNPRICED = {
    "--tensor-parallel-num-weight-shards": "weight shards inside tp",
    "--expert-tensor-parallel-num-weight-shards": "weight shards inside expert tp",
    "--cpu-offloading-num-layers": "activations in host memory",
    "--fine-grained-activation-offloading": "activations in host memory",
    "--hybrid-override-pattern": "state-space layers",
    "--hybrid-attention-ratio": "state-space layers",
    "--mtp-num-layers": "multi-token-prediction layers",
    "--use-tp-pp-dp-mapping": "another rank order",
    "--rampup-batch-size": "a batch that grows during the run",
    "--encoder-tensor-model-parallel-size": "another tp for the encoder",
    "--encoder-pipeline-model-parallel-size": "a pipeline for the encoder",
    "--pipeline-model-parallel-split-rank": "a pipeline split between encoder and decoder",
    "--standalone-embedding-stage": "a stage for the embedding alone",
    "--distribute-saved-activations": "saved activations spread over tp",
    "--outer-dp-sharding-strategy": "sharding across the outer data group",
    "--fp4-format": "4-bit products",
    "--squared-relu": "squared ReLU",
    "--moe-expert-capacity-factor": "dropped tokens",
}
OPTIMIZERS = {"adam": "adamw", "sgd": "sgd-momentum"}
_LAUNCHER_FLAGS_TEXT = (
    "--nnodes --nproc-per-node --node-rank --node_rank --master-addr --master_addr "
    "--master-port --master_port "
    "--rdzv-backend --rdzv-endpoint --rdzv-id --rdzv_backend --rdzv_endpoint --rdzv_id --recipe "
    "--mode --max-restarts"
)
LAUNCHER_FLAGS = tuple(_LAUNCHER_FLAGS_TEXT.split())


def read_megatron(files: Files, facts: Facts) -> Imported:
    """What the arguments train, with every broken rule. Raises InputError for what cannot be read."""
    line = read_command_line(files)
    found = Imported("megatron", line.file, assumptions=line.assumptions)
    _degrees(line, found)
    found.world_size = line.world_size
    if line.world_size is not None:
        found.where["world_size"] = f"{line.world_size} GPUs"
    found.shape = stated_shape(line)
    try:
        found.model = read_model(line)
    except ValidationError as error:
        words = error.errors(include_url=False)[0]["msg"].removeprefix("Value error, ")
        found.fault("model-shape", f"the flags describe no model: {words}")
    _workload(line, found)
    _precision(line, found)
    layers = found.shape.get("layers") or facts.num_layers
    read_stages(line, found, layers)
    read_recompute(line, found)
    read_sharding(line, found, facts)
    read_offload(line, found)
    _context(line, found)
    _environment(line, found, facts)
    _others(line, found)
    return found


def _degrees(line: CommandLine, found: Imported) -> None:
    default = None if line.is_bridge else 1
    for name, flag in (
        ("tp", "--tensor-model-parallel-size"),
        ("pp", "--pipeline-model-parallel-size"),
        ("cp", "--context-parallel-size"),
        ("ep", "--expert-model-parallel-size"),
    ):
        value = line.number(flag)
        if value is not None:
            found.states(name, value, f"{flag} {value}")
        else:
            setattr(found, name, default)
    expert_tp = line.number("--expert-tensor-parallel-size")
    if expert_tp is not None:
        found.states("expert_tp", expert_tp, f"--expert-tensor-parallel-size {expert_tp}")
    elif line.has("--num-experts") and found.tp is not None:
        found.expert_tp = found.tp
        if found.tp > 1:
            found.assumptions.append(
                f"--expert-tensor-parallel-size is not given: Megatron-LM takes tp {found.tp}, not 1"
            )
    found.sequence_parallel = line.has("--sequence-parallel") and found.tp != 1
    if line.is_bridge and not line.has("--sequence-parallel"):
        found.sequence_parallel = None
    if line.has("--sequence-parallel"):
        found.where["sequence_parallel"] = "--sequence-parallel"
        if found.tp == 1:
            found.fault(
                "sequence-parallel",
                "--sequence-parallel with tp 1 is switched off without an error",
                "tp above 1, or leave it out",
                is_fatal=False,
            )


def _workload(line: CommandLine, found: Imported) -> None:
    size, batch = line.number("--micro-batch-size"), line.number("--global-batch-size")
    if size is not None:
        found.states("microbatch_size", size, f"--micro-batch-size {size}")
    if batch is not None:
        found.states("global_batch", batch, f"--global-batch-size {batch}")
    elif size is not None and not line.is_bridge and found.world_size is not None:
        used = (found.tp or 1) * (found.pp or 1) * (found.cp or 1)
        if found.world_size % used == 0:
            found.global_batch = size * found.world_size // used
            found.assumptions.append(
                f"--global-batch-size is not given: Megatron-LM takes micro batch {size} x dp "
                f"{found.world_size // used} = {found.global_batch}, one microbatch a step"
            )
    length = line.number("--seq-length")
    if length is not None:
        found.states("sequence_length", length, f"--seq-length {length}")
    longest = line.number("--max-position-embeddings")
    if length is not None and longest is not None and length > longest:
        found.fault(
            "positions",
            f"--seq-length {length} is above --max-position-embeddings {longest}",
            f"at most {longest}",
        )


def _precision(line: CommandLine, found: Imported) -> None:
    given = [name for name in ("bf16", "fp16") if line.has(f"--{name}")]
    if len(given) > 1:
        found.fault("precision", "--bf16 and --fp16 are both given", "one of them")
    if line.has("--fp8-format"):
        found.states("precision", "fp8", "--fp8-format")
    elif given:
        found.states("precision", given[0], f"--{given[0]}")
    elif not line.is_bridge:
        found.unpriced.append("neither --bf16 nor --fp16: products in fp32")
    name = line.text("--optimizer", None if line.is_bridge else "adam")
    if name is not None and name not in OPTIMIZERS:
        found.unpriced.append(f"--optimizer {name}")
    elif name is not None:
        found.states("optimizer", OPTIMIZERS[name], f"--optimizer {name}")
    backend = line.text("--attention-backend")
    if backend is not None and backend != "auto":
        is_unfused = backend in ("unfused", "local")
        found.states("attention", "unfused" if is_unfused else "flash", f"--attention-backend {backend}")
    elif line.has("--use-flash-attn"):
        found.states("attention", "flash", "--use-flash-attn")


def _context(line: CommandLine, found: Imported) -> None:
    """Styles and nested sizes of context parallelism."""
    styles = line.texts("--cp-comm-type") if line.has("--cp-comm-type") else []
    sizes: list[int] = []
    if line.has("--hierarchical-context-parallel-sizes"):
        words = line.texts("--hierarchical-context-parallel-sizes")
        sizes = [int(word) for word in words if word.isdigit()]
        product = 1
        for size in sizes:
            product *= size
        if product != (found.cp or 1):
            found.fault(
                "hierarchical-context",
                f"--hierarchical-context-parallel-sizes {' '.join(words)} multiply to {product}, "
                f"cp is {found.cp}",
                f"sizes that multiply to {found.cp}",
            )
    if "a2a+p2p" in styles and not sizes:
        found.fault(
            "hierarchical-context",
            "--cp-comm-type a2a+p2p needs --hierarchical-context-parallel-sizes",
            f"two sizes that multiply to cp {found.cp}",
        )
    if (found.cp or 1) > 1 and set(styles) - {"p2p"}:
        found.unpriced.append(f"--cp-comm-type {' '.join(styles)}: only the p2p ring is priced")


def _environment(line: CommandLine, found: Imported, facts: Facts) -> None:
    """CUDA_DEVICE_MAX_CONNECTIONS: 1 before Blackwell with tp or cp, never 1 with FSDP."""
    if line.environment is None:
        return
    value = line.environment.get(CONNECTIONS)
    is_sharded = line.has("--use-megatron-fsdp") or line.has("--use-torch-fsdp2")
    is_split = (found.tp or 1) > 1 or (found.cp or 1) > 1
    if is_sharded and value == "1":
        found.fault("connections", f"FSDP with {CONNECTIONS}=1", "leave it unset")
    elif is_split and not is_sharded and value != "1":
        shown = f"{CONNECTIONS} is {value or 'not set'} with tp {found.tp}, cp {found.cp}"
        if facts.generation is None:
            found.assumptions.append(f"{shown}: right on Blackwell only; older GPUs need 1")
        elif not facts.generation.startswith("blackwell"):
            is_stated = CONNECTIONS in line.environment  # otherwise it may be set outside the script
            rule = "connections"
            found.fault(rule, f"{shown} on {facts.generation}", f"{CONNECTIONS}=1", is_fatal=is_stated)


def _others(line: CommandLine, found: Imported) -> None:
    """Flags that were not read: refused when they change the decision or nearly spell one that does."""
    for flag, what in UNPRICED.items():
        if line.has(flag):
            found.unpriced.append(f"{flag}: {what}")
    for flag in line.flags:
        if flag in READ or flag in UNPRICED or flag in LAUNCHER_FLAGS:
            continue
        near = _misspelt(flag)
        if near is not None:
            found.fault("unknown-flag", f"{flag} is no flag of Megatron-LM", near)
        else:
            found.not_read.append(flag)


def _misspelt(flag: str) -> str | None:
    """A read flag that ``flag`` differs from by a letter or by _ for -, or None."""
    import difflib

    dashed = flag.replace("_", "-")
    if dashed != flag and dashed in READ:
        return dashed
    close = difflib.get_close_matches(flag, READ, n=1, cutoff=0.95)
    return close[0] if close else None
