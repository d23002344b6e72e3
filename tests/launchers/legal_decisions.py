"""Any legal decision of a problem, drawn by a function that picks: hypothesis for tests, a seeded generator
for the launcher table. Drawing goes over every legal mesh, so no launcher's favourites are preferred."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product
from typing import Any, TypeVar

import numpy as np

from planner.api import estimate_decision
from planner.cost.model import CostModel
from planner.plan_file.schema import Plan
from planner.request import Resolved
from planner.search.layout import balanced_chunks
from planner.strategy.candidates import Candidates, Problem
from planner.strategy.decision import SCHEDULES, SHARDINGS, Decision, Degrees
from planner.strategy.limits import Limits
from planner.strategy.rules import RULES

Item = TypeVar("Item")
# Picks one of the options.
Pick = Callable[[Sequence[Any]], Any]
NONE, SELECTIVE, FULL = range(3)


def legal_meshes(problem: Problem, limits: Limits) -> Candidates:
    """Every legal mesh with its schedule, microbatch size and sharding, inside ``limits``."""
    world = problem.world_size
    divisors = [d for d in range(1, world + 1) if world % d == 0]
    degrees = [
        (tp, cp, pp, world // (tp * cp * pp))
        for tp, cp, pp in product(divisors, repeat=3)
        if world % (tp * cp * pp) == 0
        and pp <= min(16, limits.max_pp)
        and cp <= min(4, limits.max_cp)
        and tp <= 8
    ]
    experts = [ep for ep in divisors if ep <= min(16, limits.max_ep)] if problem.model.is_moe else [1]
    pairs = [(ep, inner) for ep in experts for inner in ((1, None) if problem.model.is_moe else (1,))]
    rows = [
        (*mesh, ep, mesh[0] if inner is None else inner, size, virtual, schedule, *rest)
        for mesh, (ep, inner), size, (virtual, schedule), *rest in product(
            degrees,
            pairs,
            (1, 2),
            [(1, 0), (1, 2), (2, 1), (3, 1)],
            range(4),
            range(2),
            range(2),
            range(2) if limits.offload_shardings else range(1),
        )
        if SCHEDULES[schedule] in limits.schedules
        and (rest[-1] == 0 or SHARDINGS[rest[0]] in limits.offload_shardings)
    ]
    names = [
        "tp",
        "cp",
        "pp",
        "dp",
        "ep",
        "expert_tp",
        "microbatch_size",
        "virtual_stages",
        "schedule",
        "sharding",
        "sharding_group",
        "sequence_parallel",
        "offload",
    ]
    columns = np.array(rows, dtype=np.int64).T
    found = Candidates(**dict(zip(names, columns, strict=True)), gather_unit=columns[0] * 0)
    keep = np.ones(len(found), dtype=bool)
    for rule in (*RULES, *limits.rules):
        keep &= rule.holds(found, problem)
    keep &= (found.tp > 1) | (found.sequence_parallel == 0)
    keep &= (found.expert_tp == 1) | (found.tp > 1)
    return found.take(keep)


def draw_decision(
    pick: Pick,
    problem: Problem,
    meshes: Candidates,
    *,
    layers_differ: bool = True,
    units: Sequence[int] = (0,),
) -> Decision:
    """One decision over ``meshes``: its stages even or not, its recompute one mode, by stage or by layer.

    ``units``: gather units that blocks of sharded parameters may have.
    """
    row = pick(range(len(meshes)))

    def at(name: str) -> int:
        return int(getattr(meshes, name)[row])

    layers, count = problem.model.num_layers, at("pp") * at("virtual_stages")
    chunks = balanced_chunks(layers, count)
    if count > 1 and pick((False, True)):
        chunks = _moved(pick, chunks)
    sharding = at("sharding")
    by_layer: tuple[int, ...] = ()
    if (
        layers_differ
        and sharding in (0, 2)
        and at("sharding_group") == 0
        and at("dp") > 1
        and pick((False, False, True))
    ):
        by_layer = tuple(pick((sharding, 3)) for _ in range(layers))
        by_layer = () if set(by_layer) == {sharding} else by_layer
    return Decision(
        degrees=Degrees(at("dp"), at("tp"), at("pp"), at("cp"), at("ep"), at("expert_tp")),
        sequence_parallel=bool(at("sequence_parallel")),
        sharding=sharding,
        sharding_group=at("sharding_group"),
        schedule=SCHEDULES[at("schedule")],
        virtual_stages=at("virtual_stages"),
        microbatch_size=at("microbatch_size"),
        microbatches=problem.workload.global_batch // (at("dp") * at("microbatch_size")),
        chunks=chunks,
        recompute=_recompute(pick, chunks, layers_differ),
        offload=at("offload"),
        layer_units=_units(pick, units, layers) if sharding == 3 else (),
        layer_sharding=by_layer,
    )


def _units(pick: Pick, units: Sequence[int], layers: int) -> tuple[int, ...]:
    found = tuple(pick(units) for _ in range(layers)) if len(units) > 1 else ()
    return found if any(found) else ()


def _moved(pick: Pick, chunks: tuple[tuple[int, int], ...]) -> tuple[tuple[int, int], ...]:
    """Some boundaries between stages moved by a layer, no stage left empty."""
    ends = [end for _, end in chunks]
    for stage in range(len(ends) - 1):
        low = (ends[stage - 1] if stage else 0) + 1
        ends[stage] = min(max(low, ends[stage] + pick((-1, 0, 1))), ends[stage + 1] - 1)
    return tuple(zip([0, *ends[:-1]], ends, strict=True))


def _recompute(pick: Pick, chunks: tuple[tuple[int, int], ...], layers_differ: bool) -> tuple[int, ...]:
    layers = chunks[-1][1]
    kind = pick(("uniform", "uniform", "first", "any") if layers_differ else ("uniform",))
    if kind == "uniform":
        return (pick((NONE, SELECTIVE, FULL)),) * layers
    if kind == "any":
        return tuple(pick((NONE, SELECTIVE, FULL)) for _ in range(layers))
    depth = pick((1, 2, 3))
    return tuple(
        FULL if layer - first < depth else NONE for first, end in chunks for layer in range(first, end)
    )


def plan_of_decision(resolved: Resolved, decision: Decision, stack: str = "megatron") -> Plan:
    """The decision as a priced plan file."""
    return estimate_decision(CostModel.of(resolved.problem, resolved.constants, stack), resolved, decision)
