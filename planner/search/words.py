"""What a search says in words: the space it looked at, and why nothing in it is a plan."""

from __future__ import annotations

import math
from dataclasses import replace

from planner.cost.model import CostModel
from planner.errors import InfeasibleError, SolverError
from planner.search.nearest_miss import nearest_miss
from planner.search.space import Space
from planner.search.tree import Funnel, Pins
from planner.strategy.limits import Limits
from planner.units import GIB, format_bytes


def describe_space(limits: Limits, pins: Pins) -> str:
    """The space searched, in words: what ``limits`` leave of the whole, and the pins."""
    degrees = [("tp", 2), ("cp", limits.max_cp), ("pp", limits.max_pp), ("dp", 2), ("ep", limits.max_ep)]
    axes = ", ".join(name for name, most in degrees if most > 1)
    schedule = "1F1B with any stage split" if limits.max_pp > 1 else "no pipeline"
    if limits.max_pp > 1 and "interleaved" in limits.schedules:
        schedule += ", interleaving with balanced chunks"
        schedule += "" if limits.is_exact else " (one degree per chunk depth)"
    if limits.max_pp > 1 and "zb-v" in limits.schedules:
        schedule += ", zero bubble"
    where = {"global": "global", "island": "inside an island"}
    sharding = f"{'/'.join(limits.shardings)} {' or '.join(where[g] for g in limits.sharding_groups)}"
    if limits.has_layer_sharding:
        sharding += " (parameters of single layers where that pays)"
    recompute = {
        "layer": f"recompute {'/'.join(limits.recomputes)} per layer",
        "stage": f"one recompute of {'/'.join(limits.recomputes)}, or full on the first layers of each stage",
        "uniform": f"one recompute of {'/'.join(limits.recomputes)} for all layers",
    }[limits.recompute_granularity]
    text = f"all ({axes}) of all GPUs, microbatch sizes, {schedule}, one sharding of {sharding}, {recompute}"
    pinned = ", ".join(f"{name}={value}" for name, value in pins.items().items())
    return f"{text}; pinned: {pinned}" if pinned else text


def no_candidates(funnel: Funnel, pins: Pins) -> InfeasibleError:
    """The error for an empty decision tree: which rule cut the last candidates."""
    cut = funnel.last_cut() or {"step": "mesh", "reason": "no mesh"}
    pinned = ", ".join(f"{name} {value}" for name, value in pins.items().items())
    return InfeasibleError(
        f"no plan satisfies the rules: the last candidates fell to {cut['step']} ({cut['reason']})",
        hint=f"free one of the pinned choices: {pinned}"
        if pinned
        else "change the number of GPUs or the batch, or allow idle GPUs (plan --allow-idle)",
        rule=cut["step"],
        funnel=funnel.steps,
    )


def nothing_fits(model: CostModel, funnel: Funnel, space: Space, pins: Pins) -> InfeasibleError:
    """The error for a memory limit no candidate meets: the fullest rank of the nearest miss, in bytes.

    Where the rules on shardings left no candidate at all, the error for that.
    """
    table, least = space.smallest()
    if not len(table.candidates):
        return no_candidates(funnel, pins)
    miss = nearest_miss(model, table, least, space.limits, pins)
    limit = model.problem.memory_limit_bytes
    over = miss.peak_bytes - limit
    unpinned = replace(pins, schedule=None, virtual_stages=None)
    plain = nearest_miss(model, table, least, space.limits, unpinned) if unpinned != pins else miss
    largest = sorted(
        ((name, value) for name, value in miss.memory_bytes.items() if name != "total"),
        key=lambda pair: -pair[1],
    )[:3]
    parts = ", ".join(f"{name} {format_bytes(value)}" for name, value in largest)
    cut = funnel.last_cut() or {"step": "memory", "reason": "no stage split fits the limit"}
    fullest = f"rank group of stage {miss.rank} needs {format_bytes(miss.peak_bytes)}"
    if plain.peak_bytes <= limit:
        # A pin or a rule cut it, not memory.
        fits = f"stage {plain.rank} needs {format_bytes(plain.peak_bytes)}"
        text = f"Under plain 1f1b {plain.decision.label()} would fit, where rank group of {fits}"
        text += f"; {miss.decision.label()} needs {format_bytes(miss.peak_bytes)}" if over > 0.0 else ""
    else:
        text = f"Nearest: {miss.decision.label()}, where {fullest}, {format_bytes(over)} too much ({parts})"
    return InfeasibleError(
        f"nothing fits {format_bytes(limit)} per GPU. {text}; rule {cut['step']} cut the last candidates",
        rule=cut["step"],
        nearest_miss={
            "decision": miss.decision.label(),
            "stage": miss.rank,
            "peak_memory_bytes": miss.peak_bytes,
            "over_bytes": over,
            "memory_bytes": miss.memory_bytes,
        },
        memory_limit_bytes=limit,
        funnel=funnel.steps,
    )


def solver_failed(model: CostModel, space: Space, pins: Pins, solver: dict[str, object]) -> SolverError:
    """The error where nothing that gathers whole blocks fits and the solver for less gave no answer."""
    miss = nearest_miss(model, *space.smallest(), space.limits, pins)
    wanted = math.ceil(10.0 * miss.peak_bytes / GIB) / 10.0
    limit = model.problem.memory_limit_bytes
    install = "install pulp, or " if solver["status"] == "not installed" else ""
    return SolverError(
        f"nothing that gathers whole blocks fits {format_bytes(limit)} per GPU, and the solver did not say "
        f"whether gathering them in parts does: {solver['status']}"
        + (f" ({solver['message']})" if "message" in solver else ""),
        hint=f"{install}use GPUs with {wanted} GiB for plans: {miss.decision.label()} fits there",
        solver=solver,
        memory_limit_bytes=limit,
    )
