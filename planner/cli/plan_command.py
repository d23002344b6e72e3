"""``planner plan``: search, print, write."""

from __future__ import annotations

import math
import shlex
import sys
import time
from typing import TYPE_CHECKING

from planner.cli import options as o
from planner.errors import EXIT_INTERRUPTED, InputError

if TYPE_CHECKING:
    from planner.plan_file.schema import Plan

HELP = """Find the best plan and say why.

Example: planner plan --model llama-3.1-70b --gpu h100-sxm --gpus 64 --seq-len 8192 --global-batch 512
"""


def plan(
    model: o.PlannedModel = None,
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
    target: o.Target = "any",
    tp: o.Tp = None,
    pp: o.Pp = None,
    dp: o.Dp = None,
    cp: o.Cp = None,
    ep: o.Ep = None,
    virtual_stages: o.VirtualStages = None,
    micro_batch: o.MicroBatch = None,
    sharding: o.ShardingName = None,
    recompute: o.RecomputeName = None,
    schedule: o.ScheduleName = None,
    top: o.Top = 4,
    time_budget: o.TimeBudget = None,
    profile: o.Profile = None,
    output: o.Output = None,
    as_json: o.Json = False,
) -> int:
    """Search and print; exit 130 when interrupted with a plan in hand."""
    from planner.api import make_plan
    from planner.catalog import check_writable, save_atomic
    from planner.cli.output import ProgressLine, note
    from planner.request import Request
    from planner.search.tree import Pins

    if output is not None:
        check_writable(output)
    if time_budget is not None and not (math.isfinite(time_budget) and time_budget > 0):
        raise InputError(
            f"--time-budget must be positive seconds, not {time_budget}", hint="--time-budget 10"
        )
    if profile:
        from planner.cli.plan_profile import plan_on_profile
        from planner.profile_pins import ProfilePins
        from planner.profile_request import ProfileRequest

        refused = {
            "--cluster": cluster, "--gpus-per-node": gpus_per_node, "--network": network, "--ep": ep,
            "--virtual-stages": virtual_stages, "--schedule": schedule, "--calibration": calibration,
            "--oom-risk": oom_risk,
        }  # fmt: skip
        measured = ProfileRequest(
            files=tuple(profile),
            global_batch=global_batch,
            gpus=gpus,
            memory_limit_gib=memory_limit_gib,
            model=model,
            gpu=gpu,
            seq_len=seq_len,
            precision=precision,
            tokens=tokens,
            pins=ProfilePins(pp, tp, dp, cp, micro_batch, sharding, recompute),
        )
        return plan_on_profile(measured, refused, target, top, time_budget, output, as_json)
    if model is None:
        raise InputError(
            "Missing option '--model'.", hint="use --model llama-3.1-70b, or --profile with measured files"
        )
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
    pins = Pins(tp, pp, dp, cp, ep, virtual_stages, micro_batch, sharding, recompute, schedule)
    started = time.process_time()
    found = make_plan(
        request,
        pins,
        target=target,
        top=top,
        time_budget_seconds=time_budget or math.inf,
        reporter=ProgressLine(),
    )
    spent = time.process_time() - started
    if output is not None:
        save_atomic(output, found.to_json())
        note(f"wrote {output}")
    if as_json:
        sys.stdout.write(found.to_json())
    else:
        from planner.cli.output import console
        from planner.report.terminal import print_plan

        print_plan(console(), found, cpu_seconds=spent, next_commands=next_commands(found, output))
    return EXIT_INTERRUPTED if found.search.status == "interrupted" and time_budget is None else 0


def next_commands(found: Plan, output: str | None) -> list[str]:
    """What to type next: export when a launcher can run the plan, else plan again for that launcher."""
    from planner.launchers.registry import launcher

    file = output or "plan.json"
    if launcher("megatron").reasons(found):
        again = _repeat("--target", "megatron", "-o", "megatron.json")
        return [f"planner explain {shlex.quote(file)}"] * bool(output) + [
            f"{again}   # Megatron-LM cannot express this plan; this finds the best it can"
        ]
    save = [] if output else [_repeat("-o", file)]
    return [*save, f"planner export {shlex.quote(file)} --to megatron -o launch"]


def _repeat(*more: str) -> str:
    """The command as typed, with its output options replaced."""
    from planner.cli.output import invocation

    dropped = {"-o", "--output", "--target"}
    kept: list[str] = []
    skip = False
    for word in invocation:
        if skip:
            skip = False
        elif word in dropped:
            skip = True
        elif word != "--json" and not word.startswith(("--output=", "--target=")):
            kept.append(word)
    return shlex.join(["planner", *kept, *more])
