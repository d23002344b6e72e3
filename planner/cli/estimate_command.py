"""``planner estimate``: the price of given degrees."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from planner.cli import options as o
from planner.errors import InputError

HELP = """Price your own degrees, no search.

Example: planner estimate --model llama-3.1-8b --gpu h100-sxm --gpus 16 --tp 2 --pp 2 --micro-batch 1
"""


def estimate(
    model: Annotated[str | None, typer.Option("--model", help="As for plan.")] = None,
    cluster: o.ClusterName = None,
    gpu: o.Gpu = None,
    gpus: o.Gpus = None,
    gpus_per_node: o.GpusPerNode = None,
    network: o.Network = None,
    seq_len: o.SeqLen = None,
    global_batch: o.GlobalBatch = None,
    precision: o.PrecisionName = None,
    optimizer: o.Optimizer = "adamw",
    attention: o.AttentionKernel = "flash",
    memory_limit_gib: o.MemoryLimit = None,
    oom_risk: o.OomRisk = None,
    tokens: o.Tokens = None,
    calibration: o.Calibration = None,
    tp: Annotated[int, typer.Option("--tp", help="Tensor-parallel degree.")] = 1,
    pp: Annotated[int, typer.Option("--pp", help="Pipeline-parallel degree.")] = 1,
    dp: o.Dp = None,
    cp: Annotated[int, typer.Option("--cp", help="Context-parallel degree.")] = 1,
    ep: Annotated[int, typer.Option("--ep", help="Expert-parallel degree.")] = 1,
    expert_tp: Annotated[int, typer.Option("--expert-tp", help="Tensor degree inside an expert.")] = 1,
    virtual_stages: Annotated[int, typer.Option("--virtual-stages", help="Chunks per rank.")] = 1,
    micro_batch: Annotated[int, typer.Option("--micro-batch", help="Sequences per microbatch.")] = 1,
    sharding: Annotated[str, typer.Option("--sharding", help="As for plan.")] = "optimizer",
    sharding_group: Annotated[str, typer.Option("--sharding-group", help="global or island.")] = "global",
    recompute: Annotated[str, typer.Option("--recompute", help="none, selective or full.")] = "none",
    schedule: o.ScheduleName = None,
    sequence_parallel: Annotated[
        bool | None, typer.Option("--sequence-parallel/--no-sequence-parallel", help="Default: with tp.")
    ] = None,
    plan: Annotated[str | None, typer.Option("--plan", help="Re-price this plan file instead.")] = None,
    output: o.Output = None,
    as_json: o.Json = False,
) -> None:
    """Price and print; a decision that does not fit is priced with a warning."""
    from planner.api import Choice, make_estimate, reprice
    from planner.catalog import check_writable, save_atomic
    from planner.cli.output import console, note
    from planner.request import Request

    if output is not None:
        check_writable(output)
    if plan is not None:
        given = [f for f, v in (("--model", model), ("--cluster", cluster), ("--gpu", gpu)) if v is not None]
        if given:
            raise InputError(
                f"--plan brings its own inputs; {', '.join(given)} cannot be given with it",
                hint=f"planner estimate --plan {plan}",
            )
        found = reprice(plan)
    elif model is None:
        raise InputError("--model is missing", hint="use --model llama-3.1-8b, or --plan plan.json")
    else:
        request = Request(
            model=model,
            cluster=cluster,
            gpu=gpu,
            gpus=gpus,
            gpus_per_node=gpus_per_node,
            network_gbit=network,
            seq_len=seq_len,
            global_batch=global_batch,
            precision=precision,
            optimizer=optimizer,
            attention=attention,
            memory_limit_gib=memory_limit_gib,
            oom_risk=oom_risk,
            tokens=tokens,
            calibration=calibration,
        )
        choice = Choice(
            tp=tp,
            pp=pp,
            cp=cp,
            ep=ep,
            dp=dp,
            expert_tp=expert_tp,
            virtual_stages=virtual_stages,
            microbatch_size=micro_batch,
            sharding=sharding,
            sharding_group=sharding_group,
            recompute=recompute,
            schedule=schedule,
            sequence_parallel=sequence_parallel,
        )
        found = make_estimate(request, choice)
    if output is not None:
        save_atomic(output, found.to_json())
        note(f"wrote {output}")
    if as_json:
        sys.stdout.write(found.to_json())
    else:
        from planner.report.terminal import print_plan

        print_plan(console(), found, cpu_seconds=None, next_commands=[])
