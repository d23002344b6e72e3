"""A plan that is not proved, improved by its neighbours: many of them priced at once.

The dynamic program chooses stage splits by a bound that some schedules do not reach. Around its best plan
every split that moves one block to the neighbouring stage is priced, and every choice that recomputes one
block more, less or otherwise, also both at once; the best that fits takes its place, until none is faster.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from planner.cost.decision_rows import decision_candidates
from planner.cost.layer import cost_table
from planner.cost.many import Many, price_many
from planner.cost.model import CostModel
from planner.strategy.decision import Decision

ROUNDS = 8
Chunks = tuple[tuple[int, int], ...]
FASTER = 1.0 - 1e-9


def polish(
    model: CostModel, decision: Decision, seconds: float, limit_bytes: float, offered: tuple[int, ...]
) -> Decision:
    """The fastest decision reached from ``decision`` (``seconds`` long) by steps to better neighbours.

    ``offered``: the recompute modes a block may have, beside none.

    For plans of one chunk a rank, one sharding, and a stack whose memory is one sum; others come back as
    they are.
    """
    is_mixed = decision.layer_sharding or decision.layer_units or decision.offload
    if decision.virtual_stages > 1 or is_mixed or model.stack.makes_buffers_when_needed:
        return decision
    table = cost_table(
        model.problem,
        model.chain,
        decision_candidates(decision, [decision.sharding]),
        model.device,
        model.stack,
    )
    for _ in range(ROUNDS):
        near = list(_neighbours(decision, (0, *offered)))
        if not near:
            return decision
        many = Many(
            table,
            np.zeros(len(near), dtype=np.int64),
            decision.schedule,
            1,
            np.array([[end for _, end in each.chunks] for each in near]).T,
            np.array([each.recompute for each in near]).T,
        )
        steps, peaks = price_many(model, many)
        steps = np.where(peaks <= limit_bytes, steps, np.inf)
        best = int(np.argmin(steps))
        if steps[best] >= seconds * FASTER:
            return decision
        decision, seconds = near[best], float(steps[best])
    return decision


def _neighbours(decision: Decision, offered: tuple[int, ...]) -> Iterator[Decision]:
    """Splits with one block moved over a boundary, and recomputation of a block more or less."""
    ends = [end for _, end in decision.chunks]
    for at in range(len(ends) - 1):
        for step in (-1, 1):
            moved = [*ends[:at], ends[at] + step, *ends[at + 1 :]]
            chunks = tuple(zip([0, *moved[:-1]], moved, strict=True))
            if all(first < end for first, end in chunks):
                yield replace(decision, chunks=chunks)
                yield from _recomputed(decision, chunks, chunks[at : at + 2], offered)
    yield from _recomputed(decision, decision.chunks, decision.chunks, offered)


def _recomputed(
    decision: Decision, chunks: Chunks, stages: Chunks, offered: tuple[int, ...]
) -> Iterator[Decision]:
    """One mode changed on one of ``stages``: of its first or last block, or where modes change."""
    modes = decision.recompute
    for first, end in stages:
        for block in range(first, end):
            is_edge = block in (first, end - 1) or modes[block] != modes[block - 1]
            for mode in offered if is_edge else ():
                if mode != modes[block]:
                    changed = (*modes[:block], mode, *modes[block + 1 :])
                    yield replace(decision, chunks=chunks, recompute=changed)
