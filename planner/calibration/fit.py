"""Fit the cost model's constants to measured runs, within physical bounds, robust to outliers.

Constants are fitted per GPU generation (what the silicon does) and per training stack (what the software
does), all at once. Legend: u the constants, each as its logarithm (or as it is where its low bound is 0);
r_i(u) = log(predicted / measured) of row i; w_i its weight; s the noise between repeated runs; p_j and d_j
the prior of constant j and a share of the width of its bounds. Minimised is

    sum_i w_i rho(r_i / s) + sum_j rho((u_j - p_j) / d_j)      within the bounds,

rho being Huber's loss: a suspect row cannot drag a constant far, and rows that agree can pull one far from
its prior. Of constants that only act together the prior decides how they share, which is what predicts a
machine or stack no row has seen. Gauss-Newton (Nocedal and Wright 2006,
chapter 10): the Jacobian by finite differences, one price per row and constant of that row; the robust,
bounded least squares of the linear model by reweighting and coordinate descent; a step is taken only where
the true objective falls, halved where it does not. No randomness: the same digits every time.

One Jacobian serves several steps (the chord method) while they help. A constant is fitted only when at least
``MIN_ROWS`` rows inform it, that is, moving it across its bounds would move their step time by ``MIN_EFFECT``
or more; otherwise its prior stands. The standard error is that of the last linear model,
sqrt(diag (J^T W J / s^2 + D)^-1) with s the larger of the noise and the robust spread of the residuals.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from planner.calibration.case import Case
from planner.calibration.fitted import PARAMETERS, Evidence, Fitted, Parameter
from planner.calibration.rows import Sample, log_errors, row_weights, samples
from planner.cost.arrays import Array
from planner.cost.constants import Constants, default_constants
from planner.errors import InputError

# Spread of repeated runs of one configuration (README of the measurements): 3 to 6 %.
NOISE = 0.04
# Scale of a constant's prior as a share of the width of its bounds. Wider ones fit the fitted rows better and
# machines left out far worse: at 0.5 the H100 rows, left out, are off by 58 %, at 0.1 by 10 %.
# An installation's own constants may move more: no other machine is priced with them, and the median keeps.
PRIOR_SHARES = {"generation": 0.1, "stack": 0.1, "site": 0.15}
MIN_ROWS = 3
MIN_EFFECT = 0.01
ROUNDS = 6
CHORDS = 4
ENOUGH = 0.002
STEP = 0.02
LONGEST_STEP = 0.35
REWEIGHTINGS = 12
SWEEPS = 60
HALVINGS = 3
NEAR_BOUND = 0.005
# Three digits of a constant are more than noisy rows can tell; the fourth keeps rounding out of sight.
DIGITS = 4


@dataclass(frozen=True)
class Column:
    """One constant being fitted: its parameter, the generation or stack it belongs to, its prior."""

    parameter: Parameter
    key: str
    prior: float

    @property
    def is_log(self) -> bool:
        return self.parameter.low > 0.0

    def coordinate(self, value: float) -> float:
        """The value as the fit moves it: its logarithm, or its share of the high bound."""
        return math.log(value) if self.is_log else value / self.parameter.high

    def value(self, coordinate: float) -> float:
        """The inverse, inside the bounds and rounded to the digits that are written."""
        value = math.exp(coordinate) if self.is_log else coordinate * self.parameter.high
        value = min(max(float(f"{value:.{DIGITS}g}"), self.parameter.low), self.parameter.high)
        return value

    @property
    def bounds(self) -> tuple[float, float]:
        return self.coordinate(self.parameter.low), self.coordinate(self.parameter.high)

    def slope(self, value: float) -> float:
        """d value / d coordinate."""
        return value if self.is_log else self.parameter.high


@dataclass
class Pricer:
    """Rows priced under constants; a row is priced again only when one of its own constants moved."""

    rows: list[Sample]
    known: dict[tuple[int, Constants], float] = field(default_factory=dict)
    priced: int = 0

    def log_errors(self, indices: list[int], fitted: Fitted) -> list[float]:
        """log(predicted / measured) of the rows at ``indices`` under ``fitted``."""
        keys = []
        for index in indices:
            sample = self.rows[index]
            constants = fitted.constants_for(sample.device, sample.stack, sample.key("site"))
            keys.append((index, constants))
        new = [key for key in dict.fromkeys(keys) if key not in self.known]
        errors = log_errors([(self.rows[index], constants) for index, constants in new])
        self.known.update(zip(new, errors, strict=True))
        self.priced += len(new)
        return [self.known[key] for key in keys]


def fit(
    cases: list[Case],
    *,
    report: Callable[[str], None] = lambda text: None,
    start: Fitted | None = None,
    pricer: Pricer | None = None,
) -> Fitted:
    """Constants fitted to ``cases``, from ``start`` when given.

    ``pricer`` brings rows already prepared, of which those of ``cases`` are used. Raises InputError when no
    row can be used.
    """
    pricer = pricer or Pricer(samples(cases, Fitted().constants_for))
    wanted = {case.id for case in cases}
    chosen = [index for index, sample in enumerate(pricer.rows) if sample.case.id in wanted]
    if not chosen:
        raise InputError("no row can be priced, so there is nothing to fit", hint="see planner validate")
    task = Task(pricer, chosen)
    fitted = task.start(start or Fitted())
    columns = task.candidates()
    jacobian = task.jacobian(fitted, columns)
    while True:
        kept = [j for j, count in enumerate(task.informing(jacobian, columns).sum(0)) if count >= MIN_ROWS]
        if len(kept) == len(columns) and fitted.values == task.only(fitted, columns).values:
            break
        columns, jacobian = [columns[j] for j in kept], jacobian[:, kept]
        fitted = task.minimum(task.only(fitted, columns), columns, jacobian, report)
        jacobian = task.jacobian(fitted, columns)
    task.add_evidence(fitted, columns, jacobian)
    return fitted


@dataclass
class Task:
    """One fit: the rows chosen from a pricer, their weights, and what is done with them."""

    pricer: Pricer
    chosen: list[int]

    def __post_init__(self) -> None:
        self.rows = [self.pricer.rows[index] for index in self.chosen]
        self.weights = np.array(row_weights(self.rows))

    def groups(self) -> dict[tuple[str, str], int]:
        """Rows by (scope, key), where there are enough to fit anything."""
        counts: dict[tuple[str, str], int] = defaultdict(int)
        for row in self.rows:
            counts["generation", row.device.generation] += 1
            counts["stack", row.stack] += 1
            counts["site", row.key("site")] += 1
        return {key: count for key, count in sorted(counts.items()) if count >= MIN_ROWS}

    def start(self, other: Fitted) -> Fitted:
        """A fit to begin with: the values of ``other`` for the groups of these rows."""
        fitted = Fitted()
        sites = [row.key("site") for row in self.rows]
        for row in self.rows:
            stacks = fitted.site_stacks.setdefault(row.key("site"), [])
            fitted.site_stacks[row.key("site")] = sorted({*stacks, row.stack})
        fitted.rows["site"] = {site: sites.count(site) for site in sorted(set(sites))}
        for (scope, key), count in self.groups().items():
            fitted.rows[scope][key] = count
            fitted.values[scope][key] = dict(other.values[scope].get(key, {}))
        return fitted

    def candidates(self) -> list[Column]:
        """Every constant of every group, with its prior."""
        prior = {row.device.generation: default_constants(row.device) for row in self.rows}
        any_prior = next(iter(prior.values()))
        return [
            Column(parameter, key, float(getattr(prior.get(key, any_prior), parameter.name)))
            for scope, key in self.groups()
            for parameter in PARAMETERS
            if parameter.scope == scope
        ]

    def only(self, fitted: Fitted, columns: list[Column]) -> Fitted:
        """``fitted`` with a value for each of ``columns`` and for nothing else."""
        found = Fitted(rows=fitted.rows, site_stacks=fitted.site_stacks)
        for column in columns:
            scope, name = column.parameter.scope, column.parameter.name
            value = fitted.values[scope].get(column.key, {}).get(name, column.prior)
            found.values[scope].setdefault(column.key, {})[name] = value
        return found

    def residuals(self, fitted: Fitted) -> Array:
        return np.array(self.pricer.log_errors(self.chosen, fitted))

    def coordinates(self, fitted: Fitted, columns: list[Column]) -> Array:
        return np.array(
            [
                c.coordinate(fitted.values[c.parameter.scope].get(c.key, {}).get(c.parameter.name, c.prior))
                for c in columns
            ]
        )

    def at(self, fitted: Fitted, columns: list[Column], coordinates: Array) -> Fitted:
        """``fitted`` with ``columns`` at ``coordinates``."""
        found = Fitted(rows=fitted.rows, site_stacks=fitted.site_stacks)
        for scope, groups in fitted.values.items():
            found.values[scope] = {key: dict(values) for key, values in groups.items()}
        for column, coordinate in zip(columns, coordinates, strict=True):
            values = found.values[column.parameter.scope].setdefault(column.key, {})
            values[column.parameter.name] = column.value(float(coordinate))
        return found

    def minimum(
        self, fitted: Fitted, columns: list[Column], jacobian: Array, report: Callable[[str], None]
    ) -> Fitted:
        """The fit from ``fitted`` over ``columns``; rounds until little is gained."""
        cost = self.cost(fitted, columns)
        for turn in range(ROUNDS):
            before = cost
            if turn:
                jacobian = self.jacobian(fitted, columns)
            for _ in range(CHORDS):
                fitted, found = self.step(fitted, columns, jacobian, cost)
                gained, cost = cost - found, found
                if gained <= ENOUGH * cost:
                    break
            report(f"round {turn + 1}: objective {cost:.3f}, {self.pricer.priced:,} prices")
            if before - cost <= ENOUGH * cost:
                break
        return fitted

    def informing(self, jacobian: Array, columns: list[Column]) -> NDArray[np.bool_]:
        """Which rows tell something about which constant."""
        found: NDArray[np.bool_] = np.abs(jacobian) * _spans(columns) >= MIN_EFFECT
        return found

    def jacobian(self, fitted: Fitted, columns: list[Column]) -> Array:
        """d r_i / d u_j by one-sided differences, away from the nearer bound."""
        base = self.residuals(fitted)
        at = self.coordinates(fitted, columns)
        result = np.zeros((len(self.chosen), len(columns)))
        for j, column in enumerate(columns):
            low, high = column.bounds
            moved = at.copy()
            moved[j] += STEP if at[j] - low <= high - at[j] else -STEP
            probe = self.at(fitted, [column], moved[j : j + 1])
            width = self.coordinates(probe, [column])[0] - at[j]
            scope = column.parameter.scope
            mine = [i for i, row in enumerate(self.rows) if row.key(scope) == column.key]
            errors = self.pricer.log_errors([self.chosen[i] for i in mine], probe)
            result[mine, j] = (np.array(errors) - base[mine]) / width
        return result

    def cost(self, fitted: Fitted, columns: list[Column]) -> float:
        """The objective: Huber's loss of the weighted residuals and the pull towards the priors."""
        loss = _huber(self.residuals(fitted) / NOISE)
        pull = _huber((self.coordinates(fitted, columns) - _priors(columns)) / _widths(columns))
        return float((self.weights * loss).sum() + pull.sum())

    def step(
        self, fitted: Fitted, columns: list[Column], jacobian: Array, cost: float
    ) -> tuple[Fitted, float]:
        """The fit after one Gauss-Newton step and its cost; unchanged where no step lowers it."""
        here = self.coordinates(fitted, columns)
        move = self._linear_minimum(fitted, columns, jacobian, here) - here
        for _ in range(HALVINGS + 1):
            found = self.at(fitted, columns, here + move)
            value = self.cost(found, columns)
            if value < cost:
                return found, value
            move = move / 2.0
        return fitted, cost

    def _linear_minimum(self, fitted: Fitted, columns: list[Column], jacobian: Array, here: Array) -> Array:
        """The bounded minimum of the objective with r linear in u, no coordinate moved too far."""
        base = self.residuals(fitted)
        bounds = np.array([c.bounds for c in columns])
        low = np.maximum(bounds[:, 0], here - LONGEST_STEP)
        high = np.minimum(bounds[:, 1], here + LONGEST_STEP)
        u: Array = here.copy()
        for _ in range(REWEIGHTINGS):
            residual = base + jacobian @ (u - here)
            weight = self.weights / NOISE**2 / np.maximum(1.0, np.abs(residual) / NOISE)
            stiffness = _stiffness(u, columns)
            hessian = jacobian.T @ (weight[:, None] * jacobian) + np.diag(stiffness)
            target = hessian @ u - jacobian.T @ (weight * residual) - stiffness * (u - _priors(columns))
            for _ in range(SWEEPS):
                for j in range(len(columns)):
                    rest = target[j] - hessian[j] @ u + hessian[j, j] * u[j]
                    u[j] = min(max(rest / hessian[j, j], low[j]), high[j])
        return u

    def add_evidence(self, fitted: Fitted, columns: list[Column], jacobian: Array) -> None:
        """Rows, sources, standard error and bound of each constant; what each group leaves unexplained."""
        residual = self.residuals(fitted)
        spread = max(NOISE, 1.4826 * float(np.median(np.abs(residual))))
        weight = self.weights / spread**2 / np.maximum(1.0, np.abs(residual) / spread)
        stiffness = _stiffness(self.coordinates(fitted, columns), columns)
        hessian = jacobian.T @ (weight[:, None] * jacobian) + np.diag(stiffness)
        deviations = np.sqrt(np.diag(np.linalg.inv(hessian)))
        informing = self.informing(jacobian, columns)
        for j, column in enumerate(columns):
            scope, name = column.parameter.scope, column.parameter.name
            value = fitted.values[scope][column.key][name]
            mine = [row for row, tells in zip(self.rows, informing[:, j], strict=True) if tells]
            fitted.evidence.setdefault(scope, {}).setdefault(column.key, {})[name] = Evidence(
                standard_error=float(f"{deviations[j] * column.slope(value):.2g}"),
                rows=len(mine),
                sources=sorted({row.case.source for row in mine}),
                bound=_bound(column, value),
            )
        for scope, key in self.groups():
            weights = self.weights * [row.key(scope) == key for row in self.rows]
            error = float((weights * np.abs(residual)).sum() / weights.sum())
            fitted.errors[f"{scope}:{key}"] = float(f"{error:.{DIGITS}g}")


def _huber(scaled: Array) -> Array:
    """Huber's loss: half the square up to 1, linear beyond (Huber 1964)."""
    size = np.abs(scaled)
    return np.where(size <= 1.0, 0.5 * size**2, size - 0.5)


def _stiffness(u: Array, columns: list[Column]) -> Array:
    """Weights of the priors in the reweighted least squares."""
    widths = _widths(columns)
    found: Array = 1.0 / widths**2 / np.maximum(1.0, np.abs(u - _priors(columns)) / widths)
    return found


def _priors(columns: list[Column]) -> Array:
    return np.array([column.coordinate(column.prior) for column in columns])


def _widths(columns: list[Column]) -> Array:
    """One standard deviation of each constant's prior."""
    shares: Array = np.array([PRIOR_SHARES[column.parameter.scope] for column in columns])
    return _spans(columns) * shares


def _spans(columns: list[Column]) -> Array:
    """Width of each constant's bounds."""
    return np.array([column.bounds[1] - column.bounds[0] for column in columns], dtype=np.float64)


def _bound(column: Column, value: float) -> str:
    low, high = column.bounds
    share = (column.coordinate(value) - low) / (high - low)
    return "low" if share <= NEAR_BOUND else "high" if share >= 1.0 - NEAR_BOUND else ""
