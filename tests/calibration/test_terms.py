"""explain's terms: every formula exists, every constant too, and a constant moves only terms that name it."""

from __future__ import annotations

import importlib
from dataclasses import replace

import pytest

from planner.api import Choice, choice_decision, make_estimate
from planner.cost.constants import Constants
from planner.cost.memory import MEMORY_CATEGORIES
from planner.cost.model import CostModel
from planner.cost.step import BREAKDOWN, price
from planner.explanation import explain_plan
from planner.request import Request, resolve
from planner.terms import BYTES, HOST_OPTIMIZER, SECONDS

SCALARS = [name for name, *_ in Constants().rows()]
REQUEST = Request(model="llama-3.1-8b", gpu="h100-sxm", gpus=32, seq_len=8192, global_batch=64)
SPARSE = REQUEST.changed(model="mixtral-8x7b")


@pytest.mark.parametrize("term", [*SECONDS, HOST_OPTIMIZER, *BYTES], ids=lambda term: term.name)
def test_every_formula_and_constant_of_a_term_exists(term):
    for formula in term.formulas:
        parts = formula.function.split(".")
        for cut in range(len(parts) - 1, 0, -1):
            try:
                found = importlib.import_module(".".join(parts[:cut]))
            except ModuleNotFoundError:
                continue
            for name in parts[cut:]:
                found = getattr(found, name)
            break
        assert callable(found) or isinstance(found, property)
    assert set(term.constants) <= {*SCALARS, "link_efficiency"}


def test_every_cause_and_every_memory_category_has_its_term():
    assert [term.name for term in SECONDS] == list(BREAKDOWN)
    assert [term.name for term in BYTES] == list(MEMORY_CATEGORIES)


def test_every_constant_stands_behind_some_term():
    assert {name for term in (*SECONDS, HOST_OPTIMIZER, *BYTES) for name in term.constants} >= set(SCALARS)


@pytest.mark.parametrize("name", [*SCALARS, "link_efficiency"])
@pytest.mark.parametrize(
    ("request_", "choice"),
    [
        (REQUEST, Choice(tp=2, pp=2, cp=2, recompute="full")),
        (REQUEST, Choice(tp=4, sharding="parameters")),
        (SPARSE, Choice(tp=2, ep=4, recompute="selective")),
        (REQUEST, Choice(tp=2, offload="optimizer")),
    ],
    ids=["pipeline", "sharded", "experts", "on the host"],
)
def test_a_constant_moves_only_terms_that_name_it(name, request_, choice):
    """bubble and other follow whatever moves the timeline, exposed terms the kernels they hide behind; every
    other constant a term reads must be named."""
    resolved = resolve(request_)
    decision = choice_decision(resolved, choice)
    base = resolved.constants
    if name == "link_efficiency":
        changed = replace(base, link_efficiency=tuple((k, v * 0.7) for k, v in base.link_efficiency))
    else:
        changed = replace(base, **{name: getattr(base, name) * 1.3})
    before, after = (price(CostModel.of(resolved.problem, c), decision) for c in (base, changed))
    for term in SECONDS:
        term = HOST_OPTIMIZER if decision.offload and term.name == "optimizer" else term
        hides = any(formula.name.startswith("exposed") for formula in term.formulas)
        behind = SECONDS[0].constants if hides else ()
        if term.name not in ("bubble", "other") and name not in (*term.constants, *behind):
            old, new = before.breakdown_seconds[term.name], after.breakdown_seconds[term.name]
            assert new == pytest.approx(old, rel=1e-9, abs=1e-12), term.name
    for old_stage, new_stage in zip(before.stages, after.stages, strict=True):
        for term in BYTES:
            if name not in term.constants:
                assert new_stage.memory_bytes[term.name] == pytest.approx(old_stage.memory_bytes[term.name])


@pytest.mark.parametrize("offload", ["none", "optimizer"])
def test_every_constant_and_figure_says_where_it_comes_from(offload):
    explanation = explain_plan(make_estimate(REQUEST, Choice(tp=2, pp=2, cp=2, offload=offload)))
    assert [term["name"] for term in explanation.terms] == [*BREAKDOWN, *MEMORY_CATEGORIES]
    known = ("literature", "fitted", "measured", "datasheet", "derived", "assumed")
    for term in explanation.terms:
        for row in (*term["constants"], *term["facts"]):
            assert row["basis"] in known, row
            assert row["origin"], row
    by_name = {row["name"]: row for term in explanation.terms for row in term["constants"]}
    assert by_name["matmul_efficiency"]["origin"].startswith("fitted for hopper on ")
    assert by_name["expert_imbalance"]["basis"] == "literature"
    assert ("host_adam_efficiency" in by_name) == (offload == "optimizer")
