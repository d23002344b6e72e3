"""Options shared by commands: one definition each, so every command spells and explains them alike."""

from __future__ import annotations

import math
from typing import Annotated

import typer

from planner.errors import InputError

Model = Annotated[
    str, typer.Option("--model", help="Built-in name, our JSON, or a Hugging Face config.json.")
]
PlannedModel = Annotated[
    str | None,
    typer.Option("--model", help="Built-in name, our JSON, or a Hugging Face config.json."),
]
Profile = Annotated[
    list[str] | None,
    typer.Option("--profile", help="Measured profile files or a folder (Hetu-Galvatron); repeatable."),
]
ClusterName = Annotated[str | None, typer.Option("--cluster", help="Hardware profile: name or file.")]
Gpu = Annotated[str | None, typer.Option("--gpu", help="GPU name, with --gpus (a default machine).")]
Gpus = Annotated[int | None, typer.Option("--gpus", help="How many GPUs.")]
GpusPerNode = Annotated[int | None, typer.Option("--gpus-per-node", help="With --gpu: node size.")]
Network = Annotated[float | None, typer.Option("--network", help="With --gpu: Gb/s of network per GPU.")]
SeqLen = Annotated[int | None, typer.Option("--seq-len", help="Tokens per sequence.")]
GlobalBatch = Annotated[int | None, typer.Option("--global-batch", help="Sequences per step.")]
PrecisionName = Annotated[str | None, typer.Option("--precision", help="bf16, fp16 or fp8.")]
Optimizer = Annotated[
    str | None,
    typer.Option("--optimizer", help="adamw (default), adam, adamw-8bit, sgd-momentum or adafactor."),
]
AttentionKernel = Annotated[str | None, typer.Option("--attention", help="flash (default) or unfused.")]
MemoryLimit = Annotated[
    float | None, typer.Option("--memory-limit-gib", help="Cap per GPU; default by --oom-risk.")
]
OomRisk = Annotated[
    float | None,
    typer.Option("--oom-risk", help="Highest P(out of memory) of a plan; default 0.2, and 5 % free."),
]
Tokens = Annotated[float | None, typer.Option("--tokens", help="Tokens of the whole run, for days.")]
Calibration = Annotated[
    str | None, typer.Option("--calibration", help="Fitted constants of this machine (planner calibrate).")
]
Target = Annotated[
    str, typer.Option("--target", help="Only plans this launcher runs: any, megatron, torchtitan, ...")
]
Tp = Annotated[int | None, typer.Option("--tp", help="Tensor-parallel degree.")]
Pp = Annotated[int | None, typer.Option("--pp", help="Pipeline-parallel degree.")]
Dp = Annotated[int | None, typer.Option("--dp", help="Data-parallel degree.")]
Cp = Annotated[int | None, typer.Option("--cp", help="Context-parallel degree.")]
Ep = Annotated[int | None, typer.Option("--ep", help="Expert-parallel degree.")]
VirtualStages = Annotated[
    int | None, typer.Option("--virtual-stages", help="Chunks per pipeline rank (interleaving).")
]
MicroBatch = Annotated[int | None, typer.Option("--micro-batch", help="Sequences per microbatch.")]
ShardingName = Annotated[
    str | None, typer.Option("--sharding", help="none, optimizer, gradients or parameters.")
]
HostMemory = Annotated[
    float | None, typer.Option("--host-memory-gib", help="Host memory a node, for an optimizer on the host.")
]
OffloadName = Annotated[
    str,
    typer.Option("--offload", help="auto (optimizer on the host if nothing fits without), none, optimizer."),
]
RecomputeName = Annotated[str | None, typer.Option("--recompute", help="none, selective or full.")]
ScheduleName = Annotated[
    str | None, typer.Option("--schedule", help="1f1b, interleaved, zb-h1, zb-v or gpipe.")
]
Top = Annotated[int, typer.Option("--top", help="Plans to report, the best included.", min=1, max=50)]
Exact = Annotated[
    bool, typer.Option("--exact", help="Search also what heuristic rules leave out (the funnel names them).")
]
Jobs = Annotated[
    int | None, typer.Option("--jobs", help="Processes; by default one a core where that pays.", min=1)
]
AllowIdle = Annotated[
    bool,
    typer.Option("--allow-idle", help="Plan on fewer GPUs, whole nodes, where that is faster."),
]
HeadRoom = Annotated[
    str | None,
    typer.Option(
        "--head-room",
        metavar="PERCENTS",
        help="Also the fastest plans that leave so much of the memory limit free: 5,10,20.",
    ),
]
TimeBudget = Annotated[
    float | None, typer.Option("--time-budget", help="CPU seconds after which the best so far is taken.")
]
Json = Annotated[bool, typer.Option("--json", help="JSON on stdout.")]
Output = Annotated[str | None, typer.Option("-o", "--output", help="Write the plan to this file.")]


def budget_seconds(given: float | None) -> float:
    """CPU seconds of ``--time-budget``, infinite when not given. Raises InputError for what is no time."""
    if given is None:
        return math.inf
    if not (math.isfinite(given) and given > 0):
        raise InputError(
            f"--time-budget must be positive seconds, not {given:g}", hint="use --time-budget 10"
        )
    return given
