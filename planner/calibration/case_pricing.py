"""Measured runs priced together: layers that runs have in common are priced once.

What a run's empty cells leave open (``case_decision.case_decisions``) is chosen by the prices: of each
microbatch size the least recompute that fits memory, of the sizes the fastest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from planner.calibration.case import Case, Unsupported
from planner.calibration.case_decision import case_decisions
from planner.cost.many_rows import many_rows
from planner.cost.model import CostModel
from planner.cost.row import CandidateRow
from planner.cost.step import Prediction, price
from planner.errors import InputError
from planner.strategy.decision import Decision

# Runs whose cost rows are held at once: enough to share layers, and a long table stays in little memory.
TOGETHER = 1024


@dataclass(frozen=True)
class PricedCase:
    """A run with the cost model it was priced by, its decision and what that costs."""

    case: Case
    model: CostModel
    decision: Decision
    prediction: Prediction


@dataclass(frozen=True)
class Refused:
    """A run that cannot be priced, and why."""

    case: Case
    reason: Unsupported | InputError


def price_cases(cases: list[Case], model_of: Callable[[Case], CostModel]) -> Iterator[PricedCase | Refused]:
    """Every run priced by ``model_of`` it, or the reason against it, in order."""
    for start in range(0, len(cases), TOGETHER):
        yield from _price_some(cases[start : start + TOGETHER], model_of)


def _price_some(cases: list[Case], model_of: Callable[[Case], CostModel]) -> Iterator[PricedCase | Refused]:
    found: list[tuple[CostModel, list[list[Decision]]] | Refused] = []
    for case in cases:
        try:
            model = model_of(case)
            found.append((model, case_decisions(case, model.problem)))
        except (Unsupported, InputError) as reason:
            found.append(Refused(case, reason))
    open_ones = [entry for entry in found if not isinstance(entry, Refused)]
    # Recompute changes no cost row: the first decision of each microbatch size has those of the others.
    rows = iter(many_rows([(model, options[0]) for model, sizes in open_ones for options in sizes]))
    for case, entry in zip(cases, found, strict=True):
        if isinstance(entry, Refused):
            yield entry
        else:
            model, sizes = entry
            yield PricedCase(case, model, *_chosen(model, sizes, rows))


def _chosen(
    model: CostModel, sizes: list[list[Decision]], rows: Iterator[dict[int, CandidateRow]]
) -> tuple[Decision, Prediction]:
    fitting = [_least_recompute(model, options, next(rows)) for options in sizes]
    return min(fitting, key=lambda priced: priced[1].step_seconds)


def _least_recompute(
    model: CostModel, options: list[Decision], rows: dict[int, CandidateRow]
) -> tuple[Decision, Prediction]:
    """The first of ``options`` that fits the device's memory, or the last of them."""
    limit = model.problem.cluster.device.memory_bytes
    for decision in options:
        prediction = price(model, decision, rows=rows)
        if prediction.peak_memory_bytes <= limit:
            break
    return decision, prediction
