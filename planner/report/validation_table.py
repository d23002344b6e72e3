"""Predicted against measured, for people: errors by group, every row, and why rows were left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from rich.table import Table

from planner.calibration.case import Case, Unsupported
from planner.calibration.case_cluster import case_device
from planner.calibration.ranking import NOISE
from planner.calibration.validation import RowResult, Summary, is_doubtful
from planner.units import significant


def _gpu(case: Case) -> str:
    """The GPU of a row that is not priced: the device it means, else the name as printed."""
    try:
        return case_device(case).name
    except Unsupported:
        return case.text("gpu_name")


GROUPINGS: dict[str, Callable[[RowResult], str]] = {
    "source": lambda result: result.case.source,
    "gpu": lambda result: result.device or _gpu(result.case),
    "stack": lambda result: result.case.text("stack") or "not stated",
}


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value * 100:.1f}"


def _row(s: Summary) -> list[str]:
    return [
        s.source,
        f"{s.priced}/{s.rows}",
        _percent(s.time_median_ape),
        _percent(s.time_mape),
        _percent(s.time_bias),
        _percent(s.time_p90),
        _percent(s.memory_mape),
        "-" if s.kendall_tau is None else f"{s.kendall_tau:.2f}",
        _percent(s.top1_regret),
    ]


HEADERS = ("priced", "median", "mean", "bias", "p90", "memory", "tau", "regret")


def summary_table(by: str, summaries: list[Summary]) -> Table:
    """One line a group: errors in per cent."""
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold")
    table.add_column(by, overflow="fold")
    for name in HEADERS:
        table.add_column(name, justify="right")
    for s in summaries:
        table.add_row(*_row(s))
    return table


def memory_table(by: str, summaries: list[Summary]) -> Table | None:
    """One line a group and kind of memory figure, errors in per cent; None when nothing was measured."""
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold")
    for name in (by, "memory", "rows", "mean", "bias"):
        table.add_column(name, justify="left" if name in (by, "memory") else "right")
    for s in summaries:
        for kind, found in s.memory_by_kind.items():
            rows = f"{found['rows']:.0f}"
            table.add_row(s.source, kind, rows, _percent(found["mape"]), _percent(found["bias"]))
    return table if table.row_count else None


def simulator_table(by: str, summaries: list[Summary]) -> Table | None:
    """The sources' own simulators beside this planner on the same rows; None when no row has one."""
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold")
    table.add_column(by)
    for name in ("rows", "planner median", "mean", "source's simulator median", "mean"):
        table.add_column(name, justify="right")
    for s in summaries:
        if s.sim_rows:
            errors = (s.own_median_ape, s.own_mape, s.sim_median_ape, s.sim_mape)
            table.add_row(s.source, str(s.sim_rows), *map(_percent, errors))
    return table if table.row_count else None


CAPTION = "Errors in per cent: step time (median, mean, bias, p90) and memory (mean)"


def overall_lines(summaries: list[Summary], held: float | None = None) -> list[str]:
    """The figures that stand for the whole table, every group weighing the same.

    ``held``: the share of step times inside their 80 % interval, None where there are none.
    """

    def mean(values: list[float | None]) -> str:
        known = [value for value in values if value is not None]
        return _percent(sum(known) / len(known)) if known else "-"

    groups = sum(s.ranking_groups for s in summaries)
    lines = [
        f"mean of groups: median {mean([s.time_median_ape for s in summaries])}, "
        f"mean {mean([s.time_mape for s in summaries])} per cent of time; "
        f"{sum(s.priced for s in summaries)} of {sum(s.rows for s in summaries)} rows priced"
    ]
    if groups:
        ranked = [s for s in summaries if s.ranking_groups]
        regret = sum((s.top1_regret or 0.0) * s.ranking_groups for s in ranked) / groups
        tau = _weighted([(s.kendall_tau, s.ranking_groups) for s in ranked])
        apart = _weighted([(s.kendall_tau_apart, s.ranking_groups_apart) for s in ranked])
        lines.append(
            f"ranking of {groups} group{'s' * (groups > 1)}: tau {tau} ({apart} of plans over "
            f"{NOISE * 100:.0f} % apart), top-1 regret {_percent(regret)} per cent"
        )
    if held is not None:
        lines.append(f"80 % interval holds {held * 100:.0f} per cent of step times")
    return lines


def _weighted(values: list[tuple[float | None, int]]) -> str:
    """Mean of (value, groups behind it), "-" where there is none."""
    known = [(value, groups) for value, groups in values if value is not None]
    total = sum(groups for _, groups in known)
    return f"{sum(value * groups for value, groups in known) / total:.2f}" if total else "-"


def markdown_table(summaries: list[Summary]) -> str:
    """The same as a Markdown table."""
    lines = ["| source | " + " | ".join(HEADERS) + " |", "|---" + "|---:" * len(HEADERS) + "|"]
    lines += ["| " + " | ".join(_row(s)) + " |" for s in summaries]
    return "\n".join(lines) + "\n"


def rows_table(results: list[RowResult]) -> Table:
    """Every row: predicted, measured, error."""
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold")
    for name in ("row", "predicted s", "measured s", "error %", "GiB", "measured", "error %"):
        table.add_column(name, justify="left" if name == "row" else "right")
    for r in results:
        if r.status != "ok":
            table.add_row(r.case.id, r.status)
            continue
        memory = r.case.number("measured_peak_mem_gb")
        table.add_row(
            r.case.id,
            significant(r.predicted_step_s or 0.0),
            significant(r.measured_step_s) if r.measured_step_s else "-",
            _percent(r.time_error()),
            significant(r.predicted_peak_mem_gib or 0.0),
            significant(memory) if memory else "-",
            _percent(r.memory_error()),
        )
    return table


def reasons_text(results: list[RowResult]) -> list[str]:
    """Rows without a prediction or without a score, counted by reason; one alone by its id."""
    counts = Counter((r.case.source, r.message) for r in results if r.status != "ok")
    ids = {(r.case.source, r.message): r.case.id for r in results}
    unpriced = [
        f"not priced: {ids[source, message] if n == 1 else f'{n} of {source}'}: {message}"
        for (source, message), n in counts.most_common()
    ]
    priced = [r for r in results if r.status == "ok"]
    doubtful = Counter(r.case.source for r in priced if is_doubtful(r.case))
    unmeasured = Counter(
        r.case.source
        for r in priced
        if not any(map(r.case.number, ("measured_step_s", "measured_peak_mem_gb")))
    )
    return [
        *unpriced,
        *(
            f"not scored: {n} of {source}: marked suspect, or the layer count is not stated"
            for source, n in doubtful.most_common()
        ),
        *(
            f"not scored: {n} of {source}: neither measured_step_s nor measured_peak_mem_gb is stated"
            for source, n in unmeasured.most_common()
        ),
    ]
