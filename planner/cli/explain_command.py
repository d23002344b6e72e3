"""``planner explain``: where seconds and bytes go, what was searched, why not something else."""

from __future__ import annotations

from typing import Annotated

import typer

from planner.cli import options as o
from planner.errors import InputError

HELP = """Explain a plan: seconds and bytes by cause and stage, the search funnel, constants.

Example: planner explain plan.json --why-not tp=8
"""


def explain(
    plan: Annotated[str, typer.Argument(help="Plan file.")],
    why_not: Annotated[
        list[str] | None, typer.Option("--why-not", help="A choice to force, such as tp=8; repeatable.")
    ] = None,
    collectives: Annotated[
        bool,
        typer.Option("--collectives", help="What every rank sends in a step: operation, count, bytes, axis."),
    ] = False,
    as_json: o.Json = False,
) -> None:
    """Print tables; ``--why-not`` searches again with that choice pinned and compares."""
    from planner.cli.output import ProgressLine, console, print_json
    from planner.explanation import explain_plan, forced_plan
    from planner.plan_file.read import read_plan

    chosen = read_plan(plan)
    if collectives:
        from planner.explanation import rank_collectives
        from planner.report.explanation_text import print_collectives

        listed = rank_collectives(chosen)
        if as_json:
            print_json({"collectives": [one.as_dict() for one in listed]})
        else:
            print_collectives(console(), chosen, listed)
        return
    explanation = explain_plan(chosen)
    answers = [forced_plan(chosen, _pin(text), reporter=ProgressLine()) for text in why_not or []]
    if as_json:
        print_json({**explanation.as_dict(), "why_not": [answer.as_dict() for answer in answers]})
        return
    from planner.report.explanation_text import print_explanation, print_forced

    out = console()
    if not answers:
        print_explanation(out, chosen, explanation)
    for answer in answers:
        print_forced(out, chosen, answer)


def _pin(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name.strip() or not value.strip():
        raise InputError(f"--why-not {text!r} is not name=value", hint="use --why-not tp=8")
    return name.strip().replace("-", "_"), value.strip()
