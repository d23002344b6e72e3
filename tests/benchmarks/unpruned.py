"""The decision tree without cuts or bounds: every combination, judged by the hard rules only when whole.

Slow and obvious on purpose: no rule cuts a branch, no candidate is left out for memory or for its bound, and
each one that breaks no rule is solved and priced as if it were the only one.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np

from planner.cost.layer import cost_table
from planner.cost.model import CostModel
from planner.cost.row import candidate_row
from planner.cost.step import price
from planner.search.candidate import CandidateSolver
from planner.search.layout import Layout
from planner.search.policy import recompute_policies, split_policies
from planner.strategy.candidates import Candidates
from planner.strategy.decision import SCHEDULES, SHARDING_GROUPS, SHARDINGS
from planner.strategy.limits import ANY
from planner.strategy.rules import RULES, expert_counts

SLICE = 4096


@dataclass(frozen=True)
class Unpruned:
    """What enumeration without cuts saw: all combinations, those that break no rule, those that fit."""

    combinations: int
    valid: int
    fitting: int
    best_seconds: float


def enumerate_all(model: CostModel) -> Unpruned:
    """Every combination of the whole space, and the fastest plan among them."""
    problem, layout = model.problem, Layout(model.chain)
    policies, split = (f(model.chain, ANY, None) for f in (recompute_policies, split_policies))
    limit = problem.memory_limit_bytes
    solver = CandidateSolver(model, layout, limit, policies, split)
    combinations = valid = fitting = 0
    best = math.inf
    rows = _combinations(model)
    while chunk := list(itertools.islice(rows, SLICE)):
        combinations += len(chunk)
        candidates = _candidates(chunk)
        for rule in RULES:
            keep = rule.holds(candidates, problem)
            candidates = candidates.take(keep)
        valid += len(candidates)
        if not len(candidates):
            continue
        table = cost_table(problem, model.chain, candidates, model.device, model.stack)
        for index in range(len(candidates)):
            schedule, degree = (
                int(column[index]) for column in (candidates.schedule, candidates.virtual_stages)
            )
            row = candidate_row(problem, table, model.stack, index, schedule, degree)
            solved = solver.solve(row, math.inf)
            if solved is None:
                continue
            fitting += 1
            best = min(best, *(price(model, decision).step_seconds for decision in solved.decisions))
    return Unpruned(combinations, valid, fitting, best)


def _combinations(model: CostModel):
    """(tp, cp, dp, pp, ep, expert_tp, microbatch size, virtual stages, schedule, sharding, group, split)."""
    problem = model.problem
    world, batch = problem.world_size, problem.workload.global_batch
    degrees = [n for n in range(1, world + 1) if world % n == 0]
    sizes = [n for n in range(1, batch + 1) if batch % n == 0]
    experts = [n for n in range(1, max(expert_counts(problem), default=1) + 1)]
    experts = [n for n in experts if all(count % n == 0 for count in expert_counts(problem) or [1])]
    shardings = [
        (code, group)
        for code in range(len(SHARDINGS))
        for group in range(len(SHARDING_GROUPS))
        if code or not group
    ]
    deepest = model.chain.num_blocks
    for tp, cp, pp in itertools.product(degrees, repeat=3):
        if world % (tp * cp * pp):
            continue
        schedules = [(SCHEDULES.index("1f1b"), 1)]
        if pp > 1:
            schedules += [
                (SCHEDULES.index("gpipe"), 1),
                (SCHEDULES.index("zb-h1"), 1),
                (SCHEDULES.index("zb-v"), 2),
            ]
            schedules += [(SCHEDULES.index("interleaved"), v) for v in range(2, deepest // pp + 1)]
        for ep, expert_tp, size, (schedule, v), (sharding, group), is_split in itertools.product(
            experts, sorted({1, tp}), sizes, schedules, shardings, sorted({0, int(tp > 1)})
        ):
            yield (
                tp,
                cp,
                world // (tp * cp * pp),
                pp,
                ep,
                expert_tp,
                size,
                v,
                schedule,
                sharding,
                group,
                is_split,
            )


def _candidates(rows: list[tuple[int, ...]]) -> Candidates:
    table = np.array(rows, dtype=np.int64)
    names = ("tp", "cp", "dp", "pp", "ep", "expert_tp", "microbatch_size", "virtual_stages", "schedule")
    names += ("sharding", "sharding_group", "sequence_parallel")
    columns = {name: table[:, index] for index, name in enumerate(names)}
    nothing = np.zeros(len(rows), dtype=np.int64)  # no optimizer on the host, blocks gathered whole
    return Candidates(**columns, offload=nothing, gather_unit=nothing)
