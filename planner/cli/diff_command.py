"""``planner diff``: two plans, decision changes first."""

from __future__ import annotations

from typing import Annotated

import typer

from planner.cli import options as o
from planner.errors import EXIT_DIFFERENT

HELP = """Compare two plans: decision changes first, then inputs, then predictions. Exit 1 when they differ.

Example: planner diff before.json after.json
"""


def diff(
    before: Annotated[str, typer.Argument(help="Plan file.")],
    after: Annotated[str, typer.Argument(help="Plan file.")],
    as_json: o.Json = False,
) -> int:
    """Print what differs; 0 when nothing does."""
    from planner.cli.output import console, print_json
    from planner.plan_file.difference import diff_plans
    from planner.plan_file.read import read_plan

    difference = diff_plans(read_plan(before), read_plan(after))
    if as_json:
        print_json(difference.as_dict())
    else:
        from planner.report.difference_text import print_difference

        print_difference(console(), difference)
    return 0 if difference.is_same else EXIT_DIFFERENT
