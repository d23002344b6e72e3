"""The search on a stack whose peak is the largest of several moments, against the exhaustive planner."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from planner.cost.decision_rows import decision_candidates
from planner.cost.layer import cost_table
from planner.errors import InfeasibleError
from planner.search.engine import search
from planner.search.memory_bounds import memory_lower_bound
from planner.search.tree import Pins
from planner.strategy.candidates import Candidates
from planner.strategy.limits import ANY, Limits

# The space that exhaustion covers: one sharding, whole blocks gathered.
UNIFORM = replace(ANY, has_layer_sharding=False, gather_units=("block",))
EXACT = 1e-9
MOST_LIMITS = 8
MEASURED_REGRET = 0.04
"""Chosen layer by layer for several moments, recompute may free a layer more than it must."""
ONE_MODE = Limits("one-mode", recompute_granularity="uniform")
"""What such a stack takes: one recompute mode for all layers. There the search is exact."""


def dense(build):
    cluster = build.cluster(4, build.profile(per_node=2, slow=10))
    return build.cost_model(build.model(4), cluster, batch=4, stack="torchtitan")


def tied(build):
    cluster = build.cluster(4, build.profile(per_node=4))
    return build.cost_model(build.model(3, tied=True, vocab=65536), cluster, batch=4, stack="torchtitan")


def few_microbatches(build):
    cluster = build.cluster(4, build.profile(per_node=1, slow=3))
    return build.cost_model(build.model(5), cluster, batch=2, stack="torchtitan")


named = pytest.mark.parametrize("case", [dense, tied, few_microbatches], ids=lambda case: case.__name__)


@pytest.fixture(scope="module")
def solved(build, oracle):
    @cache
    def of(case):
        model = case(build)
        return model, oracle.Exhaustive(model).price_all()

    return of


@named
def test_the_memory_bound_is_below_every_decision(case, build, solved):
    model, priced = solved(case)
    least = {}
    for each in priced:
        d = each.decision
        key = (d.degrees, d.sequence_parallel, d.sharding, d.sharding_group, d.microbatch_size)
        least[key] = min(each.peak_bytes, least.get(key, (np.inf, None))[0]), d
    meshes = Candidates.concatenate([decision_candidates(d, [d.sharding]) for _, d in least.values()])
    table = cost_table(model.problem, model.chain, meshes, model.device, model.stack)
    bounds = memory_lower_bound(model, table)
    assert len(bounds) == len(least)
    for bound, (bytes_of_best, decision) in zip(bounds, least.values(), strict=True):
        assert bound <= bytes_of_best * (1 + EXACT), decision.label()


def worth_having(priced):
    """The decisions that are fastest at some limit, a few of them."""
    found = []
    for each in sorted(priced, key=lambda p: (p.peak_bytes, p.seconds)):
        if not found or each.seconds < found[-1].seconds * (1 - EXACT):
            found.append(each)
    return found[:: max(1, len(found) // MOST_LIMITS)]


@named
@pytest.mark.parametrize("limits", [ONE_MODE, UNIFORM], ids=["one mode", "any mode"])
def test_the_search_fits_every_limit_and_comes_close_to_the_optimum(case, limits, build, oracle, solved):
    model, priced = solved(case)
    if limits is ONE_MODE:
        priced = [p for p in priced if len(set(p.decision.recompute)) == 1]
    wrong = []
    for point in worth_having(priced):
        limit = point.peak_bytes * (1 + EXACT)
        optimum = oracle.optimum(priced, limit)
        try:
            result = search(build.with_limit(model, limit), limits, Pins())
        except InfeasibleError:
            wrong.append(f"nothing found where {optimum.decision.label()} fits")
            continue
        best = result.best
        assert best.prediction.peak_memory_bytes <= limit * (1 + EXACT)
        assert best.seconds >= optimum.seconds * (1 - EXACT)
        regret = best.seconds / optimum.seconds - 1
        if regret > MEASURED_REGRET:
            wrong.append(f"regret {regret:.3f}: {optimum.decision}, {best.decision}")
        if limits is ONE_MODE and result.lower_bound_seconds > optimum.seconds * (1 + EXACT):
            wrong.append(f"bound {result.lower_bound_seconds} above {optimum.seconds}")
    assert not wrong, "\n".join(wrong)
