"""Fitted constants as data: parameters with their physical bounds, values by generation and stack, evidence.

``values`` holds what was fitted, by (scope, key, constant); ``evidence`` says for each how many rows and
which sources inform it, its standard error and whether it stands at a physical bound; ``errors_of`` gives
each prediction its error bars by how close the case is to calibrated ground (a fitted installation; its GPU
generation and stack; one of the two; neither); ``links`` holds links measured with nccl-tests.

A site is one installation: the machines of one source of rows, of one GPU generation, with their software.
Its constants multiply those of generation and stack. A machine without measured runs is priced with what the
fitted installations let expect (``installations.py``), a stack without rows with the constants of its nearest
relative that has some (``planner.cost.stack.RELATIVES``).
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from planner.calibration.error_bars import ErrorBars
from planner.calibration.installations import Installation, expected_value
from planner.calibration.links import MeasuredLink, read_links
from planner.cluster.spec import ClusterProfile, DeviceSpec
from planner.cost.constants import Constants, default_constants
from planner.cost.stack import RELATIVES
from planner.errors import InputError

SCOPES = ("generation", "stack", "site")


def site_key(source: str, generation: str) -> str:
    """The installation of a row: its source's machines of one GPU generation."""
    return f"{source} {generation}"


def site_generation(site: str) -> str:
    """The GPU generation of a ``site_key``."""
    return site.rsplit(" ", 1)[-1]


@dataclass(frozen=True)
class Parameter:
    """One fitted constant: its field, what it belongs to (one of SCOPES), its bounds."""

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
    Parameter("matmul_depth", "generation", 0.0, 1200.0),
    Parameter("misaligned_slowdown", "generation", 1.0, 1.6),
    Parameter("fabric_efficiency", "generation", 0.5, 1.2),
    Parameter("launch_seconds", "stack", 1e-6, 6e-5),
    Parameter("pass_factor", "stack", 0.7, 5.0),
    Parameter("collective_overhead_seconds", "stack", 1e-6, 3e-4),
    Parameter("overlap_theft", "stack", 0.0, 0.4),
    Parameter("kernel_slowdown", "stack", 0.8, 2.0),
    Parameter("straggler_per_doubling", "stack", 0.0, 0.06),
    Parameter("step_overhead_seconds", "stack", 0.0, 0.05),
    Parameter("attention_slowdown", "stack", 0.7, 2.5),
    Parameter("site_slowdown", "site", 0.6, 1.8),
    Parameter("site_network", "site", 0.3, 1.15),
)


@dataclass(frozen=True)
class Evidence:
    """What one fitted constant rests on.

    rows: rows whose step time it moves (see fit.py); sources: theirs; standard_error: in the constant's own
    unit; bound: "low" or "high" when the value stands at a physical bound (its standard error then speaks of
    the inside only), "" otherwise.
    """

    standard_error: float
    rows: int
    sources: list[str]
    bound: str = ""


def _by_scope() -> dict[str, dict[str, Any]]:
    return {scope: {} for scope in SCOPES}


@dataclass
class Fitted:
    """Values by (scope, key, constant), what stands behind each, what the fit left, and measured links.

    rows: rows of a generation, stack or site. site_stacks: the stacks that a site ran. errors: weighted mean
    absolute log error by "scope:key".
    intervals: 10 % and 90 % quantiles of the residuals by kind and closeness. error_bars: risk and ranking
    figures beside them (``error_bars.py``). provenance: table, its digest, date, planner version.
    """

    values: dict[str, dict[str, dict[str, float]]] = field(default_factory=_by_scope)
    rows: dict[str, dict[str, int]] = field(default_factory=_by_scope)
    site_stacks: dict[str, list[str]] = field(default_factory=dict)
    errors: dict[str, float] = field(default_factory=dict)
    intervals: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    evidence: dict[str, dict[str, dict[str, Evidence]]] = field(default_factory=dict)
    ranking: dict[str, float] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)
    links: dict[str, MeasuredLink] = field(default_factory=dict)

    def copy(self) -> Fitted:
        """Another with the same content; changing its parts leaves this one as it is."""
        return replace(self, links=dict(self.links), provenance=dict(self.provenance))

    def constants_for(self, device: DeviceSpec, stack: str, site: str = "") -> Constants:
        """The prior of the device's architecture with the fitted and measured values that apply to it.

        site: the installation (``site_key``). One with too few rows for constants of its own has none; one
        that no row is from, or "", has what those fitted let expect of its generation and stack.
        """
        changes: dict[str, Any] = {
            **self.values["generation"].get(device.generation, {}),
            **self._stack_values(stack),
            **self._site_values(site, device.generation, stack),
        }
        base = default_constants(device)
        if self.links:
            measured = {name: link.efficiency for name, link in self.links.items()}
            switched = [link.in_network_efficiency for link in self.links.values()]
            changes.update(("in_network_efficiency", value) for value in switched if value)
            changes["link_efficiency"] = tuple({**dict(base.link_efficiency), **measured}.items())
        return replace(base, **changes, basis=self.basis(device.generation, stack, site)) if changes else base

    def _stack_values(self, stack: str) -> dict[str, float]:
        """The constants of a stack, each from the nearest of its kin whose runs tell it."""
        return {name: self.values["stack"][one][name] for name, one in self._told_by(stack).items()}

    def _told_by(self, stack: str) -> dict[str, str]:
        """For each fitted constant of a stack: itself, or the nearest relative that has it."""
        kin = (stack, *RELATIVES.get(stack, ()))
        return {name: one for one in reversed(kin) for name in self.values["stack"].get(one, {})}

    def fitted_stack(self, stack: str) -> str:
        """The stack whose constants price ``stack``: it or its nearest relative with rows, "" for none."""
        return next((one for one in (stack, *RELATIVES.get(stack, ())) if one in self.values["stack"]), "")

    def _site_values(self, site: str, generation: str, stack: str) -> dict[str, float]:
        if self._is_known(site):
            return dict(self.values["site"].get(site, {}))
        relatives = (self.fitted_stack(stack) or stack,)
        return {
            name: self._expected(name, expected_value(known, generation, relatives))
            for name, known in self._installations().items()
        }

    def _is_known(self, site: str) -> bool:
        return site in self.values["site"] or site in self.rows["site"]

    def _installations(self) -> dict[str, dict[str, Installation]]:
        """The fitted installations by each constant they have."""
        found: dict[str, dict[str, Installation]] = {}
        for site, values in sorted(self.values["site"].items()):
            for name, value in values.items():
                stacks = self.site_stacks.get(site, [])
                found.setdefault(name, {})[site] = Installation(site_generation(site), stacks, value)
        return found

    def _expected(self, name: str, value: float) -> float:
        """``value`` with the digits of a fitted constant, inside its bounds."""
        bounds = next(parameter for parameter in PARAMETERS if parameter.name == name)
        return min(max(float(f"{value:.4g}"), bounds.low), bounds.high)

    def basis(self, generation: str, stack: str, site: str = "") -> str:
        """What the constants of a device, stack and site rest on, in words."""
        parts = []
        if generation in self.values["generation"]:
            parts.append(f"{generation}: fitted on {self.rows['generation'].get(generation, 0)} rows")
        fitted = self.fitted_stack(stack)
        if fitted:
            name = stack if fitted == stack else f"{stack} as {fitted}"
            parts.append(f"{name}: fitted on {self.rows['stack'].get(fitted, 0)} rows")
        if site in self.values["site"]:
            parts.append(f"installation {site}: fitted on {self.rows['site'].get(site, 0)} rows")
        elif self.values["site"] and not self._is_known(site):
            parts.append(f"installation: expected from {len(self.values['site'])}")
        if self.links:
            parts.append(f"{', '.join(self.links)}: measured with nccl-tests")
        return "; ".join(parts) or "prior"

    def origins(self, generation: str, stack: str, site: str = "") -> dict[str, str]:
        """For each constant that is not a literature prior: what it was fitted to or measured with."""
        found = {}
        told = [(name, "generation", generation) for name in self.values["generation"].get(generation, {})]
        told += [(name, "stack", one) for name, one in self._told_by(stack).items()]
        told += [(name, "site", site) for name in self.values["site"].get(site, {})]
        for name, scope, key in told:
            evidence = self.evidence.get(scope, {}).get(key, {}).get(name)
            found[name] = self._fitted_words(key, evidence, self.rows[scope].get(key, 0))
        if not self._is_known(site):
            for name, known in self._installations().items():
                found[name] = f"fitted as expected from {len(known)} installations of {self._table_words()}"
        for name, link in self.links.items():
            found[f"link_efficiency.{name}"] = link.words()
            if link.in_network_efficiency:
                found["in_network_efficiency"] = link.words()
        return found

    def _fitted_words(self, key: str, evidence: Evidence | None, rows: int) -> str:
        origin = self._table_words()
        if evidence is None:
            return f"fitted for {key} on {rows} rows ({origin})"
        bound = f", at its {evidence.bound} bound" if evidence.bound else ""
        return (
            f"fitted for {key} on {evidence.rows} rows of {', '.join(evidence.sources)} "
            f"({origin}), standard error {evidence.standard_error:.2g}{bound}"
        )

    def _table_words(self) -> str:
        table, date = self.provenance.get("table"), self.provenance.get("date")
        return f"{table}, {date}" if table and date else "table not named"

    def with_links(self, profile: ClusterProfile) -> ClusterProfile:
        """A machine with the latency of its measured tiers in place of the profile's."""
        groups = []
        for group in profile.node_groups:
            tiers = [
                tier.model_copy(update={"latency_us": self.links[tier.technology].latency_quantity()})
                if tier.technology in self.links and self.links[tier.technology].latency_seconds
                else tier
                for tier in group.tiers
            ]
            groups.append(group.model_copy(update={"tiers": tiers}))
        return profile.model_copy(update={"node_groups": groups})

    def only_site(self, generation: str) -> str:
        """The one installation of a generation this file is about, "" where it holds none or several."""
        sites = [site for site in self.values["site"] if site_generation(site) == generation]
        return sites[0] if len(sites) == 1 else ""

    def closeness(self, generation: str, stack: str, site: str = "") -> str:
        """How near a case is to calibrated ground: its site, or both, one or none of generation and stack."""
        if site in self.values["site"]:
            return "site"
        known = (generation in self.values["generation"]) + (stack in self.values["stack"])
        return ("datasheet", "part", "same")[known]

    def errors_of(self, generation: str, stack: str, site: str = "") -> ErrorBars:
        """The error bars of a device, stack and site. Raises InputError for a file without intervals."""
        closeness = self.closeness(generation, stack, site)
        found = {kind: self.intervals.get(kind, {}).get(closeness) for kind in ("time", "memory")}
        time, memory = found["time"], found["memory"]
        if not time or not memory:
            missing = "time" if not time else "memory"
            raise InputError(
                f"the calibration has no {missing} interval for {closeness!r} ground",
                hint="refit with planner calibrate on rows with measured_step_s and measured_peak_mem_gb",
            )
        low, high = time
        return ErrorBars(closeness, (low, high), (memory[0], memory[1]), self.ranking.get(closeness))

    def interval(self, kind: str, generation: str, stack: str, value: float) -> tuple[float, float]:
        """80 % interval of the true value behind a predicted one; ``kind`` is "time" or "memory"."""
        bars = self.errors_of(generation, stack)
        return bars.time_interval(value) if kind == "time" else bars.memory_interval(value)

    def as_dict(self) -> dict[str, Any]:
        """The calibration file's content; parts that are empty are left out."""
        optional = ("site_stacks", "evidence", "ranking", "provenance", "links")
        content = {"schema_version": 1, **asdict(self)}
        return {name: value for name, value in content.items() if value or name not in optional}


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
                _check_value(known.get(name), scope, key, name, value, file)
    return Fitted(
        values={**_by_scope(), **document["values"]},
        rows={**_by_scope(), **document.get("rows", {})},
        site_stacks=_read_site_stacks(document.get("site_stacks", {}), file),
        errors=document.get("errors", {}),
        intervals=document.get("intervals", {}),
        evidence=_read_evidence(document.get("evidence", {}), file),
        ranking=document.get("ranking", {}),
        provenance=document.get("provenance", {}),
        links=read_links(document.get("links", {}), file),
    )


def _check_value(parameter: Parameter | None, scope: str, key: str, name: str, value: Any, file: str) -> None:
    pointer = f"/values/{scope}/{key}/{name}"
    if scope not in SCOPES or parameter is None:
        raise InputError(f"unknown constant {name!r}", file=file, pointer=pointer)
    if not isinstance(value, (int, float)) or not parameter.low <= value <= parameter.high:
        raise InputError(
            f"{name} = {value} is outside its physical bounds {parameter.low:g} to {parameter.high:g}",
            file=file,
            pointer=pointer,
            hint="refit with planner calibrate",
        )


def _read_site_stacks(found: Any, file: str) -> dict[str, list[str]]:
    """The stacks of each installation. Raises InputError unless they are names in lists."""
    is_lists = isinstance(found, dict) and all(isinstance(stacks, list) for stacks in found.values())
    if not is_lists or not all(isinstance(name, str) for stacks in found.values() for name in stacks):
        raise InputError(
            f"site_stacks must list the stacks of each installation, not {found!r}",
            file=file,
            hint='as in {"smx blackwell": ["megatron"]}, or leave it out',
        )
    return dict(found)


def _read_evidence(document: Any, file: str) -> dict[str, dict[str, dict[str, Evidence]]]:
    try:
        return {
            scope: {
                key: {name: Evidence(**fields) for name, fields in constants.items()}
                for key, constants in groups.items()
            }
            for scope, groups in document.items()
        }
    except (AttributeError, TypeError) as error:
        raise InputError(
            f"the evidence is not readable: {error}", file=file, pointer="/evidence", hint="refit"
        ) from error


def to_json(fitted: Fitted) -> str:
    """The calibration file's text: the same bytes for the same fit."""
    return json.dumps(fitted.as_dict(), indent=2, sort_keys=True) + "\n"
