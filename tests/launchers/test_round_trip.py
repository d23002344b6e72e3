"""plan -> export -> import gives the same decision, for any legal decision a launcher can express.

What a launcher's file cannot carry is its importer's NOT_CARRIED, and nothing else may differ.
"""

from __future__ import annotations

import json
from functools import cache
from itertools import count

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from legal_decisions import draw_decision, legal_meshes, plan_of_decision
from round_trip import DESCRIBES_MODEL, differences, read_back, round_trip, write

from planner.catalog import load_model
from planner.importing import load_files
from planner.launchers.imported import Facts, shape_facts
from planner.launchers.registry import importer, launcher, launcher_names, not_carried
from planner.model.parameters import total_parameters
from planner.plan_file.read import read_decision
from planner.plan_file.schema import Plan
from planner.request import Request, Resolved, resolve
from planner.strategy.candidates import Candidates
from planner.strategy.decision import Decision

# model, cluster, GPUs, sequence length, global batch: dense, learned positions, experts, latent attention,
# windows
PROBLEMS = (
    ("llama-3.1-8b", "dgx-h100", 16, 4096, 48),
    ("gpt2-xl", "dgx-a100", 8, 1024, 24),
    ("qwen3-30b-a3b", "dgx-h100", 16, 4096, 48),
    ("mixtral-8x7b", "dgx-a100", 16, 4096, 48),
    ("deepseek-v3", "dgx-h100", 32, 4096, 96),
    ("gpt-oss-120b", "dgx-h100", 16, 4096, 48),
)
FOLDERS = count()


@cache
def problem(index: int, target: str) -> tuple[Resolved, Candidates]:
    name, cluster, gpus, length, batch = PROBLEMS[index]
    resolved = resolve(Request(name, cluster=cluster, gpus=gpus, seq_len=length, global_batch=batch))
    return resolved, legal_meshes(resolved.problem, launcher(target).limits)


def drawn(data: st.DataObject, target: str) -> Plan:
    """A random plan inside the launcher's limits; its own rules have the last word."""
    resolved, meshes = problem(data.draw(st.sampled_from(PROBLEM_INDEX[target])), target)
    differ = target in ("galvatron", "megatron", "pytorch")
    pick = lambda options: data.draw(st.sampled_from(options))  # noqa: E731
    units = (0, 1, 2) if target == "pytorch" else (0,)
    decision = draw_decision(pick, resolved.problem, meshes, layers_differ=differ, units=units)
    return plan_of_decision(resolved, decision)


# Overrides of a Megatron Bridge recipe leave to the recipe what they do not name: no whole decision to read.
WHOLE_FILES = [name for name in launcher_names() if name != "megatron-bridge"]
PROBLEM_INDEX = {
    "accelerate": (0, 1),
    "deepspeed": (0, 1),
    "galvatron": (0, 1, 3),
    "megatron": (0, 1, 2, 3, 4, 5),
    "pytorch": (0, 1),
    "torchtitan": (0, 2, 4),
}


@pytest.mark.parametrize("target", WHOLE_FILES)
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_the_decision_comes_back(tmp_path_factory, target, data):
    plan = drawn(data, target)
    assume(not launcher(target).reasons(plan))
    folder = tmp_path_factory.getbasetemp() / f"round-trip-{next(FOLDERS)}"
    assert round_trip(plan, target, folder) == []


@pytest.mark.parametrize("target", WHOLE_FILES)
def test_a_changed_decision_is_noticed(planned, tmp_path, target):
    """The comparison itself can fail: the file of one plan is not the decision of another."""
    one = planned(target, "llama-3.1-8b", "dgx-h100", 16, 4096, 64)
    other = planned(target, "llama-3.1-8b", "dgx-h100", 16, 4096, 128)
    write(one, target, tmp_path)
    back = read_decision(read_back(one, target, tmp_path).decision)
    assert differences(read_decision(one.decision), back, target) == []
    assert differences(read_decision(other.decision), back, target) != []


def test_what_is_not_carried_is_a_field_of_a_decision():
    names = set(Decision.__dataclass_fields__)
    for target in WHOLE_FILES:
        assert set(not_carried(target)) <= names
    assert not_carried("deepspeed") == ("schedule",)


MODELS = [
    "llama-2-70b",
    "gpt3-175b",
    "qwen3-30b-a3b",
    "mixtral-8x7b",
    "deepseek-v3",
    "gpt-oss-120b",
    "mistral-7b",
]


@pytest.mark.parametrize("name", MODELS)
def test_megatron_flags_describe_the_model_in_full(name, tmp_path):
    """Layer kinds, sizes and parameters read from the flags are the model's own."""
    sequence = 2048 if name == "gpt3-175b" else 8192
    resolved = resolve(Request(name, cluster="dgx-h100", gpus=16, seq_len=sequence, global_batch=64))
    meshes = legal_meshes(resolved.problem, launcher("megatron").limits)
    keep = (meshes.tp == 2) & (meshes.pp == 2) & (meshes.cp == 1) & (meshes.sequence_parallel == 1)
    plan = plan_of_decision(
        resolved, draw_decision(lambda options: options[0], resolved.problem, meshes.take(keep))
    )
    assert not launcher("megatron").reasons(plan)
    write(plan, "megatron", tmp_path)
    found = importer("megatron")(load_files(str(tmp_path)), Facts())
    model = load_model(name)[0]
    assert found.model is not None
    assert shape_facts(found.model) == shape_facts(model)
    ours = [model.block_kinds[kind] for _, kind in model.block_sequence()]
    theirs = [found.model.block_kinds[kind] for _, kind in found.model.block_sequence()]
    windowless = [
        block.model_copy(update={"attention": block.attention.model_copy(update={"window": None})})
        if (block.attention.window or 0) >= sequence
        else block
        for block in ours
    ]
    assert [json.loads(b.model_dump_json()) for b in theirs] == [
        json.loads(b.model_dump_json()) for b in windowless
    ]
    assert total_parameters(found.model) == total_parameters(model)


@pytest.mark.parametrize("target", DESCRIBES_MODEL)
def test_a_file_that_describes_its_model_has_its_price(planned, tmp_path, target):
    """Without --model the imported plan costs what the exported one costs."""
    plan = planned(target, "llama-3.1-8b", "dgx-h100", 16, 4096, 64)
    write(plan, target, tmp_path)
    back = read_back(plan, target, tmp_path)
    request = Request("llama-3.1-8b", cluster="dgx-h100", gpus=16, seq_len=4096, global_batch=64)
    stack = launcher(target).limits.stack
    again = plan_of_decision(resolve(request, stack), read_decision(plan.decision), stack)
    assert back.prediction.step_seconds == pytest.approx(again.prediction.step_seconds, rel=1e-9)
    assert back.prediction.peak_memory_bytes == pytest.approx(again.prediction.peak_memory_bytes, rel=1e-9)
