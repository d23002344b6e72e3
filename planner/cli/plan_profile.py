"""``planner plan --profile``: search measured tables, print, write."""

from __future__ import annotations

import math
import shlex
import sys
import time
from typing import TYPE_CHECKING, Any

from planner.errors import InputError

if TYPE_CHECKING:
    from planner.cli.question import Question
    from planner.profile_pins import ProfilePins
    from planner.profile_request import ProfileRequest
    from planner.profiles.files import ProfileFile


MEASURED = "the files measure one machine with its software, and the search covers their whole space"
REFUSED = {
    "--head-room": (
        "measured bytes have no stated limit to leave a share of",
        "plan once for each limit: --memory-limit-gib 36, then 34.2 for 5 % less",
    ),
    "--allow-idle": (
        "the files measure certain numbers of GPUs and no others",
        "plan once for each of these numbers: --gpus 8, then --gpus 4",
    ),
}


def refuse_beside_profile(flags: dict[str, Any]) -> None:
    """Raises InputError for the first of ``flags`` that is given: measured tables cannot honour it."""
    for flag, value in flags.items():
        if value is not None:
            reason, hint = REFUSED.get(flag, (MEASURED, f"leave {flag} out, or plan without --profile"))
            raise InputError(f"{flag} has no meaning beside --profile: {reason}", hint=hint)


def question_flags(question: Question) -> dict[str, Any]:
    """The flags of the question that measured files answer themselves, with what was given."""
    q = question
    return {
        "--cluster": q.cluster,
        "--gpus-per-node": q.gpus_per_node,
        "--network": q.network,
        "--calibration": q.calibration,
        "--oom-risk": q.oom_risk,
        "--host-memory-gib": q.host_memory_gib,
        "--optimizer": q.optimizer,
        "--attention": q.attention,
    }


def measured_request(
    files: list[str], model: str | None, question: Question, pins: ProfilePins
) -> ProfileRequest:
    """The request for measured files, from the question's other answers."""
    from planner.profile_request import ProfileRequest

    q = question
    return ProfileRequest(
        files=tuple(files),
        global_batch=q.global_batch,
        gpus=q.gpus,
        memory_limit_gib=q.memory_limit_gib,
        model=model,
        gpu=q.gpu,
        seq_len=q.seq_len,
        precision=q.precision,
        tokens=q.tokens,
        pins=pins,
    )


def estimate_on_profile(
    request: ProfileRequest, refused: dict[str, Any], target: str, output: str | None, as_json: bool
) -> None:
    """Price and print. Raises InputError for a flag that measured tables cannot honour."""
    from planner.cli.output import console
    from planner.profile_estimate import make_profile_estimate

    refuse_beside_profile(refused)
    found = make_profile_estimate(request, target=target)
    if not _written(found.to_json(), output, as_json):
        from planner.report.terminal import print_plan

        print_plan(console(), found, cpu_seconds=None, next_commands=[])


def plan_on_profile(
    request: ProfileRequest,
    refused: dict[str, Any],
    target: str,
    top: int,
    time_budget: float | None,
    output: str | None,
    as_json: bool,
) -> int:
    """Search and print. Raises InputError for a flag that measured tables cannot honour."""
    from planner.cli.output import console
    from planner.profile_plan import make_profile_plan
    from planner.profiles.files import read_files

    refuse_beside_profile(refused)
    files = read_files(request.files)
    if len(files) == 1 and files[0].kind == "piper":
        return _plan_graph(files[0], request, target, time_budget, output, as_json)
    started = time.process_time()
    found = make_profile_plan(request, target=target, top=top, time_budget_seconds=time_budget or math.inf)
    spent = time.process_time() - started
    if _written(found.to_json(), output, as_json):
        return 0
    from planner.report.terminal import print_plan

    file = shlex.quote(output or "plan.json")
    export = f"planner export {file} --to galvatron -o launch"
    following = [f"planner explain {file}", f"planner check {file}", export]
    print_plan(console(), found, cpu_seconds=spent, next_commands=following if output else [])
    return 0


def _written(document: str, output: str | None, as_json: bool) -> bool:
    """Save a plan's document where that is asked; whether it was printed instead of a report."""
    from planner.catalog import save_atomic
    from planner.cli.output import note

    if output is not None:
        save_atomic(output, document)
        note(f"wrote {output}")
    if as_json:
        sys.stdout.write(document)
    return as_json


def _plan_graph(
    file: ProfileFile,
    request: ProfileRequest,
    target: str,
    time_budget: float | None,
    output: str | None,
    as_json: bool,
) -> int:
    """Plan a Piper graph. Raises InputError for a flag that means nothing beside one."""
    from planner.cli.output import console
    from planner.graph_plan import make_graph_plan, memory_limit
    from planner.report.graph_text import print_graph_plan

    pins = {f"--{name.replace('_', '-')}": value for name, value in request.pins.items().items()}
    refused = {
        "--model": request.model,
        "--gpu": request.gpu,
        "--seq-len": request.seq_len,
        "--precision": request.precision,
        "--tokens": request.tokens,
        "--target": None if target == "any" else target,
        "--time-budget": time_budget,
        **pins,
    }
    for flag, value in refused.items():
        if value is not None:
            raise InputError(
                f"{flag} has no meaning beside a layer graph: it names no model and no launcher",
                hint=f"leave {flag} out; --gpus, --memory-limit-gib and --global-batch replace the file's",
            )
    found = make_graph_plan(
        file,
        devices=request.gpus,
        memory_bytes=memory_limit(request.memory_limit_gib),
        samples=request.global_batch,
    )
    if _written(found.to_json(), output, as_json):
        return 0
    following = [f"planner check {shlex.quote(output)}"] if output else []
    print_graph_plan(console(), found, following)
    return 0
