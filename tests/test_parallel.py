"""Work on several processes gives what one process gives."""

from __future__ import annotations

import pytest

from planner.comparison import HowToPlan, compare_requests
from planner.errors import InputError
from planner.parallel import in_order
from planner.request import Request
from planner.search.tree import Pins

SMALL = Request(model="bert-large", gpu="h100-sxm", gpus=8, global_batch=32)


@pytest.mark.parametrize("jobs", [1, 2, 3])
def test_results_come_in_the_order_of_the_items(jobs):
    assert list(in_order(abs, [-3, 2, -1, 0], jobs)) == [3, 2, 1, 0]


def test_a_comparison_is_the_same_on_one_process_and_on_two():
    vary = {"gpus": [2, 4], "global_batch": [8, 16], "memory_limit_gib": [1.0, 60.0]}
    one, two = (compare_requests(SMALL, vary, HowToPlan(Pins()), jobs=jobs) for jobs in (1, 2))
    assert one.rows() == two.rows()
    assert {row["fits"] for row in one.rows()} == {True, False}
    assert [p.plan and p.plan.to_json() for p in one.points] == [
        p.plan and p.plan.to_json() for p in two.points
    ]


@pytest.mark.parametrize("jobs", [1, 2])
def test_bad_input_at_a_point_is_raised_from_any_number_of_processes(jobs):
    with pytest.raises(InputError, match="global"):
        compare_requests(SMALL, {"global_batch": [8, 0]}, HowToPlan(Pins()), jobs=jobs)
