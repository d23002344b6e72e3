"""``planner validate``: predicted against measured."""

from __future__ import annotations

from typing import Annotated

import typer

from planner.cli import options as o

HELP = """Price every row of a table of measured runs and score the predictions.

Example: planner validate tests/published/measurements.csv
"""


def validate(
    cases: Annotated[str, typer.Argument(help="CSV of measured runs; columns as in the README.")],
    by: Annotated[str, typer.Option("--by", help="Group the errors by source, gpu or stack.")] = "source",
    judged: Annotated[
        bool, typer.Option("--judged", help="Only the rows a calibration leaves out (every other one).")
    ] = False,
    fitted: Annotated[bool, typer.Option("--fitted", help="Only the rows a calibration uses.")] = False,
    priors: Annotated[
        bool, typer.Option("--priors", help="Literature priors instead of the shipped calibration.")
    ] = False,
    calibration: Annotated[
        str | None, typer.Option("--calibration", help="Calibration file instead of the shipped one.")
    ] = None,
    rows: Annotated[bool, typer.Option("--rows", help="Print every row too.")] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the table as Markdown.")] = False,
    as_json: o.Json = False,
) -> None:
    """Errors by group; rows that cannot be priced, each with its reason."""
    from planner.calibration.case import read_cases
    from planner.calibration.fit import split_rows
    from planner.calibration.shipped import load_calibration, shipped
    from planner.calibration.validation import summarise, validate_cases
    from planner.cli.output import console, note, print_json
    from planner.errors import InputError, UnknownName
    from planner.report.validation_table import (
        GROUPINGS,
        markdown_table,
        reasons_text,
        rows_table,
        summary_table,
    )

    if by not in GROUPINGS:
        raise UnknownName("grouping", by, GROUPINGS, hint=f"one of {', '.join(GROUPINGS)}")
    if (judged and fitted) or (priors and calibration):
        raise InputError("--judged and --fitted, or --priors and --calibration, exclude each other")
    chosen = read_cases(cases)
    if judged or fitted:
        chosen = split_rows(chosen)[1 if judged else 0]
    constants = (load_calibration(calibration) if calibration else shipped()).constants_for
    results = validate_cases(chosen, None if priors else constants)
    summaries = summarise(results, GROUPINGS[by])
    if as_json:
        print_json({"rows": [r.as_dict() for r in results], "summary": [s.as_dict() for s in summaries]})
        return
    if markdown:
        typer.echo(markdown_table(summaries), nl=False)
        return
    out = console()
    if rows:
        out.print(rows_table(results))
        out.print()
    out.print(summary_table(by, summaries))
    for line in reasons_text(results):
        note(line)
