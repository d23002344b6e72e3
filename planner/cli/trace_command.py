"""``planner trace``: the pipeline timeline for Perfetto or chrome://tracing."""

from __future__ import annotations

from typing import Annotated

import typer

from planner.cli import options as o

HELP = """Write the pipeline timeline of one step as a Chrome / Perfetto trace.

Example: planner trace plan.json -o trace.json
"""


def trace(
    plan: Annotated[str, typer.Argument(help="Plan file.")],
    output: Annotated[str, typer.Option("-o", "--output", help="Trace file to write.")],
    as_json: o.Json = False,
) -> None:
    """Replay the plan's schedule and write every operation of every rank."""
    from planner.catalog import check_writable, save_atomic
    from planner.cli.output import note, print_json
    from planner.plan_file.read import read_plan
    from planner.report.trace import trace_json

    check_writable(output, [plan])
    save_atomic(output, trace_json(read_plan(plan)))
    if as_json:
        print_json({"file": output})
    else:
        note(f"wrote {output}; open it in Perfetto or chrome://tracing")
