"""Sharding from Megatron-LM's flags: distributed optimizer, its instances, Megatron-FSDP, torch FSDP2."""

from __future__ import annotations

from planner.launchers.imported import Facts, Imported
from planner.launchers.megatron_words import CommandLine

OPTIMIZER, INSTANCES = "--use-distributed-optimizer", "--num-distributed-optimizer-instances"
REDUCE, GATHER = "--overlap-grad-reduce", "--overlap-param-gather"
FSDP, TORCH_FSDP = "--use-megatron-fsdp", "--use-torch-fsdp2"
STRATEGY, FORMAT = "--data-parallel-sharding-strategy", "--ckpt-format"
VERSION, META = "--megatron-fsdp-version", "--init-model-with-meta-device"
SHARDING_FLAGS = (OPTIMIZER, INSTANCES, REDUCE, GATHER, FSDP, TORCH_FSDP, STRATEGY, FORMAT, VERSION, META)
STRATEGIES = {
    "no_shard": "none",
    "optim": "optimizer",
    "optim_grads": "gradients",
    "optim_grads_params": "parameters",
}


def read_sharding(line: CommandLine, found: Imported, facts: Facts) -> None:
    """What is kept where over the data ranks, with the rules of these flags."""
    is_sharded = line.has(FSDP) or line.has(TORCH_FSDP)
    if line.has(GATHER) and not line.has(REDUCE):
        found.fault("gather-overlap", f"{GATHER} without {REDUCE}", "both, or neither")
    if line.has(GATHER) and not (line.has(OPTIMIZER) or is_sharded):
        found.fault("gather-overlap", f"{GATHER} without {OPTIMIZER}", OPTIMIZER)
    if line.has(FSDP):
        _megatron_fsdp(line, found)
    elif line.has(TORCH_FSDP):
        _torch_fsdp(line, found)
    elif line.has(OPTIMIZER):
        found.states("sharding", "optimizer", OPTIMIZER)
    elif not line.is_bridge:
        found.sharding = "none"
    if not line.has(FSDP) and line.has(STRATEGY):
        found.fault(
            "sharding-strategy",
            f"{STRATEGY} {line.text(STRATEGY)} is ignored without {FSDP}",
            FSDP,
            is_fatal=False,
        )
    if not (line.has(REDUCE) or line.is_bridge):
        found.assumptions.append(
            f"{REDUCE} is not given: the run will expose more gradient traffic than priced"
        )
    _instances(line, found, facts)


def _megatron_fsdp(line: CommandLine, found: Imported) -> None:
    strategy = line.text(STRATEGY)
    if strategy is None:
        found.fault(
            "sharding-strategy",
            f"{FSDP} without {STRATEGY}: the default is no_shard, nothing is sharded",
            f"{STRATEGY} optim_grads_params",
            is_fatal=False,
        )
        strategy = "no_shard"
    if strategy not in STRATEGIES:
        found.fault("sharding-strategy", f"{STRATEGY} {strategy} is not a choice", ", ".join(STRATEGIES))
        return
    found.states("sharding", STRATEGIES[strategy], f"{STRATEGY} {strategy}")
    ckpt = line.text(FORMAT)
    if ckpt != "fsdp_dtensor":
        found.fault(
            "checkpoint-format", f"{FSDP} with {FORMAT} {ckpt or 'torch_dist (default)'}", "fsdp_dtensor"
        )
    if line.text(VERSION) == "2":
        wrong = [
            name
            for name, is_on in (
                (OPTIMIZER, line.has(OPTIMIZER)),
                ("experts", line.has("--num-experts")),
                ("virtual stages", (found.virtual_stages or 1) > 1),
                (INSTANCES, line.has(INSTANCES)),
            )
            if is_on
        ]
        if wrong:
            found.fault(
                "fsdp-version", f"Megatron-FSDP 2 with {', '.join(wrong)}", "--megatron-fsdp-version 1"
            )
    if (found.pp or 1) > 1 and found.sharding in ("gradients", "parameters"):
        found.assumptions.append(
            f"Megatron-FSDP {strategy} with pp {found.pp}: every microbatch gathers and reduces, "
            "which is priced "
            "once a step for gradients"
        )


def _torch_fsdp(line: CommandLine, found: Imported) -> None:
    found.states("sharding", "parameters", TORCH_FSDP)
    wrong = [
        name
        for name, is_on in (
            (f"pp {found.pp}", (found.pp or 1) > 1),
            (f"ep {found.ep}", (found.ep or 1) > 1),
            (OPTIMIZER, line.has(OPTIMIZER)),
            (
                "tied embeddings",
                line.has("--num-layers") and not line.has("--untie-embeddings-and-output-weights"),
            ),
        )
        if is_on
    ]
    if wrong:
        found.fault("torch-fsdp2", f"{TORCH_FSDP} with {', '.join(wrong)}", f"{FSDP}")
    ckpt = line.text(FORMAT)
    if ckpt not in ("torch_dist", "torch_dcp", None):
        found.fault("checkpoint-format", f"{TORCH_FSDP} with {FORMAT} {ckpt}", "torch_dist")


def _instances(line: CommandLine, found: Imported, facts: Facts) -> None:
    """Optimizer instances must divide dp x cp: groups are built long after the argument check."""
    count = line.number(INSTANCES, 1) or 1
    world = found.world_size or facts.world_size
    if count == 1:
        return
    if found.sharding == "none":
        found.fault("optimizer-instances", f"{INSTANCES} {count} without a sharded optimizer", OPTIMIZER)
        return
    found.where["shard_ranks"] = f"{INSTANCES} {count}"
    if world is None or world % ((found.tp or 1) * (found.pp or 1)):
        return
    ranks = world // ((found.tp or 1) * (found.pp or 1))
    if ranks % count:
        divisors = [d for d in range(1, ranks + 1) if ranks % d == 0]
        found.fault(
            "optimizer-instances", f"{INSTANCES} {count} over {ranks} dp x cp ranks", f"one of {divisors}"
        )
        return
    found.shard_ranks = ranks // count
