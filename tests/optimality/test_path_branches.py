"""Recomputation on chunks of several unlike layers each: bounds and plans against every choice there is."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import product
from types import SimpleNamespace

import numpy as np
import pytest

from planner.cost.decision_rows import decision_rows
from planner.cost.many import price_many
from planner.cost.step import price
from planner.search import path_branches
from planner.search.chunked_step import ChunkedStep
from planner.search.layout import Layout
from planner.search.path_branches import PathBranches
from planner.search.path_choices import PathChoices
from planner.search.path_program import LEAST_WEIGHT, path_program
from planner.strategy.decision import Decision, Degrees
from planner.units import MILLI

EXACT = 1 + 1e-9
PROVED_GAP = 1e-6
# What a bound of the solver may be above for its rounding.
ROUNDED = 1 + 1e-6
# (schedule, virtual stages a rank, blocks by virtual stage, recompute modes).
SHAPES = [
    ("interleaved", 2, (3, 2, 2, 1), (1, 2)),
    ("interleaved", 2, (2, 2, 3, 3), (2,)),
    ("zb-v", 2, (3, 2, 3, 2), (2,)),
    ("interleaved", 3, (2, 1, 1, 2, 1, 1), (1, 2)),
    ("interleaved", 2, (2, 2, 1, 2, 2, 2), (2,)),
]
# Ranks that need not recompute do so to hide their gradient reduction.
HIDING = ("interleaved", 2, (1, 1, 1, 1, 1, 1), (2,))
CASES = [(shape, seed) for shape in SHAPES for seed in range(3)]
# Quantiles of the peaks of all choices that are limits.
TIGHT = (0.05, 0.3, 0.7)


class Case:
    """Blocks of up to three kinds, several of them a virtual stage, and every choice of recomputation.

    The kinds differ in the width of their feed-forward, so that the first mode does the same to all of
    them, or in their heads as well.
    """

    def __init__(self, build, oracle, shape, seed):
        schedule, virtual, sizes, modes = shape
        pp, hides = len(sizes) // virtual, shape == HIDING
        draw = np.random.default_rng([seed, virtual, len(modes)])
        heads = [8, 8, 8] if draw.integers(2) else [4, 8, 16]
        kinds = {
            f"kind{n}": build.block(hidden=1024, heads=heads[n], kv_heads=4, ffn=int(width))
            for n, width in enumerate(draw.permutation([1024, 4096, 12288]))
        }
        order = [str(draw.choice(list(kinds))) for _ in range(sum(sizes))]
        vocab = 128000 if hides else int(draw.choice([256, 32768]))
        model = build.model(order, kinds, hidden=1024, vocab=vocab, tied=hides)
        profile = build.profile(per_node=2 * pp, slow=float(draw.choice([2.0, 100.0, 1000.0])))
        microbatches = pp if hides else 2 * pp
        self.modes = modes
        cluster = build.cluster(2 * pp, profile)
        # Attention that is not fused has large working sets.
        attention = "unfused" if seed == 1 else "flash"
        batch = 2 * microbatches
        self.cost = build.cost_model(model, cluster, sequence=1024, batch=batch, attention=attention)
        ends = [sum(sizes[: n + 1]) for n in range(len(sizes))]
        self.plain = Decision(
            degrees=Degrees(dp=2, tp=1, pp=pp),
            sequence_parallel=False,
            sharding=0 if hides else 1,
            sharding_group=0,
            schedule=schedule,
            virtual_stages=virtual,
            microbatch_size=1,
            microbatches=microbatches,
            chunks=tuple(zip([0, *ends[:-1]], ends, strict=True)),
            recompute=(0,) * sum(sizes),
        )
        row = next(iter(decision_rows(self.cost, self.plain).values()))
        self.step = ChunkedStep(self.cost, Layout(self.cost.chain), row, self.plain.chunks)
        self.choices = list(product((0, *modes), repeat=sum(sizes)))
        planner = oracle.Exhaustive(self.cost)
        together = planner.together([self.plain])
        together = replace(
            together,
            rows=np.repeat(together.rows, len(self.choices)),
            ends=np.repeat(together.ends, len(self.choices), axis=1),
            modes=np.array(self.choices).T,
        )
        self.seconds, self.peaks = price_many(self.cost, together)

    def price(self, index):
        return price(self.cost, replace(self.plain, recompute=self.choices[index]))

    def limits(self):
        return [float(np.quantile(self.peaks, share, method="higher")) * EXACT for share in TIGHT]

    def optimum(self, limit):
        """The fastest choice of all that fits, priced as any plan is."""
        fits = np.flatnonzero(self.peaks <= limit)
        index = int(fits[np.argmin(self.seconds[fits])])
        found = self.price(index)
        assert found.peak_memory_bytes <= limit * EXACT
        assert found.step_seconds == pytest.approx(self.seconds[index], rel=1e-9)
        return found.step_seconds

    def shares(self, program, index):
        """(share, layers of it) of a choice."""
        chain, recompute = self.cost.chain, self.choices[index]
        for rank, rows in program.rows.items():
            for share in rows.shares:
                kinds = [program.choices[rank].chunks[share.chunk][one].kind for one in share.members]
                span = range(*self.plain.chunks[self.step.placed[rank][share.chunk]])
                own = [block for block in span if chain.layers[chain.block_layers[block]] in kinds]
                yield share, float(sum(recompute[block] == self.modes[share.mode] for block in own))

    def program(self, limit):
        return path_program(self.step, limit, self.modes)


@pytest.fixture(scope="module")
def cases(build, oracle):
    return {(shape, seed): Case(build, oracle, shape, seed) for shape, seed in CASES}


def test_what_is_proved_no_choice_of_all_beats(cases):
    proved, branched = 0, 0
    for case in cases.values():
        for limit in case.limits():
            optimum = case.optimum(limit)
            program = case.program(limit)
            bound = program.bound(math.inf)
            assert 0.0 < bound <= optimum * ROUNDED
            branches = PathBranches(program, math.inf, PROVED_GAP)
            whole = max(bound, branches.run())
            assert whole <= optimum * ROUNDED
            for decision in branches.decisions:
                found = price(case.cost, decision)
                assert found.peak_memory_bytes <= limit
                assert found.step_seconds >= optimum / EXACT
            if branches.decisions:
                best = price(case.cost, branches.decisions[0]).step_seconds
                assert best == pytest.approx(branches.best, rel=1e-12)
                if whole >= best * (1.0 - PROVED_GAP):
                    assert best <= optimum * ROUNDED
                    proved += 1
                    branched += bound < best * (1.0 - PROVED_GAP)
    assert proved >= 0.6 * len(TIGHT) * len(cases)
    assert branched >= 3, "some only behind branches"


def test_branches_alone_prove_as_much(cases, monkeypatch):
    """Without the whole choices near the first optimum, and where less is asked for than a proof."""
    monkeypatch.setattr(PathChoices, "best", lambda choices: None)
    proved, dropped = 0, 0
    for case in cases.values():
        for limit in case.limits()[:2]:
            optimum = case.optimum(limit)
            program = case.program(limit)
            program.bound(math.inf)
            branches = PathBranches(program, math.inf, PROVED_GAP)
            whole = branches.run()
            assert whole <= optimum * ROUNDED
            if branches.decisions and whole >= branches.best * (1.0 - PROVED_GAP):
                assert branches.best <= optimum * ROUNDED
                proved += 1
            program = case.program(limit)
            program.bound(math.inf)
            branches = PathBranches(program, optimum * 1.015, 0.02)
            assert branches.run() <= optimum * ROUNDED
            dropped += branches.best > optimum * ROUNDED
    assert proved >= 0.8 * 2 * len(cases)
    assert dropped >= 3


@pytest.mark.parametrize("key", CASES[::2], ids=str)
def test_plans_fit_and_bounds_hold_where_the_rows_ask_for_less_than_memory_does(cases, key):
    """Rows of a wider limit than the plans have to keep: all that do not fit are passed over."""
    case = cases[key]
    low, high = case.limits()[:2]
    for limit in (low, (low + high) / 2):
        program = case.program(high)
        if program.choices.keys() != case.program(limit).choices.keys():
            continue  # ranks without rows have to fit without recomputation
        program.limit_bytes = limit
        program.bound(math.inf)
        branches = PathBranches(program, math.inf, PROVED_GAP)
        whole, optimum = branches.run(), case.optimum(limit)
        assert whole <= optimum * ROUNDED
        for decision in branches.decisions:
            found = price(case.cost, decision)
            assert found.peak_memory_bytes <= limit
            assert found.step_seconds >= optimum / EXACT


@pytest.mark.parametrize("key", CASES[::2], ids=str)
def test_weights_are_an_average_of_the_paths_counts(cases, key):
    case = cases[key]
    program = case.program(case.limits()[0])
    program.bound(math.inf)
    found = program.linear.solve()
    counts = np.array([path.counts for path in program.paths])
    weights = program.weights(found)
    assert np.all(weights >= counts.min(axis=0) - 1e-6)
    assert np.all(weights <= np.maximum(counts.max(axis=0), LEAST_WEIGHT) + 1e-6)
    assert weights.max() > 1.0


@pytest.mark.parametrize("seed", [0, 2, 5, 27])
def test_a_rank_that_recomputes_only_to_hide_its_reduction_is_found(build, oracle, seed):
    """The optimum of all choices recomputes where memory does not ask for it."""
    case = Case(build, oracle, HIDING, seed)
    is_hidden = False
    for limit in case.limits():
        optimum = case.optimum(limit)
        program = case.program(limit)
        bound = program.bound(math.inf)
        branches = PathBranches(program, math.inf, PROVED_GAP)
        assert max(bound, branches.run()) <= optimum * ROUNDED
        assert price(case.cost, branches.decisions[0]).step_seconds <= optimum * ROUNDED
        plain = [stage.memory_bytes["total"] for stage in case.step.plain.stages]
        needless = [at for rank in range(3) if plain[rank] <= limit for at in case.step.placed[rank]]
        fits = np.flatnonzero(case.peaks <= limit)
        best = case.choices[int(fits[np.argmin(case.seconds[fits])])]
        is_hidden |= any(best[at] for at in needless)
    assert is_hidden


@pytest.mark.parametrize("key", CASES[::4], ids=str)
def test_little_effort_still_bounds_every_choice(cases, monkeypatch, key):
    case = cases[key]
    for limit in case.limits():
        optimum = case.optimum(limit)
        for most_nodes, deadline in ((1, math.inf), (2, math.inf), (7, math.inf), (7, -1.0)):
            monkeypatch.setattr(path_branches, "MOST_NODES", most_nodes)
            program = case.program(limit)
            # Past its deadline the first linear program still counts.
            bound = program.bound(math.inf, deadline)
            assert 0.0 < bound <= optimum * ROUNDED
            branches = PathBranches(program, math.inf, PROVED_GAP)
            whole = branches.run(deadline)
            assert 0.0 <= whole <= optimum * ROUNDED
            assert all(price(case.cost, one).peak_memory_bytes <= limit for one in branches.decisions)
            assert most_nodes != 1 or deadline < 0 or whole > 0.0, "one node bounds both of its parts"


@pytest.mark.parametrize("key", CASES[1::4], ids=str)
def test_only_faster_plans_than_the_one_known_are_found(cases, key):
    """With the optimum as the time to beat there is none, with a little more the optimum itself."""
    case = cases[key]
    for limit in case.limits():
        optimum = case.optimum(limit)
        program = case.program(limit)
        program.bound(math.inf)
        branches = PathBranches(program, optimum, PROVED_GAP)
        assert branches.run() <= optimum * ROUNDED
        assert branches.decisions == []
        branches = PathBranches(case.program(limit), optimum * 1.01, PROVED_GAP)
        assert branches.run() <= optimum * ROUNDED
        for decision in branches.decisions:
            assert optimum / EXACT <= price(case.cost, decision).step_seconds < optimum * 1.01


@pytest.mark.parametrize("key", CASES[::3], ids=str)
def test_every_path_is_below_every_choice_and_the_critical_one_is_its_time(cases, key):
    """Whatever is recomputed takes as long as each path known says, and just as long as its own."""
    case, draw = cases[key], np.random.default_rng(3)
    step, limit = case.step, case.limits()[0]
    program = case.program(limit)
    program.bound(math.inf)
    paths = list(program.paths)
    assert paths
    for index in draw.choice(len(case.choices), 25, replace=False):
        seconds = case.price(int(index)).step_seconds
        extra = np.array(step.extra_seconds(case.choices[index])) / MILLI
        own = [MILLI * float(extra[mine].sum()) for mine in step.placed]
        reduce = [step.reduce_seconds(rank, each) for rank, each in enumerate(own)]

        def lasts(path, extra=extra, reduce=reduce):
            passes = program.base + path.length + float(path.counts @ extra)
            return program.fixed_seconds + passes * MILLI + reduce[path.rank]

        assert max(map(lasts, paths)) <= seconds * EXACT
        if program.add_path(extra, -math.inf):
            assert lasts(program.paths[-1]) == pytest.approx(seconds, rel=1e-9)
        else:
            assert max(map(lasts, program.paths)) == pytest.approx(seconds, rel=1e-6)


@pytest.mark.parametrize("key", [*CASES[::3], *CASES[1::3]], ids=str)
def test_no_choice_that_fits_is_ruled_out_by_any_row(cases, key):
    """Rows of memory, reduction, paths and rank cuts, each added near one optimum, hold for all choices."""
    case, draw = cases[key], np.random.default_rng(4)
    for limit in case.limits()[:2]:
        program = case.program(limit)
        program.bound(math.inf)
        fits = np.flatnonzero(case.peaks <= limit)
        # Those that just fit among them.
        fullest = fits[np.argsort(-case.peaks[fits], kind="stable")][:6]
        for index in [*fullest, *draw.choice(fits, min(8, len(fits)), replace=False)]:
            extra = np.array(case.step.extra_seconds(case.choices[index])) / MILLI
            for variable, value in zip(program.extra, extra, strict=True):
                program.linear.within(variable, float(value) * (1 - 1e-9), float(value) * (1 + 1e-9))
            for share, number in case.shares(program, index):
                program.linear.within(share.variable, number, number)
            found = program.linear.solve()
            assert found is not None
            assert program.seconds(found.objective) <= case.price(int(index)).step_seconds * ROUNDED


@pytest.mark.parametrize("key", CASES[::2], ids=str)
def test_choices_of_all_ranks_together_are_such_that_none_alone_gains(cases, key):
    case = cases[key]
    for limit in case.limits():
        program = case.program(limit)
        program.bound(math.inf)
        near = PathChoices(program, program.linear.solve())
        best = near.best()
        assert best is not None
        assert set(best) == set(program.choices)
        extra = near.extra.copy()
        for rank, choice in best.items():
            extra[case.step.placed[rank]] = choice.extra
        longest = max(path.length + float(path.counts @ extra) for path in program.paths)
        for rank, offered in near.offered.items():
            mine = case.step.placed[rank]
            # Lighter choices go before as fast ones, at a thousandth of their weight.
            light = 1e-3 * np.maximum(1.0, near.weights[mine])
            for other in offered:
                changed = extra.copy()
                changed[mine] = other.extra
                alone = max(path.length + float(path.counts @ changed) for path in program.paths)
                gain = longest - alone + float(light @ (extra[mine] - other.extra))
                assert gain <= 1e-6
        assert not program.add_path(extra, longest), "no longer path is left out"


def test_layers_of_a_mode_that_several_groups_share_are_all_given_out(cases):
    """Whatever groups have the other modes, layers of the first one find room in the rest."""
    shared = 0
    for case in cases.values():
        program = case.program(case.limits()[0])
        branches = PathBranches(program, math.inf, PROVED_GAP)
        for index in range(0, len(case.choices), len(case.choices) // 20):
            asked = list(case.shares(program, index))
            values = np.zeros(len(program.linear.lows))
            for share, number in asked:
                values[share.variable] = number
            taken = branches._taken(SimpleNamespace(values=values))
            for rank, rows in program.rows.items():
                for share in rows.shares:
                    given = sum(taken[rank][share.chunk][one, share.mode] for one in share.members)
                    assert given == values[share.variable]
                    shared += len(share.members) > 1 and given > 0
                for layers, groups in zip(taken[rank], program.choices[rank].chunks, strict=True):
                    assert all(layers.sum(axis=1) <= [group.count for group in groups])
    assert shared >= 20


def test_a_rank_without_choices_leaves_none_together(cases):
    case = cases[CASES[0]]
    program = case.program(case.limits()[0])
    program.bound(math.inf)
    near = PathChoices(program, program.linear.solve())
    near.offered[next(iter(near.offered))] = []
    assert near.best() is None


def test_where_nothing_fits_nothing_is_found(cases):
    for key in CASES[::3]:
        case = cases[key]
        program = case.program(float(case.peaks.min()) * 0.5)
        program.bound(math.inf)
        branches = PathBranches(program, math.inf, PROVED_GAP)
        assert branches.run() >= 0.0
        assert branches.decisions == []
