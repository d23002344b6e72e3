"""How well a machine or a source nobody measured is predicted: refit without it, then price it.

For each group (a GPU, a GPU generation, a source) the constants are fitted again to the fitted rows of all
others, and every row of the group is priced with them. Refits begin at the full fit, which saves most of the
work; a constant that only the group's rows inform falls back to its prior. Groups are independent, so they
run in several processes with the same result.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

from planner.calibration.case import Case, Unsupported
from planner.calibration.case_cluster import case_device
from planner.calibration.fit import Pricer, fit
from planner.calibration.fitted import Fitted
from planner.calibration.rows import samples
from planner.calibration.validation import RowResult, validate_cases
from planner.errors import InputError, UnknownName

GROUPS = ("source", "gpu", "generation")


@dataclass(frozen=True)
class LeftOut:
    """One group: its rows priced by constants that never saw them."""

    group: str
    results: list[RowResult]


def group_of(case: Case, by: str) -> str:
    """The group a row belongs to; "" for a row whose GPU is not known. Raises UnknownName."""
    if by not in GROUPS:
        raise UnknownName("group to leave out", by, GROUPS, hint=f"one of {', '.join(GROUPS)}")
    if by == "source":
        return case.source
    try:
        device = case_device(case)
    except Unsupported:
        return ""
    return device.name if by == "gpu" else device.generation


def leave_out(
    cases: list[Case],
    fitted_cases: list[Case],
    by: str,
    *,
    processes: int | None = None,
    report: Callable[[str], None] = lambda text: None,
) -> Iterator[LeftOut]:
    """Every group of ``cases`` predicted without itself, in order of first appearance.

    ``fitted_cases`` are the rows a fit may use. ``processes`` defaults to the machine's cores. Raises
    InputError when the table holds one group only: nothing would be left to fit.
    """
    groups = [name for name in dict.fromkeys(group_of(case, by) for case in cases) if name]
    if len(groups) < 2:
        raise InputError(
            f"the table holds one {by} only ({', '.join(groups) or 'none known'}); nothing would be left",
            hint=f"leave out another of {', '.join(GROUPS)}, or add rows",
        )
    pricer = Pricer(samples(fitted_cases, Fitted().constants_for))
    full = fit(fitted_cases, report=report, pricer=pricer)
    work = [
        (
            name,
            [case for case in fitted_cases if group_of(case, by) != name],
            [case for case in cases if group_of(case, by) == name],
        )
        for name in groups
    ]
    count = min(processes or os.cpu_count() or 1, len(work))
    if count == 1:
        _begin(full, pricer)
        yield from map(_without, work)
        return
    # Where processes fork, the prepared rows and their known prices are shared and not copied.
    method = "fork" if "fork" in multiprocessing.get_all_start_methods() else None
    context = multiprocessing.get_context(method)
    with ProcessPoolExecutor(count, context, _begin, (full, pricer)) as pool:
        for found in pool.map(_without, work):
            report(f"left out {found.group}")
            yield found


def judged_results(found: Iterable[LeftOut], judged: list[Case]) -> list[RowResult]:
    """The results of the ``judged`` rows, in the table's order, from all groups together."""
    by_id = {result.case.id: result for one in found for result in one.results}
    return [by_id[case.id] for case in judged if case.id in by_id]


_shared: list[tuple[Fitted, Pricer]] = []


def _begin(full: Fitted, pricer: Pricer) -> None:
    _shared[:] = [(full, pricer)]


def _without(work: tuple[str, list[Case], list[Case]]) -> LeftOut:
    name, others, mine = work
    full, pricer = _shared[0]
    fitted = fit(others, start=full, pricer=pricer)
    return LeftOut(name, validate_cases(mine, fitted.constants_for))
