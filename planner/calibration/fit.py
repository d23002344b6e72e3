"""Fit the cost model's constants to measured runs, within physical bounds, robust to outliers.

Constants are fitted per GPU generation (what the silicon does) and per training stack (what the software
does); a prior from the literature stands wherever no row speaks. The objective is the mean over sources of
the mean absolute log error of step time plus a pull towards the prior, which keeps constants that no row
determines where they were; absolute errors, so a suspect row cannot drag a constant far. The minimum is
found by coordinate search with golden sections: no randomness, the same digits every time.

Split: of the rows of each source in file order, every other one is fitted and the rest are judged.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

from planner.calibration.case import Case, Unsupported
from planner.calibration.case_decision import price_case
from planner.calibration.fitted import PARAMETERS, Fitted, Parameter
from planner.calibration.validation import STACK_ALIASES, case_cost_model
from planner.cluster.spec import DeviceSpec
from planner.cost.constants import Constants, default_constants
from planner.cost.step import CostModel, price
from planner.errors import InputError
from planner.strategy.decision import Decision

PRIOR_WEIGHT = 0.02
SWEEPS = 2
GOLDEN = (math.sqrt(5.0) - 1.0) / 2.0
SECTION_STEPS = 8
SUSPECT = "SUSPECT"
MIN_ROWS = 3
# Sources the measurements' own notes ask to weigh lightly (tiny models on slow Ethernet; doubtful rows).
LIGHT = {"amp": 0.1, "slr": 0.2}


@dataclass(frozen=True)
class Sample:
    """A row ready to be priced again and again: its cost model, its decision, what was measured."""

    case: Case
    model: CostModel
    decision: Decision
    stack: str
    measured: float

    def log_error(self, constants: Constants) -> float:
        """log(predicted / measured) of the step time."""
        model = CostModel.of(self.model.problem, constants, self.stack, self.model.chain)
        return math.log(price(model, self.decision).step_seconds / self.measured)


def split_rows(cases: list[Case]) -> tuple[list[Case], list[Case]]:
    """(fitted, judged): every other row of each source, in file order."""
    seen: dict[str, int] = defaultdict(int)
    fitted: list[Case] = []
    judged: list[Case] = []
    for case in cases:
        (fitted if seen[case.source] % 2 == 0 else judged).append(case)
        seen[case.source] += 1
    return fitted, judged


def samples(cases: list[Case], constants_for: Callable[[DeviceSpec, str], Constants]) -> list[Sample]:
    """The rows that can be priced and have a step time; suspect rows are left out."""
    found = []
    for case in cases:
        if SUSPECT in case.text("notes"):
            continue
        try:
            measured = case.number("measured_step_s")
            if not measured:
                continue
            model = case_cost_model(case, constants_for)
            decision, _ = price_case(case, model)
        except (Unsupported, InputError):
            continue
        stack = STACK_ALIASES.get(case.text("stack"), case.text("stack"))
        found.append(Sample(case, model, decision, stack, measured))
    return found


def fit(cases: list[Case], *, report: Callable[[str], None] = lambda text: None) -> Fitted:
    """Constants fitted to ``cases``. Raises InputError when no row can be used."""
    fitted = Fitted()
    rows = samples(cases, fitted.constants_for)
    if not rows:
        raise InputError("no row can be priced, so there is nothing to fit", hint="see planner validate")
    by_scope: dict[tuple[str, str], list[Sample]] = defaultdict(list)
    for sample in rows:
        by_scope["generation", sample.model.problem.cluster.device.generation].append(sample)
        by_scope["stack", sample.stack].append(sample)
    groups = {key: mine for key, mine in by_scope.items() if len(mine) >= MIN_ROWS}
    for scope, key in groups:
        fitted.rows[scope][key] = len(groups[scope, key])
    weights = _source_weights(rows)
    for sweep in range(SWEEPS):
        for (scope, key), mine in sorted(groups.items()):
            for parameter in PARAMETERS:
                if parameter.scope == scope:
                    _fit_one(fitted, parameter, key, mine, weights)
            fitted.errors[f"{scope}:{key}"] = _objective(fitted, mine, weights)
            report(f"sweep {sweep + 1}: {scope} {key}: {fitted.errors[f'{scope}:{key}']:.4f}")
    return fitted


def _source_weights(rows: list[Sample]) -> dict[str, float]:
    """Each source counts with the square root of its rows: large tables lead, small ones are heard."""
    counts: dict[str, int] = defaultdict(int)
    for sample in rows:
        counts[sample.case.source] += 1
    return {source: LIGHT.get(source, 1.0) / math.sqrt(count) for source, count in counts.items()}


def _objective(fitted: Fitted, rows: list[Sample], weights: dict[str, float]) -> float:
    cache: dict[tuple[str, str], Constants] = {}
    total = weight = 0.0
    for sample in rows:
        device = sample.model.problem.cluster.device
        key = (device.name, sample.stack)
        if key not in cache:
            cache[key] = fitted.constants_for(device, sample.stack)
        w = weights[sample.case.source]
        total += w * abs(sample.log_error(cache[key]))
        weight += w
    return total / weight


def _fit_one(
    fitted: Fitted, parameter: Parameter, key: str, rows: list[Sample], weights: dict[str, float]
) -> None:
    """Golden section on one constant inside its bounds, the others held."""
    values = fitted.values[parameter.scope].setdefault(key, {})
    prior = float(getattr(default_constants(rows[0].model.problem.cluster.device), parameter.name))
    current = values.get(parameter.name, prior)

    def cost(value: float) -> float:
        values[parameter.name] = float(value)
        scale = math.log(max(parameter.high, 1e-12) / max(parameter.low, parameter.high * 1e-3))
        pull = PRIOR_WEIGHT * abs(value - prior) / (parameter.high - parameter.low)
        return _objective(fitted, rows, weights) + pull * min(1.0, scale)

    low, high = parameter.low, parameter.high
    a, b = high - GOLDEN * (high - low), low + GOLDEN * (high - low)
    cost_a, cost_b = cost(a), cost(b)
    for _ in range(SECTION_STEPS):
        if cost_a <= cost_b:
            high, b, cost_b = b, a, cost_a
            a = high - GOLDEN * (high - low)
            cost_a = cost(a)
        else:
            low, a, cost_a = a, b, cost_b
            b = low + GOLDEN * (high - low)
            cost_b = cost(b)
    best = min(((cost_a, a), (cost_b, b), (cost(current), current)))
    # Four digits: what a fit on noisy rows can mean, and the same on every machine.
    values[parameter.name] = float(f"{best[1]:.4g}")
