"""The sieve of splits never drops a candidate that has one, and drops those that clearly have none."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from planner.cost.step import price
from planner.search.engine import search
from planner.search.least_memory import candidate_solver
from planner.search.reach import may_end_within
from planner.search.space import Opened, Space
from planner.search.tree import Funnel, Pins
from planner.strategy.limits import ANY

EXACT = 1 + 1e-9


def two_kinds(build):
    """Twelve blocks of two widths beside a large head."""
    blocks = {
        "narrow": build.block(hidden=1024, heads=8, ffn=2048),
        "wide": build.block(hidden=1024, heads=8, ffn=8192),
    }
    return build.model(12, blocks, hidden=1024, vocab=65536)


@pytest.mark.parametrize("share", [0.6, 0.8, 1.0])
@pytest.mark.parametrize("slow", [40.0, 400.0])
def test_every_plan_that_is_fast_enough_stays(share, slow, build):
    """``share``: the memory limit, of what the fastest plan takes."""
    profile = build.profile(per_node=4, slow=slow)
    model = build.cost_model(two_kinds(build), build.cluster(8, profile), sequence=4096, batch=64)
    peak = search(model, ANY, Pins(sharding="none", schedule="1f1b"), top=1).best.prediction.peak_memory_bytes
    model = replace(model, problem=replace(model.problem, memory_limit_bytes=share * peak))
    space, solver = Space(model, ANY, Pins(), Funnel()), candidate_solver(model, ANY, Pins())
    asked = cut = 0
    while asked < 60 and (opened := space.pop()) is not None:
        row = space.row(opened)
        if row.schedule != "1f1b" or row.degrees.pp == 1:
            continue
        solved = solver.solve(row, math.inf)
        if solved is None:
            continue
        best = min(price(model, decision).step_seconds for decision in solved.decisions)
        assert stays(space, opened, best * EXACT)
        assert stays(space, opened, max(solved.bound_seconds, opened.bound_seconds) * EXACT)
        assert not stays(space, opened, 0.9 * opened.bound_seconds)
        asked, cut = asked + 1, cut + (not stays(space, opened, 0.9 * solved.bound_seconds))
    assert asked >= 10
    assert cut >= 0.25 * asked


def stays(space: Space, opened: Opened, seconds: float) -> bool:
    """Whether the sieve leaves a candidate in when the best plan takes ``seconds``."""
    wave, chosen = space.waves[opened.wave], np.array([opened.index])
    c, rows = wave.candidates.take(chosen), wave.origin[chosen]
    return bool(may_end_within(space.model, wave.table, wave.values, space.layout, c, rows, seconds)[0])
