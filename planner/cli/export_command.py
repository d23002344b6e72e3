"""``planner export``: launcher files from a plan."""

from __future__ import annotations

from typing import Annotated

import typer

from planner.cli import options as o

HELP = """Write the files a launcher needs to run a plan.

Example: planner export plan.json --to megatron -o launch
"""


def export(
    plan: Annotated[str, typer.Argument(help="Plan file.")],
    to: Annotated[
        str,
        typer.Option(
            "--to",
            help="megatron, megatron-bridge, torchtitan, deepspeed, accelerate, galvatron or pytorch.",
        ),
    ],
    output: Annotated[str, typer.Option("-o", "--output", help="Directory for the files.")],
    as_json: o.Json = False,
) -> None:
    """Export; exit 5 with every reason when the launcher cannot express the plan."""
    from pathlib import Path

    from planner.catalog import save_directory
    from planner.cli.output import note, print_json
    from planner.launchers.registry import launcher
    from planner.plan_file.read import read_plan
    from planner.targets import export_files

    chosen = launcher(to)
    files = export_files(read_plan(plan), to)
    save_directory(output, files)
    paths = [str(Path(output) / name) for name in files]
    if as_json:
        print_json({"target": to, "files": paths, "verified_by": chosen.verified_by})
        return
    for path in paths:
        typer.echo(path)
    note(f"checked by: {chosen.verified_by}")
