"""A plan that is not proved, improved by its neighbours: many of them priced at once.

The dynamic program chooses stage splits by a bound that some schedules do not reach. Around its best plan
every split that moves one block to the neighbouring stage is priced, and every choice that recomputes one
block more, less or otherwise, also both at once; the best that fits takes its place, until none is faster.

Where a rank has several chunks they are balanced and stay; there recomputation moves from chunk to chunk of a
rank, for the ranks wait for each other chunk by chunk, and what was chosen frees bytes at the least seconds
whatever the chunk. The best such move of every rank is tried beside those of the other ranks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from planner.cost.arrays import Array
from planner.cost.decision_rows import decision_candidates
from planner.cost.layer import CostTable, cost_table
from planner.cost.many import Many, price_many
from planner.cost.model import CostModel
from planner.strategy.decision import Decision, rank_of_stage

ROUNDS = 8
CHUNKED_ROUNDS = 2
Chunks = tuple[tuple[int, int], ...]
FASTER = 1.0 - 1e-9


def polish(
    model: CostModel, decision: Decision, seconds: float, limit_bytes: float, offered: tuple[int, ...]
) -> Decision:
    """The fastest decision reached from ``decision`` (``seconds`` long) by steps to better neighbours.

    ``offered``: the recompute modes a block may have, beside none.

    For plans of one sharding and a stack whose memory is one sum; others come back as they are.
    """
    is_mixed = decision.layer_sharding or decision.layer_units or decision.offload
    if is_mixed or model.stack.makes_buffers_when_needed:
        return decision
    table = cost_table(
        model.problem,
        model.chain,
        decision_candidates(decision, [decision.sharding]),
        model.device,
        model.stack,
    )
    modes = (0, *offered)
    if decision.virtual_stages > 1:
        return _dealt(model, table, decision, seconds, limit_bytes, modes)
    for _ in range(ROUNDS):
        near = list(_neighbours(decision, modes))
        if not near:
            return decision
        steps = _fitting_seconds(model, table, near, limit_bytes)
        best = int(np.argmin(steps))
        if steps[best] >= seconds * FASTER:
            return decision
        decision, seconds = near[best], float(steps[best])
    return decision


def _fitting_seconds(
    model: CostModel, table: CostTable, near: Sequence[Decision], limit_bytes: float
) -> Array:
    """Seconds of the step of decisions of one mesh and schedule; infinite where they do not fit."""
    many = Many(
        table,
        np.zeros(len(near), dtype=np.int64),
        near[0].schedule,
        near[0].virtual_stages,
        np.array([[end for _, end in each.chunks] for each in near]).T,
        np.array([each.recompute for each in near]).T,
    )
    steps, peaks = price_many(model, many)
    return np.where(peaks <= limit_bytes, steps, np.inf)


def _dealt(
    model: CostModel,
    table: CostTable,
    decision: Decision,
    seconds: float,
    limit_bytes: float,
    modes: tuple[int, ...],
) -> Decision:
    """The fastest decision found by moving recomputation between the chunks of a rank."""
    if not any(decision.recompute):
        return decision
    for _ in range(CHUNKED_ROUNDS):
        ranks, near = zip(*_moves(decision, modes), strict=True)
        steps = _fitting_seconds(model, table, near, limit_bytes)
        best_of_rank = {
            rank: min((i for i in range(len(near)) if ranks[i] == rank), key=lambda i: (float(steps[i]), i))
            for rank in dict.fromkeys(ranks)
        }
        best = sorted((i for i in best_of_rank.values() if steps[i] < seconds), key=lambda i: (steps[i], i))
        if not best:
            return decision
        # The best moves of the best ranks, ever more of them together.
        joined = [near[best[0]]]
        for index in best[1:]:
            changed = zip(joined[-1].recompute, decision.recompute, near[index].recompute, strict=True)
            recompute = tuple(new if new != old else mine for mine, old, new in changed)
            joined.append(replace(decision, recompute=recompute))
        together = _fitting_seconds(model, table, joined, limit_bytes)
        at = int(np.argmin(together))
        if together[at] >= seconds * FASTER:
            return decision
        decision, seconds = joined[at], float(together[at])
    return decision


def _moves(decision: Decision, modes: tuple[int, ...]) -> Iterator[tuple[int, Decision]]:
    """(rank, decision with one block of it recomputed less, another more than before, or one of the two)."""
    pp = decision.degrees.pp
    chunks: dict[int, list[tuple[int, int]]] = {}
    for stage, chunk in enumerate(decision.chunks):
        chunks.setdefault(rank_of_stage(decision.schedule, stage, pp), []).append(chunk)
    for rank, own in sorted(chunks.items()):
        more: list[tuple[int, int] | None] = [None]
        less: list[tuple[int, int] | None] = [None]
        for first, end in own:
            here = decision.recompute[first:end]
            for mode in dict.fromkeys(here):
                # The first blocks of a chunk are those recomputed most.
                more += [(first + here.index(mode), other) for other in modes if other > mode]
                last = end - 1 - here[::-1].index(mode)
                less += [(last, other) for other in modes if other < mode]
        for one in more:
            for two in less:
                if one == two or (one and two and one[0] == two[0]):
                    continue
                recompute = list(decision.recompute)
                for block, mode in filter(None, (one, two)):
                    recompute[block] = mode
                yield rank, replace(decision, recompute=tuple(recompute))


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
