"""The terms of a plan with their formulas, and where each constant and printed figure they read comes from.

A basis is one of: datasheet, derived, assumed or measured (as the machine file says), literature (a prior),
fitted (to which rows, when), measured by the user (nccl-tests under --calibration).
"""

from __future__ import annotations

from typing import Any

from planner.cluster.host import host_of
from planner.cluster.spec import Quantity
from planner.cost.model import CostModel
from planner.cost.step import Prediction
from planner.plan_file.schema import Plan
from planner.terms import BYTES, HOST_OPTIMIZER, SECONDS, Term
from planner.units import GIB, GIGA

LINKS = "link_efficiency"


def explain_terms(
    plan: Plan, model: CostModel, prediction: Prediction, links: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Every cause of the step and every category of the fullest rank, in the order of the breakdown."""
    memory = prediction.stages[prediction.fullest_stage].memory_bytes
    is_hosted = plan.decision.offload != "none"
    causes = [HOST_OPTIMIZER if is_hosted and t.name == "optimizer" else t for t in SECONDS]
    return [
        *(_term(plan, model, t, "seconds", prediction.breakdown_seconds[t.name], links) for t in causes),
        *(_term(plan, model, t, "bytes", memory[t.name], links) for t in BYTES),
    ]


def constant_record(plan: Plan, name: str, value: float, meaning: str, source: str) -> dict[str, Any]:
    """A constant with its value and origin."""
    origin = plan.inputs.constant_origins.get(name)
    basis = "literature" if origin is None else origin.split(" ", 1)[0]
    return {
        "name": name,
        "value": value,
        "basis": basis,
        "origin": origin or source,
        "meaning": meaning,
        "source": source,
    }


def _term(
    plan: Plan, model: CostModel, term: Term, unit: str, value: float, links: list[dict[str, Any]]
) -> dict[str, Any]:
    rows = {row[0]: row for row in model.constants.rows()}
    technologies = _technologies(plan, term, links)
    constants = []
    for name in term.constants:
        if name != LINKS:
            constants.append(constant_record(plan, *rows[name]))
            continue
        for technology in technologies:
            achieved = model.constants.efficiency_of(technology)
            meaning = f"achieved share of the printed rate of {technology}"
            constants.append(
                constant_record(plan, f"{LINKS}.{technology}", achieved, meaning, "benchmarks of such links")
            )
    return {
        "name": term.name,
        "unit": unit,
        "value": value,
        "formulas": [formula.__dict__ for formula in term.formulas],
        "constants": constants,
        "facts": _facts(plan, model, term, technologies),
    }


def _technologies(plan: Plan, term: Term, links: list[dict[str, Any]]) -> list[str]:
    """The technologies of the tiers a term's groups cross, innermost first; of the host's link."""
    if "host" in term.facts:
        return ["pcie"]
    crossed = {link["tier"] for link in links if link["axis"] == term.axis}
    tiers = plan.inputs.cluster.profile.node_groups[0].tiers
    return list(dict.fromkeys(tier.technology for tier in tiers if tier.name in crossed))


def _facts(plan: Plan, model: CostModel, term: Term, technologies: list[str]) -> list[dict[str, Any]]:
    device, found = plan.inputs.cluster.device, []
    if "peak" in term.facts:
        precision = model.problem.workload.precision
        peaks = {str(key): value for key, value in device.peak_tflop_per_s.items()}
        found.append(_fact(f"{precision} peak, TFLOP/s", peaks[precision], device.sources))
    if "memory bandwidth" in term.facts:
        found.append(_fact("memory bandwidth, GB/s", device.memory_bandwidth_gb_per_s, device.sources))
    if "host" in term.facts:
        found.append(_fact("host link, GB/s", device.host_link_gb_per_s, device.sources))
        found += _host_facts(plan)
    if "links" in term.facts:
        profile = plan.inputs.cluster.profile
        for tier in profile.node_groups[0].tiers:
            if tier.technology in technologies:
                found.append(_fact(f"{tier.name}, GB/s", tier.bandwidth_gb_per_s, profile.sources))
                found.append(_fact(f"{tier.name} hop, us", tier.latency_us, profile.sources))
    return found


def _host_facts(plan: Plan) -> list[dict[str, Any]]:
    """Host memory of a node and its bandwidth as the profile states them; what was assumed is a note."""
    profile = plan.inputs.cluster.profile
    group = profile.node_groups[0]
    stated = (
        ("host memory, GiB a node", group.host_memory_gib),
        ("host memory bandwidth, GB/s a node", group.host_memory_bandwidth_gb_per_s),
    )
    host = host_of(group, plan.inputs.cluster.device, group.devices_per_node)
    assumed = (host.memory_bytes / GIB, host.bytes_per_s / GIGA)
    return [
        _fact(name, quantity, profile.sources)
        if quantity is not None
        else {"name": name, "value": value, "basis": "assumed", "origin": "; ".join(host.assumed)}
        for (name, quantity), value in zip(stated, assumed, strict=True)
    ]


def _fact(name: str, quantity: Quantity, sources: dict[str, str]) -> dict[str, Any]:
    source = sources.get(quantity.source, quantity.source)
    origin = f"{source} ({quantity.note})" if quantity.note else source
    return {"name": name, "value": quantity.value, "basis": str(quantity.basis), "origin": origin}
