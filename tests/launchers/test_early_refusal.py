"""A model a launcher does not have is refused before anything is searched, for the reasons of afterwards."""

from __future__ import annotations

import pytest

import planner.api
from planner import plan as plan_request
from planner.cli.app import run
from planner.errors import UnsupportedByTarget
from planner.launchers.base import undecided
from planner.launchers.registry import launcher, launcher_names
from planner.plan_file.schema import Plan

MODELS = ("llama-3.1-8b", "mixtral-8x7b", "deepseek-v2", "gpt-oss-120b", "bert-large", "t5-large", "gpt2")
REFUSED = [
    ("torchtitan", "gpt2"),
    ("torchtitan", "bert-large"),
    ("pytorch", "mixtral-8x7b"),
    ("pytorch", "deepseek-v2"),
    ("galvatron", "gpt-oss-120b"),
    ("megatron", "t5-large"),
]


@pytest.fixture(scope="module")
def plans() -> dict[str, Plan]:
    asked = {"gpu": "h200-sxm", "gpus": 64, "global_batch": 256, "schedule": "1f1b", "top": 1}
    return {name: plan_request(name, **asked) for name in MODELS}


@pytest.mark.parametrize(("target", "model"), REFUSED)
def test_nothing_is_searched_for_a_model_the_launcher_does_not_have(monkeypatch, target, model):
    def searched(*_, **__):
        raise AssertionError("searched")

    monkeypatch.setattr(planner.api, "search_every_layer", searched)
    with pytest.raises(UnsupportedByTarget, match=f"{target} cannot run this"):
        plan_request(model, gpu="h200-sxm", gpus=64, target=target)
    with pytest.raises(UnsupportedByTarget, match=f"{target} cannot run this"):
        plan_request(model, gpu="h200-sxm", gpus=64, target=target, allow_idle=True)
    words = ["plan", "--model", model, "--gpu", "h200-sxm", "--gpus", "64", "--target", target]
    assert run(words) == 5


@pytest.mark.parametrize("target", launcher_names())
def test_what_is_refused_early_is_refused_for_every_plan(plans, target):
    """The early reasons are among those of a plan; a plan with none has no early ones."""
    for plan in plans.values():
        early = launcher(target).reasons(undecided(plan.inputs))
        late = launcher(target).reasons(plan)
        assert [reason for reason in late if reason in early] == early


def test_every_launcher_that_checks_models_refuses_one_of_them_early(plans):
    refusing = {
        name
        for name in launcher_names()
        if any(launcher(name).reasons(undecided(plan.inputs)) for plan in plans.values())
    }
    assert refusing >= {"galvatron", "megatron", "megatron-bridge", "pytorch", "torchtitan"}
