"""``planner calibrate``: fit the cost model's constants to measured runs."""

from __future__ import annotations

from typing import Annotated

import typer

from planner.cli import options as o

HELP = """Fit the constants that datasheets do not give to a table of measured runs.

Every other row of a source is fitted, the rest judge.

Example: planner calibrate runs.csv -o mine.json
"""


def calibrate(
    cases: Annotated[str, typer.Argument(help="CSV of measured runs; columns as in the README.")],
    output: Annotated[str, typer.Option("-o", "--output", help="Calibration file to write.")],
    all_rows: Annotated[bool, typer.Option("--all-rows", help="Fit every row, judge none.")] = False,
    as_json: o.Json = False,
) -> None:
    """Fit, judge on the rows left out, write the file whole or not at all."""
    from planner.calibration.case import read_cases
    from planner.calibration.fit import fit, split_rows
    from planner.calibration.fitted import to_json
    from planner.calibration.intervals import add_intervals, coverage
    from planner.calibration.validation import summarise, validate_cases
    from planner.catalog import check_writable, save_atomic
    from planner.cli.output import console, note, print_json
    from planner.report.validation_table import GROUPINGS, summary_table

    check_writable(output)
    every = read_cases(cases)
    chosen, judged = (every, []) if all_rows else split_rows(every)
    fitted = fit(chosen, report=note)
    add_intervals(fitted, chosen)
    save_atomic(output, to_json(fitted))
    note(f"wrote {output}")
    results = validate_cases(judged, fitted.constants_for)
    summaries = summarise(results, GROUPINGS["source"])
    share = coverage(fitted, results)
    if as_json:
        print_json(
            {
                "calibration": fitted.as_dict(),
                "judged": [s.as_dict() for s in summaries],
                "interval_coverage": share,
            }
        )
        return
    if summaries:
        console().print(summary_table("judged", summaries))
    if share is not None:
        typer.echo(f"80 % interval holds {share:.0%} of judged rows")
