"""Runs priced together cost what each costs alone, to the last bit."""

from __future__ import annotations

from pathlib import Path

import pytest

from planner.calibration.case import Case, read_cases
from planner.calibration.case_pricing import PricedCase, Refused, price_cases
from planner.calibration.shipped import shipped
from planner.calibration.validation import case_cost_model
from planner.cost.decision_rows import decision_rows
from planner.cost.many_rows import many_rows
from planner.cost.step import price

TABLE = Path(__file__).parent.parent / "published" / "measurements.csv"


def every_other(count: int) -> list[Case]:
    return read_cases(TABLE)[::count]


def model_of(case: Case):
    return case_cost_model(case, shipped().constants_for)


@pytest.fixture(scope="module")
def together() -> list[PricedCase]:
    return [found for found in price_cases(every_other(6), model_of) if isinstance(found, PricedCase)]


def test_rows_of_many_decisions_are_those_of_each(together):
    assert len(together) > 100
    rows = many_rows([(found.model, found.decision) for found in together])
    for found, mine in zip(together, rows, strict=True):
        alone = decision_rows(found.model, found.decision)
        assert mine == alone
        for key, row in mine.items():
            for one, other in zip(row.kinds, alone[key].kinds, strict=True):
                assert (one.forward, one.backward) == (other.forward, other.backward)
                assert all(one.recompute(mode) == other.recompute(mode) for mode in range(3))


def test_a_run_among_others_costs_what_it_costs_alone(together):
    for found in together:
        assert found.prediction == price(found.model, found.decision)


def test_a_run_is_chosen_among_others_as_by_itself(together):
    for found in together[::10]:
        (alone,) = price_cases([Case(dict(found.case.cells))], model_of)
        assert isinstance(alone, PricedCase)
        assert alone.decision == found.decision
        assert alone.case.notes == found.case.notes


def test_results_keep_the_order_of_the_rows_and_refusals_their_place():
    cases = every_other(9)
    found = list(price_cases(cases, model_of))
    assert [one.case for one in found] == cases
    refused = [one for one in found if isinstance(one, Refused)]
    assert 0 < len(refused) < len(found)
    assert all(str(one.reason) for one in refused)


def test_runs_of_one_shape_share_their_model(together):
    models = {id(found.model.problem.model): found.model.chain.layers for found in together}
    assert len(models) < len(together)
    for found in together:
        assert models[id(found.model.problem.model)] == found.model.chain.layers


def test_no_runs_are_no_prices():
    assert list(price_cases([], model_of)) == []
    assert many_rows([]) == []
