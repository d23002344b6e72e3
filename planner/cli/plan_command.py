"""``planner plan``: search, print, write."""

from __future__ import annotations

import shlex
import sys
import time
from typing import TYPE_CHECKING

from planner.cli import options as o
from planner.cli.question import Question, asked
from planner.errors import EXIT_INTERRUPTED, InputError

if TYPE_CHECKING:
    from planner.plan_file.schema import Plan

HELP = """Find the best plan and say why.

Example: planner plan --model llama-3.1-70b --gpu h100-sxm --gpus 64 --seq-len 8192 --global-batch 512
"""


@asked
def plan(
    model: o.PlannedModel = None,
    *,
    question: Question,
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
    offload: o.OffloadName = "auto",
    top: o.Top = 4,
    head_room: o.HeadRoom = None,
    allow_idle: o.AllowIdle = False,
    time_budget: o.TimeBudget = None,
    exact: o.Exact = False,
    profile: o.Profile = None,
    output: o.Output = None,
    as_json: o.Json = False,
) -> int:
    """Search and print; exit 130 when interrupted with a plan in hand."""
    from planner.api import make_plan
    from planner.catalog import check_writable, save_atomic
    from planner.cli.output import ProgressLine, note
    from planner.fronts import parse_head_rooms
    from planner.idle import make_plan_allowing_idle
    from planner.search.tree import Pins

    if output is not None:
        check_writable(
            output, [model, question.cluster, question.gpu, question.calibration, *(profile or [])]
        )
    budget = o.budget_seconds(time_budget)
    if profile:
        from planner.cli.plan_profile import measured_request, plan_on_profile, question_flags
        from planner.profile_pins import ProfilePins

        refused = {
            **question_flags(question), "--ep": ep, "--virtual-stages": virtual_stages,
            "--schedule": schedule, "--head-room": head_room, "--allow-idle": allow_idle or None,
            "--offload": None if offload == "auto" else offload, "--exact": exact or None,
        }  # fmt: skip
        pinned = ProfilePins(pp, tp, dp, cp, micro_batch, sharding, recompute)
        measured = measured_request(profile, model, question, pinned)
        return plan_on_profile(measured, refused, target, top, time_budget, output, as_json)
    if model is None:
        raise InputError(
            "Missing option '--model'.", hint="use --model llama-3.1-70b, or --profile with measured files"
        )
    request = question.request(model)
    head_rooms = parse_head_rooms(head_room) if head_room is not None else ()
    place = None if offload == "auto" else offload
    pins = Pins(tp, pp, dp, cp, ep, virtual_stages, micro_batch, sharding, recompute, schedule, place)
    started = time.process_time()
    found = (make_plan_allowing_idle if allow_idle else make_plan)(
        request,
        pins,
        target=target,
        top=top,
        time_budget_seconds=budget,
        reporter=ProgressLine(),
        exact=exact,
        head_rooms=head_rooms,
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
    is_stopped = found.search.status == "interrupted" or (found.front and not found.front.is_complete)
    # Stopped before its time was up: by Ctrl-C.
    return EXIT_INTERRUPTED if is_stopped and spent < budget else 0


# Launchers in the order they are offered for a plan made without one.
EXPORT_FIRST = ("megatron", "torchtitan", "pytorch", "accelerate", "deepspeed", "galvatron")


def next_commands(found: Plan, output: str | None) -> list[str]:
    """What to type next: export when a launcher can run the plan, else plan again for that launcher."""
    from planner.launchers.registry import launcher
    from planner.reasons import BINDING_SHARE

    file = output or "plan.json"
    p = found.prediction
    is_full = p.peak_memory_bytes >= BINDING_SHARE * p.memory_limit_bytes
    more = [f"{_repeat('--head-room', '5,10,20')}   # what leaving memory free costs"]
    room = more if is_full and found.front is None else []
    odd, batch = _odd_part(found.inputs.cluster.gpus), found.inputs.workload.global_batch
    if batch % odd and found.search.idle is None:
        again = _repeat("--allow-idle")
        room.append(f"{again}   # {odd} does not divide the batch: fewer GPUs may be faster")
    target = found.inputs.options.target
    able = [
        name for name in (EXPORT_FIRST if target == "any" else [target]) if not launcher(name).reasons(found)
    ]
    if able[:1] != ["megatron"] and target == "any":
        why = "no launcher runs this plan as it is; this finds Megatron-LM's best"
        if able:
            why = "Megatron-LM cannot express this plan; this finds the best it can"
        again = _repeat("--target", "megatron", "-o", "megatron.json")
        room.insert(0, f"{again}   # {why}")
    if not able:
        return [f"planner explain {shlex.quote(file)}"] * bool(output) + room
    save = [] if output else [_repeat("-o", file)]
    return [*save, f"planner export {shlex.quote(file)} --to {able[0]} -o launch", *room]


def _odd_part(count: int) -> int:
    """The largest odd divisor of a count."""
    return count // (count & -count)


def _repeat(*more: str) -> str:
    """The command as typed, with its output options replaced."""
    from planner.cli.output import invocation

    dropped = {"-o", "--output", "--head-room"} | {word for word in more if word.startswith("--")}
    kept: list[str] = []
    skip = False
    for word in invocation:
        if skip:
            skip = False
        elif word in dropped:
            skip = True
        elif word != "--json" and not word.startswith(tuple(f"{flag}=" for flag in dropped)):
            kept.append(word)
    return shlex.join(["planner", *kept, *more])
