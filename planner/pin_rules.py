"""Pinned choices judged before a search: what a pinned value breaks whatever else is chosen."""

from __future__ import annotations

import math

from planner.errors import InputError, UnsupportedByTarget
from planner.request import Resolved
from planner.search.tree import Pins
from planner.strategy.candidates import Candidates
from planner.strategy.decision import OFFLOADS
from planner.strategy.limits import Limits
from planner.strategy.rules import RULES, attention_heads

# Schedules that are nothing without a pipeline.
NEED_PIPELINE = ("interleaved", "zb-h1", "zb-v")


def check_pins(resolved: Resolved, pins: Pins, limits: Limits) -> None:
    """Raises InputError when a pinned value breaks a rule whatever else is chosen."""
    world = resolved.problem.world_size
    base = {"dp": 1, "tp": 1, "pp": 1, "cp": 1, "ep": 1}
    for name in ("tp", "pp", "cp", "dp"):
        value = getattr(pins, name)
        if value is None:
            continue
        if value < 1 or world % value:
            near = sorted(d for d in range(1, world + 1) if world % d == 0)
            raise InputError(
                f"rule world-identity: tp * cp * pp * dp equals the number of GPUs, so {name} must divide "
                f"{world}; {world} % {value} = {world % value if value > 0 else 'undefined'}"
                + _also_heads(resolved, name, value),
                allowed=_legal(resolved, name, near),
                hint=f"legal values of {name}: {_legal(resolved, name, near)}",
                rule="world-identity",
            )
        base[name] = value
    used = math.prod(base[name] for name in ("tp", "pp", "cp", "dp"))
    if world % used:
        raise InputError(
            f"rule world-identity: the pinned degrees multiply to {used}, which does not divide {world} GPUs",
            hint="free one of the pinned degrees",
            rule="world-identity",
        )
    _check_single_pins(resolved, pins, base)
    check_names(pins, limits)
    _check_schedule(pins)
    _check_target_degrees(pins, limits)


def _also_heads(resolved: Resolved, name: str, value: int) -> str:
    heads = attention_heads(resolved.problem)
    if name != "tp" or value < 1 or all(head % value == 0 for head in heads):
        return ""
    head = next(head for head in heads if head % value)
    return f"; rule heads-by-tp: {head} attention heads % {value} = {head % value}"


def _legal(resolved: Resolved, name: str, divisors: list[int]) -> list[int]:
    """Divisors of the world that also satisfy the rules on ``name`` alone."""
    rules = [r for r in RULES if r.field == name and r.name in SINGLE_RULES[name]]
    good = []
    for value in divisors:
        candidate = Candidates.single(**{name: value})
        if all(bool(rule.holds(candidate, resolved.problem)[0]) for rule in rules):
            good.append(value)
    return good


SINGLE_RULES = {
    "tp": ("heads-by-tp", "kv-heads-by-tp", "ffn-by-tp"),
    "pp": ("layers-by-stages",),
    "cp": ("sequence-by-cp",),
    "dp": (),
    "ep": ("experts-by-ep",),
}


def _check_single_pins(resolved: Resolved, pins: Pins, base: dict[str, int]) -> None:
    """Rules that a pinned degree decides alone: heads, layers, sequence, experts, batch."""
    problem = resolved.problem
    for name in ("tp", "pp", "cp", "ep"):
        value = getattr(pins, name)
        if value is None:
            continue
        if value < 1:
            raise InputError(f"--{name} must be at least 1, not {value}", hint=f"use --{name} 1")
        candidate = Candidates.single(**{name: value})
        for rule in RULES:
            if rule.name in SINGLE_RULES[name] and not bool(rule.holds(candidate, problem)[0]):
                divisors = [d for d in range(1, problem.world_size + 1) if problem.world_size % d == 0]
                legal = _legal(resolved, name, divisors)
                raise InputError(
                    f"rule {rule.name}: {rule.statement}; {rule.explain(candidate, problem)}",
                    allowed=legal,
                    hint=f"legal values of {name} on {problem.world_size} GPUs: {legal}",
                    rule=rule.name,
                )
    for flag, value in (("--micro-batch", pins.microbatch_size), ("--virtual-stages", pins.virtual_stages)):
        if value is not None and value < 1:
            raise InputError(f"{flag} must be at least 1, not {value}", hint=f"use {flag} 1")
    batch, dp, size = problem.workload.global_batch, pins.dp or 1, pins.microbatch_size or 1
    if batch % (dp * size):
        unit = dp * size
        near = [value for value in (batch // unit * unit, (batch // unit + 1) * unit) if value]
        raise InputError(
            f"rule batch-identity: dp * microbatch_size divides the global batch; {batch} % ({dp} x {size}) "
            f"= {batch % unit}",
            allowed=near,
            hint=f"use --global-batch {' or '.join(map(str, near))}",
            rule="batch-identity",
            nearest_global_batches=near,
        )


def _check_target_degrees(pins: Pins, limits: Limits) -> None:
    """Raises UnsupportedByTarget for a pinned degree beyond what the launcher has."""
    for name, most in (("pp", limits.max_pp), ("cp", limits.max_cp), ("ep", limits.max_ep)):
        value = getattr(pins, name)
        if value is not None and value > most:
            raise UnsupportedByTarget(
                f"{limits.target} cannot run {name} {value}: its largest {name} is {most}",
                hint=f"leave --{name} out, or plan without --target {limits.target}",
                rule="target-degrees",
                allowed=list(range(1, most + 1)),
            )


def _check_schedule(pins: Pins) -> None:
    """A pinned schedule, pinned virtual stages and a pinned pp that no plan has together."""
    name, degree = pins.schedule, pins.virtual_stages
    if pins.pp == 1 and (name in NEED_PIPELINE or (degree or 1) > 1):
        given = f"--schedule {name}" if name in NEED_PIPELINE else f"--virtual-stages {degree}"
        raise InputError(
            f"rule interleaving: {given} needs a pipeline, and --pp 1 has none",
            hint="leave --pp out, or use --pp 2",
            rule="interleaving",
        )
    if name is None or degree is None:
        return
    wrong = {"interleaved": degree < 2, "zb-v": degree != 2}.get(name, degree != 1)
    if wrong:
        legal = {"interleaved": "2 or more", "zb-v": "2"}.get(name, "1")
        raise InputError(
            f"rule interleaving: schedule {name} has {legal} virtual stages, not {degree}",
            hint=f"leave --virtual-stages out, or use --schedule interleaved with {max(2, degree)}",
            rule="interleaving",
        )


def check_names(pins: Pins, limits: Limits) -> None:
    for flag, value, allowed in (
        ("--sharding", pins.sharding, limits.shardings),
        ("--schedule", pins.schedule, limits.schedules),
        ("--recompute", pins.recompute, limits.recomputes),
        ("--offload", pins.offload, OFFLOADS if limits.offload_shardings else OFFLOADS[:1]),
    ):
        if value is not None and value not in allowed:
            auto = ("auto",) if flag == "--offload" else ()
            where = "" if limits.target == "any" else f" for target {limits.target}"
            raise InputError(
                f"{flag} {value!r} is not a choice{where}; choices: {', '.join(auto + tuple(allowed))}",
                allowed=list(allowed),
                hint=f"use {flag} {allowed[0]}",
            )
