"""When nothing fits: the plan that comes closest, its fullest rank, and by how much it is over."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from planner.cost.layer import CostTable
from planner.cost.model import CostModel
from planner.cost.row import CandidateRow, candidate_row
from planner.cost.step import price
from planner.search.layout import balanced_chunks
from planner.search.row_decision import row_decision
from planner.search.tree import Funnel, Pins, expand_schedules
from planner.strategy.decision import RECOMPUTE_FULL, SCHEDULES, Decision
from planner.strategy.limits import Limits

TRIED = 60
ONE_F_ONE_B = SCHEDULES.index("1f1b")


@dataclass(frozen=True)
class NearestMiss:
    """The decision with the smallest peak found, with full recompute on every layer."""

    decision: Decision
    peak_bytes: float
    rank: int
    memory_bytes: dict[str, float]


def nearest_miss(
    model: CostModel, table: CostTable, least_bytes: np.ndarray, limits: Limits, pins: Pins
) -> NearestMiss:
    """The smallest peak among the candidates with the smallest memory bounds, everything recomputed.

    On balanced stages under the schedules of ``least_schedules``.
    """
    order = np.argsort(least_bytes, kind="stable")[:TRIED]
    best: NearestMiss | None = None
    for row in least_schedules(model, table, order, limits, pins):
        decision = recomputed(model, row)
        # Only memory is asked for: one step of as many microbatches as are ever in flight is enough.
        held = row.microbatches if row.schedule == "gpipe" else min(row.microbatches, 2 * row.degrees.pp)
        prediction = price(model, replace(decision, microbatches=held))
        if best is None or prediction.peak_memory_bytes < best.peak_bytes:
            stage = prediction.stages[prediction.fullest_stage]
            best = NearestMiss(decision, prediction.peak_memory_bytes, stage.index, stage.memory_bytes)
    if best is None:
        raise ValueError("no candidates to come close")
    return best


def least_schedules(
    model: CostModel, table: CostTable, chosen: np.ndarray, limits: Limits, pins: Pins
) -> Iterator[CandidateRow]:
    """The chosen candidates under the schedule that holds least: plain 1F1B, else what the pins leave.

    Rank 0 of 1F1B holds pp microbatches of its layers, a pp-th of all. GPipe holds every microbatch of them,
    interleaving a share (pp - 1) / (pp v) more (Korthikanti et al., arXiv 2205.05198, section 4), zero bubble
    what 1F1B holds and the weight gradients that wait: ZB-H1 on no rank less, the V the same on every rank,
    with both ends of the model on the first (Qi et al., arXiv 2401.10241 and 2405.15362). So another schedule
    is tried only where plain 1F1B is pinned away, and plain 1F1B again where rules leave no schedule at all.
    """
    problem, stack = model.problem, model.stack
    is_plain = pins.schedule in (None, "1f1b") and pins.virtual_stages in (None, 1)
    scheduled, local = expand_schedules(table.candidates.take(chosen), problem, limits, pins, Funnel())
    if is_plain or not len(scheduled):
        for index in chosen.tolist():
            yield candidate_row(problem, table, stack, index, ONE_F_ONE_B, 1)
        return
    for at, origin in enumerate(local.tolist()):
        schedule, virtual = int(scheduled.schedule[at]), int(scheduled.virtual_stages[at])
        yield candidate_row(problem, table, stack, int(chosen[origin]), schedule, virtual)


def recomputed(model: CostModel, row: CandidateRow) -> Decision:
    """A candidate on balanced stages with everything recomputed: about the least memory it needs."""
    blocks = model.chain.num_blocks
    chunks = balanced_chunks(blocks, row.degrees.pp * row.virtual_stages)
    full = (RECOMPUTE_FULL,) * blocks
    return row_decision(row, chunks, full, has_host_optimizer=model.stack.has_host_optimizer)
