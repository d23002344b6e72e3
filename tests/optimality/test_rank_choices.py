"""What a rank may recompute, against every choice of a mode for each of its layers."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from itertools import combinations_with_replacement, product

import numpy as np
import pytest

from planner.search import choice_front, rank_choices
from planner.search.choice_front import Layers, Options
from planner.search.linear_program import LinearProgram, linear_solver
from planner.search.rank_choices import RankChoices

# Whole choices of a rank that are still enumerated.
MOST = 40_000
NEAR = 1e-9
# What a linear program's optimum may be off.
SOLVED = 1e-6


def layers(draw, kind, modes, *, is_even):
    """Of even quarters, so that there are ties, or of any numbers; sometimes more freed costs more."""
    numbers = draw.integers(1, 9, (3, modes)) / 4 if is_even else draw.uniform(0.1, 2.0, (3, modes))
    if draw.integers(2):
        numbers = np.sort(numbers, axis=1)
    extra, freed, working = (tuple(map(float, row)) for row in numbers)
    plain = float(draw.choice([0.0, 0.5, 1.5]))
    return Layers(kind, int(draw.integers(1, 4)), extra, freed, working, plain)


def every_choice(groups, modes, least_working):
    """(extra, freed, working set, layers by group and mode) of every choice of a virtual stage."""
    each = [list(combinations_with_replacement(range(modes + 1), group.count)) for group in groups]
    for chosen in product(*each):
        extra, freed, working = 0.0, 0.0, least_working
        taken = np.zeros((len(groups), modes), dtype=int)
        for index, (group, own) in enumerate(zip(groups, chosen, strict=True)):
            for mode in own:
                if mode == modes:
                    working = max(working, group.plain_working)
                    continue
                extra, freed = extra + group.extra[mode], freed + group.freed[mode]
                working = max(working, group.working[mode])
                taken[index, mode] += 1
        yield extra, freed, working, taken


@dataclass
class Instance:
    """A rank and every whole choice of it: ms by virtual stage, whether it fits, layers by virtual stage."""

    rank: RankChoices
    extra: np.ndarray
    fits: np.ndarray
    picks: np.ndarray
    taken: list

    def least(self, weights):
        costs = self.extra[self.fits] @ weights
        return float(costs.min()) if len(costs) else None


def instance(draw):
    """One to four virtual stages of one to three groups; often tight, sometimes more than can be freed."""
    modes, is_even = int(draw.integers(1, 3)), bool(draw.integers(2))
    least = float(draw.choice([0.25, 1.0]))
    while True:
        chunks = []
        for _ in range(int(draw.integers(1, 5))):
            groups = [layers(draw, n, modes, is_even=is_even) for n in range(int(draw.integers(1, 4)))]
            if draw.integers(2):
                # The first mode does the same to all of them, as where only the attention is recomputed.
                first = groups[0]
                groups = [
                    Layers(
                        group.kind,
                        group.count,
                        first.extra[:1] + group.extra[1:],
                        first.freed[:1] + group.freed[1:],
                        first.working[:1] + group.working[1:],
                        group.plain_working,
                    )
                    for group in groups
                ]
            chunks.append(groups)
        number = math.prod(math.comb(g.count + modes, modes) for groups in chunks for g in groups)
        if number <= MOST:
            break
    stages = [list(every_choice(groups, modes, least)) for groups in chunks]
    picks = np.array(list(product(*(range(len(stage)) for stage in stages))))
    extra, freed, working = (
        np.stack([np.array([one[at] for one in stage])[picks[:, n]] for n, stage in enumerate(stages)], 1)
        for at in range(3)
    )
    alive = draw.integers(0, 4, (int(draw.integers(1, 4)), len(chunks))).astype(float)
    most = alive @ freed.max(axis=0)
    needed = most * draw.uniform(0.0, 1.0, len(alive)) - draw.choice([0.0, 1.0, 2.0])
    if is_even:
        needed = np.round(4 * needed) / 4
    fits = np.all(freed @ alive.T >= needed + working.max(axis=1)[:, None] - NEAR, axis=1)
    rank = RankChoices(linear_solver(), chunks, alive, needed, modes=modes, least_working=least)
    return Instance(rank, extra, fits, picks, [[one[3] for one in stage] for stage in stages])


def random_weights(draw, case):
    return draw.choice([0.01, 0.5, 1.0, 3.0], case.extra.shape[1]) * draw.uniform(0.9, 1.1)


def is_whole(case, choice):
    """Its layers are one of all choices, of the ms it says; whether it fits."""
    assert len(choice.taken) == len(case.taken)
    index = []
    for stage, taken in zip(case.taken, choice.taken, strict=True):
        (at,) = [n for n, one in enumerate(stage) if np.array_equal(one, taken)]
        index.append(at)
    (at,) = np.flatnonzero((case.picks == index).all(axis=1))
    assert choice.extra == pytest.approx(case.extra[at], abs=NEAR)
    return bool(case.fits[at])


@pytest.mark.parametrize("modes", [1, 2, 3])
@pytest.mark.parametrize("seed", range(12))
def test_options_are_the_undominated_choices_and_no_others(modes, seed):
    draw = np.random.default_rng([seed, modes])
    groups = [layers(draw, n, modes, is_even=seed % 2 == 0) for n in range(int(draw.integers(1, 4)))]
    least = float(draw.choice([0.25, 1.0]))
    found = Options.of(groups, modes, least)
    values = np.round([one[:3] for one in every_choice(groups, modes, least)], 9)
    values = np.unique(values * [1, -1, 1], axis=0)
    kept = []
    for value in values:
        covers = (values <= value).all(axis=1) & (values < value).any(axis=1)
        if not covers.any():
            kept.append(tuple(value))
    mine = np.round(np.stack([found.extra, -found.freed, found.working], 1), 9)
    assert sorted(map(tuple, mine)) == sorted(kept)
    said = {one[3].tobytes(): one[:3] for one in every_choice(groups, modes, least)}
    for extra, freed, working, taken in zip(
        found.extra, found.freed, found.working, found.taken, strict=True
    ):
        assert said[taken.astype(int).tobytes()] == pytest.approx((extra, freed, working), abs=NEAR)


def test_more_options_than_are_looked_at_are_none(monkeypatch):
    draw = np.random.default_rng(0)
    groups = [layers(draw, 0, 2, is_even=False), layers(draw, 1, 2, is_even=False)]
    number = len(Options.of(groups, 2, 0.1).extra)
    monkeypatch.setattr(choice_front, "MOST_OPTIONS", number)
    assert Options.of(groups, 2, 0.1) is not None
    monkeypatch.setattr(choice_front, "MOST_OPTIONS", number - 1)
    assert Options.of(groups, 2, 0.1) is None
    alive, needed = np.ones((1, 1)), np.zeros(1)
    rank = RankChoices(linear_solver(), [groups], alive, needed, modes=2, least_working=0.1)
    assert rank.cheapest(np.ones(1)) is None
    assert rank.around(np.ones(1), np.zeros(1), np.ones(1)) == []


@pytest.mark.parametrize("beam", [1, rank_choices.BEAM])
def test_the_cheapest_choice_is_that_of_all(beam, monkeypatch):
    """With a beam of one little is found before all that could be better are looked at."""
    monkeypatch.setattr(rank_choices, "BEAM", beam)
    draw = np.random.default_rng(beam)
    seen = Counter()
    for _ in range(80):
        case = instance(draw)
        for _ in range(2):
            weights = random_weights(draw, case)
            least, found = case.least(weights), case.rank.cheapest(weights)
            assert (found is None) == (least is None)
            seen[found is None, case.extra.shape[1]] += 1
            if found is not None:
                assert found.weight == pytest.approx(least, rel=1e-8, abs=NEAR)
                assert found.bound == pytest.approx(found.weight, rel=1e-8, abs=NEAR)
                assert found.weight == pytest.approx(float(weights @ found.extra), abs=NEAR)
                assert is_whole(case, found)
    assert all(seen[False, stages] >= 5 for stages in (1, 2, 3, 4)), seen
    assert sum(number for (is_none, _), number in seen.items() if is_none) >= 5, seen


@pytest.mark.parametrize("most", [1, 3])
def test_a_bound_of_some_joint_choices_is_one_of_all(most, monkeypatch):
    monkeypatch.setattr(choice_front, "MOST_JOINT", most)
    monkeypatch.setattr(rank_choices, "BEAM", 1)
    draw = np.random.default_rng(most)
    is_below = 0
    for _ in range(80):
        case = instance(draw)
        weights = random_weights(draw, case)
        found, least = case.rank.cheapest(weights), case.least(weights)
        if found is not None:
            assert found.bound <= least * (1.0 + 1e-9)
            assert found.weight >= least - NEAR
            assert is_whole(case, found)
            is_below += found.bound < least * (1.0 - 1e-6)
    assert is_below >= 3, "choices were dropped"


def test_choices_around_an_optimum_fit_and_cost_what_they_say():
    draw = np.random.default_rng(4)
    number = 0
    for _ in range(25):
        case = instance(draw)
        weights = random_weights(draw, case)
        aim = case.extra[int(draw.integers(len(case.extra)))] * draw.uniform(0.5, 1.0)
        surplus = random_weights(draw, case)
        around = case.rank.around(weights, aim, surplus)
        if not case.fits.any():
            assert around == []
        for one in around[:: max(1, len(around) // 40)]:
            assert is_whole(case, one)
            plain = float(weights @ one.extra)
            beyond = plain + float(surplus @ np.maximum(0.0, one.extra - aim))
            assert min(abs(one.weight - plain), abs(one.weight - beyond)) <= NEAR
            number += 1
    assert number >= 200


def test_varied_choices_differ_in_the_dearest_mode():
    """Two virtual stages: each number of layers in the dearest mode that can fit is among them."""
    draw = np.random.default_rng(5)
    seen = 0
    for _ in range(60):
        case = instance(draw)
        if case.extra.shape[1] != 2:
            continue
        front = case.rank._front(random_weights(draw, case))
        if front is None:
            continue
        first = front.order[0]
        kept = {int(one.taken[first][:, -1].sum()) for one in front.near(10_000, is_varied=True)}
        plain = {int(one.taken[first][:, -1].sum()) for one in front.near(10_000)}
        assert kept <= plain
        # Cut to three of each kind all kinds are left, as long as one of the three fits.
        assert len(kept) >= len(plain) - 1
        seen += len(plain) > 2
    assert seen >= 3


def rows_of(case, weights):
    program = LinearProgram(case.rank.solver)
    rows = case.rank.rows(program)
    for variable, weight in zip(rows.extra, weights, strict=True):
        program.cost(variable, float(weight))
    return program, rows


def layers_of(share, taken):
    return float(sum(taken[share.chunk][group, share.mode] for group in share.members))


def test_the_rows_of_a_rank_are_never_above_the_cheapest_whole_choice():
    draw = np.random.default_rng(6)
    tight, infeasible = 0, 0
    for _ in range(120):
        case = instance(draw)
        weights = random_weights(draw, case)
        program, _ = rows_of(case, weights)
        found, least = program.solve(), case.least(weights)
        if found is None:
            assert least is None
            infeasible += 1
        elif least is not None:
            assert found.objective <= least * (1.0 + SOLVED) + SOLVED
            tight += 0.0 < least <= 1.5 * found.objective
    assert tight >= 10, "the relaxation says something"
    assert infeasible >= 3


def test_the_rows_of_a_rank_hold_every_choice_that_fits_and_none_that_cannot():
    """Layers fixed to a whole choice: its ms are the program's; too little freed is no solution."""
    draw = np.random.default_rng(7)
    fitting, ruled_out = 0, 0
    for _ in range(50):
        case = instance(draw)
        rank, weights = case.rank, random_weights(draw, case)
        program, rows = rows_of(case, weights)
        for at in draw.choice(len(case.extra), 8):
            taken = [stage[pick] for stage, pick in zip(case.taken, case.picks[at], strict=True)]
            for share in rows.shares:
                program.within(share.variable, *[layers_of(share, taken)] * 2)
            for total in rows.totals:
                program.within(total.variable, *[sum(layers_of(one, taken) for one in total.shares)] * 2)
            found = program.solve()
            freed = [
                float(sum(one[n] @ group.freed for n, group in enumerate(groups)))
                for one, groups in zip(taken, rank.chunks, strict=True)
            ]
            used = [
                rank.least_working + (one.working - rank.least_working) * layers_of(one, taken) / one.most
                for one in rows.shares
            ]
            lacking = float((rank.needed + max(rank.least_working, *used) - rank.alive @ freed).max())
            if case.fits[at]:
                assert found is not None
                assert found.objective == pytest.approx(float(weights @ case.extra[at]), abs=SOLVED)
                assert found.values[list(rows.extra)] == pytest.approx(case.extra[at], abs=SOLVED)
                fitting += 1
            elif lacking > SOLVED:
                assert found is None
                ruled_out += 1
    assert min(fitting, ruled_out) >= 30
