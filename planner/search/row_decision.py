"""A candidate's row and what the search chose for it, as a decision."""

from __future__ import annotations

from planner.cost.row import CandidateRow
from planner.strategy.decision import Decision


def row_decision(
    row: CandidateRow,
    chunks: tuple[tuple[int, int], ...],
    recompute: tuple[int, ...],
    *,
    has_host_optimizer: bool,
) -> Decision:
    """The decision of a candidate: blocks [first, end) of every virtual stage, a recompute mode a block."""
    return Decision(
        degrees=row.degrees,
        sequence_parallel=row.sequence_parallel and row.degrees.tp > 1,
        sharding=row.sharding,
        sharding_group=row.sharding_group,
        schedule=row.schedule,
        virtual_stages=row.virtual_stages,
        microbatch_size=row.microbatch_size,
        microbatches=row.microbatches,
        chunks=chunks,
        recompute=recompute,
        offload=int(has_host_optimizer),
    )
