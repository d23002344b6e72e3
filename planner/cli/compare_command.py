"""``planner compare``: a what-if table, re-planned at each point."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from planner.cli import options as o
from planner.errors import EXIT_DONE, EXIT_INFEASIBLE, EXIT_INTERRUPTED, EXIT_SOLVER, EXIT_TARGET, InputError

if TYPE_CHECKING:
    from planner.comparison import Comparison
    from planner.request import Request

HELP = """Re-plan at every combination of comma-separated values: a what-if table.

Example: planner compare --model llama-3.1-8b --gpu a100-80g-sxm,h100-sxm --gpus 8,16,32 --seq-len 8192
"""

Value = TypeVar("Value", int, float, str)


def _list(flag: str) -> Any:
    return typer.Option(flag, help="One value or several, comma-separated.")


def compare(
    model: Annotated[str | None, _list("--model")] = None,
    cluster: Annotated[str | None, _list("--cluster")] = None,
    gpu: Annotated[str | None, _list("--gpu")] = None,
    gpus: Annotated[str | None, _list("--gpus")] = None,
    network: Annotated[str | None, _list("--network")] = None,
    seq_len: Annotated[str | None, _list("--seq-len")] = None,
    global_batch: Annotated[str | None, _list("--global-batch")] = None,
    precision: Annotated[str | None, _list("--precision")] = None,
    optimizer: Annotated[str | None, _list("--optimizer")] = None,
    memory_limit_gib: Annotated[str | None, _list("--memory-limit-gib")] = None,
    head_room: Annotated[
        str | None,
        typer.Option(
            "--head-room", metavar="PERCENTS", help="Of the memory limit left free: 0,5,10; one point each."
        ),
    ] = None,
    gpus_per_node: o.GpusPerNode = None,
    attention: o.AttentionKernel = None,
    oom_risk: o.OomRisk = None,
    tokens: o.Tokens = None,
    calibration: o.Calibration = None,
    host_memory_gib: o.HostMemory = None,
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
    allow_idle: o.AllowIdle = False,
    time_budget: o.TimeBudget = None,
    exact: o.Exact = False,
    profile: o.Profile = None,
    jobs: o.Jobs = None,
    csv: Annotated[bool, typer.Option("--csv", help="CSV on stdout.")] = False,
    as_json: o.Json = False,
) -> int:
    """Plan every point and print one line each; exit 3 or 5 when no point has a plan."""
    from planner.cli.output import ProgressLine
    from planner.comparison import HEAD_ROOM, HowToPlan, compare_requests
    from planner.search.tree import Pins

    if csv and as_json:
        raise InputError("--csv and --json exclude each other", hint="leave one of the two out")
    given: dict[str, list[Any]] = {
        "model": _values("--model", model, str),
        "cluster": _values("--cluster", cluster, str),
        "gpu": _values("--gpu", gpu, str),
        "gpus": _values("--gpus", gpus, int),
        "network_gbit": _values("--network", network, float),
        "seq_len": _values("--seq-len", seq_len, int),
        "global_batch": _values("--global-batch", global_batch, int),
        "precision": _values("--precision", precision, str),
        "optimizer": _values("--optimizer", optimizer, str),
        "memory_limit_gib": _values("--memory-limit-gib", memory_limit_gib, float),
        HEAD_ROOM: _head_rooms(_values("--head-room", head_room, float)),
    }
    vary = {
        name: values for name, values in given.items() if len(values) > 1 or (values and name == HEAD_ROOM)
    }
    fixed = {name: values[0] for name, values in given.items() if values and name not in vary}
    pinned = None if offload == "auto" else offload
    budget = o.budget_seconds(time_budget)
    line = ProgressLine()

    def progress(done: int, total: int) -> None:
        line.say(f"{done} of {total} points planned")

    if profile:
        from planner.cli.plan_profile import refuse_beside_profile
        from planner.profile_comparison import VARIABLE, compare_profile
        from planner.profile_pins import ProfilePins
        from planner.profile_request import ProfileRequest

        others = {name: values or None for name, values in given.items() if name not in VARIABLE}
        refuse_beside_profile(
            {
                **{f"--{name.replace('_percent', '').removesuffix('_gbit').replace('_', '-')}": value
                   for name, value in others.items()},
                "--gpus-per-node": gpus_per_node, "--attention": attention, "--oom-risk": oom_risk,
                "--calibration": calibration, "--host-memory-gib": host_memory_gib, "--ep": ep,
                "--virtual-stages": virtual_stages, "--schedule": schedule, "--offload": pinned,
                "--allow-idle": allow_idle or None, "--exact": exact or None,
            }
        )  # fmt: skip
        measured = ProfileRequest(
            files=tuple(profile),
            tokens=tokens,
            pins=ProfilePins(pp, tp, dp, cp, micro_batch, sharding, recompute),
            **fixed,
        )
        comparison = compare_profile(
            measured, vary, target=target, time_budget_seconds=budget, progress=progress, jobs=jobs
        )
    else:
        if not given["model"]:
            raise InputError(
                "Missing option '--model'.",
                hint="use --model llama-3.1-70b, or --profile with measured files",
            )
        request = _request(fixed, gpus_per_node, attention, oom_risk, tokens, calibration, host_memory_gib)
        pins = Pins(tp, pp, dp, cp, ep, virtual_stages, micro_batch, sharding, recompute, schedule, pinned)
        how = HowToPlan(pins, target, allow_idle, exact, budget)
        comparison = compare_requests(request, vary, how, progress=progress, jobs=jobs)
    _print(comparison, csv, as_json)
    return _exit_code(comparison)


def _request(
    fixed: dict[str, Any],
    gpus_per_node: int | None,
    attention: str | None,
    oom_risk: float | None,
    tokens: float | None,
    calibration: str | None,
    host_memory_gib: float | None,
) -> Request:
    """What is the same at every point; what is not given keeps its default."""
    from planner.request import Request

    one: dict[str, Any] = {
        "gpus_per_node": gpus_per_node, "attention": attention, "oom_risk": oom_risk, "tokens": tokens,
        "calibration": calibration, "host_memory_gib": host_memory_gib,
    }  # fmt: skip
    return Request(
        **{"model": "", **fixed}, **{name: value for name, value in one.items() if value is not None}
    )


def _print(comparison: Comparison, csv: bool, as_json: bool) -> None:
    """The table, or its rows as data."""
    from planner.cli.output import console, note, print_json
    from planner.report import comparison_table as tables

    rows = comparison.rows()
    if as_json:
        print_json(rows)
    elif csv:
        typer.echo(tables.comparison_csv(rows), nl=False)
    else:
        console().print(tables.comparison_table(comparison.varied, rows))
        for line in tables.comparison_notes(comparison.varied, rows):
            note(line)
    if comparison.left:
        total = len(rows) + comparison.left
        note(f"interrupted: {len(rows)} of {total} points planned")


def _exit_code(comparison: Comparison) -> int:
    """0 where a point has a plan; else why none has."""
    if comparison.left:
        return EXIT_INTERRUPTED
    if any(point.plan is not None for point in comparison.points):
        return EXIT_DONE
    verdicts = {point.verdict for point in comparison.points}
    if "does not fit" in verdicts:
        return EXIT_INFEASIBLE
    return EXIT_SOLVER if "solver failed" in verdicts else EXIT_TARGET


def _head_rooms(percents: list[float]) -> list[float]:
    for percent in percents:
        if not 0.0 <= percent < 100.0:
            raise InputError(
                f"--head-room {percent:g} is not a percentage from 0 to below 100",
                hint="use --head-room 0,5,10",
            )
    return percents


def _values(flag: str, text: str | None, kind: Callable[[str], Value]) -> list[Value]:
    if text is None:
        return []
    values: list[Value] = []
    for piece in text.split(","):
        try:
            values.append(kind(piece.strip()))
        except ValueError:
            raise InputError(
                f"{flag}: {piece.strip()!r} is not a number; give comma-separated values",
                hint=f"for example {flag} 8,16,32",
            ) from None
    if any(value == "" for value in values):
        raise InputError(f"{flag}: an empty value in {text!r}", hint=f"for example {flag} a,b")
    return list(dict.fromkeys(values))
