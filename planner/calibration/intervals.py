"""Error bars from residuals: what share of runs lands how far from a prediction, by closeness.

Residuals are log(predicted / measured). "site" uses all fitted constants; "same" the median installation's,
as for a machine nobody measured; "part" takes away those of the stack or of the GPU generation too;
"datasheet" takes away both. The 10 % and 90 % quantiles of the rows the constants were fitted on give the
80 % interval; the rows judged say how often it holds. Pairs of rows of equal model, machine and batch give
the noise between plans of one search.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import combinations
from typing import Any

from planner.calibration.case import Case
from planner.calibration.fitted import Fitted
from planner.calibration.ranking import compared_plans
from planner.calibration.rows import LIGHT
from planner.calibration.validation import RowResult, is_doubtful, validate_cases
from planner.cluster.spec import DeviceSpec
from planner.cost.constants import Constants

LOW_QUANTILE, HIGH_QUANTILE = 0.10, 0.90
TIE_QUANTILE = 0.80

ConstantsFor = Callable[[DeviceSpec, str, str], Constants]


def add_intervals(fitted: Fitted, cases: list[Case]) -> None:
    """Fill the error bars of ``fitted`` from the residuals of ``cases``, the doubtful sources left out."""
    chosen = [case for case in cases if case.source not in LIGHT]
    without_stack = Fitted({**fitted.values, "stack": {}}, fitted.rows, fitted.site_stacks)
    without_gpu = Fitted({**fitted.values, "generation": {}}, fitted.rows, fitted.site_stacks)
    without_both = Fitted({**fitted.values, "generation": {}, "stack": {}}, fitted.rows, fitted.site_stacks)
    ways: dict[str, list[ConstantsFor]] = {
        "site": [fitted.constants_for],
        "same": [_unknown_site(fitted)],
        "part": [_unknown_site(without_stack), _unknown_site(without_gpu)],
        "datasheet": [_unknown_site(without_both)],
    }
    fitted.intervals, fitted.ranking = {"time": {}, "memory": {}}, {}
    for name, constants in ways.items():
        results = [validate_cases(chosen, way) for way in constants]
        for kind, error in (("time", RowResult.time_error), ("memory", RowResult.memory_error)):
            residuals = [math.log1p(e) for way in results for row in way if (e := error(row)) is not None]
            if residuals:
                fitted.intervals[kind][name] = [
                    float(f"{quantile(residuals, q):.4g}") for q in (LOW_QUANTILE, HIGH_QUANTILE)
                ]
        noise = ranking_noise(results)
        if noise is not None:
            fitted.ranking[name] = noise


def _unknown_site(fitted: Fitted) -> ConstantsFor:
    """Constants as a machine nobody measured gets them."""
    return lambda device, stack, site: fitted.constants_for(device, stack)


def complete_intervals(fitted: Fitted, other: Fitted) -> list[str]:
    """Error bars that the fitted rows cannot give, taken from ``other``; what was taken, in words.

    A table without memory figures, or without two comparable plans, says nothing about them.
    """
    taken = []
    for kind, ground in other.intervals.items():
        missing = {name: ends for name, ends in ground.items() if name not in fitted.intervals.get(kind, {})}
        if missing:
            fitted.intervals[kind] = {**fitted.intervals.get(kind, {}), **missing}
            taken.append(f"{kind} interval ({', '.join(missing)})")
    noise = {name: value for name, value in other.ranking.items() if name not in fitted.ranking}
    if noise:
        fitted.ranking = {**fitted.ranking, **noise}
        taken.append(f"noise between plans ({', '.join(noise)})")
    return taken


def ranking_noise(ways: list[list[RowResult]]) -> float | None:
    """80 % quantile of |r_i - r_j| over pairs of compared plans, averaged over the groups.

    Taken group by group: one large sweep would otherwise speak for all. None without a pair.
    """
    found = []
    for results in ways:
        for pairs in compared_plans(results).values():
            residuals = [math.log(predicted / measured) for predicted, measured in pairs]
            differences = [abs(a - b) for a, b in combinations(residuals, 2)]
            found.append(quantile(differences, TIE_QUANTILE))
    return float(f"{sum(found) / len(found):.4g}") if found else None


def coverage(fitted: Fitted, results: list[RowResult]) -> float | None:
    """Share of rows with a step time inside their 80 % interval, doubtful sources and rows left out."""
    inside = []
    for row in results:
        measured = row.measured_step_s
        if row.case.source in LIGHT or is_doubtful(row.case) or row.predicted_step_s is None or not measured:
            continue
        low, high = fitted.errors_of(row.generation, row.stack, row.site).time_interval(row.predicted_step_s)
        inside.append(low <= measured <= high)
    return sum(inside) / len(inside) if inside else None


def with_interval(row: RowResult, fitted: Fitted) -> dict[str, Any]:
    """The row's record with the 80 % interval of its step time, by how close it is to calibrated ground."""
    record = row.as_dict()
    if row.predicted_step_s is not None:
        bars = fitted.errors_of(row.generation, row.stack, row.site)
        record["predicted_step_s_interval"] = list(bars.time_interval(row.predicted_step_s))
        record["closeness"] = bars.closeness
    return record


def quantile(values: list[float], share: float) -> float:
    """The value below which ``share`` of ``values`` lie, linear between neighbours."""
    ordered = sorted(values)
    at = share * (len(ordered) - 1)
    low = math.floor(at)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (at - low) * (ordered[high] - ordered[low])
