"""DeepSpeed export: what DeepSpeed derives from ds_config.json equals the plan."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from planner.errors import InfeasibleError, InputError, UnsupportedByTarget
from planner.launchers.deepspeed import DEEPSPEED, DEEPSPEED_LIMITS, DEEPSPEED_RULES
from planner.launchers.deepspeed_read import read_deepspeed
from planner.launchers.registry import launcher
from planner.launchers.run_scripts import machine_size
from planner.plan_file.schema import Plan

Planned = Callable[..., Plan]
CASES = {
    "zero2": ("llama-2-7b", "dgx-a100", 8, 4096, 64),
    "zero3-full": ("llama-2-70b", "dgx-a100", 32, 4096, 64),
    "zero1": ("gpt2-xl", "dgx-a100", 8, 1024, 64),
    "tp-zero3": ("gemma-2-27b", "dgx-h100", 16, 4096, 32),
    "tp-zero2": ("llama-3-8b", "pcie-4090x8", 8, 4096, 32),
    "experts": ("mixtral-8x7b", "dgx-h100", 16, 4096, 64),
    "adam-fp16": (
        "gpt2-xl",
        "v100-dgx1",
        8,
        1024,
        64,
        (("sharding", "none"),),
        (("precision", "fp16"), ("optimizer", "adam"), ("attention", "unfused")),
    ),
    "one-gpu": ("gpt2", "dgx-a100", 1, 1024, 8),
}


@pytest.fixture(params=list(CASES))
def plan(request: pytest.FixtureRequest, planned: Planned) -> Plan:
    return planned("deepspeed", *CASES[request.param])


def config_of(plan: Plan) -> dict[str, Any]:
    return dict(json.loads(DEEPSPEED.export(plan)["ds_config.json"]))


def test_read_back_equals_the_plan(plan: Plan) -> None:
    q, d = plan.decision, plan.decision.degrees
    read = read_deepspeed(config_of(plan), plan.inputs.cluster.gpus)
    assert (read["tp"], read["dp"]) == (d.tp, d.dp)
    assert (read["microbatch_size"], read["accumulation"]) == (q.microbatch_size, q.microbatches)
    assert read["global_batch"] == plan.inputs.workload.global_batch
    assert (read["sharding"], read["sharding_group"]) == (q.sharding, "global")
    assert read["recompute"] == q.recompute
    assert read["precision"] == plan.inputs.workload.precision
    assert read["optimizer"] == plan.inputs.workload.optimizer
    assert read["shard_ranks"] == (d.dp if q.sharding == "parameters" else 1)


def test_files_name_their_plan_and_bash_accepts_them(plan: Plan) -> None:
    files = DEEPSPEED.export(plan)
    assert sorted(files) == ["ds_config.json", "run.sbatch", "run.sh", "summary.json"]
    for name in ("run.sh", "run.sbatch"):
        done = subprocess.run(["bash", "-n"], input=files[name], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert plan.inputs.digest in files[name]
    summary = json.loads(files["summary.json"])
    assert summary["plan_digest"] == plan.inputs.digest
    assert summary["training_script"]["sequence_length"] == plan.inputs.workload.sequence_length
    nodes, per_node = machine_size(files["run.sh"])
    assert nodes * per_node == plan.inputs.cluster.gpus
    assert DEEPSPEED.export(plan) == files


def test_golden(planned: Planned) -> None:
    assert config_of(planned("deepspeed", *CASES["zero3-full"])) == {
        "train_batch_size": 64,
        "train_micro_batch_size_per_gpu": 2,
        "gradient_accumulation_steps": 1,
        "bf16": {"enabled": True},
        "data_types": {"grad_accum_dtype": "fp32"},
        "zero_optimization": {
            "stage": 3,
            "overlap_comm": True,
            "contiguous_gradients": True,
            "reduce_scatter": True,
        },
        "optimizer": {"type": "AdamW", "params": {"lr": "auto"}},
        "activation_checkpointing": {
            "partition_activations": False,
            "contiguous_memory_optimization": False,
            "cpu_checkpointing": False,
        },
    }


def test_batch_with_tp_is_left_to_two_numbers(planned: Planned) -> None:
    plan = planned("deepspeed", *CASES["tp-zero2"])
    config = config_of(plan)
    assert "train_batch_size" not in config
    assert plan.decision.degrees.tp > 1
    assert config["tensor_parallel"] == {"autotp_size": plan.decision.degrees.tp}


def test_adam_is_not_decoupled(planned: Planned) -> None:
    config = config_of(planned("deepspeed", *CASES["adam-fp16"]))
    assert config["optimizer"] == {"type": "Adam", "params": {"lr": "auto", "adam_w_mode": False}}
    assert config["fp16"] == {"enabled": True}
    assert config["zero_optimization"] == {"stage": 0}


def test_island_becomes_a_secondary_partition(planned: Planned, changed: Callable[..., Plan]) -> None:
    island = changed(
        planned("deepspeed", *CASES["zero3-full"]),
        decision__sharding_group="island",
        decision__recompute="full",
    )
    config = config_of(island)
    assert config["zero_optimization"]["zero_hpz_partition_size"] == 8
    read = read_deepspeed(config, 32)
    assert (read["sharding_group"], read["shard_ranks"], read["dp"]) == ("island", 8, 32)
    assert any("hpZ" in note for note in json.loads(DEEPSPEED.export(island)["summary.json"])["notes"])


def run(files: dict[str, str], folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """run.sh with a torchrun that prints its arguments and the configuration it was given."""
    for name, text in files.items():
        (folder / name).write_text(text)
    fake = folder / "torchrun"
    fake.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\nfor last; do :; done\ncat "$last"\n')
    fake.chmod(0o755)
    path = f"{folder}{os.pathsep}{os.environ['PATH']}"
    environment = {
        "PATH": path,
        "TRAIN_SCRIPT": "/train.py",
        "MASTER_ADDR": "n0",
        "NODE_RANK": "0",
    } | variables
    return subprocess.run(
        ["bash", str(folder / "run.sh")], env=environment, capture_output=True, text=True, check=False
    )


def test_run_script_fills_in_the_learning_rate(planned: Planned, tmp_path: Path) -> None:
    files = DEEPSPEED.export(planned("deepspeed", *CASES["zero2"]))
    done = run(files, tmp_path, LEARNING_RATE="3e-4")
    words = done.stdout.split("{")[0].split()
    assert words[words.index("/train.py") + 1 :][:2] == ["--deepspeed", "--deepspeed_config"]
    given = json.loads(done.stdout[done.stdout.index("{") :])
    assert given["optimizer"]["params"] == {"lr": 3e-4}
    assert read_deepspeed(given, 8) == read_deepspeed(json.loads(files["ds_config.json"]), 8)


def test_run_script_for_transformers_and_missing_values(planned: Planned, tmp_path: Path) -> None:
    files = DEEPSPEED.export(planned("deepspeed", *CASES["zero2"]))
    done = run(files, tmp_path, TRAINER="transformers")
    assert f"--deepspeed\n{tmp_path}/ds_config.json\n" in done.stdout
    assert "LEARNING_RATE: set it" in run(files, tmp_path).stderr
    assert "not a number" in run(files, tmp_path, LEARNING_RATE="1/;id").stderr
    assert "TRAIN_SCRIPT: set it" in run(files, tmp_path, TRAIN_SCRIPT="").stderr


@pytest.mark.parametrize(
    ("rule", "places"),
    [
        ("world-identity", {"decision__degrees__dp": 4}),
        ("batch-identity", {"decision__microbatches": 3}),
        ("whole-nodes", {"inputs__cluster__gpus": 12}),
        ("rank-order", {"decision__rank_order": "dp-tp"}),
        ("no-pipeline", {"decision__degrees__pp": 2}),
        ("no-virtual-stages", {"decision__virtual_stages": 2}),
        ("schedule", {"decision__schedule": "interleaved"}),
        ("no-context", {"decision__degrees__cp": 2}),
        ("no-expert-groups", {"decision__degrees__ep": 2}),
        ("stages-cover-layers", {"decision__stages__0__layers": (0, 30)}),
        ("heads-by-tp", {"decision__degrees__tp": 3}),
        ("ffn-by-tp", {"decision__degrees__tp": 3}),
        ("sequence-parallel", {"decision__degrees__tp": 2, "decision__sequence_parallel": True}),
        ("recompute", {"decision__stages__0__layer_strategies__0__recompute": "selective"}),
        ("layer-choices", {"decision__stages__0__layer_strategies__0__sharding": "none"}),
        ("island-sharding", {"decision__sharding_group": "island"}),
        ("optimizer", {"inputs__workload__optimizer": "adafactor"}),
        ("gather-units", {"decision__stages__0__layer_strategies__0__gather_unit": "part"}),
        ("precision", {"inputs__workload__precision": "fp8"}),
        ("kernels", {"inputs__cluster__device__generation": "volta"}),
    ],
)
def test_every_rule_has_a_reason(
    planned: Planned, changed: Callable[..., Plan], rule: str, places: dict[str, Any]
) -> None:
    good = planned("deepspeed", *CASES["zero2"])
    assert DEEPSPEED.reasons(good) == []
    reasons = {reason.rule: reason for reason in DEEPSPEED.reasons(changed(good, **places))}
    assert rule in reasons
    assert reasons[rule].numbers
    assert reasons[rule].nearest


def test_experts_with_tp_and_island_with_tp(planned: Planned, changed: Callable[..., Plan]) -> None:
    experts = changed(planned("deepspeed", *CASES["experts"]), decision__degrees__tp=2)
    assert "experts-with-tp" in {reason.rule for reason in DEEPSPEED.reasons(experts)}
    split = changed(planned("deepspeed", *CASES["tp-zero3"]), decision__sharding_group="island")
    assert [reason.rule for reason in DEEPSPEED.reasons(split)] == ["island-sharding"]
    with pytest.raises(UnsupportedByTarget, match="consecutive ranks and tp is 2"):
        DEEPSPEED.export(split)


def test_a_plan_of_another_target_is_refused_with_all_reasons(plans: Callable[[str], Plan]) -> None:
    with pytest.raises(UnsupportedByTarget) as caught:
        DEEPSPEED.export(plans("deepseek-v2"))
    assert {"no-pipeline", "recompute"} <= {reason["rule"] for reason in caught.value.details["reasons"]}


@pytest.mark.parametrize(
    ("pins", "rule"),
    [((("pp", 2),), "target-degrees"), ((("tp", 16),), "target-degrees"), ((("cp", 2),), "batch-by-dp")],
)
def test_search_stays_inside_the_limits(
    planned: Planned, pins: tuple[tuple[str, int], ...], rule: str
) -> None:
    with pytest.raises(InfeasibleError) as caught:  # 64 heads, 8 key/value heads
        planned("deepspeed", "qwen2.5-72b", "dgx-h100", 128, 4096, 128, pins)
    assert caught.value.details["rule"] == rule


def test_registry_and_rule_names() -> None:
    assert launcher("deepspeed") is DEEPSPEED
    assert DEEPSPEED.limits is DEEPSPEED_LIMITS
    names = [rule.name for rule in DEEPSPEED_RULES]
    assert len(set(names)) == len(names)


GOOD: dict[str, Any] = {"train_micro_batch_size_per_gpu": 2, "gradient_accumulation_steps": 4}


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"zero_optimizatoin": {"stage": 3}}, "zero_optimization"),  # DeepSpeed: accepted, no sharding
        ({"train_batch_size": 100}, "train_batch_size 100 is not"),
        ({"bf16": {"enabled": True}, "fp16": {"enabled": True}}, "both enabled"),
        ({"zero_optimization": {"stage": 4}}, "stage 4"),
        ({"zero_optimization": {"stage": 3, "mics_shard_size": 4}}, "removed"),
        ({"zero_optimization": {"stage": 3, "zero_hpz_partition_size": 5}}, "divisor"),  # DeepSpeed: accepted
        ({"zero_optimization": {"stage": 2, "zero_hpz_partition_size": 4}}, "stage 3"),
        ({"tensor_parallel": {"autotp_size": 3}}, "not a multiple"),
        ({"tensor_parallel": {"autotp_size": 2}, "train_batch_size": 32}, "counts tp ranks too"),
        ({"sequence_parallel_size": 2}, "Ulysses"),
        ({"train_micro_batch_size_per_gpu": "auto"}, "whole number"),
        ({"zero_optimization": 3}, "must be an object"),
    ],
)
def test_reader_refuses(extra: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        read_deepspeed(GOOD | extra, 8)
    assert message in f"{caught.value} {caught.value.details} {caught.value.hint}"


@pytest.mark.parametrize(
    ("batch", "expected"),
    [
        ({"train_batch_size": 64, "train_micro_batch_size_per_gpu": 2}, (2, 4)),
        ({"train_batch_size": 64, "gradient_accumulation_steps": 4}, (2, 4)),
        ({"train_batch_size": 64}, (8, 1)),
        ({"train_micro_batch_size_per_gpu": 3}, (3, 1)),
    ],
)
def test_batch_is_completed_as_deepspeed_does(batch: dict[str, int], expected: tuple[int, int]) -> None:
    read = read_deepspeed(batch, 8)
    assert (read["microbatch_size"], read["accumulation"]) == expected
    with pytest.raises(InputError, match="neither"):
        read_deepspeed({"gradient_accumulation_steps": 2}, 8)


@pytest.mark.heavy
def test_deepspeed_reads_the_same(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    module = pytest.importorskip("deepspeed.runtime.config")
    world = plan.inputs.cluster.gpus
    monkeypatch.setattr(module.dist, "get_rank", lambda *_: 0)
    monkeypatch.setattr(module.dist, "get_world_size", lambda *_: world)
    config = config_of(plan)
    ours = read_deepspeed(config, world)
    theirs = module.DeepSpeedConfig(config)
    assert theirs.train_micro_batch_size_per_gpu == ours["microbatch_size"]
    assert theirs.gradient_accumulation_steps == ours["accumulation"]
    assert theirs.train_batch_size == ours["global_batch"] * ours["tp"]
    assert int(theirs.zero_optimization_stage) == ["none", "optimizer", "gradients", "parameters"].index(
        ours["sharding"]
    )
    assert max(1, theirs.tensor_parallel_config.autotp_size) == ours["tp"]
    assert theirs.zero_config.zero_hpz_partition_size == 1


@pytest.mark.heavy
def test_deepspeed_accepts_what_only_our_reader_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    module = pytest.importorskip("deepspeed.runtime.config")
    monkeypatch.setattr(module.dist, "get_rank", lambda *_: 0)
    monkeypatch.setattr(module.dist, "get_world_size", lambda *_: 8)
    misspelt = module.DeepSpeedConfig(GOOD | {"zero_optimizatoin": {"stage": 3}})
    assert int(misspelt.zero_optimization_stage) == 0
    module.DeepSpeedConfig(GOOD | {"zero_optimization": {"stage": 3, "zero_hpz_partition_size": 5}})
    with pytest.raises(Exception, match="train_batch_size"):
        module.DeepSpeedConfig(GOOD | {"train_batch_size": 100})
