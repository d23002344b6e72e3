"""Every export is read back: files that say something else than the plan never leave the planner."""

from __future__ import annotations

from pathlib import Path

import pytest

from planner import targets
from planner.api import make_plan
from planner.launchers.registry import launcher
from planner.profile_pins import ProfilePins
from planner.profile_plan import make_profile_plan
from planner.profile_request import ProfileRequest
from planner.read_back import READERS, derived_differences
from planner.request import Request

PROFILE = Path(__file__).resolve().parents[1] / "data" / "galvatron_profiles"
ASKED = Request("llama-3.1-8b", gpu="h100-sxm", gpus=8, seq_len=4096, global_batch=64)


@pytest.fixture(scope="module", params=sorted(READERS))
def plan(request):
    return make_plan(ASKED, target=request.param, top=1, suggest=False)


def test_what_is_exported_says_what_the_plan_says(plan):
    target = plan.inputs.options.target
    assert derived_differences(plan, target, targets.export_files(plan, target)) == []


def test_files_of_another_plan_are_refused(plan, monkeypatch):
    target = plan.inputs.options.target
    other = plan.model_copy(
        update={"decision": plan.decision.model_copy(update={"microbatches": plan.decision.microbatches * 2})}
    )
    files = launcher(target).export(plan)
    assert any(text.startswith("microbatches") for text in derived_differences(other, target, files))
    monkeypatch.setattr("planner.read_back.derived_differences", lambda *_: ["tp: 1 -> 2"])
    with pytest.raises(RuntimeError, match="tp: 1 -> 2"):
        targets.export_files(plan, target)


@pytest.mark.parametrize(("limit", "cp"), [(16, None), (20, None), (36, None), (36, 2), (60, 4), (80, None)])
def test_layers_of_their_own_degrees_are_read_back_layer_by_layer(limit, cp):
    asked = ProfileRequest(
        files=(str(PROFILE),), gpus=8, global_batch=64, memory_limit_gib=limit, pins=ProfilePins(cp=cp)
    )
    plan = make_profile_plan(asked)
    assert targets.export_files(plan, "galvatron")
    stages = plan.decision.stages
    run = stages[0].layer_strategies[0]
    changed = run.model_copy(update={"recompute": "none" if run.recompute == "full" else "full"})
    first = stages[0].model_copy(update={"layer_strategies": [changed, *stages[0].layer_strategies[1:]]})
    other = plan.model_copy(
        update={"decision": plan.decision.model_copy(update={"stages": [first, *stages[1:]]})}
    )
    found = derived_differences(other, "galvatron", launcher("galvatron").export(plan))
    assert any(text.startswith("recompute: ") for text in found)
