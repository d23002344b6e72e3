"""Candidate rows of many decisions of several problems: equal layers are priced once, on arrays.

What a layer costs follows from its shapes, the sequence, the device with its constants, the stack and the
groups its ranks communicate in. Only the groups know the machine, so decisions that agree in the rest share
a cost table however many devices each has.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence

import numpy as np

from planner.cost.decision_rows import decision_candidates
from planner.cost.groups import Groups, joined_groups, rank_groups
from planner.cost.layer import CostTable, LayerPricer
from planner.cost.model import CostModel
from planner.cost.row import CandidateRow, candidate_row
from planner.strategy.candidates import Candidates
from planner.strategy.decision import SCHEDULES, Decision


def many_rows(pairs: Sequence[tuple[CostModel, Decision]]) -> list[dict[int, CandidateRow]]:
    """``decision_rows`` of every pair, in order. Raises what ``CostModel.placed`` raises."""
    models = [model.placed(decision.offload) for model, decision in pairs]
    codes = [decision.row_codes() for _, decision in pairs]
    owner = [number for number, mine in enumerate(codes) for _ in mine]
    parts = [decision_candidates(pair[1], mine) for pair, mine in zip(pairs, codes, strict=True)]
    if not parts:
        return []
    candidates = Candidates.concatenate(parts)
    groups = _groups(models, owner, candidates)
    by_table: dict[Hashable, list[int]] = defaultdict(list)
    for index, number in enumerate(owner):
        by_table[_table_key(models[number])].append(index)
    found: list[CandidateRow | None] = [None] * len(owner)
    for indices in by_table.values():
        chosen = np.array(indices)
        table = _table(models[owner[indices[0]]], candidates.take(chosen), groups.take(chosen))
        for at, index in enumerate(indices):
            model, decision = models[owner[index]], pairs[owner[index]][1]
            found[index] = candidate_row(
                model.problem,
                table,
                model.stack,
                at,
                SCHEDULES.index(decision.schedule),
                decision.virtual_stages,
            )
    rows = iter(row for row in found if row is not None)
    return [{code: next(rows) for code in mine} for mine in codes]


def _table_key(model: CostModel) -> Hashable:
    """Equal where ``LayerPricer`` reads the same; model descriptions are told apart as objects."""
    workload = model.problem.workload
    return id(model.problem.model), workload.sequence_length, workload.attention, model.device, model.stack


def _table(model: CostModel, candidates: Candidates, groups: Groups) -> CostTable:
    pricer = LayerPricer(model.problem, model.device, model.stack, candidates, groups)
    rows = tuple(pricer.price(kind) for kind in model.chain.kinds)
    return CostTable(model.chain, rows, candidates, groups)


def _groups(models: list[CostModel], owner: list[int], candidates: Candidates) -> Groups:
    """The groups of every candidate, each on its own machine under its own constants."""
    by_machine: dict[Hashable, list[int]] = defaultdict(list)
    for index, number in enumerate(owner):
        model = models[number]
        by_machine[id(model.problem.cluster), model.device.constants].append(index)
    parts = []
    for indices in by_machine.values():
        model, chosen = models[owner[indices[0]]], np.array(indices)
        parts.append((chosen, rank_groups(model.problem, model.device.constants, candidates.take(chosen))))
    return joined_groups(parts)
