"""Plans one flag away from a given one: every single change of a degree, size or switch, priced.

A change of tp, pp or cp by a factor of two takes or gives data ranks, which no launcher has a flag for, so
it is one flag. The best that fits comes first; a plan already at its best has none faster.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from planner.cost.decision_rows import decision_candidates
from planner.cost.model import CostModel
from planner.cost.step import Prediction, price
from planner.errors import PlannerError
from planner.search.layout import balanced_chunks
from planner.strategy.candidates import Problem
from planner.strategy.decision import OFFLOAD_NONE, RECOMPUTES, SCHEDULES, SHARDINGS, Decision
from planner.strategy.rules import broken_rules


@dataclass(frozen=True)
class Neighbour:
    """A decision one change away: the change in words, and what it costs."""

    change: str
    decision: Decision
    prediction: Prediction


def neighbours(model: CostModel, decision: Decision) -> list[Neighbour]:
    """Every legal neighbour, priced; those that fit the memory limit first, fastest first."""
    limit = model.problem.memory_limit_bytes
    found = []
    for change, other in _changes(decision, model.problem):
        if broken_rules(decision_candidates(other, other.row_codes()), model.problem):
            continue
        try:
            found.append(Neighbour(change, other, price(model, other)))
        except (PlannerError, ValueError):
            continue
    return sorted(found, key=lambda n: (n.prediction.peak_memory_bytes > limit, n.prediction.step_seconds))


def _changes(decision: Decision, problem: Problem) -> Iterator[tuple[str, Decision]]:
    """Single changes, legal or not: degrees, microbatch size, recompute, sharding, virtual stages.

    Where layers have tensor degrees of their own, only changes that leave these as they are.
    """
    is_even = not decision.layer_tp
    yield from _degree_changes(decision, problem) if is_even else ()
    for size in _halves_and_doubles(decision.microbatch_size) if is_even else ():
        yield (
            f"microbatch size {decision.microbatch_size} -> {size}",
            _rebatched(replace(decision, microbatch_size=size), problem),
        )
    blocks = len(decision.recompute)
    for code, name in enumerate(RECOMPUTES):
        if set(decision.recompute) != {code}:
            yield (
                f"recompute {decision.recompute_summary()} -> {name}",
                replace(decision, recompute=(code,) * blocks),
            )
    for code, name in enumerate(SHARDINGS):
        if code != decision.sharding:
            group = decision.sharding_group if code else 0
            other = replace(decision, sharding=code, sharding_group=group, layer_sharding=(), layer_units=())
            yield f"sharding {SHARDINGS[decision.sharding]} -> {name}", other
    if decision.sharding:
        group = 1 - decision.sharding_group
        words = ("the whole data group", "one island")
        yield f"sharding over {words[group]}", replace(decision, sharding_group=group)
    for count in {1, *_halves_and_doubles(decision.virtual_stages)} - {decision.virtual_stages}:
        staged = _staged(replace(decision, virtual_stages=count), decision)
        if staged is not None:
            yield f"virtual stages {decision.virtual_stages} -> {count}", staged
    if decision.offload:
        yield "optimizer on the host -> on the GPUs", replace(decision, offload=OFFLOAD_NONE)
    if any(decision.layer_units):
        yield "gathers by part or matrix -> by block", replace(decision, layer_units=())
    if decision.degrees.tp > 1 and is_even:
        is_on = not decision.sequence_parallel
        yield f"sequence parallelism {'on' if is_on else 'off'}", replace(decision, sequence_parallel=is_on)


def _degree_changes(decision: Decision, problem: Problem) -> Iterator[tuple[str, Decision]]:
    d = decision.degrees
    for name in ("tp", "pp", "cp"):
        current = getattr(d, name)
        for value in _halves_and_doubles(current):
            other = d.dp * current
            if other % value:
                continue
            changes = {name: value, "dp": other // value}
            if name == "tp" and d.expert_tp > 1:
                changes["expert_tp"] = value
            degrees = replace(d, **changes)
            changed = replace(decision, degrees=degrees)
            if name == "tp":
                split = decision.sequence_parallel if d.tp > 1 else True
                changed = replace(changed, sequence_parallel=split and value > 1)
            if degrees.dp * degrees.cp == 1:
                changed = replace(changed, sharding=0, sharding_group=0, layer_sharding=(), layer_units=())
            staged = _staged(changed, decision)
            if staged is not None:
                yield f"{name} {current} -> {value}", _rebatched(staged, problem)
    for value in _halves_and_doubles(d.ep) if problem.model.is_moe else ():
        yield f"ep {d.ep} -> {value}", replace(decision, degrees=replace(d, ep=value))


def _halves_and_doubles(value: int) -> list[int]:
    return [2 * value, value // 2] if value % 2 == 0 else [2 * value]


def _rebatched(decision: Decision, problem: Problem) -> Decision:
    """The microbatches that make the global batch; the batch rule judges a remainder."""
    count = problem.workload.global_batch // (decision.degrees.dp * decision.microbatch_size)
    return replace(decision, microbatches=max(1, count))


def _staged(decision: Decision, before: Decision) -> Decision | None:
    """Stages anew where their number changes, as even as they go; the schedule follows."""
    stages, blocks = decision.degrees.pp * decision.virtual_stages, len(decision.recompute)
    if stages > blocks or (decision.virtual_stages > 1 and decision.degrees.pp == 1):
        return None
    is_interleaved = decision.virtual_stages > 1
    schedule = "interleaved" if is_interleaved else before.schedule
    if not is_interleaved and schedule == "interleaved":
        schedule = SCHEDULES[0]
    chunks = decision.chunks if stages == len(before.chunks) else balanced_chunks(blocks, stages)
    return replace(decision, chunks=chunks, schedule=schedule)
