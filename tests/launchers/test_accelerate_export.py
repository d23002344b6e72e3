"""Accelerate export: what Accelerate derives from its files equals the plan."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from planner.errors import InputError, UnsupportedByTarget
from planner.launchers.accelerate import ACCELERATE, ACCELERATE_LIMITS
from planner.launchers.accelerate_read import read_accelerate
from planner.launchers.accelerate_rules import ACCELERATE_RULES
from planner.launchers.registry import launcher
from planner.plan_file.schema import Plan

Planned = Callable[..., Plan]
CASES = {
    "fsdp-keeps": ("llama-2-7b", "dgx-a100", 8, 4096, 64),
    "fsdp-full": ("llama-2-70b", "dgx-a100", 32, 4096, 64, (("tp", 1), ("cp", 1))),
    "tp": ("gemma-2-27b", "dgx-h100", 16, 4096, 32),
    "tp4": ("llama-3-8b", "pcie-4090x8", 8, 4096, 32, (("tp", 4), ("sharding", "gradients"))),
    "cp": ("llama-3-8b", "dgx-h100", 16, 8192, 64, (("cp", 2),)),
    "cp-only": ("llama-3-8b", "dgx-h100", 8, 32768, 4, (("cp", 8),)),
    "hybrid": (
        "llama-3-8b",
        "hgx-h100-eth-100g",
        32,
        8192,
        64,
        (("tp", 1), ("cp", 1), ("sharding", "parameters")),
    ),
    "ddp": (
        "gpt2-xl",
        "v100-dgx1",
        8,
        1024,
        64,
        (("sharding", "none"), ("recompute", "full")),
        (("precision", "fp16"), ("optimizer", "adam"), ("attention", "unfused")),
    ),
    "one-gpu": ("gpt2", "dgx-a100", 1, 1024, 8),
}


@pytest.fixture(params=list(CASES))
def plan(request: pytest.FixtureRequest, planned: Planned) -> Plan:
    return planned("accelerate", *CASES[request.param])


def files_of(plan: Plan) -> tuple[dict[str, Any], dict[str, Any]]:
    files = ACCELERATE.export(plan)
    return yaml.safe_load(files["accelerate.yaml"]), json.loads(files["training_args.json"])


def test_read_back_equals_the_plan(plan: Plan) -> None:
    q, d = plan.decision, plan.decision.degrees
    config, training = files_of(plan)
    read = read_accelerate(config, training)
    assert read["world_size"] == plan.inputs.cluster.gpus
    assert (read["tp"], read["cp"], read["dp"]) == (d.tp, d.cp, d.dp)
    assert (read["microbatch_size"], read["accumulation"]) == (q.microbatch_size, q.microbatches)
    assert read["global_batch"] == plan.inputs.workload.global_batch
    assert (read["sharding"], read["sharding_group"]) == (q.sharding, q.sharding_group)
    assert read["recompute"] == q.recompute
    assert read["precision"] == plan.inputs.workload.precision
    if q.sharding != "none" and q.sharding_group == "global":
        assert read["shard_ranks"] == d.dp * d.cp
    assert training.get("fp16", False) == (plan.inputs.workload.precision == "fp16")


def test_an_island_is_replicate_times_shard(planned: Planned, changed: Callable[..., Plan]) -> None:
    island = changed(planned("accelerate", *CASES["fsdp-full"]), decision__sharding_group="island")
    read = read_accelerate(*files_of(island))
    assert (read["dp_replicate"], read["dp_shard"], read["sharding_group"]) == (4, 8, "island")
    both = changed(planned("accelerate", *CASES["cp"]), decision__sharding_group="island")
    read = read_accelerate(*files_of(both))
    assert (read["dp_replicate"], read["dp_shard"], read["cp"], read["shard_ranks"]) == (2, 4, 2, 8)


def test_files_name_their_plan_and_bash_accepts_them(plan: Plan) -> None:
    files = ACCELERATE.export(plan)
    names = ["accelerate.yaml", "run.sbatch", "run.sh", "summary.json", "training_args.json"]
    assert sorted(files) == names
    for name in ("run.sh", "run.sbatch"):
        done = subprocess.run(["bash", "-n"], input=files[name], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    for name in ("run.sh", "run.sbatch", "accelerate.yaml", "summary.json"):
        assert plan.inputs.digest in files[name]
    assert ACCELERATE.export(plan) == files


def test_golden(planned: Planned) -> None:
    config, training = files_of(planned("accelerate", *CASES["tp4"]))
    assert config == {
        "compute_environment": "LOCAL_MACHINE",
        "distributed_type": "FSDP",
        "mixed_precision": "bf16",
        "num_machines": 1,
        "num_processes": 8,
        "machine_rank": 0,
        "rdzv_backend": "static",
        "same_network": True,
        "main_training_function": "main",
        "use_cpu": False,
        "debug": False,
        "fsdp_config": {
            "fsdp_version": 2,
            "fsdp_reshard_after_forward": False,
            "fsdp_auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
            "fsdp_activation_checkpointing": True,
            "fsdp_offload_params": False,
            "fsdp_state_dict_type": "SHARDED_STATE_DICT",
        },
        "parallelism_config": {
            "parallelism_config_dp_replicate_size": 1,
            "parallelism_config_dp_shard_size": 2,
            "parallelism_config_tp_size": 4,
            "parallelism_config_cp_size": 1,
            "parallelism_config_cp_backend": "torch",
            "parallelism_config_cp_comm_strategy": "allgather",
        },
    }
    assert training == {
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": 16,
        "bf16": True,
        "optim": "adamw_torch_fused",
        "accelerator_config": {"gradient_accumulation_kwargs": {"sync_each_batch": True}},
    }


def test_run_script_starts_accelerate(planned: Planned, tmp_path: Path) -> None:
    files = ACCELERATE.export(planned("accelerate", *CASES["fsdp-full"]))
    (tmp_path / "run.sh").write_text(files["run.sh"])
    fake = tmp_path / "accelerate"
    fake.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    fake.chmod(0o755)
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", str(tmp_path / "run.sh"), "--seed", "1"],
        env={"PATH": path, "TRAIN_SCRIPT": "/t.py", "MASTER_ADDR": "n0", "NODE_RANK": "3"},
        capture_output=True,
        text=True,
        check=False,
    )
    words = done.stdout.split()
    assert words[:3] == ["launch", "--config_file", f"{tmp_path}/accelerate.yaml"]
    assert words[words.index("--machine_rank") + 1] == "3"
    assert words[words.index("--main_process_ip") + 1] == "n0"
    assert words[-3:] == ["/t.py", "--seed", "1"]


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
        ("no-expert-groups", {"decision__degrees__ep": 2}),
        ("stages-cover-layers", {"decision__stages__0__layers": (0, 30)}),
        ("heads-by-tp", {"decision__degrees__tp": 3}),
        ("ffn-by-tp", {"decision__degrees__tp": 3}),
        ("sequence-parallel", {"decision__degrees__tp": 2, "decision__sequence_parallel": True}),
        ("sequence-by-cp", {"decision__degrees__cp": 3}),
        (
            "context-parallel-kernel",
            {"decision__degrees__cp": 2, "inputs__workload__attention": "unfused"},
        ),
        (
            "context-attention",
            {"decision__degrees__cp": 2, "inputs__model__block_kinds__decoder__attention__window": 128},
        ),
        ("recompute", {"decision__stages__0__layer_strategies__0__recompute": "selective"}),
        ("layer-choices", {"decision__stages__0__layer_strategies__0__sharding": "none"}),
        ("sharding", {"decision__sharding": "optimizer"}),
        ("sharded-split", {"decision__sharding": "none", "decision__degrees__tp": 2}),
        (
            "hybrid-mesh",
            {
                "inputs__cluster__gpus": 16,
                "decision__degrees__cp": 8,
                "decision__degrees__dp": 2,
                "decision__sharding_group": "island",
            },
        ),
        ("optimizer", {"inputs__workload__optimizer": "adafactor"}),
        ("offload", {"decision__offload": "optimizer"}),
        ("gather-units", {"decision__stages__0__layer_strategies__0__gather_unit": "part"}),
        ("precision", {"inputs__workload__precision": "fp8"}),
        ("kernels", {"inputs__cluster__device__generation": "volta"}),
    ],
)
def test_every_rule_has_a_reason(
    planned: Planned, changed: Callable[..., Plan], rule: str, places: dict[str, Any]
) -> None:
    good = planned("accelerate", *CASES["fsdp-keeps"])
    assert ACCELERATE.reasons(good) == []
    kind = next(iter(good.inputs.model.block_kinds))
    places = {place.replace("__decoder__", f"__{kind}__"): value for place, value in places.items()}
    reasons = {reason.rule: reason for reason in ACCELERATE.reasons(changed(good, **places))}
    assert rule in reasons
    assert reasons[rule].numbers
    assert reasons[rule].nearest


def test_experts_with_tp(planned: Planned, changed: Callable[..., Plan]) -> None:
    experts = planned("accelerate", "mixtral-8x7b", "dgx-h100", 16, 4096, 64)
    assert ACCELERATE.reasons(experts) == []
    split = changed(experts, decision__degrees__tp=2)
    assert "experts-with-tp" in {reason.rule for reason in ACCELERATE.reasons(split)}


def test_every_rule_is_named_once_and_registered(plans: Callable[[str], Plan]) -> None:
    names = [rule.name for rule in ACCELERATE_RULES]
    assert len(set(names)) == len(names)
    assert launcher("accelerate") is ACCELERATE
    assert ACCELERATE.limits is ACCELERATE_LIMITS
    with pytest.raises(UnsupportedByTarget, match="no-pipeline"):
        ACCELERATE.export(plans("deepseek-v2"))


def good() -> dict[str, Any]:
    mesh = {"parallelism_config_dp_shard_size": 4, "parallelism_config_tp_size": 4}
    return {
        "distributed_type": "FSDP",
        "num_machines": 2,
        "num_processes": 16,
        "fsdp_config": {"fsdp_version": 2, "fsdp_reshard_after_forward": True},
        "parallelism_config": mesh,
    }


TRAINING = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}


@pytest.mark.parametrize(
    ("section", "extra", "message"),
    [
        ("parallelism_config", {"parallelism_config_tpp_size": 2}, "ignores it"),  # Accelerate: accepted
        ("parallelism_config", {"tpp_size": 2}, "ignores it"),
        ("parallelism_config", {"parallelism_config_cp_size": 3}, "= 48 ranks"),  # Accelerate: accepted
        ("parallelism_config", {"parallelism_config_tp_size": 0}, "positive whole number"),
        ("parallelism_config", {"parallelism_config_sp_size": 2, "parallelism_config_tp_size": 2}, "Ulysses"),
        (
            "parallelism_config",
            {"parallelism_config_dp_replicate_size": 4, "parallelism_config_dp_shard_size": 1},
            "replicas only",
        ),
        (
            "parallelism_config",
            {"parallelism_config_dp_shard_size": 1, "parallelism_config_tp_size": 16},
            "no group to shard",
        ),
        ("fsdp_config", {"fsdp_reshard": True}, "ignores it"),
        ("fsdp_config", {"fsdp_version": 1}, "fsdp_version 1"),
        ("fsdp_config", {"fsdp_reshard_after_forward": "FULL_SHARD"}, "FSDP1"),
        ("", {"bogus_key": 1}, "unknown key"),
        ("", {"distributed_type": "MULTI_GPU"}, "needs distributed_type FSDP"),
        ("", {"distributed_type": "DEEPSPEED"}, "DEEPSPEED"),
        ("", {"distributed_type": "NO"}, "16 processes"),
        ("", {"num_machines": 3}, "leaves a remainder"),
        ("", {"fsdp_config": 1}, "must be an object"),
    ],
)
def test_reader_refuses(section: str, extra: dict[str, Any], message: str) -> None:
    config = good()
    (config[section] if section else config).update(extra)
    with pytest.raises(InputError, match=message):
        read_accelerate(config, TRAINING)


def test_reader_without_a_mesh() -> None:
    config = {name: value for name, value in good().items() if name != "parallelism_config"}
    assert read_accelerate(config, TRAINING)["dp_shard"] == 16
    plain = {"distributed_type": "MULTI_GPU", "num_processes": 16}
    read = read_accelerate(plain, TRAINING)
    assert (read["dp_replicate"], read["sharding"], read["global_batch"]) == (16, "none", 128)


@pytest.mark.heavy
def test_accelerate_reads_the_same(plan: Plan, tmp_path: Path) -> None:
    args = pytest.importorskip("accelerate.commands.config.config_args")
    parallelism = pytest.importorskip("accelerate.parallelism_config")
    file = tmp_path / "accelerate.yaml"
    file.write_text(ACCELERATE.export(plan)["accelerate.yaml"])
    theirs = args.load_config_from_file(str(file))
    ours = read_accelerate(*files_of(plan))
    assert theirs.num_processes == ours["world_size"]
    mesh = theirs.parallelism_config
    if ours["sharding"] == "none":
        assert not mesh
        return
    sizes = {
        name.removeprefix("parallelism_config_"): value
        for name, value in mesh.items()
        if name.endswith("_size")
    }
    built = parallelism.ParallelismConfig(**sizes)
    assert built.total_size == ours["world_size"]
    assert built.data_parallel_size == ours["dp"]
    assert (built.tp_size, built.cp_size) == (ours["tp"], ours["cp"])


@pytest.mark.heavy
def test_accelerate_launch_takes_the_file(plan: Plan, tmp_path: Path) -> None:
    launch = pytest.importorskip("accelerate.commands.launch")
    file = tmp_path / "accelerate.yaml"
    file.write_text(ACCELERATE.export(plan)["accelerate.yaml"])
    parsed = launch.launch_command_parser().parse_args(["--config_file", str(file), "train.py"])
    if plan.decision.sharding == "none":
        # Plain data parallelism is validated against the GPUs present; without any, only parsing is left.
        assert parsed.config_file == str(file)
        return
    args, _, _ = launch._validate_launch_command(parsed)
    utils = pytest.importorskip("accelerate.utils.launch")
    args.main_process_port = 29500
    environment = utils.prepare_multi_gpu_env(args)
    ours = read_accelerate(*files_of(plan))
    assert environment["FSDP_VERSION"] == "2"
    assert environment["FSDP_RESHARD_AFTER_FORWARD"] == str(ours["sharding"] == "parameters").lower()
    assert environment["PARALLELISM_CONFIG_DP_SHARD_SIZE"] == str(ours["dp_shard"])
    assert environment["PARALLELISM_CONFIG_TP_SIZE"] == str(ours["tp"])


@pytest.mark.heavy
def test_transformers_takes_the_training_arguments(plan: Plan, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("torch")
    _, training = files_of(plan)
    training = {name: value for name, value in training.items() if name not in ("bf16", "fp16")}
    args = transformers.TrainingArguments(output_dir=str(tmp_path), use_cpu=True, **training)
    assert args.gradient_accumulation_steps == plan.decision.microbatches
    assert args.per_device_train_batch_size == plan.decision.microbatch_size
