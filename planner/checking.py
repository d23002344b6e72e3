"""Checking a plan file without searching: rules, memory, arithmetic, the stated bound, the launcher.

Everything is taken from the file's own inputs, so the result does not depend on the catalog of the day.
"""

from __future__ import annotations

import math
from pathlib import Path

from planner.cost.decision_rows import used_candidates
from planner.cost.model import CostModel
from planner.cost.offload import usable_bytes
from planner.cost.step import price
from planner.documents import DOCUMENT_SUFFIXES, read_document
from planner.errors import InputError
from planner.file_checking import Finding, check_file
from planner.plan_file.build import inputs_digest
from planner.plan_file.read import read_cost_model, read_decision
from planner.plan_file.schema import Plan
from planner.strategy.rules import broken_rules
from planner.units import format_bytes, format_seconds

__all__ = ["Finding", "check_file", "check_plan", "is_plan_file"]

TOLERANCE = 1e-9


def is_plan_file(path: str, target: str | None) -> bool:
    """Whether ``path`` is to be read as a plan: without a target always, else unless it is no plan's JSON.

    Raises InputError for a file that cannot be read.
    """
    place = Path(path)
    if target in (None, "any"):
        if place.is_dir() or place.suffix.lower() not in DOCUMENT_SUFFIXES:
            raise InputError(
                "is no plan file",
                file=path,
                hint=f"a launcher's own file needs --target: planner check {path} --target megatron",
            )
        return True
    if place.is_dir() or place.suffix.lower() != ".json":
        return False
    document = read_document(path)
    return "decision" in document or "schema_version" in document


def check_plan(plan: Plan, target: str | None = None) -> list[Finding]:
    """Every check of a plan, and of a launcher's rules when ``target`` is given.

    Raises UnknownName for an unknown launcher.
    """
    found = [_digest(plan), *_coverage(plan)]
    if all(finding.holds for finding in found[1:]):
        if plan.inputs.profile is not None:
            from planner.profile_check import profile_checks

            found += [Finding(*check) for check in profile_checks(plan)]
        else:
            found += _repriced(plan)
    if target not in (None, "any"):
        from planner.launchers.registry import launcher

        reasons = launcher(str(target)).reasons(plan)
        found += [Finding(f"{target}: {r.rule}", False, f"{r.statement}; {r.numbers}") for r in reasons]
        if not reasons:
            found.append(Finding(f"{target}: expressible", True, "every rule of the launcher holds"))
    return found


def _digest(plan: Plan) -> Finding:
    actual = inputs_digest(plan.inputs)
    return Finding("inputs digest", actual == plan.inputs.digest, f"{actual[:12]} of the inputs as they are")


def _coverage(plan: Plan) -> list[Finding]:
    """Stages hold every block once and in order; layer strategies cover each stage; the batch adds up."""
    d, layers = plan.decision, plan.inputs.model.num_layers
    at, is_ordered, is_covered = 0, True, True
    for stage in d.stages:
        is_ordered &= stage.layers[0] == at and stage.layers[1] >= stage.layers[0]
        inner = stage.layers[0]
        for run in stage.layer_strategies:
            is_covered &= run.layers[0] == inner and run.layers[1] >= run.layers[0]
            inner = run.layers[1] + 1
        is_covered &= inner == stage.layers[1] + 1
        at = stage.layers[1] + 1
    stages = d.degrees.pp * d.virtual_stages
    batch = d.degrees.dp * d.microbatch_size * d.microbatches
    return [
        Finding("every layer once", is_ordered and at == layers, f"stages hold {at} of {layers} layers"),
        Finding("layer strategies", is_covered, "each stage's strategies cover its layers once"),
        Finding(
            "stages", len(d.stages) == stages, f"{len(d.stages)} stages for pp x virtual stages = {stages}"
        ),
        Finding(
            "batch identity",
            batch == d.global_batch == plan.inputs.workload.global_batch,
            f"dp x microbatch x microbatches = {batch}, global batch {plan.inputs.workload.global_batch}",
        ),
    ]


def _repriced(plan: Plan) -> list[Finding]:
    """Hard rules, and the prediction compared with pricing the decision again."""
    model = read_cost_model(plan.inputs)
    try:
        decision = read_decision(plan.decision)
    except InputError as error:
        return [Finding("layer strategies", False, str(error))]
    candidates = used_candidates(decision)
    broken = broken_rules(candidates, model.problem)
    found = [Finding(f"rule {r.name}", False, r.explain(candidates, model.problem)) for r in broken]
    if broken:
        return found
    found.append(Finding("hard rules", True, "all hold"))
    try:
        again = price(model, decision)
    except (InputError, ValueError) as error:
        return [*found, Finding("schedule", False, str(error))]
    stated, limit = plan.prediction, plan.inputs.options.memory_limit_bytes
    front = (
        [_front_point(model, plan, number) for number in range(len(plan.front.points))] if plan.front else []
    )
    total = sum(stated.breakdown_seconds.values())
    bound = plan.search.lower_bound_seconds
    is_bounded = plan.search.status == "heuristic" or bound <= again.step_seconds * (1 + TOLERANCE)
    host = model.problem.cluster.host
    if decision.offload:
        found.append(
            Finding(
                "host memory",
                again.host_bytes <= usable_bytes(host) * (1 + TOLERANCE),
                f"{format_bytes(again.host_bytes)} on the fullest node of {format_bytes(usable_bytes(host))} "
                f"usable",
            )
        )
    return [
        *found,
        Finding(
            "step time",
            math.isclose(again.step_seconds, stated.step_seconds, rel_tol=TOLERANCE),
            f"{format_seconds(again.step_seconds)} priced again, "
            f"{format_seconds(stated.step_seconds)} stated",
        ),
        Finding(
            "peak memory",
            math.isclose(again.peak_memory_bytes, stated.peak_memory_bytes, rel_tol=TOLERANCE),
            f"{format_bytes(again.peak_memory_bytes)} priced again, "
            f"{format_bytes(stated.peak_memory_bytes)} stated",
        ),
        Finding(
            "memory limit",
            again.peak_memory_bytes <= limit * (1 + TOLERANCE),
            f"{format_bytes(again.peak_memory_bytes)} of {format_bytes(limit)}",
        ),
        Finding(
            "breakdown",
            math.isclose(total, stated.step_seconds, rel_tol=TOLERANCE),
            f"causes sum to {format_seconds(total)}",
        ),
        Finding("lower bound", is_bounded, f"{format_seconds(bound)} is not above the plan's own time"),
        *front,
    ]


def _front_point(model: CostModel, plan: Plan, number: int) -> Finding:
    """One point of the front: rules, price, its own limit and bound, and no slower than a tighter one."""
    points = plan.front.points if plan.front else []
    point = points[number]
    decision = read_decision(point.decision)
    name = "least memory" if point.head_room is None else f"{point.head_room:.0%} head-room"
    broken = broken_rules(used_candidates(decision), model.problem)
    if broken:
        return Finding(f"front: {name}", False, f"rule {broken[0].name} does not hold")
    again, stated = price(model, decision), point.prediction
    limit = stated.memory_limit_bytes
    if point.head_room is not None:
        limit = min(limit, (1.0 - point.head_room) * plan.inputs.options.memory_limit_bytes * (1 + TOLERANCE))
    tighter = points[number + 1].prediction.step_seconds if number + 1 < len(points) else math.inf
    holds = (
        math.isclose(again.step_seconds, stated.step_seconds, rel_tol=TOLERANCE)
        and math.isclose(again.peak_memory_bytes, stated.peak_memory_bytes, rel_tol=TOLERANCE)
        and again.peak_memory_bytes <= limit * (1 + TOLERANCE)
        and point.lower_bound_seconds <= again.step_seconds * (1 + TOLERANCE)
        and stated.step_seconds <= tighter * (1 + TOLERANCE)
    )
    return Finding(
        f"front: {name}",
        holds,
        f"{format_seconds(again.step_seconds)} and {format_bytes(again.peak_memory_bytes)} priced again, "
        f"{format_seconds(stated.step_seconds)} and {format_bytes(stated.peak_memory_bytes)} stated, limit "
        f"{format_bytes(limit)}",
    )
