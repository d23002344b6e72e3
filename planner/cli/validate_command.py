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
    by: Annotated[
        str | None,
        typer.Option("--by", help="Group by source, gpu or stack; default: source, then gpu."),
    ] = None,
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
    from planner.calibration.intervals import coverage, with_interval
    from planner.calibration.provenance import fitted_ids
    from planner.calibration.ranking import group_records
    from planner.calibration.rows import split_rows
    from planner.calibration.shipped import load_calibration, shipped
    from planner.calibration.validation import summarise, validate_cases
    from planner.catalog import check_writable, save_atomic
    from planner.cli.output import console, note, print_json
    from planner.errors import InputError, UnknownName
    from planner.report import validation_table as tables

    if by is not None and by not in tables.GROUPINGS:
        raise UnknownName("grouping", by, tables.GROUPINGS, hint=f"one of {', '.join(tables.GROUPINGS)}")
    if (judged and fitted) or (priors and calibration):
        raise InputError(
            "--judged and --fitted, or --priors and --calibration, exclude each other",
            hint="leave one of the two out",
        )
    if markdown and as_json:
        raise InputError("--markdown and --json exclude each other", hint="leave one of the two out")
    if html is not None:
        check_writable(html, [cases, calibration])
    every = read_cases(cases)
    halves = split_rows(every)
    chosen = halves[1 if judged else 0] if judged or fitted else every
    used = load_calibration(calibration) if calibration else shipped()
    results = validate_cases(chosen, (Fitted() if priors else used).constants_for)
    first = by or "source"
    summaries = summarise(results, tables.GROUPINGS[first])
    by_gpu = summarise(results, tables.GROUPINGS["gpu"])
    if html is not None:
        from planner.report.validation_page import validation_page

        seen = set() if priors else fitted_ids(used.provenance, cases, every)
        save_atomic(html, validation_page(results, seen, used, cases))
        note(f"wrote {html}")
    if as_json:
        unpriced = [{"id": r.case.id, "reason": r.message} for r in results if r.status != "ok"]
        print_json(
            {
                "rows": [with_interval(r, used) for r in results],
                "summary": [s.as_dict() for s in summaries],
                "summary_by_gpu": [s.as_dict() for s in by_gpu],
                "interval_coverage": coverage(used, results),
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
    typer.echo(tables.CAPTION)
    out.print(tables.summary_table(first, summaries))
    for line in tables.overall_lines(summaries, coverage(used, results)):
        typer.echo(line)
    if by is None:
        typer.echo("")
        out.print(tables.summary_table("gpu", by_gpu))
    for title, table in (
        ("Memory by what was counted", tables.memory_table(first, summaries)),
        ("Simulators of the sources, on the same rows", tables.simulator_table(first, summaries)),
    ):
        if table is not None:
            typer.echo(f"\n{title}")
            out.print(table)
    for line in tables.reasons_text(results):
        note(line)
