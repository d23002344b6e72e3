"""``planner check``: a plan against its rules, without searching."""

from __future__ import annotations

from typing import Annotated

import typer

from planner.cli import options as o
from planner.errors import EXIT_DIFFERENT

HELP = """Check a plan: rules, memory, arithmetic, the stated bound; a launcher's rules with --target.

Example: planner check plan.json --target megatron
"""


def check(
    plan: Annotated[str, typer.Argument(help="Plan file.")],
    target: Annotated[str | None, typer.Option("--target", help="Launcher whose rules must hold.")] = None,
    as_json: o.Json = False,
) -> int:
    """Print every check; exit 1 when one fails."""
    from planner.checking import check_plan
    from planner.cli.output import console, print_json
    from planner.plan_file.read import read_plan

    findings = check_plan(read_plan(plan), target)
    is_good = all(finding.holds for finding in findings)
    if as_json:
        print_json({"holds": is_good, "checks": [finding.__dict__ for finding in findings]})
    else:
        out = console()
        for finding in findings:
            out.print(f"{'ok  ' if finding.holds else 'FAIL'} {finding.name}: {finding.numbers}")
    return 0 if is_good else EXIT_DIFFERENT
