"""Plans on known chunks: what bounds them, against every choice of recomputation priced one by one."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from planner.cost.decision_rows import decision_rows
from planner.cost.step import price
from planner.search.chunked_step import ChunkedStep
from planner.search.layout import Layout, balanced_chunks
from planner.search.path_branches import PathBranches
from planner.search.path_program import path_program
from planner.strategy.decision import Decision, Degrees

EXACT = 1 + 1e-9
PROVED_GAP = 1e-6
# What a bound of the solver may be above for its rounding.
ROUNDED = 1 + 1e-6
SHAPES = [("interleaved", 2, 2), ("interleaved", 2, 3), ("zb-v", 2, 2), ("interleaved", 4, 2)]


def instance(build, schedule, pp, virtual, seed):
    """Blocks of up to three kinds on a pipeline; slow links where the gradient reduction tells."""
    rng = np.random.default_rng([seed, pp, virtual])
    widths = rng.choice([1024, 4096, 12288], 3)
    kinds = {f"kind{n}": build.block(hidden=1024, heads=8, ffn=int(w)) for n, w in enumerate(widths)}
    order = [str(rng.choice(list(kinds))) for _ in range(pp * virtual + int(rng.integers(0, 3)))]
    model = build.model(order, kinds, hidden=1024, vocab=int(rng.choice([256, 65536])))
    profile = build.profile(per_node=2 * pp, slow=float(rng.choice([2.0, 100.0, 1000.0])))
    cost = build.cost_model(model, build.cluster(2 * pp, profile), sequence=1024, batch=4 * pp)
    plain = Decision(
        degrees=Degrees(dp=2, tp=1, pp=pp),
        sequence_parallel=False,
        sharding=1,
        sharding_group=0,
        schedule=schedule,
        virtual_stages=virtual,
        microbatch_size=1,
        microbatches=2 * pp,
        chunks=balanced_chunks(len(order), pp * virtual),
        recompute=(0,) * len(order),
    )
    row = next(iter(decision_rows(cost, plain).values()))
    return cost, plain, ChunkedStep(cost, Layout(cost.chain), row, plain.chunks)


def every_choice(cost, plain, modes, rng, most=250):
    """(seconds, peak) of every recompute assignment, or of many of them."""
    blocks, number = len(plain.recompute), (1 + len(modes)) ** len(plain.recompute)
    picks = range(number) if number <= most else rng.choice(number, most, replace=False)
    for pick in picks:
        digits = [(int(pick) // (1 + len(modes)) ** at) % (1 + len(modes)) for at in range(blocks)]
        chosen = replace(plain, recompute=tuple((0, *modes)[digit] for digit in digits))
        cost_of = price(cost, chosen)
        yield cost_of.step_seconds, cost_of.peak_memory_bytes


@pytest.mark.parametrize(("schedule", "pp", "virtual"), SHAPES)
@pytest.mark.parametrize("seed", range(2))
def test_no_choice_beats_the_bounds_and_the_program_finds_one_that_fits(build, schedule, pp, virtual, seed):
    cost, plain, step = instance(build, schedule, pp, virtual, seed)
    modes = (2,) if schedule == "zb-v" else (1, 2)
    rng = np.random.default_rng(seed)
    priced = list(every_choice(cost, plain, modes, rng))
    assert step.plain_bound() <= min(seconds for seconds, _ in priced) * EXACT
    peaks = sorted(peak for _, peak in priced)
    for limit in (peaks[len(peaks) // 8], peaks[len(peaks) // 2]):
        optimum = min(seconds for seconds, peak in priced if peak <= limit * EXACT)
        program = path_program(step, limit * EXACT, modes)
        bound = program.bound(math.inf)
        assert 0.0 < bound <= optimum * ROUNDED
        branches = PathBranches(program, math.inf, PROVED_GAP)
        whole = max(bound, branches.run())
        assert whole <= optimum * ROUNDED
        for decision in branches.decisions:
            found = price(cost, decision)
            assert found.peak_memory_bytes <= limit * EXACT
            assert found.step_seconds >= bound * (1 / ROUNDED)
        if branches.decisions and len(priced) == (1 + len(modes)) ** len(plain.recompute):
            best = price(cost, branches.decisions[0]).step_seconds
            assert best == min(price(cost, decision).step_seconds for decision in branches.decisions)
            if whole >= best * (1.0 - PROVED_GAP):
                assert best <= optimum * ROUNDED, "proved, so none of all choices is faster"


def test_without_recomputation_to_hide_behind_the_plain_step_is_its_own_bound(build):
    """Every backward of the slowest rank is on the path to its end: nothing is gained by longer ones."""
    for seed in range(6):
        cost, plain, step = instance(build, "interleaved", 2, 2, seed)
        assert step.plain_bound() <= price(cost, plain).step_seconds * EXACT
    proved = [
        step.plain_bound() >= step.plain.step_seconds / EXACT
        for step in (instance(build, "interleaved", 2, 2, seed)[2] for seed in range(6))
    ]
    assert sum(proved) >= 3


def test_a_missing_solver_costs_the_program_only(build, monkeypatch):
    _, _, step = instance(build, "interleaved", 2, 2, 0)
    monkeypatch.setattr("planner.search.path_program.linear_solver", lambda: None)
    assert path_program(step, 1e12, (1, 2)) is None
