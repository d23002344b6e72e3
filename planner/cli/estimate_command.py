"""``planner estimate``: the price of given degrees, of a plan file, or of a launcher's file."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from planner.cli import options as o
from planner.errors import InputError

if TYPE_CHECKING:
    from planner.plan_file.schema import Plan
    from planner.request import Request

HELP = """Price your own degrees or a launcher's file, no search.

Example: planner estimate --model llama-3.1-8b --gpu h100-sxm --gpus 16 --tp 2 --pp 2 --micro-batch 1

A launcher's file: planner estimate --from megatron train.sh --cluster dgx-h100
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
    optimizer: Annotated[
        str | None, typer.Option("--optimizer", help="adamw (default), adam, adamw-8bit, sgd-momentum, ...")
    ] = None,
    attention: Annotated[str | None, typer.Option("--attention", help="flash (default) or unfused.")] = None,
    memory_limit_gib: o.MemoryLimit = None,
    oom_risk: o.OomRisk = None,
    tokens: o.Tokens = None,
    calibration: o.Calibration = None,
    tp: Annotated[int | None, typer.Option("--tp", help="Tensor-parallel degree (default 1).")] = None,
    pp: Annotated[int | None, typer.Option("--pp", help="Pipeline-parallel degree (default 1).")] = None,
    dp: o.Dp = None,
    cp: Annotated[int | None, typer.Option("--cp", help="Context-parallel degree (default 1).")] = None,
    ep: Annotated[int | None, typer.Option("--ep", help="Expert-parallel degree (default 1).")] = None,
    expert_tp: Annotated[
        int | None, typer.Option("--expert-tp", help="Tensor degree inside an expert (default 1).")
    ] = None,
    virtual_stages: Annotated[
        int | None, typer.Option("--virtual-stages", help="Chunks per rank (default 1).")
    ] = None,
    micro_batch: Annotated[
        int | None, typer.Option("--micro-batch", help="Sequences per microbatch (default 1).")
    ] = None,
    sharding: Annotated[
        str | None, typer.Option("--sharding", help="As for plan (default optimizer).")
    ] = None,
    sharding_group: Annotated[
        str | None, typer.Option("--sharding-group", help="global (default) or island.")
    ] = None,
    recompute: Annotated[
        str | None, typer.Option("--recompute", help="none (default), selective or full.")
    ] = None,
    schedule: o.ScheduleName = None,
    offload: Annotated[
        str | None, typer.Option("--offload", help="none (default) or optimizer: on the host.")
    ] = None,
    host_memory_gib: o.HostMemory = None,
    sequence_parallel: Annotated[
        bool | None, typer.Option("--sequence-parallel/--no-sequence-parallel", help="Default: with tp.")
    ] = None,
    plan: Annotated[str | None, typer.Option("--plan", help="Re-price this plan file instead.")] = None,
    source: Annotated[
        tuple[str, str] | None,
        typer.Option(
            "--from",
            metavar="LAUNCHER FILE",
            help="Price a launcher's file or folder: megatron, megatron-bridge, torchtitan, deepspeed, "
            "accelerate, galvatron or pytorch.",
        ),
    ] = None,
    output: o.Output = None,
    as_json: o.Json = False,
) -> None:
    """Price and print; a decision that does not fit is priced with a warning."""
    from planner.api import reprice
    from planner.catalog import check_writable, save_atomic
    from planner.cli.output import console, note
    from planner.request import Request

    if output is not None:
        check_writable(output)
    request = Request(
        model=model or "",
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
        host_memory_gib=host_memory_gib,
    )
    given: dict[str, Any] = {
        "tp": tp,
        "pp": pp,
        "dp": dp,
        "cp": cp,
        "ep": ep,
        "expert_tp": expert_tp,
        "virtual_stages": virtual_stages,
        "microbatch_size": micro_batch,
        "sharding": sharding,
        "sharding_group": sharding_group,
        "recompute": recompute,
        "schedule": schedule,
        "sequence_parallel": sequence_parallel,
        "offload": offload,
    }
    given = {name: value for name, value in given.items() if value is not None}
    if plan is not None:
        _refuse_beside_plan(plan, model, cluster, gpu, source)
        found = reprice(plan)
    elif source is not None:
        from planner.imported_estimate import estimate_file
        from planner.importing import Answers

        found = estimate_file(source[0], source[1], request, Answers(**given))
    elif model is None:
        raise InputError(
            "--model is missing",
            hint="use --model llama-3.1-8b, --plan plan.json, or --from megatron train.sh",
        )
    else:
        found = _given(request, given)
    if output is not None:
        save_atomic(output, found.to_json())
        note(f"wrote {output}")
    if as_json:
        sys.stdout.write(found.to_json())
    else:
        from planner.report.terminal import print_plan

        print_plan(console(), found, cpu_seconds=None, next_commands=[])


def _refuse_beside_plan(
    plan: str, model: str | None, cluster: str | None, gpu: str | None, source: tuple[str, str] | None
) -> None:
    """--plan brings its own inputs."""
    beside = (("--model", model), ("--cluster", cluster), ("--gpu", gpu), ("--from", source))
    given = [flag for flag, value in beside if value is not None]
    if given:
        raise InputError(
            f"--plan brings its own inputs; {', '.join(given)} cannot be given with it",
            hint=f"planner estimate --plan {plan}",
        )


def _given(request: Request, given: dict[str, Any]) -> Plan:
    """The price of the flags; what is not given has the documented defaults."""
    from planner.api import Choice, make_estimate

    defaults = {"optimizer": "adamw", "attention": "flash"}
    missing = {name: value for name, value in defaults.items() if getattr(request, name) is None}
    return make_estimate(request.changed(**missing), Choice(**given))
