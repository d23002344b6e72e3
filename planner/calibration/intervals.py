"""Intervals from residuals: what share of runs lands how far from a prediction, by closeness.

Residuals are log(predicted / measured). "same" uses the fitted constants; "part" takes away the fitted
values of the stack or of the GPU generation; "datasheet" takes away both, leaving the priors. The 10 % and
90 % quantiles of the rows the constants were fitted on give the 80 % interval; the rows judged say how
often it holds.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from planner.calibration.case import Case
from planner.calibration.fitted import Fitted
from planner.calibration.validation import RowResult, validate_cases
from planner.cluster.spec import DeviceSpec
from planner.cost.constants import Constants, default_constants

LOW_QUANTILE, HIGH_QUANTILE = 0.10, 0.90
LIGHT_SOURCES = ("amp", "slr")

ConstantsFor = Callable[[DeviceSpec, str], Constants]


def add_intervals(fitted: Fitted, cases: list[Case]) -> None:
    """Fill ``fitted.intervals`` from the residuals of ``cases``, the doubtful sources left out."""
    chosen = [case for case in cases if case.source not in LIGHT_SOURCES]
    without_stack = Fitted({"generation": fitted.values["generation"], "stack": {}}, fitted.rows)
    without_gpu = Fitted({"generation": {}, "stack": fitted.values["stack"]}, fitted.rows)
    ways: dict[str, list[ConstantsFor]] = {
        "same": [fitted.constants_for],
        "part": [without_stack.constants_for, without_gpu.constants_for],
        "datasheet": [lambda device, stack: default_constants(device)],
    }
    fitted.intervals = {"time": {}, "memory": {}}
    for name, constants in ways.items():
        results = [row for way in constants for row in validate_cases(chosen, way)]
        for kind, error in (("time", RowResult.time_error), ("memory", RowResult.memory_error)):
            residuals = [math.log1p(e) for row in results if (e := error(row)) is not None]
            if residuals:
                fitted.intervals[kind][name] = [
                    float(f"{quantile(residuals, q):.4g}") for q in (LOW_QUANTILE, HIGH_QUANTILE)
                ]


def coverage(fitted: Fitted, results: list[RowResult]) -> float | None:
    """Share of rows with a step time inside the 80 % interval, the doubtful sources left out."""
    low, high = fitted.intervals["time"]["same"]
    scored = [row for row in results if row.case.source not in LIGHT_SOURCES]
    found = [math.log1p(e) for row in scored if (e := row.time_error()) is not None]
    return sum(low <= value <= high for value in found) / len(found) if found else None


def quantile(values: list[float], share: float) -> float:
    """The value below which ``share`` of ``values`` lie, linear between neighbours."""
    ordered = sorted(values)
    at = share * (len(ordered) - 1)
    low = math.floor(at)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (at - low) * (ordered[high] - ordered[low])
