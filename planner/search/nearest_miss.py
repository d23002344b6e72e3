"""When nothing fits: the plan that comes closest, its fullest rank, and by how much it is over."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from planner.cost.layer import CostTable
from planner.cost.model import CostModel
from planner.cost.row import CandidateRow, candidate_row
from planner.cost.step import price
from planner.search.layout import balanced_chunks
from planner.search.row_decision import row_decision
from planner.strategy.decision import RECOMPUTE_FULL, SCHEDULES, Decision

TRIED = 60
ONE_F_ONE_B = SCHEDULES.index("1f1b")


@dataclass(frozen=True)
class NearestMiss:
    """The decision with the smallest peak found, with full recompute on every layer."""

    decision: Decision
    peak_bytes: float
    rank: int
    memory_bytes: dict[str, float]


def nearest_miss(model: CostModel, table: CostTable, least_bytes: np.ndarray) -> NearestMiss:
    """The smallest peak among the candidates with the smallest memory bounds, everything recomputed.

    Virtual stages only add activations, so the candidates are tried with plain 1F1B.
    """
    order = np.argsort(least_bytes, kind="stable")[:TRIED]
    best: NearestMiss | None = None
    for index in order.tolist():
        row = candidate_row(model.problem, table, model.stack, index, ONE_F_ONE_B, 1)
        decision = recomputed(model, row)
        # Only memory is asked for: one step of as many microbatches as are ever in flight is enough.
        held = min(row.microbatches, row.degrees.pp)
        prediction = price(model, replace(decision, microbatches=held))
        if best is None or prediction.peak_memory_bytes < best.peak_bytes:
            stage = prediction.stages[prediction.fullest_stage]
            best = NearestMiss(decision, prediction.peak_memory_bytes, stage.index, stage.memory_bytes)
    if best is None:
        raise ValueError("no candidates to come close")
    return best


def recomputed(model: CostModel, row: CandidateRow) -> Decision:
    """A candidate on balanced stages with everything recomputed: about the least memory it needs."""
    blocks = model.chain.num_blocks
    chunks = balanced_chunks(blocks, row.degrees.pp * row.virtual_stages)
    full = (RECOMPUTE_FULL,) * blocks
    return row_decision(row, chunks, full, has_host_optimizer=model.stack.has_host_optimizer)
