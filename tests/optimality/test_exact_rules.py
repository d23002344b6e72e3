"""The heuristic rule of the decision tree: said in the funnel, off where asked, and what it costs here."""

from __future__ import annotations

from dataclasses import replace

import pytest

from planner.search.engine import search
from planner.search.tree import Pins, virtual_stage_choices
from planner.strategy.limits import ANY

EXACT = replace(ANY, is_exact=True)


def steps(result, kind):
    return {step["step"]: step for step in result.funnel.steps if step["kind"] == kind}


def test_of_degrees_with_chunks_of_as_many_layers_the_smallest_is_tried():
    assert virtual_stage_choices(12) == [2, 3, 4, 6, 12]
    assert virtual_stage_choices(5) == [2, 3, 5]
    assert virtual_stage_choices(1) == []


@pytest.mark.parametrize("blocks", [8, 10])
def test_every_degree_is_tried_where_asked_and_the_plan_is_no_worse(build, blocks):
    cluster = build.cluster(4, build.profile(per_node=2, slow=10))
    model = build.cost_model(build.model(blocks), cluster, batch=8)
    usual, exact = (search(model, limits, Pins()) for limits in (ANY, EXACT))
    assert set(steps(usual, "heuristic")) == {"chunk-depth"}
    assert steps(usual, "heuristic")["chunk-depth"]["cut"] > 0
    assert not steps(exact, "heuristic")
    assert exact.best.seconds <= usual.best.seconds * (1 + 1e-12)
    assert exact.lower_bound_seconds <= usual.best.seconds * (1 + 1e-12)
