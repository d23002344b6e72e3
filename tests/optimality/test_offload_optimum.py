"""The optimizer on the host against exhaustion: the best plan there, and there only when none fits here."""

from __future__ import annotations

from dataclasses import replace

import pytest

from planner.errors import InfeasibleError
from planner.search.last_resort import search_all
from planner.search.tree import Pins
from planner.strategy.decision import OFFLOAD_OPTIMIZER
from planner.strategy.limits import ANY

EXACT = 1e-9
MEASURED_REGRET = 0.01


@pytest.fixture(scope="module", params=["dense", "experts"])
def model(request, build):
    blocks = {"block": build.block(experts=4, ffn=1024)} if request.param == "experts" else None
    spec = build.model(3, blocks)
    return build.cost_model(spec, build.cluster(4, build.profile(per_node=2, slow=10)), batch=4)


@pytest.fixture(scope="module")
def all_plans(model, oracle):
    """Every decision priced with the optimizer on the GPUs, and on the host where it is allowed there."""

    class Hosted(oracle.Exhaustive):
        def decisions(self):
            for decision in super().decisions():
                d = decision.degrees
                is_moe = bool(self.experts())
                has_replicas = d.dp * d.cp > 1 or (is_moe and d.dp * d.cp * d.tp > d.ep * d.expert_tp)
                if (decision.sharding != 0) == has_replicas:
                    yield replace(decision, offload=OFFLOAD_OPTIMIZER)

    return oracle.Exhaustive(model).price_all(), Hosted(model).price_all()


def test_the_search_finds_the_best_of_either_place(model, all_plans, oracle):
    here, there = all_plans
    peaks = sorted({p.peak_bytes for p in there} | {p.peak_bytes for p in here})
    least_here = min(p.peak_bytes for p in here)
    limits = [
        peaks[0],
        *(peaks[len(peaks) * k // 6] for k in (1, 3, 5)),
        least_here * (1 - 1e-6),
        least_here,
    ]
    placed = set()
    for limit in limits:
        limit *= 1 + EXACT
        bounded = replace(model, problem=replace(model.problem, memory_limit_bytes=limit))
        best = oracle.optimum(here, limit)
        wanted = best or oracle.optimum(there, limit)
        found = search_all(bounded, ANY, Pins(), top=1)
        assert bool(found.best.decision.offload) == (best is None)
        assert found.lower_bound_seconds <= wanted.seconds * (1 + EXACT)
        assert found.best.prediction.peak_memory_bytes <= limit * (1 + EXACT)
        if found.status == "proved":
            assert found.best.seconds == pytest.approx(wanted.seconds, rel=1e-6)
        assert found.best.seconds <= wanted.seconds * (1 + MEASURED_REGRET)
        placed.add(found.best.decision.offload)
    assert placed == {0, OFFLOAD_OPTIMIZER}


def test_below_the_least_of_both_nothing_fits(model, all_plans):
    least = min(p.peak_bytes for plans in all_plans for p in plans)
    bounded = replace(model, problem=replace(model.problem, memory_limit_bytes=least * (1 - 1e-6)))
    with pytest.raises(InfeasibleError, match="on the host too"):
        search_all(bounded, ANY, Pins())
