"""``planner estimate``: the price of given degrees, of a plan file, or of a launcher's file."""

from __future__ import annotations

import shlex
import sys
from dataclasses import asdict
from typing import Annotated, Any

import typer

from planner.cli import options as o
from planner.cli.question import Question, asked
from planner.errors import InputError

# Fields of a choice that are not spelled like their option.
FLAGS = {"microbatch_size": "--micro-batch"}
HELP = """Price your own degrees or a launcher's file, no search.

Example: planner estimate --model llama-3.1-8b --gpu h100-sxm --gpus 16 --tp 2 --pp 2 --micro-batch 1

On measured files: planner estimate --profile FOLDER --gpus 8 --global-batch 64 --tp 2 --memory-limit-gib 36

A launcher's file: planner estimate --from megatron train.sh --cluster dgx-h100
"""


@asked
def estimate(
    model: Annotated[str | None, typer.Option("--model", help="As for plan.")] = None,
    *,
    question: Question,
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
    target: Annotated[
        str, typer.Option("--target", help="Priced as this launcher runs it: megatron, torchtitan, ...")
    ] = "any",
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
    profile: o.Profile = None,
    output: o.Output = None,
    as_json: o.Json = False,
) -> None:
    """Price and print; a decision that does not fit is priced with a warning."""
    from planner.api import reprice
    from planner.catalog import check_writable, save_atomic
    from planner.cli.output import console, note

    if output is not None:
        read = [model, question.cluster, question.gpu, question.calibration, source[1] if source else None]
        read += profile or []
        check_writable(output, read)
    request = question.request(model or "", has_defaults=False)
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
    if target != "any" and (plan is not None or source is not None):
        raise InputError(
            "--target cannot be given with --plan or --from: they say which launcher it is",
            hint="leave --target out, or check a plan's launcher with planner check PLAN --target NAME",
        )
    if profile:
        from planner.cli.plan_profile import estimate_on_profile, measured_request, question_flags
        from planner.profile_pins import ProfilePins

        refused = {
            **question_flags(question), "--plan": plan, "--from": source, "--ep": ep,
            "--expert-tp": expert_tp, "--virtual-stages": virtual_stages, "--sharding-group": sharding_group,
            "--schedule": schedule, "--offload": offload, "--sequence-parallel": sequence_parallel,
        }  # fmt: skip
        pins = ProfilePins(pp, tp, dp, cp, micro_batch, sharding, recompute)
        measured = measured_request(profile, model, question, pins)
        estimate_on_profile(measured, refused, target, output, as_json)
        return
    if plan is not None:
        _refuse_beside_plan(plan, model, question, given, source)
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
        from planner.api import Choice, make_estimate

        found = make_estimate(question.request(model), Choice(**given), target)
    if output is not None:
        save_atomic(output, found.to_json())
        note(f"wrote {output}")
    if as_json:
        sys.stdout.write(found.to_json())
    else:
        from planner.report.terminal import print_plan

        asked_again = (
            []
            if plan is not None or source is not None or model is None
            else [_search(model, question, target)]
        )
        print_plan(console(), found, cpu_seconds=None, next_commands=asked_again)


def _search(model: str, question: Question, target: str) -> str:
    """The command that searches for the best plan of the same question."""
    words = ["planner", "plan", "--model", model, *(["--target", target] if target != "any" else [])]
    for name, value in asdict(question).items():
        if value is not None:
            words += [f"--{name.replace('_', '-')}", f"{value:g}" if isinstance(value, float) else str(value)]
    return f"{shlex.join(words)}   # the best plan for the same question"


def _refuse_beside_plan(
    plan: str,
    model: str | None,
    question: Question,
    choice: dict[str, Any],
    source: tuple[str, str] | None,
) -> None:
    """--plan brings its own inputs and its own decision."""
    beside = {"model": model, "from": source, **asdict(question), **choice}
    given = [
        FLAGS.get(name, f"--{name.replace('_', '-')}") for name, value in beside.items() if value is not None
    ]
    if given:
        raise InputError(
            f"--plan brings its own inputs and decision; {', '.join(given)} cannot be given with it",
            hint=f"planner estimate --plan {plan}, or explain {plan} --why-not tp=8",
        )
