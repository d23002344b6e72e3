"""Per-layer search = exhaustive = integer program, on thousands of small random instances."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from planner.cost.layered_table import stage_cost, step_seconds
from planner.errors import InfeasibleError
from planner.search.layered import search_layered

spec = importlib.util.spec_from_file_location("layered_oracle", Path(__file__).with_name("layered_oracle.py"))
oracle = importlib.util.module_from_spec(spec)
sys.modules["layered_oracle"] = oracle
spec.loader.exec_module(oracle)

# (instances, settings an instance, pp, layers, kinds, strategies, ends, layouts): each at most this large.
FAMILIES = {
    "one stage": (700, 1, 1, 4, 2, 3, 2, 2),
    "two stages": (500, 1, 2, 4, 2, 3, 2, 2),
    "two stages, equal layers": (300, 1, 2, 5, 1, 3, 1, 2),
    "three stages": (250, 1, 3, 4, 2, 2, 2, 2),
    "several settings": (250, 3, 2, 3, 2, 3, 2, 3),
    "four stages": (80, 1, 4, 5, 2, 2, 1, 2),
}


def found_seconds(settings, limit):
    try:
        return search_layered(settings, limit)
    except InfeasibleError:
        return None


def instance(rng, family):
    _, count, pp, layers, kinds, strategies, ends, layouts = FAMILIES[family]
    depth = int(rng.integers(max(2, pp), layers + 1))
    settings = []
    for _ in range(int(rng.integers(1, count + 1))):
        stages = pp if count == 1 else int(rng.integers(1, pp + 1))
        settings.append(
            oracle.random_setting(
                rng,
                stages,
                depth,
                int(rng.integers(1, kinds + 1)),
                int(rng.integers(2, strategies + 1)),
                int(rng.integers(1, ends + 1)),
                int(rng.integers(1, layouts + 1)),
            )
        )
    return settings, oracle.random_limit(rng, settings)


@pytest.mark.parametrize("has_own_terms", [False, True], ids=["plain", "own terms"])
@pytest.mark.parametrize("family", FAMILIES)
def test_search_is_exhaustive_search(family, has_own_terms):
    feasible = 0
    count = FAMILIES[family][0]
    for seed in range(count // 2 if has_own_terms else count):
        rng = np.random.default_rng([seed, len(family)])
        settings, limit = instance(rng, family)
        if has_own_terms:
            settings = [oracle.with_own_terms(rng, s) for s in settings]
        want = oracle.exhaustive_seconds(settings, limit)
        found = found_seconds(settings, limit)
        if found is None:
            assert want == np.inf, (family, seed)
            continue
        feasible += 1
        assert found.step_seconds == pytest.approx(want, rel=1e-9), (family, seed)
        assert found.status == "proved"
        assert found.lower_bound_seconds == pytest.approx(want, rel=1e-9)
        check_decision(found, limit)
    assert feasible > count // (6 if has_own_terms else 3)


def check_decision(found, limit):
    """The decision costs what is said, by the oracle's own arithmetic, and fits."""
    s = found.setting
    numbers = [
        oracle.stage_numbers(s, i, a, b, found.chosen, found.end)
        for i, (a, b) in enumerate(found.decision.stages)
    ]
    f, b, g, u = ([n[x] for n in numbers] for x in (0, 1, 2, 4))
    sends = s.send_forward_seconds, s.send_backward_seconds
    again = oracle.timeline_seconds(s.microbatches, f, b, g, *sends, u)
    assert again == pytest.approx(found.step_seconds, rel=1e-12)
    assert max(n[3] for n in numbers) <= limit
    own = [stage_cost(s, i, span, found.chosen, found.end) for i, span in enumerate(found.decision.stages)]
    assert [c.total_bytes for c in own] == pytest.approx([n[3] for n in numbers])
    columns = ("forward_seconds", "backward_seconds", "sync_seconds", "update_seconds")
    assert step_seconds(s, *([getattr(c, name) for c in own] for name in columns)) == pytest.approx(again)


def test_search_is_the_integer_program():
    solved = 0
    for seed in range(300):
        rng = np.random.default_rng([seed, 77])
        s = oracle.random_setting(rng, 1, int(rng.integers(2, 7)), 2, int(rng.integers(2, 5)), 1, 2)
        limit = oracle.random_limit(rng, [s])
        want = oracle.integer_program_seconds(s, 0, limit)
        found = found_seconds([s], limit)
        assert (found is None) == (want == np.inf), seed
        if found is not None:
            solved += 1
            assert found.step_seconds == pytest.approx(want, rel=1e-6), seed
    assert solved > 150


def test_more_memory_is_never_slower_and_a_restricted_split_never_faster():
    for seed in range(120):
        settings, limit = instance(np.random.default_rng([seed, 5]), "two stages")
        found = found_seconds(settings, limit)
        if found is None:
            continue
        assert search_layered(settings, limit * 1.2).step_seconds <= found.step_seconds
        count = len(settings[0].layers)
        fixed = [replace(s, splits=((0, count // 2), (count // 2, count))) for s in settings]
        narrow = found_seconds(fixed, limit)
        assert narrow is None or narrow.step_seconds >= found.step_seconds


def test_the_oracle_knows_one_f_one_b():
    """Two equal stages, free sends: (m + pp - 1)(f + b)."""
    assert oracle.timeline_seconds(4, (1.0, 1.0), (2.0, 2.0), (0.0, 0.0), 0.0, 0.0) == 15.0
    assert oracle.timeline_seconds(3, (5.0,), (7.0,), (4.0,), 9.0, 9.0) == 40.0
