"""``planner validate``: predicted against measured."""

from __future__ import annotations

from typing import Annotated

import typer

from planner.cli import options as o

HELP = """Price every row of a table of measured runs and score the predictions.

Example: planner validate --html accuracy.html tests/published/measurements.csv
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
    html: Annotated[
        str | None, typer.Option("--html", help="Write one self-contained page with plots to this file.")
    ] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the table as Markdown.")] = False,
    as_json: o.Json = False,
) -> None:
    """Errors by group; rows that cannot be priced, each with its reason."""
    from planner.calibration.case import read_cases
    from planner.calibration.fitted import Fitted
    from planner.calibration.ranking import group_records
    from planner.calibration.rows import split_rows
    from planner.calibration.shipped import load_calibration, shipped
    from planner.calibration.validation import summarise, validate_cases
    from planner.catalog import check_writable, save_atomic
    from planner.cli.output import console, note, print_json
    from planner.errors import InputError, UnknownName
    from planner.report import validation_table as tables

    if by not in tables.GROUPINGS:
        raise UnknownName("grouping", by, tables.GROUPINGS, hint=f"one of {', '.join(tables.GROUPINGS)}")
    if (judged and fitted) or (priors and calibration):
        raise InputError("--judged and --fitted, or --priors and --calibration, exclude each other")
    if html is not None:
        check_writable(html)
    every = read_cases(cases)
    halves = split_rows(every)
    chosen = halves[1 if judged else 0] if judged or fitted else every
    used = load_calibration(calibration) if calibration else shipped()
    results = validate_cases(chosen, (Fitted() if priors else used).constants_for)
    summaries = summarise(results, tables.GROUPINGS[by])
    if html is not None:
        from planner.report.validation_page import validation_page

        fitted_ids = set() if priors else {case.id for case in halves[0]}
        save_atomic(html, validation_page(results, fitted_ids, used, cases))
        note(f"wrote {html}")
    if as_json:
        unpriced = [{"id": r.case.id, "reason": r.message} for r in results if r.status != "ok"]
        print_json(
            {
                "rows": [r.as_dict() for r in results],
                "summary": [s.as_dict() for s in summaries],
                "groups": group_records(results),
                "unpriced": unpriced,
            }
        )
        return
    if markdown:
        typer.echo(tables.markdown_table(summaries), nl=False)
        return
    out = console()
    if rows:
        out.print(tables.rows_table(results))
        out.print()
    out.print(tables.summary_table(by, summaries))
    for line in tables.overall_lines(summaries):
        typer.echo(line)
    for title, table in (
        ("Memory by what was counted", tables.memory_table(by, summaries)),
        ("Simulators of the sources, on the same rows", tables.simulator_table(by, summaries)),
    ):
        if table is not None:
            typer.echo(f"\n{title}")
            out.print(table)
    for line in tables.reasons_text(results):
        note(line)
