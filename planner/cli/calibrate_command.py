"""``planner calibrate``: fit the cost model's constants to measured runs, and links to nccl-tests logs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from planner.cli import options as o
from planner.errors import InputError

if TYPE_CHECKING:
    from planner.calibration.case import Case
    from planner.calibration.fitted import Fitted
    from planner.calibration.links import MeasuredLink

NAMED_ROWS = 3
HELP = """Fit the constants that datasheets do not give to a table of measured runs.

Every other row of a source is fitted, the rest judge. With --leave-out, how well a GPU or a source that no
row of the fit has seen is predicted. With --nccl-log, alpha and beta of the machine's links.

Example: planner calibrate runs.csv -o mine.json

Example: planner calibrate --nccl-log all_gather_perf.txt --gpu h100-sxm -o mine.json
"""


def calibrate(
    cases: Annotated[
        str | None, typer.Argument(help="CSV of measured runs; columns as in the README.")
    ] = None,
    output: Annotated[str | None, typer.Option("-o", "--output", help="Calibration file to write.")] = None,
    all_rows: Annotated[bool, typer.Option("--all-rows", help="Fit every row, judge none.")] = False,
    leave_out: Annotated[
        str | None,
        typer.Option("--leave-out", help="Refit without each source, gpu or generation; price it."),
    ] = None,
    processes: Annotated[
        int | None, typer.Option("--processes", help="With --leave-out: at once.", min=1)
    ] = None,
    nccl_log: Annotated[
        list[str] | None, typer.Option("--nccl-log", help="Text output of nccl-tests; repeatable.")
    ] = None,
    cluster: o.ClusterName = None,
    gpu: o.Gpu = None,
    gpus_per_node: o.GpusPerNode = None,
    network: o.Network = None,
    as_json: o.Json = False,
) -> None:
    """Fit, judge on the rows left out, write the file whole or not at all."""
    from planner.calibration.case import read_cases
    from planner.catalog import check_writable

    if cases is None and not nccl_log:
        raise InputError(
            "nothing to fit: give a table of measured runs, or --nccl-log",
            hint="planner calibrate runs.csv -o mine.json",
        )
    if leave_out is not None:
        if cases is None or output is not None or nccl_log or all_rows:
            raise InputError(
                "--leave-out takes a table alone: it judges, and writes no file",
                hint=f"planner calibrate {cases or 'runs.csv'} --leave-out {leave_out}",
            )
        _leave_out(_readable(read_cases(cases)), leave_out, processes, as_json)
        return
    if output is None:
        raise InputError("-o is missing: where to write the calibration", hint="-o mine.json")
    if not nccl_log and (cluster or gpu or gpus_per_node or network):
        raise InputError(
            "--cluster, --gpu, --gpus-per-node and --network describe an --nccl-log's machine",
            hint="leave them out, or add --nccl-log all_gather_perf.txt",
        )
    check_writable(output, [cases, cluster, *(nccl_log or [])])
    machine = (cluster, gpu, gpus_per_node, network)
    _calibrate(cases, output, all_rows, nccl_log or [], machine, as_json)


def _calibrate(
    path: str | None,
    output: str,
    all_rows: bool,
    logs: list[str],
    machine: tuple[str | None, str | None, int | None, float | None],
    as_json: bool,
) -> None:
    from planner.calibration.case import read_cases
    from planner.calibration.fitted import to_json
    from planner.calibration.intervals import coverage
    from planner.calibration.rows import split_rows
    from planner.calibration.shipped import shipped
    from planner.calibration.validation import summarise, validate_cases
    from planner.catalog import save_atomic
    from planner.cli.output import console, note, print_json
    from planner.report.calibration_table import constants_table, link_lines, links_table
    from planner.report.validation_table import GROUPINGS, overall_lines, summary_table

    judged: list[Case] = []
    if path is None:
        # Links alone: everything else stays as shipped, so the file can be used in its place.
        fitted = shipped().copy()
    else:
        every = _readable(read_cases(path))
        chosen, judged = (every, []) if all_rows else split_rows(every)
        fitted = _fit(path, chosen)
    if logs:
        fitted.links = _links(logs, machine)
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
    out = console()
    if path is not None:
        out.print(constants_table(fitted))
    if fitted.links:
        out.print(links_table(fitted))
        for line in link_lines(fitted):
            typer.echo(line)
        typer.echo(f"use them: planner plan ... --calibration {output}")
    if summaries:
        typer.echo("")
        out.print(summary_table("judged", summaries))
        for line in overall_lines(summaries):
            typer.echo(line)
    if share is not None:
        typer.echo(f"80 % interval holds {share:.0%} of judged rows")


def _readable(every: list[Case]) -> list[Case]:
    """All rows; says which are not used because their measured step cannot be read, the first few by name."""
    from planner.calibration.rows import unread
    from planner.cli.output import note

    found = unread(every)
    if found:
        named = [f"{row}: {reason}" for row, reason in list(found.items())[:NAMED_ROWS]]
        more = [f"and {len(found) - NAMED_ROWS} more"] if len(found) > NAMED_ROWS else []
        note(f"rows not used: {len(found)} of {len(every)}; {'; '.join([*named, *more])}")
    return every


def _fit(path: str, chosen: list[Case]) -> Fitted:
    from planner.calibration.fit import fit
    from planner.calibration.intervals import add_intervals, complete_intervals
    from planner.calibration.provenance import provenance
    from planner.calibration.shipped import shipped
    from planner.cli.output import note

    fitted = fit(chosen, report=note)
    add_intervals(fitted, chosen)
    for words in complete_intervals(fitted, shipped()):
        note(f"the rows do not give the {words}: as shipped")
    fitted.provenance = provenance(path, len(chosen))
    return fitted


def _links(
    logs: list[str], machine: tuple[str | None, str | None, int | None, float | None]
) -> dict[str, MeasuredLink]:
    from planner.calibration.link_fit import measured_links
    from planner.calibration.nccl_log import read_nccl_log
    from planner.cli.output import note
    from planner.request import Request, choose_cluster

    cluster, gpu, gpus_per_node, network = machine
    if cluster is None and gpu is None:
        raise InputError(
            "--nccl-log needs the machine it was taken on: its printed rates are what is compared",
            hint="add --cluster dgx-h100, or --gpu h100-sxm",
        )
    runs = [run for log in logs for run in read_nccl_log(log)]
    request = Request(
        model="",
        cluster=cluster,
        gpu=gpu,
        gpus=max(run.ranks for run in runs),
        gpus_per_node=gpus_per_node,
        network_gbit=network,
    )
    choice = choose_cluster(request)
    for text in choice.assumptions:
        note(f"assumed: {text}")
    return measured_links(runs, choice.cluster)


def _leave_out(every: list[Case], by: str, processes: int | None, as_json: bool) -> None:
    from planner.calibration.leave_out import judged_results, leave_out
    from planner.calibration.rows import split_rows
    from planner.calibration.validation import summarise, summary
    from planner.cli.output import console, note, print_json
    from planner.report.validation_table import GROUPINGS, overall_lines, summary_table

    fitted, judged = split_rows(every)
    found = list(leave_out(every, fitted, by, processes=processes, report=note))
    summaries = [summary(one.group, one.results) for one in found]
    # The figure to compare with ``validate --judged``: the same rows, by source, each priced by the fit
    # without its own group.
    sources = summarise(judged_results(found, judged), GROUPINGS["source"])
    if as_json:
        records = {"summary": summaries, "judged_by_source": sources}
        print_json({"left_out": by, **{name: [s.as_dict() for s in r] for name, r in records.items()}})
        return
    for title, table in ((f"without {by}", summaries), ("judged rows", sources)):
        console().print(summary_table(title, table))
        for line in overall_lines(table):
            typer.echo(line)
        typer.echo()
