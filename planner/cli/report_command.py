"""``planner report``: plans as one self-contained page."""

from __future__ import annotations

from typing import Annotated

import typer

from planner.cli import options as o

HELP = """Write one self-contained HTML page about one or more plans.

Example: planner report plan.json -o plan.html
"""


def report(
    plans: Annotated[list[str], typer.Argument(help="Plan files; several are compared.")],
    output: Annotated[str, typer.Option("-o", "--output", help="HTML file to write.")],
    as_json: o.Json = False,
) -> None:
    """Draw every plan from what its file says; nothing is searched."""
    from pathlib import Path

    from planner.catalog import check_writable, save_atomic
    from planner.cli.output import note, print_json
    from planner.plan_file.read import read_plan
    from planner.report.plan_page import plan_page

    check_writable(output, plans)
    save_atomic(output, plan_page([(Path(name).name, read_plan(name)) for name in plans]))
    if as_json:
        print_json({"file": output})
    else:
        note(f"wrote {output}")
