"""Fitted constants as data: parameters with their physical bounds, values by generation and stack, errors.

Residual quantiles give each prediction its interval: by how close the case is to calibrated ground (same
GPU generation and stack; one of the two; neither).
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from planner.cluster.spec import DeviceSpec
from planner.cost.constants import Constants, default_constants
from planner.errors import InputError


@dataclass(frozen=True)
class Parameter:
    """One fitted constant: its field, whether it belongs to a GPU generation or a stack, its bounds."""

    name: str
    scope: str
    low: float
    high: float


PARAMETERS: tuple[Parameter, ...] = (
    Parameter("matmul_efficiency", "generation", 0.35, 0.92),
    Parameter("flash_forward_efficiency", "generation", 0.30, 0.80),
    Parameter("flash_backward_efficiency", "generation", 0.22, 0.75),
    Parameter("bandwidth_efficiency", "generation", 0.50, 0.95),
    Parameter("matmul_overhead_seconds", "generation", 1e-6, 4e-5),
    Parameter("launch_seconds", "stack", 1e-6, 4e-5),
    Parameter("pass_factor", "stack", 0.7, 5.0),
    Parameter("collective_overhead_seconds", "stack", 1e-6, 3e-4),
    Parameter("overlap_theft", "stack", 0.0, 0.4),
    Parameter("kernel_slowdown", "stack", 0.8, 2.0),
    Parameter("straggler_per_doubling", "stack", 0.0, 0.06),
    Parameter("step_overhead_seconds", "stack", 0.0, 0.05),
)


@dataclass
class Fitted:
    """Values by (scope, key, constant), how many rows stand behind each, and what the fit left."""

    values: dict[str, dict[str, dict[str, float]]] = field(
        default_factory=lambda: {"generation": {}, "stack": {}}
    )
    rows: dict[str, dict[str, int]] = field(default_factory=lambda: {"generation": {}, "stack": {}})
    errors: dict[str, float] = field(default_factory=dict)
    intervals: dict[str, dict[str, list[float]]] = field(default_factory=dict)

    def constants_for(self, device: DeviceSpec, stack: str) -> Constants:
        """The prior of the device's architecture with the fitted values of its generation and stack."""
        changes: dict[str, Any] = {
            **self.values["generation"].get(device.generation, {}),
            **self.values["stack"].get(stack, {}),
        }
        base = default_constants(device)
        return replace(base, **changes, basis=self.basis(device.generation, stack)) if changes else base

    def basis(self, generation: str, stack: str) -> str:
        """What the constants of a device and stack rest on, in words."""
        parts = []
        if generation in self.values["generation"]:
            parts.append(f"{generation}: fitted on {self.rows['generation'].get(generation, 0)} rows")
        if stack in self.values["stack"]:
            parts.append(f"{stack}: fitted on {self.rows['stack'].get(stack, 0)} rows")
        return "; ".join(parts) or "prior"

    def closeness(self, generation: str, stack: str) -> str:
        """How near a case is to calibrated ground: both, one, or neither of generation and stack."""
        known = (generation in self.values["generation"]) + (stack in self.values["stack"])
        return ("datasheet", "part", "same")[known]

    def interval(self, kind: str, generation: str, stack: str, value: float) -> tuple[float, float]:
        """80 % interval of the true value behind a predicted one; ``kind`` is "time" or "memory"."""
        quantiles = self.intervals.get(kind, {}).get(self.closeness(generation, stack))
        if not quantiles:
            raise InputError(f"the calibration has no {kind} interval", hint="refit with planner calibrate")
        low, high = quantiles
        return value * math.exp(-high), value * math.exp(-low)

    def as_dict(self) -> dict[str, Any]:
        """The calibration file's content."""
        return {"schema_version": 1, **asdict(self)}


def read_fitted(document: dict[str, Any], file: str) -> Fitted:
    """A calibration file. Raises InputError when it is not one."""
    if document.get("schema_version") != 1 or not isinstance(document.get("values"), dict):
        raise InputError(
            "not a calibration file", file=file, hint="planner calibrate CASES.csv -o FILE writes one"
        )
    known = {p.name: p for p in PARAMETERS}
    for scope, groups in document["values"].items():
        for key, values in groups.items():
            for name, value in values.items():
                parameter = known.get(name)
                pointer = f"/values/{scope}/{key}/{name}"
                if scope not in ("generation", "stack") or parameter is None:
                    raise InputError(f"unknown constant {name!r}", file=file, pointer=pointer)
                low, high = parameter.low, parameter.high
                if not isinstance(value, (int, float)) or not low <= value <= high:
                    raise InputError(
                        f"{name} = {value} is outside its physical bounds {low:g} to {high:g}",
                        file=file,
                        pointer=pointer,
                        hint="refit with planner calibrate",
                    )
    return Fitted(
        document["values"],
        document.get("rows", {}),
        document.get("errors", {}),
        document.get("intervals", {}),
    )


def to_json(fitted: Fitted) -> str:
    """The calibration file's text: the same bytes for the same fit."""
    return json.dumps(fitted.as_dict(), indent=2, sort_keys=True) + "\n"
