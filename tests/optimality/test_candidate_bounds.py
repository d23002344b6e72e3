"""The bound of a candidate lies below every plan of it, whatever its schedule and memory limit."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from planner.cost.decision_rows import decision_rows
from planner.cost.step import price
from planner.search.layout import balanced_chunks
from planner.search.least_memory import candidate_solver, smallest_peak
from planner.search.tree import Pins
from planner.strategy.decision import Decision, Degrees
from planner.strategy.limits import ANY

EXACT = 1 + 1e-9
LIMITS = 12
SHAPES = [("1f1b", 1), ("interleaved", 2), ("zb-h1", 1), ("zb-v", 2)]


def decision(schedule: str, virtual: int, pp: int, dp: int, blocks: int, batch: int) -> Decision:
    return Decision(
        degrees=Degrees(dp=dp, tp=1, pp=pp),
        sequence_parallel=False,
        sharding=1,
        sharding_group=0,
        schedule=schedule,
        virtual_stages=virtual,
        microbatch_size=1,
        microbatches=batch // dp,
        chunks=balanced_chunks(blocks, pp * virtual),
        recompute=(0,) * blocks,
    )


@pytest.mark.parametrize(("schedule", "virtual"), SHAPES)
@pytest.mark.parametrize("slow", [2.0, 20.0, 400.0])
def test_no_plan_of_a_candidate_beats_its_bound(schedule, virtual, slow, build):
    """A large head on a slow network: the ranks reduce for unequal times, behind unequal ends."""
    spec = build.model(16, {"block": build.block(hidden=2048, heads=16, ffn=8192)}, hidden=2048, vocab=131072)
    profile = build.profile(per_node=4, slow=slow)
    broken = []
    for pp in (2, 4, 8):
        for batch in (16, 64):
            model = build.cost_model(spec, build.cluster(2 * pp, profile), sequence=4096, batch=batch)
            chosen = decision(schedule, virtual, pp, 2, 16, batch)
            row = next(iter(decision_rows(model, chosen).values()))
            solver = candidate_solver(model, ANY, Pins())
            free = solver.solve(row, math.inf)
            high = max(price(model, d).peak_memory_bytes for d in free.decisions)
            smallest = smallest_peak(solver, row, below_bytes=high)
            low = smallest[1] if smallest is not None else high
            for limit in np.linspace(low * EXACT, high, LIMITS).tolist():
                solved = replace(solver, limit_bytes=limit).solve(row, math.inf)
                best = min(price(model, d).step_seconds for d in solved.decisions)
                if solved.bound_seconds > best * EXACT:
                    broken.append((pp, batch, limit, solved.bound_seconds / best - 1))
    assert not broken
