"""``planner compare``: a what-if table, re-planned at each point."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, TypeVar

import typer

from planner.cli import options as o
from planner.errors import InputError

HELP = """Re-plan at every combination of comma-separated values: a what-if table.

Example: planner compare --model llama-3.1-8b --gpu a100-80g-sxm,h100-sxm --gpus 8,16,32 --seq-len 8192
"""

Value = TypeVar("Value", int, float, str)


def _list(flag: str) -> Any:
    return typer.Option(flag, help="One value or several, comma-separated.")


def compare(
    model: Annotated[str, _list("--model")],
    cluster: Annotated[str | None, _list("--cluster")] = None,
    gpu: Annotated[str | None, _list("--gpu")] = None,
    gpus: Annotated[str | None, _list("--gpus")] = None,
    network: Annotated[str | None, _list("--network")] = None,
    seq_len: Annotated[str | None, _list("--seq-len")] = None,
    global_batch: Annotated[str | None, _list("--global-batch")] = None,
    precision: Annotated[str | None, _list("--precision")] = None,
    optimizer: Annotated[str, _list("--optimizer")] = "adamw",
    gpus_per_node: o.GpusPerNode = None,
    attention: o.AttentionKernel = "flash",
    memory_limit_gib: o.MemoryLimit = None,
    oom_risk: o.OomRisk = None,
    tokens: o.Tokens = None,
    target: o.Target = "any",
    tp: o.Tp = None,
    pp: o.Pp = None,
    dp: o.Dp = None,
    cp: o.Cp = None,
    ep: o.Ep = None,
    sharding: o.ShardingName = None,
    recompute: o.RecomputeName = None,
    jobs: o.Jobs = None,
    csv: Annotated[bool, typer.Option("--csv", help="CSV on stdout.")] = False,
    as_json: o.Json = False,
) -> None:
    """Plan every point and print one line each; a point where nothing fits says so."""
    from planner.cli.output import ProgressLine, console, note, print_json
    from planner.comparison import compare_requests
    from planner.request import Request
    from planner.search.tree import Pins

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
    }
    fixed = {name: values[0] for name, values in given.items() if len(values) == 1}
    vary = {name: values for name, values in given.items() if len(values) > 1}
    fixed.setdefault("model", given["model"][0])
    request = Request(
        **fixed,
        gpus_per_node=gpus_per_node,
        attention=attention,
        memory_limit_gib=memory_limit_gib,
        oom_risk=oom_risk,
        tokens=tokens,
    )
    line = ProgressLine()
    comparison = compare_requests(
        request,
        vary,
        Pins(tp=tp, pp=pp, dp=dp, cp=cp, ep=ep, sharding=sharding, recompute=recompute),
        target=target,
        progress=lambda done, total: line.say(f"{done} of {total} points planned"),
        jobs=jobs,
    )
    rows = comparison.rows()
    if as_json:
        print_json(rows)
    elif csv:
        from planner.report.comparison_table import comparison_csv

        typer.echo(comparison_csv(rows), nl=False)
    else:
        from planner.report.comparison_table import comparison_table

        out = console()
        out.print(comparison_table(comparison.varied, rows))
        for point in comparison.points:
            if point.plan is None:
                words = ", ".join(f"{name} {value}" for name, value in point.values.items())
                note(f"{words or 'this point'}: {point.reason}")


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
