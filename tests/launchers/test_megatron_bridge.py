"""Megatron Bridge export: the Megatron-LM flags renamed, one place for each flag, nothing lost."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from planner.errors import UnsupportedByTarget
from planner.launchers.megatron import all_flags
from planner.launchers.megatron_bridge import (
    MEGATRON_BRIDGE,
    OTHERS,
    SWITCHES,
    VALUES,
    needs_own_recipe,
    overrides,
)
from planner.launchers.megatron_model import model_flags
from planner.launchers.registry import launcher
from planner.launchers.run_scripts import machine_size
from planner.plan_file.schema import Plan

Plans = Callable[[str], Plan]


def test_places_are_named_once() -> None:
    places = [*VALUES.values(), *(place for pairs in SWITCHES.values() for place, _ in pairs)]
    assert len(places) == len(set(places))
    assert not (VALUES.keys() | SWITCHES.keys()) & set(OTHERS)


def test_every_flag_has_its_override(plans: Plans, case: str) -> None:
    """Read back by the inverse of the names, the overrides are the flags of the Megatron-LM export."""
    plan = plans(case)
    flags, found = all_flags(plan), overrides(plan)
    if needs_own_recipe(plan):
        kept = {"--seq-length", "--attention-backend"}
        flags = {name: v for name, v in flags.items() if name in kept or name not in model_flags(plan)}
    by_place = {place: name for name, place in VALUES.items()}
    assert {by_place[p]: v for p, v in found.items() if p in by_place} == {
        name: values[0] for name, values in flags.items() if name in VALUES
    }
    switched = {pair for name in flags if name in SWITCHES for pair in SWITCHES[name]}
    assert switched <= set(found.items())
    rest = found.keys() - by_place.keys() - {place for place, _ in switched}
    q, length = plan.decision, str(plan.inputs.workload.sequence_length)
    assert (found["dataset.seq_length"], found["model.seq_length"]) == (length, length)
    wanted = {"dataset.seq_length", "model.seq_length", "mixed_precision"}
    for name, place in {
        "--pipeline-model-parallel-layout": "model.pipeline_model_parallel_layout",
        "--num-layers-per-virtual-pipeline-stage": "model.virtual_pipeline_model_parallel_size",
        "--recompute-modules": "model.recompute_modules",
        "--window-size": "model.window_size",
        "--window-attn-skip-freq": "model.window_attn_skip_freq",
        "--moe-layer-freq": "model.moe_layer_freq",
    }.items():
        wanted |= {place} if name in flags else set()
    assert rest == wanted
    if "--pipeline-model-parallel-layout" in flags:
        assert (
            found["model.pipeline_model_parallel_layout"].strip("'")
            == flags["--pipeline-model-parallel-layout"].pop()
        )
    elif q.virtual_stages > 1:
        assert found["model.virtual_pipeline_model_parallel_size"] == str(q.virtual_stages)


def test_lists_have_one_entry_a_layer(plans: Plans) -> None:
    model = plans("deepseek-v3").inputs.model
    assert model.num_layers == 61
    assert needs_own_recipe(plans("deepseek-v3"))
    assert "model.moe_layer_freq" not in overrides(plans("deepseek-v3"))
    assert overrides(plans("mistral-7b"))["model.window_size"] == "[4095,0]"


def test_torchrun_gets_the_overrides(plans: Plans, tmp_path: Path) -> None:
    plan = plans("gpt3-175b")
    files = MEGATRON_BRIDGE.export(plan)
    assert sorted(files) == ["overrides.json", "run.sbatch", "run.sh"]
    assert machine_size(files["run.sh"]) == (8, 8)
    fake = tmp_path / "torchrun"
    fake.write_text('#!/bin/sh\nprintf \'%s\\n\' "$@" "env:${CUDA_DEVICE_MAX_CONNECTIONS-unset}"\n')
    fake.chmod(0o755)
    (tmp_path / "run.sh").write_text(files["run.sh"])
    environment = {
        "PATH": f"{tmp_path}:/usr/bin:/bin",
        "MEGATRON_BRIDGE": "/bridge",
        "LEARNING_RATE": "1e-4",
        "TRAIN_ITERS": "5",
        "MASTER_ADDR": "node0",
        "NODE_RANK": "0",
    }
    command = ["bash", str(tmp_path / "run.sh"), "logger.log_interval=1"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    words = done.stdout.splitlines()
    at = words.index("/bridge/scripts/training/run_recipe.py")
    assert words[at + 1 : at + 5] == ["--recipe", "vanilla_gpt_pretrain_config", "--mode", "pretrain"]
    stated = [f"{place}={value}" for place, value in overrides(plan).items()]
    assert words[at + 5 : at + 5 + len(stated)] == stated
    assert words[-4:] == [
        "optimizer.lr=1e-4",
        "train.train_iters=5",
        "logger.log_interval=1",
        "env:1",
    ]
    machine = json.loads(files["overrides.json"])
    assert machine["plan_digest"] == plan.inputs.digest
    for name in ("run.sh", "run.sbatch"):
        assert plan.inputs.digest in files[name]
        assert plan.planner_version in files[name]
        subprocess.run(["bash", "-n"], input=files[name], text=True, check=True)


def test_sharded_parameters_are_megatron_fsdp(plans: Plans, changed: Callable[..., Plan]) -> None:
    plan = plans("llama-2-7b")
    places = {f"decision__stages__{i}__layer_strategies__0__sharding": "parameters" for i in range(1)}
    whole = plan.decision.degrees.pp == 1 and len(plan.decision.stages[0].layer_strategies) == 1
    assert whole
    fsdp = overrides(changed(plan, decision__sharding="parameters", **places))
    assert fsdp["dist.use_megatron_fsdp"] == fsdp["ddp.use_megatron_fsdp"] == "true"
    assert fsdp["ddp.data_parallel_sharding_strategy"] == "optim_grads_params"
    assert fsdp["checkpoint.ckpt_format"] == "fsdp_dtensor"


def test_a_model_with_latent_attention_needs_its_own_recipe(plans: Plans) -> None:
    script = MEGATRON_BRIDGE.export(plans("deepseek-v2"))["run.sh"]
    assert "${RECIPE:?" in script
    assert "model.num_layers" not in script
    assert "model.recompute_modules=[layernorm,moe_act,mla_up_proj]" in script


def test_refusals_are_those_of_megatron(plans: Plans, changed: Callable[..., Plan]) -> None:
    assert launcher("megatron-bridge") is MEGATRON_BRIDGE
    bad = changed(plans("llama-2-7b"), decision__rank_order="pp-dp")
    with pytest.raises(UnsupportedByTarget) as caught:
        MEGATRON_BRIDGE.export(bad)
    assert [reason["rule"] for reason in caught.value.details["reasons"]] == ["rank-order"]
