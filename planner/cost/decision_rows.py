"""A decision as the cost table sees it: candidates, their rows by code, and what every rank holds of them."""

from __future__ import annotations

from collections import Counter

from planner.cost.layer import cost_table
from planner.cost.layout_change import NO_CHANGE, LayoutChange, layout_change
from planner.cost.memory import Item
from planner.cost.model import CostModel
from planner.cost.row import CandidateRow, candidate_row
from planner.model.chain import LayerChain
from planner.schedule.orders import alive_states, virtual_stage
from planner.strategy.candidates import Candidates
from planner.strategy.decision import SCHEDULES, Decision, row_code, row_parts


def decision_candidates(decision: Decision, codes: list[int]) -> Candidates:
    """The decision's meshes as candidates, one per cost row (``decision.row_code``)."""
    degrees = decision.tensor_degrees
    found = []
    for code in codes:
        sharding, unit, tensor = row_parts(code)
        tp = degrees[tensor]
        d = decision.degrees_of(tp)
        found.append(
            Candidates.single(
                tp=d.tp,
                cp=d.cp,
                dp=d.dp,
                pp=d.pp,
                ep=d.ep,
                expert_tp=d.expert_tp,
                microbatch_size=decision.microbatch_size_of(tp),
                virtual_stages=decision.virtual_stages,
                schedule=SCHEDULES.index(decision.schedule),
                sharding=sharding,
                sharding_group=decision.sharding_group,
                sequence_parallel=int(decision.sequence_parallel),
                offload=decision.offload,
                gather_unit=unit,
            )
        )
    return Candidates.concatenate(found)


def used_candidates(decision: Decision) -> Candidates:
    """The decision's meshes as candidates, one per cost row in use."""
    return decision_candidates(decision, decision.row_codes())


def decision_rows(model: CostModel, decision: Decision) -> dict[int, CandidateRow]:
    """Candidate rows of a decision, by code, that of embedding and head first."""
    return code_rows(model, decision, decision.row_codes())


def strategy_rows(
    model: CostModel, decision: Decision, strategies: list[tuple[int, int]]
) -> dict[int, CandidateRow]:
    """Candidate rows of (sharding, gather unit) codes on a decision's mesh and schedule, by code."""
    return code_rows(model, decision, [row_code(*pair) for pair in strategies])


def code_rows(model: CostModel, decision: Decision, codes: list[int]) -> dict[int, CandidateRow]:
    """Candidate rows of cost rows (``decision.row_code``) on a decision's mesh and schedule, by code."""
    candidates = decision_candidates(decision, codes)
    table = cost_table(model.problem, model.chain, candidates, model.device, model.stack)
    return {
        code: candidate_row(
            model.problem,
            table,
            model.stack,
            index,
            SCHEDULES.index(decision.schedule),
            decision.virtual_stages,
        )
        for index, code in enumerate(codes)
    }


def layout_changes(model: CostModel, decision: Decision, row: CandidateRow) -> list[LayoutChange]:
    """What every virtual stage pays for neighbours of different tensor degrees, one microbatch.

    A change across a cut is paid behind it. ``row`` is that of embedding and head.
    """
    if len(decision.tensor_degrees) == 1:
        return [NO_CHANGE] * len(decision.chunks)
    chain, cp = model.chain, decision.degrees.cp
    position = {layer: block for block, layer in enumerate(chain.block_layers)}
    widths = [
        cp * (decision.tp_of(position[at]) if at in position else decision.degrees.tp)
        for at in range(len(chain.layers))
    ]
    found, last = [], len(decision.chunks) - 1
    for stage, (first, end) in enumerate(decision.chunks):
        low, high = chain.stage_range(first, end, is_first=stage == 0, is_last=stage == last)
        total = NO_CHANGE
        for at in range(max(1, low), high):
            scale = chain.kinds[chain.layers[at]].stack.sequence_scale
            total += layout_change(
                model.problem.cluster,
                model.constants,
                widths[at - 1],
                widths[at],
                row.boundary_bytes * scale,
            )
        found.append(total)
    return found


def rank_items(model: CostModel, decision: Decision, rank: int) -> list[tuple[int, list[Item]]]:
    """(virtual stage, items) of one pipeline rank: each layer with mode, cost row, in-flight count."""
    d, chain = decision.degrees, model.chain
    states = alive_states(decision.schedule, rank, d.pp, decision.microbatches, decision.virtual_stages)
    last = len(decision.chunks) - 1
    found = []
    for chunk, (first, end) in decision.blocks_of_rank(rank):
        stage = virtual_stage(decision.schedule, rank, chunk, d.pp)
        low, high = chain.stage_range(first, end, is_first=stage == 0, is_last=stage == last)
        counts = _layer_counts(chain, decision, low, high)
        alive = tuple(state[chunk] for state in states)
        items = []
        for (kind, mode, code), count in counts.items():
            sharding, unit, tensor = row_parts(code)
            items.append(Item(kind, count, mode, sharding, alive, unit, tensor))
        found.append((stage, items))
    return found


def _layer_counts(
    chain: LayerChain, decision: Decision, low: int, high: int
) -> dict[tuple[int, int, int], int]:
    """How many of the layers [low, high) have each (kind, recompute mode, cost row), in chain order."""
    modes = set(decision.recompute)
    if len(modes) == 1 and not decision.has_layer_choices:
        (mode,) = modes
        kinds = Counter(chain.layers[low:high]).items()
        return {(k, mode if chain.kinds[k].block else 0, decision.sharding): count for k, count in kinds}
    position = {layer: block for block, layer in enumerate(chain.block_layers)}
    counts: Counter[tuple[int, int, int]] = Counter()
    for layer in range(low, high):
        block = position.get(layer)
        mode = decision.recompute[block] if block is not None else 0
        counts[chain.layers[layer], mode, decision.row_code(block)] += 1
    return counts
