"""Every export is read back: files that say something else than the plan never leave the planner."""

from __future__ import annotations

import pytest

from planner import targets
from planner.api import make_plan
from planner.launchers.registry import launcher
from planner.read_back import READERS, derived_differences
from planner.request import Request

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
