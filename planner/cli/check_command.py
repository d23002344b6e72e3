"""``planner check``: a plan, or a launcher's file, against the rules, without searching."""

from __future__ import annotations

from typing import Annotated

import typer

from planner.cli import options as o
from planner.errors import EXIT_DIFFERENT, InputError

HELP = """Check a plan: rules, memory, arithmetic, the stated bound; a launcher's rules with --target.

Example: planner check plan.json --target megatron

A launcher's own file: planner check train.sh --target megatron
"""


def check(
    file: Annotated[str, typer.Argument(metavar="FILE", help="Plan file, or a launcher's file or folder.")],
    target: Annotated[
        str | None, typer.Option("--target", help="Launcher whose rules must hold, or whose file it is.")
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", help="Model of a launcher's file that does not describe it.")
    ] = None,
    gpus: Annotated[int | None, typer.Option("--gpus", help="GPUs, where the file does not say.")] = None,
    gpu: Annotated[str | None, typer.Option("--gpu", help="GPU name, for rules that depend on it.")] = None,
    as_json: o.Json = False,
) -> int:
    """Print every check; exit 1 when one fails."""
    from planner.checking import check_file, check_plan, is_plan_file
    from planner.cli.output import console, print_json
    from planner.graph_plan import check_graph_plan, is_graph_plan, read_graph_plan
    from planner.plan_file.read import read_plan

    if is_graph_plan(file):
        if target not in (None, "any"):
            raise InputError(
                f"--target {target}: a layer graph names no model, so no launcher runs its plan",
                hint="check it without --target",
            )
        findings = check_graph_plan(read_graph_plan(file))
    elif is_plan_file(file, target):
        findings = check_plan(read_plan(file), target)
    else:
        findings = check_file(file, str(target), model=model, gpus=gpus, gpu=gpu)
    is_good = all(finding.holds for finding in findings)
    if as_json:
        print_json({"holds": is_good, "checks": [finding.__dict__ for finding in findings]})
    else:
        out = console()
        for finding in findings:
            out.print(f"{'ok  ' if finding.holds else 'FAIL'} {finding.name}: {finding.numbers}")
    return 0 if is_good else EXIT_DIFFERENT
