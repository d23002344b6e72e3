"""Read Megatron-LM flags back: what Megatron-LM derives from them, worked out the way it does.

``read_flags`` takes a command line (torchrun's options may stand in front) and gives the degrees, the
microbatches, the virtual stages and the layers per stage that the run would have. Facts: Megatron-LM
training/arguments.py (data parallel size, virtual stages), num_microbatches_calculator.py (microbatches).
"""

from __future__ import annotations

import re
from typing import TypedDict

from planner.errors import InputError
from planner.launchers.megatron_stages import Flags

_FSDP = {"optim": "optimizer", "optim_grads": "gradients", "optim_grads_params": "parameters"}


class Derived(TypedDict):
    """What Megatron-LM makes of the flags.

    stage_layers: layers of every virtual stage in model order. dp and microbatches are None when the world
    size is not on the command line. recompute: none, selective, full, or block with recompute_layers.
    """

    flags: Flags
    world_size: int | None
    tp: int
    pp: int
    cp: int
    ep: int
    expert_tp: int
    dp: int | None
    sequence_parallel: bool
    microbatch_size: int
    global_batch: int
    microbatches: int | None
    num_layers: int
    virtual_stages: int
    stage_layers: list[int]
    recompute: str
    recompute_layers: int
    recompute_modules: list[str]
    sharding: str
    optimizer_instances: int


def split_flags(argv: list[str]) -> Flags:
    """Flag to values. The last of a repeated flag counts, as in argparse; a value may be joined by ``=``."""
    flags: Flags = {}
    current: list[str] | None = None
    for word in argv:
        if word.startswith("--"):
            name, joined, value = word.partition("=")
            current = [value] if joined else []
            flags[name] = current
        elif current is not None:
            current.append(word)
    return flags


def read_flags(argv: list[str]) -> Derived:
    """What the command line trains. Raises InputError for flags that contradict each other."""
    flags = split_flags(argv)
    tp = _int(flags, "--tensor-model-parallel-size", 1)
    pp = _int(flags, "--pipeline-model-parallel-size", 1)
    cp = _int(flags, "--context-parallel-size", 1)
    layers = _int(flags, "--num-layers")
    size = _int(flags, "--micro-batch-size")
    world = _world(flags)
    dp = None if world is None else _exact(world, tp * pp * cp, "world size", "tp x pp x cp")
    batch = _int(flags, "--global-batch-size", size * (dp or 1))
    microbatches = None if dp is None else _exact(batch, size * dp, "global batch", "microbatch size x dp")
    stages = _stage_layers(flags, layers, pp)
    mode, count = _recompute(flags)
    is_selective = mode == "selective"
    return Derived(
        flags=flags,
        world_size=world,
        tp=tp,
        pp=pp,
        cp=cp,
        ep=_int(flags, "--expert-model-parallel-size", 1),
        expert_tp=_int(flags, "--expert-tensor-parallel-size", tp),
        dp=dp,
        sequence_parallel="--sequence-parallel" in flags and tp > 1,
        microbatch_size=size,
        global_batch=batch,
        microbatches=microbatches,
        num_layers=layers,
        virtual_stages=len(stages) // pp,
        stage_layers=stages,
        recompute=mode,
        recompute_layers=count,
        recompute_modules=flags.get("--recompute-modules", ["core_attn"]) if is_selective else [],
        sharding=_sharding(flags),
        optimizer_instances=_int(flags, "--num-distributed-optimizer-instances", 1),
    )


def parse_layout(text: str) -> list[str]:
    """A layout string as one string of letters per virtual stage: ``Et*2|(t|)*2tL`` gives Ett, t, t, tL."""
    plain = text.replace(",", "")
    while (group := re.search(r"\(([^()]*)\)\*(\d+)", plain)) is not None:
        plain = plain[: group.start()] + group[1] * int(group[2]) + plain[group.end() :]
    plain = re.sub(r"(.)\*(\d+)", lambda match: match[1] * int(match[2]), plain)
    stages = plain.split("|")
    letters = "".join(stages)
    if set(letters) - set("EtmL") or not letters.startswith("E") or not letters.endswith("L"):
        raise InputError(
            f"pipeline layout {text!r} must use E, t, m and L, start with E and end with L",
            allowed=["E", "t", "m", "L", "|"],
            hint="for example Et*3|t*4|t*4|t*3L",
        )
    return stages


def _stage_layers(flags: Flags, layers: int, pp: int) -> list[int]:
    if "--pipeline-model-parallel-layout" in flags:
        stages = parse_layout(_text(flags, "--pipeline-model-parallel-layout"))
        _exact(len(stages), pp, "stages of the layout", "pp")
        counts = [stage.count("t") for stage in stages]
        if sum(counts) != layers:
            raise InputError(f"the layout holds {sum(counts)} layers, --num-layers says {layers}")
        return counts
    per_rank = _exact(layers, pp, "layers", "pp")
    if "--num-layers-per-virtual-pipeline-stage" in flags:
        size = _int(flags, "--num-layers-per-virtual-pipeline-stage")
        chunks = _exact(per_rank, size, "layers per rank", "layers per virtual stage")
    else:
        chunks = _int(flags, "--num-virtual-stages-per-pipeline-rank", 1)
    return [_exact(per_rank, chunks, "layers per rank", "virtual stages")] * (chunks * pp)


def _recompute(flags: Flags) -> tuple[str, int]:
    granularity = _text(flags, "--recompute-granularity", "none")
    if granularity in ("none", "selective"):
        return granularity, 0
    method, count = _text(flags, "--recompute-method"), _int(flags, "--recompute-num-layers")
    return ("full", 0) if method == "uniform" else ("block", count)


def _sharding(flags: Flags) -> str:
    if "--use-megatron-fsdp" in flags:
        strategy = _text(flags, "--data-parallel-sharding-strategy", "no_shard")
        return _FSDP.get(strategy, "none")
    return "optimizer" if "--use-distributed-optimizer" in flags else "none"


def _world(flags: Flags) -> int | None:
    if "--nproc-per-node" not in flags:
        return None
    return _int(flags, "--nnodes", 1) * _int(flags, "--nproc-per-node")


def _text(flags: Flags, name: str, default: str | None = None) -> str:
    values = flags.get(name) or ([] if default is None else [default])
    if not values:
        raise InputError(f"{name} is missing or has no value")
    return values[0]


def _int(flags: Flags, name: str, default: int | None = None) -> int:
    text = _text(flags, name, None if default is None else str(default))
    if not text.isdigit() or int(text) < 1:
        raise InputError(f"{name} must be a positive whole number, not {text!r}")
    return int(text)


def _exact(value: int, divisor: int, what: str, by: str) -> int:
    if value % divisor:
        raise InputError(f"{what} {value} is not a multiple of {by} {divisor}")
    return value // divisor
