"""Every plan passes ``check``: built-in models on machines drawn by lot, with and without a target."""

from __future__ import annotations

import random

import pytest

from planner.api import make_plan
from planner.catalog import load_model, model_names
from planner.checking import check_plan
from planner.errors import InfeasibleError, UnsupportedByTarget
from planner.idle import make_plan_allowing_idle
from planner.launchers.registry import launcher_names
from planner.plan_file.schema import Plan
from planner.request import Request

MACHINES = (
    ("a100-80g-sxm", 32),
    ("h100-sxm", 24),
    ("l40s", 16),
    ("mi300x", 8),
    ("v100-32g", 40),
    ("h200-sxm", 7),
)
# Larger models are planned on their own machines in tests/benchmarks/test_every_model.py.
SMALL = [name for name in model_names() if load_model(name)[0].num_layers <= 60 and name != "deepseek-v2"]
NUM_DRAWN = 12


def drawn() -> list[tuple[str, str, int, int, str]]:
    """(model, GPU, GPUs, global batch, target), the same at every run."""
    lot = random.Random(20261121)
    cases = []
    for name in lot.sample(SMALL, NUM_DRAWN):
        gpu, gpus = lot.choice(MACHINES)
        target = lot.choice(["any", "any", *launcher_names()])
        cases.append((name, gpu, gpus, lot.choice([48, 64, 96, 120]), target))
    return cases


@pytest.mark.parametrize(("name", "gpu", "gpus", "batch", "target"), drawn())
def test_a_plan_passes_check(name, gpu, gpus, batch, target):
    request = Request(name, gpu=gpu, gpus=gpus, global_batch=batch)
    make = make_plan_allowing_idle if gpus == 24 else make_plan
    try:
        plan = make(request, target=target, suggest=False, head_rooms=(0.1,))
    except (InfeasibleError, UnsupportedByTarget):
        return
    again = Plan.model_validate_json(plan.to_json())
    assert again == plan
    findings = check_plan(again, None if target == "any" else target)
    assert [f for f in findings if not f.holds] == []
    assert sum(f.name.startswith("front: ") for f in findings) == len(plan.front.points)


def test_most_of_the_drawn_questions_have_a_plan():
    """The lot is not one of refusals."""
    found = 0
    for name, gpu, gpus, batch, target in drawn():
        try:
            make_plan(
                Request(name, gpu=gpu, gpus=gpus, global_batch=batch), target=target, top=1, suggest=False
            )
            found += 1
        except (InfeasibleError, UnsupportedByTarget):
            continue
    assert found >= NUM_DRAWN // 2
