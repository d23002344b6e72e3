"""Predicted against measured as one page: scatter a source, residuals against the axes, tables, reasons."""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from statistics import median

from planner.calibration.fitted import Fitted
from planner.calibration.intervals import coverage
from planner.calibration.validation import RowResult, Summary, memory_kind, summarise, summary
from planner.report import page, svg
from planner.report.validation_table import GROUPINGS
from planner.units import significant

SIDE = 300.0
LEFT, BOTTOM, TOP, RIGHT = 52.0, 36.0, 8.0, 10.0
RESIDUAL_WIDTH, RESIDUAL_HEIGHT = 540.0, 270.0
RESIDUAL_LEFT = 68.0  # "-50 %" is wider than the scatters' numbers
LONGEST_NAME = 48
RATIO_TICKS = (0.2, 0.33, 0.5, 0.7, 0.85, 1.0, 1.2, 1.5, 2.0, 3.0)
FINE_RATIO_TICKS = (0.75, 0.8, 0.85, 0.9, 0.95, 1.0, 1.05, 1.1, 1.15, 1.2, 1.25)
# Runs of one setting are spread sideways by the golden ratio: even, and the same on every machine.
GOLDEN = (math.sqrt(5.0) - 1.0) / 2.0
BY_WORDS = {"source": "source", "gpu": "GPU"}
GROUND_WORDS = {
    "site": "on a fitted installation",
    "same": "where GPU and stack are fitted",
    "part": "where one of them is",
    "datasheet": "where neither is",
}
ERRORS_WORDS = (
    "Per cent of the measurement. Step time: median and mean of the error's size, bias (its mean with the "
    "sign), p90 of its size. Memory: mean size by what was counted. Over groups of runs of one model, "
    "machine and batch: tau, Kendall's, of predicted and measured order; regret, how much longer the plan "
    "predicted fastest took than the fastest."
)
AXES = (
    ("GPUs", "gpus"),
    ("tensor-parallel degree", "tp"),
    ("pipeline stages", "pp"),
    ("global batch, sequences", "global_batch"),
    ("sequence length, tokens", "seq_len"),
)


def validation_page(results: list[RowResult], fitted_ids: set[str], fitted: Fitted, table: str) -> str:
    """The page of ``validate --html``.

    ``fitted_ids``: the rows of this table the constants were fitted on, none where they come from another.
    """
    scored = [r for r in results if r.time_error() is not None]
    body = [
        page.heading("Predicted against measured", f"{_counted(len(results), 'run')} of {table}"),
        _headline(results, scored, fitted_ids, fitted),
    ]
    if scored:
        body += [
            page.section(
                "Step time by source",
                "Each point is one run. On the diagonal the prediction is right. The band is the 80 % "
                f"interval of its error: {_ground_words(scored, fitted)}; a source on several of these "
                "grounds shows the widest. Both axes are logarithmic, seconds.",
            ),
            _legend(fitted_ids, ("band", "80 % interval")),
            page.panels(
                _scatter(name, rows, fitted_ids, _band(rows, fitted))
                for name, rows in _groups(scored, "source")
            ),
            page.section(
                "Where the error is",
                "Predicted over measured step time against five properties of the run; each bar is the "
                "median of those around a power of two. A slope would be a term the cost model gets wrong.",
            ),
            _legend(fitted_ids, ("mid", "median")),
            page.panels(
                (_residuals(title, column, scored, fitted_ids) for title, column in AXES), css="wide"
            ),
        ]
    body += _memory(results, fitted_ids, fitted)
    for by in ("source", "gpu"):
        body += [
            page.section(f"Errors by {BY_WORDS[by]}", ERRORS_WORDS if by == "source" else "The same rows."),
            _summary_table(by, summarise(results, GROUPINGS[by])),
        ]
    body += [*_simulators(results), *_unpriced(results), _rows(results, fitted_ids)]
    return page.document("planner: predicted against measured", body)


def _headline(results: list[RowResult], scored: list[RowResult], fitted_ids: set[str], fitted: Fitted) -> str:
    judged = [r for r in scored if r.case.id not in fitted_ids]
    is_split = bool(fitted_ids and judged)
    chosen, words = (judged, "judged rows") if is_split else (scored, "all rows")
    by_source = summarise(chosen, GROUPINGS["source"])
    medians = [s.time_median_ape for s in by_source if s.time_median_ape is not None]
    whole, held = summary("all", chosen), coverage(fitted, chosen)
    items = [(f"{sum(r.status == 'ok' for r in results)} of {len(results)}", "rows priced", "")]
    if medians:
        items.append((_percent(sum(medians) / len(medians)), f"median error, mean of sources, {words}", ""))
    if len(medians) > 1:
        items.append((_percent(median(medians)), f"median error of the middle source, {words}", ""))
    if held is not None:
        items.append((f"{held * 100:.0f} %", f"of {words} inside their 80 % interval", ""))
    if whole.top1_regret is not None:
        items.append(
            (_percent(whole.top1_regret), f"top-1 regret, {_counted(whole.ranking_groups, 'group')}", "")
        )
    if whole.kendall_tau is not None:
        items.append((f"{whole.kendall_tau:.2f}", "Kendall tau, mean of groups", ""))
    return page.cards(items)


def _legend(fitted_ids: set[str], *more: tuple[str, str]) -> str:
    split = [("dot s0", "judged: the fit never saw it"), ("ring", "fitted")]
    return page.legend([*(split if fitted_ids else [("dot s0", "run")]), *more])


def _groups(rows: list[RowResult], by: str) -> list[tuple[str, list[RowResult]]]:
    found: dict[str, list[RowResult]] = defaultdict(list)
    for row in rows:
        found[GROUPINGS[by](row)].append(row)
    return list(found.items())


def _tip(row: RowResult) -> str:
    cells = row.case.text
    return (
        f"{row.case.id} {cells('model_name')}\n{cells('gpus')} x {row.device}, tp {cells('tp')} "
        f"pp {cells('pp')} dp {cells('dp')}\npredicted {significant(row.predicted_step_s or 0.0)} s, "
        f"measured {significant(row.measured_step_s or 0.0)} s ({_signed(row.time_error() or 0.0)})"
    )


def _square(values: list[float]) -> tuple[svg.Scale, svg.Scale]:
    low, high = svg.padded_log_range(values)
    x = svg.Scale(low, high, LEFT, SIDE - RIGHT, is_log=True)
    return x, svg.Scale(low, high, SIDE - BOTTOM, TOP, is_log=True)


def _diagonal(x: svg.Scale, y: svg.Scale, band: tuple[float, float]) -> list[str]:
    """The line predicted = measured, and the band of the 80 % interval cut at the frame."""

    def clipped(factor: float) -> list[tuple[float, float]]:
        first, last = max(x.low, y.low / factor), min(x.high, y.high / factor)
        return [(first, first * factor), (last, last * factor)]

    below, above = clipped(math.exp(band[0])), clipped(math.exp(band[1]))
    corners = [*above, (x.high, y.high), *reversed(below), (x.low, y.low)]
    return [
        svg.polygon([(x(a), y(b)) for a, b in corners], "band"),
        svg.line(x(x.low), y(y.low), x(x.high), y(y.high), "diag"),
    ]


def _ground_words(scored: list[RowResult], fitted: Fitted) -> str:
    """The intervals of the grounds that ``scored`` stand on, as errors of the prediction."""
    found = {}
    for row in scored:
        bars = fitted.errors_of(row.generation, row.stack, row.site)
        found[bars.closeness] = bars.time
    parts = []
    for name, words in GROUND_WORDS.items():
        if name in found:
            low, high = found[name]
            parts.append(f"{_signed(math.expm1(low))} to {_signed(math.expm1(high))} {words}")
    return ", ".join(parts)


def _long_name(row: RowResult) -> str:
    """Who measured: the repository or the authors, without the place inside."""
    stated = row.case.text("source")
    first = stated.split(" ")[0]
    name = first if "/" in first else re.split(r" \(| Tables? ", stated)[0]
    return name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 1].rstrip() + "…"


def _band(rows: list[RowResult], fitted: Fitted) -> tuple[float, float]:
    """The widest interval of the rows: most sources stand on one kind of ground."""
    bands = [fitted.errors_of(row.generation, row.stack, row.site).time for row in rows]
    return max(bands, key=lambda ends: ends[1] - ends[0])


def _scatter(name: str, rows: list[RowResult], fitted_ids: set[str], band: tuple[float, float]) -> str:
    pairs = [(r.measured_step_s or 0.0, r.predicted_step_s or 0.0, r) for r in rows]
    x, y = _square([value for measured, predicted, _ in pairs for value in (measured, predicted)])
    parts = [*svg.axes(x, y, "measured, s", "predicted, s"), *_diagonal(x, y, band)]
    parts += [svg.dot(x(m), y(p), _css(r, fitted_ids), _tip(r)) for m, p, r in _drawn(pairs, fitted_ids)]
    judged = [r for r in rows if r.case.id not in fitted_ids]
    error = median(abs(r.time_error() or 0.0) for r in judged or rows)
    of_what = "judged median" if judged and len(judged) < len(rows) else "median"
    note = f"{_counted(len(rows), 'run')}, {of_what} {_percent(error)}"
    title = " · ".join(filter(None, (name, _long_name(rows[0]))))
    return page.panel(title, note, svg.svg(SIDE, SIDE, parts, f"{name}: predicted against measured"))


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'s' * (count != 1)}"


def _drawn(
    pairs: list[tuple[float, float, RowResult]], fitted_ids: set[str]
) -> list[tuple[float, float, RowResult]]:
    """Judged points first, so that the open rings of the fitted ones stay visible on top of them."""
    return sorted(pairs, key=lambda pair: pair[2].case.id in fitted_ids)


def _css(row: RowResult, fitted_ids: set[str]) -> str:
    return "fitted" if row.case.id in fitted_ids else "judged"


def _residuals(title: str, column: str, scored: list[RowResult], fitted_ids: set[str]) -> str:
    by_value: dict[float, list[RowResult]] = defaultdict(list)
    for row in scored:
        value = row.case.number(column)
        if value:
            by_value[value].append(row)
    missing = len(scored) - sum(map(len, by_value.values()))
    note = f"{_counted(missing, 'run')} without it" if missing else ""
    if not by_value:
        return page.panel(f"Against {title}", note, "")
    low, high = svg.padded_log_range(by_value)
    x = svg.Scale(low, high, RESIDUAL_LEFT, RESIDUAL_WIDTH - RIGHT, is_log=True)
    ratios = [1.0 + (r.time_error() or 0.0) for r in scored]
    floor, ceiling = svg.padded_log_range([*ratios, 1.0 / 1.1, 1.1], 1.08)
    y = svg.Scale(floor, ceiling, RESIDUAL_HEIGHT - BOTTOM, TOP, is_log=True)
    ratio_ticks = RATIO_TICKS if ceiling > 1.6 * floor else FINE_RATIO_TICKS
    powers = [2.0**n for n in range(math.ceil(math.log2(low)), math.floor(math.log2(high)) + 1)]
    every = math.ceil(len(powers) / 11)
    parts = svg.axes(
        x,
        y,
        title,
        "predicted / measured",
        x_ticks=powers[::every],
        y_ticks=[tick for tick in ratio_ticks if y.low <= tick <= y.high],
        x_label=lambda value: f"{value / 1024:g}k" if value >= 8192 else f"{value:g}",
        y_label=lambda ratio: _signed(ratio - 1.0) if ratio != 1.0 else "0",
    )
    parts.append(svg.line(x.start, y(1.0), x.end, y(1.0), "diag"))
    spread = min(9.0, 0.35 * abs(x(2.0 * low) - x(low)))
    pairs = []
    around: dict[int, list[tuple[float, float]]] = defaultdict(list)
    for value, rows in by_value.items():
        for index, row in enumerate(rows):
            aside = ((index * GOLDEN) % 1.0 * 2.0 - 1.0) * spread if len(rows) > 2 else 0.0
            ratio = 1.0 + (row.time_error() or 0.0)
            pairs.append((x(value) + aside, y(ratio), row))
            around[round(math.log2(value))].append((value, ratio))
    parts += [svg.dot(a, b, _css(r, fitted_ids), _tip(r), 2.6) for a, b, r in _drawn(pairs, fitted_ids)]
    for found in around.values():
        if len(found) >= 3:
            at, values = y(median(ratio for _, ratio in found)), [value for value, _ in found]
            ends = x(min(values)) - spread - 2.0, x(max(values)) + spread + 2.0
            parts.append(svg.line(ends[0], at, ends[1], at, "mid"))
    return page.panel(f"Against {title}", note, svg.svg(RESIDUAL_WIDTH, RESIDUAL_HEIGHT, parts, title))


def _memory(results: list[RowResult], fitted_ids: set[str], fitted: Fitted) -> list[str]:
    rows = [r for r in results if r.memory_error() is not None]
    if not rows:
        return []
    low, high = fitted.intervals["memory"]["same"]
    groups: dict[tuple[str, str], list[RowResult]] = defaultdict(list)
    for row in rows:
        groups[row.case.source, memory_kind(row.case)].append(row)
    found = []
    for (source, kind), mine in groups.items():
        pairs = [
            (r.case.number("measured_peak_mem_gb") or 0.0, r.predicted_peak_mem_gib or 0.0, r) for r in mine
        ]
        x, y = _square([value for m, p, _ in pairs for value in (m, p)])
        parts = [*svg.axes(x, y, "measured, GiB", "predicted, GiB"), *_diagonal(x, y, (low, high))]
        for m, p, r in _drawn(pairs, fitted_ids):
            tip = f"{r.case.id}: predicted {significant(p)}, measured {significant(m)} GiB"
            parts.append(svg.dot(x(m), y(p), _css(r, fitted_ids), tip))
        error = sum(abs(r.memory_error() or 0.0) for r in mine) / len(mine)
        note = f"{kind}, {_counted(len(mine), 'run')}, mean error {_percent(error)}"
        picture = svg.svg(SIDE, SIDE, parts, f"{source}: predicted against measured peak memory")
        title = " · ".join(filter(None, (source, _long_name(mine[0]))))
        found.append(page.panel(title, note, picture))
    lead = (
        "What the sources counted differs and is never pooled: bytes of tensors (allocated), what the "
        "allocator holds (reserved), what the device reports (device), or a counter they do not name."
    )
    return [
        page.section("Peak memory", lead),
        _legend(fitted_ids, ("band", "80 % interval")),
        page.panels(found),
    ]


def _summary_table(by: str, summaries: list[Summary]) -> str:
    headers = (BY_WORDS[by], "priced", "median", "mean", "bias", "p90", "memory", "tau", "regret", "groups")
    rows = []
    for s in summaries:
        kinds = [f"{_bare(found['mape'])} {kind}" for kind, found in s.memory_by_kind.items()]
        tau = "-" if s.kendall_tau is None else f"{s.kendall_tau:.2f}"
        errors = [_bare(e) for e in (s.time_median_ape, s.time_mape, s.time_bias, s.time_p90)]
        groups = str(s.ranking_groups or "-")
        memory = ", ".join(kinds) or "-"
        name = s.source or "not known"
        rows.append([name, f"{s.priced}/{s.rows}", *errors, memory, tau, _bare(s.top1_regret), groups])
    return page.table(headers, rows)


def _simulators(results: list[RowResult]) -> list[str]:
    found = [s for s in summarise(results, GROUPINGS["source"]) if s.sim_rows]
    if not found:
        return []
    headers = (
        "source",
        "rows",
        "planner median",
        "planner mean",
        "its simulator median",
        "its simulator mean",
    )
    rows = [
        [s.source, str(s.sim_rows), *map(_bare, (s.own_median_ape, s.own_mape, s.sim_median_ape, s.sim_mape))]
        for s in found
    ]
    lead = "Rows for which the source prints its own simulator's step time; both errors are of the same rows."
    return [page.section("Beside the sources' own simulators", lead), page.table(headers, rows)]


def _unpriced(results: list[RowResult]) -> list[str]:
    missing = [r for r in results if r.status != "ok"]
    if not missing:
        return []
    counts = Counter((r.case.source, r.message) for r in missing)
    summary_rows = [[source, str(n), message] for (source, message), n in counts.most_common()]
    each = page.table(("row", "reason"), [[r.case.id, r.message] for r in missing], text_columns=(1,))
    return [
        page.section("Not priced", "Every row has a fate; these have no prediction."),
        page.table(("source", "rows", "reason"), summary_rows, text_columns=(2,)),
        page.folded(_counted(len(missing), "row"), each),
    ]


def _rows(results: list[RowResult], fitted_ids: set[str]) -> str:
    headers = ("row", "used", "predicted s", "measured s", "error %", "GiB", "measured GiB", "error %")
    rows = [
        [
            r.case.id,
            "fitted" if r.case.id in fitted_ids else "judged",
            significant(r.predicted_step_s or 0.0),
            significant(r.measured_step_s) if r.measured_step_s else "-",
            _bare(r.time_error()),
            significant(r.predicted_peak_mem_gib or 0.0),
            significant(m) if (m := r.case.number("measured_peak_mem_gb")) else "-",
            _bare(r.memory_error()),
        ]
        for r in results
        if r.status == "ok"
    ]
    return page.section("Every row") + page.folded(
        _counted(len(rows), "priced row"), page.table(headers, rows)
    )


def _bare(value: float | None) -> str:
    return "-" if value is None else f"{value * 100:.1f}"


def _percent(value: float) -> str:
    return f"{value * 100:.1f} %"


def _signed(value: float) -> str:
    return f"{value * 100:+.0f} %"
