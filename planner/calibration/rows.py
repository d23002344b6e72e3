"""The rows a fit reads: which are fitted, which are judged, which count lightly, and each ready to price."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from planner.calibration.case import Case, Unsupported
from planner.calibration.case_pricing import PricedCase, price_cases
from planner.calibration.fitted import site_key
from planner.calibration.validation import case_cost_model, is_doubtful
from planner.cluster.spec import DeviceSpec
from planner.cost.constants import Constants
from planner.cost.many_rows import many_rows
from planner.cost.model import CostModel
from planner.cost.step import price
from planner.strategy.decision import Decision

# Sources the measurements' own notes ask to weigh lightly (tiny models on slow Ethernet; doubtful rows).
LIGHT = {"amp": 0.3, "slr": 0.3}


@dataclass(frozen=True)
class Sample:
    """A row ready to be priced again and again: its cost model, its decision, what was measured."""

    case: Case
    model: CostModel
    decision: Decision
    stack: str
    measured: float

    @property
    def device(self) -> DeviceSpec:
        return self.model.problem.cluster.device

    def key(self, scope: str) -> str:
        """The generation, stack or site of the row, whose constants price it."""
        if scope == "site":
            return site_key(self.case.source, self.device.generation)
        return self.device.generation if scope == "generation" else self.stack

    def under(self, constants: Constants) -> CostModel:
        """The row's cost model with other constants."""
        return CostModel.of(self.model.problem, constants, self.model.stack.name, self.model.chain)


def log_errors(rows: Sequence[tuple[Sample, Constants]]) -> list[float]:
    """log(predicted / measured) of the step time of every row under its constants."""
    pairs = [(sample.under(constants), sample.decision) for sample, constants in rows]
    return [
        math.log(price(model, decision, rows=priced).step_seconds / sample.measured)
        for (model, decision), priced, (sample, _) in zip(pairs, many_rows(pairs), rows, strict=True)
    ]


def split_rows(cases: list[Case]) -> tuple[list[Case], list[Case]]:
    """(fitted, judged): every other row of each source, in file order."""
    seen: dict[str, int] = defaultdict(int)
    fitted: list[Case] = []
    judged: list[Case] = []
    for case in cases:
        (fitted if seen[case.source] % 2 == 0 else judged).append(case)
        seen[case.source] += 1
    return fitted, judged


def samples(cases: list[Case], constants_for: Callable[[DeviceSpec, str, str], Constants]) -> list[Sample]:
    """The rows that can be priced and have a step time; suspect rows are left out."""
    found = []
    wanted = [case for case in cases if not is_doubtful(case) and _measured(case)]
    for priced in price_cases(wanted, lambda case: case_cost_model(case, constants_for)):
        if isinstance(priced, PricedCase):
            model, measured = priced.model, _measured(priced.case)
            found.append(Sample(priced.case, model, priced.decision, model.stack.fitted_as, measured))
    return found


def _measured(case: Case) -> float:
    """The measured step, 0 where the cell is empty or holds no number."""
    try:
        return case.number("measured_step_s") or 0.0
    except Unsupported:
        return 0.0


def unread(cases: Sequence[Case]) -> dict[str, str]:
    """Why the measured step of a row cannot be read, by row id: rows that are neither fitted nor judged."""
    found = {}
    for case in cases:
        try:
            case.number("measured_step_s")
        except Unsupported as error:
            found[case.id] = str(error)
    return found


def row_weights(rows: list[Sample]) -> list[float]:
    """What each row counts: n rows of one source count as sqrt(n), because they share its errors."""
    counts: dict[str, int] = defaultdict(int)
    for sample in rows:
        counts[sample.case.source] += 1
    return [LIGHT.get(s.case.source, 1.0) / math.sqrt(counts[s.case.source]) for s in rows]
