"""Alternatives differ in kind: real questions, and what the kinds say."""

from __future__ import annotations

import pytest

from planner.api import make_plan
from planner.plan_file.read import read_decision
from planner.request import Request
from planner.search.engine import RUNNER_UP_SOLVES
from planner.search.tree import Pins
from planner.strategy.kind import decision_kind, differences

CASES = {
    "8b on one node": Request("llama-3.1-8b", gpu="h100-sxm", gpus=8, seq_len=8192, global_batch=64),
    "8b on seven nodes": Request("llama-3.1-8b", gpu="h100-sxm", gpus=56, seq_len=4096, global_batch=512),
    "8b over PCIe": Request("llama-3.1-8b", gpu="l40s", gpus=16, seq_len=4096, global_batch=128),
    "8b, long": Request("llama-3.1-8b", gpu="h100-sxm", gpus=32, seq_len=131072, global_batch=32),
    "70b": Request("llama-3.1-70b", gpu="h100-sxm", gpus=64, seq_len=8192, global_batch=512),
    "gpt3": Request("gpt3-175b", gpu="a100-80g-sxm", gpus=1024, seq_len=2048, global_batch=1536),
    "mixtral": Request("mixtral-8x7b", gpu="h100-sxm", gpus=32, seq_len=4096, global_batch=256),
    "qwen3": Request("qwen3-30b-a3b", gpu="h100-sxm", gpus=64, seq_len=4096, global_batch=512),
    "bert": Request("bert-large", gpu="v100-32g", gpus=32, seq_len=512, global_batch=512),
    "t5": Request("t5-11b", gpu="a100-40g-sxm", gpus=32, seq_len=512, global_batch=512),
    "odd": Request("gpt2-xl", gpu="a100-80g-sxm", gpus=6, seq_len=1024, global_batch=12),
}


@pytest.mark.parametrize("name", CASES)
def test_no_two_plans_of_an_answer_are_of_one_kind(name):
    plan = make_plan(CASES[name], top=6)
    found = [read_decision(record) for record in (plan.decision, *(a.decision for a in plan.alternatives))]
    kinds = [decision_kind(decision) for decision in found]
    assert len(set(kinds)) == len(kinds) == 6
    for alternative, decision in zip(plan.alternatives, found[1:], strict=True):
        assert alternative.differs == differences(decision, found[0])
        named = " ".join(alternative.differs)
        assert any(word in named for word in ("tp ", "pp ", "cp ", "ep ", "schedule ", "sharding "))
    seconds = [a.prediction.step_seconds for a in plan.alternatives]
    assert seconds == sorted(seconds)


def test_a_pinned_mesh_still_has_alternatives():
    """Every degree given: what is left to differ is the schedule and whether parameters are sharded."""
    plan = make_plan(CASES["8b on one node"], Pins(tp=1, pp=2, dp=4), top=4)
    assert len(plan.alternatives) == 3
    assert {a.decision.degrees for a in plan.alternatives} == {plan.decision.degrees}


def test_differences_name_what_the_other_plan_does_instead():
    plan = make_plan(CASES["8b on one node"], Pins(tp=1, pp=2, schedule="1f1b", recompute="none"), top=1)
    other = make_plan(
        CASES["8b on one node"],
        Pins(tp=2, pp=1, sharding="parameters", recompute="full", microbatch_size=2),
        top=1,
    )
    found = differences(read_decision(other.decision), read_decision(plan.decision))
    for words in ("tp 2 for 1", "pp 1 for 2", "microbatch 2 for", "recompute full for none"):
        assert any(word.startswith(words) for word in found), found
    assert differences(read_decision(plan.decision), read_decision(plan.decision)) == []


def test_runners_up_cost_no_more_than_their_share():
    """What is solved after the best plan is known stays below its limit."""
    for name in ("mixtral", "t5"):
        alone = make_plan(CASES[name], top=1).search.funnel[-1]["candidates"]
        four = make_plan(CASES[name], top=4).search.funnel[-1]["candidates"]
        assert alone <= four <= alone + RUNNER_UP_SOLVES + 1
