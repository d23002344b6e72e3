"""Megatron-LM rules: for each, a plan that passes and one that breaks exactly it, with its numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from planner.catalog import load_model
from planner.errors import EXIT_TARGET, UnsupportedByTarget
from planner.launchers.base import nearest_divisor
from planner.launchers.megatron import MEGATRON, all_flags
from planner.launchers.megatron_model_rules import MODEL_RULES
from planner.launchers.megatron_rules import PARALLEL_RULES
from planner.plan_file.schema import Plan

Changed = Callable[..., Plan]
D = "decision__degrees__"
BLOCK = "inputs__model__block_kinds__block__"
LAYER = "decision__stages__0__layer_strategies__0__"
EMBED = "inputs__model__stacks__0__embedding__"
LOAD = "inputs__workload__"
GENERATION = "inputs__cluster__device__generation"
LATENT_RANK = "inputs__model__block_kinds__dense__attention__kv_lora_rank"
NINE_GROUPS = {BLOCK + "attention__num_heads": 36, BLOCK + "attention__num_kv_heads": 9, D + "tp": 6}
ON_HOST = {"decision__offload": "optimizer"}
TURING = {GENERATION: "turing", LOAD + "attention": "unfused"}

# rule, plan, changes, a number the message must hold, what must be offered. Other rules may break as well.
STAGE = "decision__stages__0__layers"
BAD: list[tuple[str, str, dict[str, Any], str, str]] = [
    ("world-identity", "llama-2-7b", {D + "dp": 7}, "for 8 GPUs", "7 GPUs"),
    ("batch-identity", "llama-2-7b", {"decision__microbatches": 3}, "workload 64", "4 microbatches"),
    ("batch-identity", "llama-2-7b", {LOAD + "global_batch": 72}, "workload 72", "a global batch of 64"),
    ("whole-nodes", "llama-3-8b-cp", {"inputs__cluster__gpus": 12}, "12 GPUs in nodes of 8", "8 GPUs"),
    ("rank-order", "llama-2-7b", {"decision__rank_order": "dp-tp"}, "dp-tp", "tp-cp-dp-pp"),
    ("heads-by-tp", "llama-2-7b", {D + "tp": 5}, "32 heads over tp 5", "tp 4"),
    ("heads-by-tp", "llama-3-8b-cp", NINE_GROUPS, "9 key/value heads and tp 6", "tp 3"),
    ("ffn-by-tp", "llama-2-7b", {D + "tp": 3}, "11008 over tp 3", "tp 2"),
    ("ffn-by-tp", "mixtral-8x7b", {D + "expert_tp": 3}, "14336 over expert_tp 3", "expert_tp 2"),
    ("stages-cover-layers", "llama-2-7b", {STAGE: (0, 30)}, "0-30 on rank 0", "0 to 31"),
    ("stages-cover-layers", "gpt3-175b", {"decision__stages__1__rank": 0}, "on rank 0", "stage k on rank"),
    ("schedule", "gpt2-unfused", {"decision__schedule": "gpipe"}, "gpipe", "1f1b"),
    ("schedule", "gpt2-unfused", {"decision__schedule": "interleaved"}, "1 virtual stages", "1f1b"),
    ("schedule", "gpt3-175b", {"decision__schedule": "1f1b"}, "6 virtual stages", "interleaved"),
    ("schedule", "gpt3-175b", {"decision__microbatches": 12}, "12 microbatches for pp 8", "8 microbatches"),
    ("experts-by-ep", "llama-2-7b", {D + "ep": 2}, "ep 2 and no experts", "ep 1"),
    ("experts-by-ep", "mixtral-8x7b", {D + "ep": 16}, "8 experts over ep 16", "ep 8"),
    ("expert-ranks", "mixtral-8x7b", {D + "ep": 16}, "in a stage of 8 ranks", "= 8"),
    ("experts-need-sequence-parallel", "deepseek-v2", {"decision__sequence_parallel": False}, "tp 2", "on"),
    ("sequence-by-cp", "llama-3-8b-cp", {LOAD + "sequence_length": 8190}, "8190, cp 2", "8188"),
    ("sequence-by-cp", "llama-3-8b-fp8", {LOAD + "sequence_length": 8191}, "8191", "multiple of 2"),
    ("context-parallel-kernel", "llama-3-8b-cp", {LOAD + "attention": "unfused"}, "cp 2", "flash"),
    ("layer-choices", "llama-2-7b", {LAYER + "sharding": "parameters"}, "0 to 31: sharding", "gradients"),
    ("layer-choices", "llama-2-7b", {LAYER + "tp": 2}, "tp 2", "tp 1 on every layer"),
    ("fsdp-pipeline", "gpt2-unfused", {"decision__sharding": "parameters"}, "with pp 4", "pp 1"),
    ("gather-units", "llama-2-7b", {LAYER + "gather_unit": "matrix"}, "0 to 31 gather by matrix", "by block"),
    ("offload", "llama-2-7b", ON_HOST | {"decision__sharding": "parameters"}, "Megatron-FSDP", "optimizer"),
    ("offload", "gpt2-unfused", ON_HOST, "fp16 with sgd-momentum", "bf16 with adamw"),
    ("optimizer", "llama-2-7b", {LOAD + "optimizer": "adafactor"}, "adafactor", "adamw"),
    ("kernels", "llama-2-7b", {GENERATION: "volta"}, "volta", "unfused"),
    ("kernels", "mixtral-8x7b", TURING, "grouped", "ampere"),
    ("block-order", "llama-2-7b", {BLOCK + "num_norms": 4}, "4 norms", "two norms"),
    ("block-order", "llama-2-7b", {BLOCK + "parallel": True}, "parallel", "attention before"),
    ("block-order", "llama-2-7b", {"inputs__model__stacks__0__final_norm": False}, "no norm", "final norm"),
    ("model-ends", "llama-2-7b", {EMBED + "norm": True}, "norm after the embedding", "plain projection"),
    ("model-ends", "llama-2-7b", {"inputs__model__head__soft_cap": True}, "capped logits", "plain"),
    ("model-kind", "llama-2-7b", {BLOCK + "attention__causal": False}, "both directions", "causal decoder"),
    ("positions", "gpt3-175b", {LOAD + "sequence_length": 4096}, "position table 2048", "length 2048"),
    ("positions", "llama-2-7b", {"inputs__model__family": "bloom"}, "ALiBi", "rotary"),
    ("positions", "llama-2-7b", {BLOCK + "attention__relative_bias_buckets": 32}, "relative", "rotary"),
    ("activation", "gpt3-175b", {"inputs__model__family": "opt"}, "ReLU", "GELU"),
    ("equal-blocks", "deepseek-v2", {LATENT_RANK: 256}, "differ in attention", "one shape"),
    ("biases", "gpt3-175b", {BLOCK + "feed_forward__bias": False}, "feed-forward False", "all three"),
    ("biases", "gpt3-175b", {BLOCK + "norm__bias": False}, "layernorm with bias False", "rmsnorm"),
    ("biases", "gpt-oss-120b", {D + "expert_tp": 2}, "expert_tp 2", "expert_tp 1"),
    ("ring-attention", "mistral-7b", {D + "cp": 2}, "sliding windows with cp 2", "cp 1"),
]  # fmt: skip


@pytest.mark.parametrize(("rule", "case_name", "changes", "numbers", "nearest"), BAD)
def test_a_broken_rule_says_its_numbers(
    plans: Callable[[str], Plan],
    changed: Changed,
    rule: str,
    case_name: str,
    changes: dict[str, Any],
    numbers: str,
    nearest: str,
) -> None:
    good = plans(case_name)
    assert MEGATRON.reasons(good) == []
    found = {reason.rule: reason for reason in MEGATRON.reasons(changed(good, **changes))}
    assert rule in found
    assert numbers in found[rule].numbers
    assert nearest in found[rule].nearest


def test_every_rule_has_a_plan_that_breaks_it() -> None:
    names = {rule.name for rule in (*MODEL_RULES, *PARALLEL_RULES)}
    assert names == {row[0] for row in BAD} | {"recompute", "optimizer-instances"}


def full_counts(plan: Plan, changed: Changed, counts: list[int], mode: str = "full") -> Plan:
    """The plan with the first ``counts[k]`` layers of virtual stage k in ``mode``, the rest kept."""
    places: dict[str, Any] = {"decision__recompute": "mixed"}
    for index, (stage, count) in enumerate(zip(plan.decision.stages, counts, strict=True)):
        run = stage.layer_strategies[0].model_dump()
        first, last = stage.layers
        runs = []
        if count:
            runs.append(run | {"layers": (first, first + count - 1), "recompute": mode})
        if first + count <= last:
            runs.append(run | {"layers": (first + count, last), "recompute": "none"})
        places[f"decision__stages__{index}__layer_strategies"] = runs
    return changed(plan, **places)


def sizes(plan: Plan) -> list[int]:
    return [stage.layers[1] - stage.layers[0] + 1 for stage in plan.decision.stages]


def test_full_on_the_first_layers_is_a_block(plans: Callable[[str], Plan], changed: Changed) -> None:
    plan = plans("llama-2-70b-full")
    flags = all_flags(full_counts(plan, changed, [6, 6, 6, 6]))
    assert flags["--recompute-method"] == ["block"]
    assert flags["--recompute-num-layers"] == ["6"]


def test_a_stage_smaller_than_the_block_is_recomputed_whole(
    plans: Callable[[str], Plan], changed: Changed
) -> None:
    plan = plans("qwen3-30b-a3b")
    layers = sizes(plan)
    most = max(layers) - 1
    assert min(layers) < most
    flags = all_flags(full_counts(plan, changed, [min(most, n) for n in layers]))
    assert flags["--recompute-num-layers"] == [str(most)]


@pytest.mark.parametrize(
    ("counts", "mode", "numbers", "nearest"),
    [
        ([6, 5, 6, 6], "full", "[6, 5, 6, 6]", "first 6 layers"),
        ([6, 0, 0, 0], "full", "[6, 0, 0, 0]", "first 6 layers"),
        ([2, 2, 2, 2], "selective", "8 layers selective", "one mode for all layers"),
    ],
)
def test_other_recompute_is_refused(
    plans: Callable[[str], Plan],
    changed: Changed,
    counts: list[int],
    mode: str,
    numbers: str,
    nearest: str,
) -> None:
    plan = full_counts(plans("llama-2-70b-full"), changed, counts, mode)
    (reason,) = MEGATRON.reasons(plan)
    assert reason.rule == "recompute"
    assert numbers in reason.numbers
    assert nearest in reason.nearest


def test_recompute_behind_a_kept_layer_is_refused(plans: Callable[[str], Plan], changed: Changed) -> None:
    plan = full_counts(plans("llama-2-70b-full"), changed, [6, 6, 6, 6])
    runs = [run.model_dump() for run in plan.decision.stages[1].layer_strategies]
    runs[0]["recompute"], runs[1]["recompute"] = "none", "full"
    (reason,) = MEGATRON.reasons(changed(plan, decision__stages__1__layer_strategies=runs))
    assert "virtual stage 1" in reason.numbers


def on_islands(plan: Plan, changed: Changed, sharding: str = "optimizer") -> Plan:
    """The plan sharded inside islands, whatever the search chose."""
    places: dict[str, Any] = {"decision__sharding": sharding, "decision__sharding_group": "island"}
    for index, stage in enumerate(plan.decision.stages):
        for at in range(len(stage.layer_strategies)):
            places[f"decision__stages__{index}__layer_strategies__{at}__sharding"] = sharding
    return changed(plan, **places)


@pytest.mark.parametrize(("sharding", "has_fsdp"), [("optimizer", False), ("parameters", True)])
def test_island_sharding_is_optimizer_instances(
    plans: Callable[[str], Plan], changed: Changed, sharding: str, has_fsdp: bool
) -> None:
    plan = on_islands(plans("llama-2-70b-fsdp"), changed, sharding)
    flags = all_flags(plan)
    assert MEGATRON.reasons(plan) == []
    assert flags["--num-distributed-optimizer-instances"] == ["4"]  # 32 data ranks over islands of 8
    assert ("--use-megatron-fsdp" in flags) == has_fsdp


def test_island_sharding_of_experts_needs_equal_instances(
    plans: Callable[[str], Plan], changed: Changed
) -> None:
    plan = on_islands(plans("gpt-oss-120b"), changed)
    places: dict[str, Any] = {"decision__degrees__ep": 8}
    for index, stage in enumerate(plan.decision.stages):
        for at in range(len(stage.layer_strategies)):
            places[f"decision__stages__{index}__layer_strategies__{at}__ep"] = 8
    plan = changed(plan, **places)
    assert MEGATRON.reasons(plan) == []
    plan = changed(plan, decision__degrees__dp=32, decision__degrees__pp=1, decision__degrees__ep=16)
    found = {reason.rule: reason for reason in MEGATRON.reasons(plan)}
    reason = found["optimizer-instances"]
    assert "dense data group (32 ranks) spans 8 islands" in reason.numbers
    assert "whole data group" in reason.nearest


@pytest.mark.parametrize(
    "name", ["t5-large", "bert-large", "vit-huge-32", "gemma-2-27b", "opt-350m", "bloom-176b"]
)
def test_models_the_gpt_entry_cannot_run(plans: Callable[[str], Plan], changed: Changed, name: str) -> None:
    model, _ = load_model(name)
    plan = changed(plans("gpt3-175b"), inputs__model=model.model_dump(mode="json"))
    rules = {reason.rule for reason in MEGATRON.reasons(plan)}
    assert rules & {rule.name for rule in MODEL_RULES}


def test_export_refuses_with_all_reasons(plans: Callable[[str], Plan], changed: Changed) -> None:
    plan = changed(plans("gpt2-unfused"), decision__schedule="gpipe", decision__rank_order="pp-tp")
    with pytest.raises(UnsupportedByTarget) as caught:
        MEGATRON.export(plan)
    error = caught.value
    assert error.exit_code == EXIT_TARGET
    assert [reason["rule"] for reason in error.details["reasons"]] == ["rank-order", "schedule"]
    assert "--target megatron" in error.hint
    assert all({"statement", "numbers", "nearest"} <= set(r) for r in error.details["reasons"])


@pytest.mark.parametrize(("value", "wanted", "expected"), [(32, 5, 4), (8, 16, 8), (36, 5, 4), (7, 3, 1)])
def test_nearest_divisor(value: int, wanted: int, expected: int) -> None:
    assert nearest_divisor(value, wanted) == expected
