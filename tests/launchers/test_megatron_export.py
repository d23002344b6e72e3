"""Megatron-LM export: what the flags make Megatron-LM do equals the plan."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from planner.errors import InputError, UnknownName
from planner.launchers.megatron import MEGATRON, MEGATRON_LIMITS, all_flags, environment_of
from planner.launchers.megatron_model import pattern
from planner.launchers.megatron_read import parse_layout, read_flags, split_flags
from planner.launchers.megatron_stages import stage_sizes
from planner.launchers.registry import launcher, launcher_names
from planner.plan_file.schema import Plan

Plans = Callable[[str], Plan]


def words(plan: Plan) -> list[str]:
    """The plan's flags as a command line behind torchrun's options."""
    data = json.loads(MEGATRON.export(plan)["flags.json"])
    machine = ["--nnodes", str(data["nodes"]), "--nproc-per-node", str(data["gpus_per_node"])]
    return [*machine, *(word for name, values in data["flags"].items() for word in (name, *values))]


def test_read_back_equals_the_plan(plans: Plans, case: str) -> None:
    plan = plans(case)
    q, d = plan.decision, plan.decision.degrees
    read = read_flags(words(plan))
    assert read["world_size"] == plan.inputs.cluster.gpus
    assert (read["tp"], read["pp"], read["cp"], read["dp"]) == (d.tp, d.pp, d.cp, d.dp)
    assert read["ep"] == d.ep
    if plan.inputs.model.is_moe:
        assert read["expert_tp"] == d.expert_tp
    assert (read["microbatch_size"], read["microbatches"]) == (q.microbatch_size, q.microbatches)
    assert read["global_batch"] == plan.inputs.workload.global_batch
    assert read["virtual_stages"] == q.virtual_stages
    assert read["stage_layers"] == stage_sizes(plan)
    assert read["sequence_parallel"] == q.sequence_parallel
    assert read["recompute"] == {"mixed": "block"}.get(q.recompute, q.recompute)
    if q.recompute == "mixed":
        full = [min(read["recompute_layers"], count) for count in stage_sizes(plan)]
        modes = [[run.recompute for run in stage.layer_strategies] for stage in q.stages]
        spans = [stage.layer_strategies[0].layers for stage in q.stages]
        front = [last - first + 1 for first, last in spans]
        assert full == [count * (m[0] == "full") for count, m in zip(front, modes, strict=True)]
    assert read["sharding"] == q.sharding


def test_train_script_hands_torchrun_the_same_flags(
    plans: Plans, case: str, run_script: Callable[..., list[str]]
) -> None:
    plan = plans(case)
    *argv, connections = run_script(MEGATRON.export(plan))
    flags = split_flags(argv)
    assert all_flags(plan).items() <= {k: v for k, v in flags.items() if k != "--log-interval"}.items()
    assert flags["--log-interval"] == ["1"]  # arguments of train.sh pass through
    assert flags["--rdzv-endpoint"][0] == "node0:29500"
    assert "/megatron/pretrain_gpt.py" in argv
    assert read_flags(argv)["dp"] == plan.decision.degrees.dp
    wanted = environment_of(plan).get("CUDA_DEVICE_MAX_CONNECTIONS", "7")
    assert connections == f"env:{wanted if wanted is not None else 'unset'}"


@pytest.mark.parametrize(
    ("outside", "inside"),
    [
        ({}, "expandable_segments:True"),
        ({"PYTORCH_CUDA_ALLOC_CONF": "max_split_size_mb:64"}, "max_split_size_mb:64"),
    ],
)
def test_the_allocator_is_the_one_the_memory_model_assumes_unless_set_outside(
    plans: Plans, tmp_path: Path, outside: dict[str, str], inside: str
) -> None:
    """The caching allocator's slack is that of expandable segments (Constants.allocator_slack)."""
    for case in ("llama-2-7b", "mistral-7b"):
        (tmp_path / "train.sh").write_text(MEGATRON.export(plans(case))["train.sh"])
        (tmp_path / "torchrun").write_text('#!/bin/sh\nprintf %s "$PYTORCH_CUDA_ALLOC_CONF"\n')
        (tmp_path / "torchrun").chmod(0o755)
        asked = ("MEGATRON_LM", "LEARNING_RATE", "TRAIN_ITERS", "ROTARY_BASE", "MOCK_DATA")
        needed = dict.fromkeys(asked, "1")
        environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", **needed, **outside}
        command = ["bash", str(tmp_path / "train.sh")]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        assert done.stdout == inside


def test_bash_accepts_the_scripts_and_files_name_their_plan(plans: Plans, case: str) -> None:
    plan = plans(case)
    files = MEGATRON.export(plan)
    assert sorted(files) == ["flags.json", "train.sbatch", "train.sh"]
    for name in ("train.sh", "train.sbatch"):
        done = subprocess.run(["bash", "-n"], input=files[name], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert plan.inputs.digest in files[name]
        assert plan.planner_version in files[name]
    assert json.loads(files["flags.json"])["plan_digest"] == plan.inputs.digest
    assert MEGATRON.export(plan) == files
    assert f"#SBATCH --nodes={-(-plan.inputs.cluster.gpus // 8)}\n" in files["train.sbatch"]


@pytest.mark.parametrize(
    ("case_name", "expected"),
    [
        ("llama-2-7b", {"--num-layers": ["32"], "--swiglu": [], "--disable-bias-linear": [], "--bf16": []}),
        ("llama-2-7b", {"--normalization": ["RMSNorm"], "--position-embedding-type": ["rope"]}),
        ("llama-3-8b-cp", {"--num-query-groups": ["8"], "--cp-comm-type": ["p2p"], "--optimizer": ["adam"]}),
        ("llama-3-8b-fp8", {"--fp8-format": ["hybrid"], "--fp8-recipe": ["tensorwise"], "--bf16": []}),
        ("llama-3-8b-fp8", {"--recompute-modules": ["layernorm"], "--sequence-parallel": []}),
        ("gpt3-175b", {"--position-embedding-type": ["learned_absolute"], "--hidden-dropout": ["0.1"]}),
        ("gpt2-unfused", {"--fp16": [], "--recompute-modules": ["core_attn"], "--optimizer": ["sgd"]}),
        ("gpt2-unfused", {"--attention-backend": ["unfused"], "--accumulate-allreduce-grads-in-fp32": []}),
        ("qwen2.5-72b-b200", {"--add-qkv-bias": [], "--disable-bias-linear": []}),
        ("mixtral-8x7b", {"--num-experts": ["8"], "--moe-router-topk": ["2"], "--moe-grouped-gemm": []}),
        ("qwen3-30b-a3b", {"--qk-layernorm": [], "--kv-channels": ["128"], "--moe-ffn-hidden-size": ["768"]}),
        (
            "deepseek-v2",
            {"--multi-latent-attention": [], "--q-lora-rank": ["1536"], "--qk-head-dim": ["128"]},
        ),
        ("deepseek-v2", {"--moe-layer-freq": ["([0]*1+[1]*59)"], "--attention-backend": ["fused"]}),
        ("deepseek-v2", {"--recompute-modules": ["layernorm", "moe_act", "mla_up_proj"]}),
        ("deepseek-v2", {"--moe-shared-expert-intermediate-size": ["3072"]}),
        ("deepseek-v3", {"--moe-layer-freq": ["([0]*3+[1]*58)"], "--moe-router-enable-expert-bias": []}),
        ("gpt-oss-120b", {"--window-size": ["(127,0)"], "--window-attn-skip-freq": ["([1]*1+[0]*1)*18"]}),
        ("gpt-oss-120b", {"--softmax-type": ["learnable"], "--no-bias-dropout-fusion": []}),
        ("mistral-7b", {"--window-size": ["(4095,0)"]}),
        ("llama-2-70b-full", {"--recompute-granularity": ["full"], "--recompute-method": ["uniform"]}),
        (
            "llama-2-70b-fsdp",
            {"--data-parallel-sharding-strategy": ["optim_grads_params"], "--ckpt-format": ["fsdp_dtensor"]},
        ),
    ],
)
def test_flags_of_models_and_recipes(plans: Plans, case_name: str, expected: dict[str, list[str]]) -> None:
    flags = all_flags(plans(case_name))
    assert {name: flags.get(name) for name in expected} == expected


def test_flags_that_must_be_absent(plans: Plans) -> None:
    assert "--untie-embeddings-and-output-weights" not in all_flags(plans("gpt3-175b"))
    assert "--expert-tensor-parallel-size" not in all_flags(plans("llama-2-7b"))
    assert "--group-query-attention" not in all_flags(plans("deepseek-v2"))
    assert "--window-attn-skip-freq" not in all_flags(plans("mistral-7b"))
    assert "--recompute-granularity" not in all_flags(plans("llama-2-7b"))


def test_environment_follows_the_generation_and_fsdp(plans: Plans) -> None:
    name = "CUDA_DEVICE_MAX_CONNECTIONS"
    assert environment_of(plans("llama-3-8b-cp")) == {name: "1"}
    assert environment_of(plans("llama-2-70b-fsdp")) == {name: None}
    assert environment_of(plans("mistral-7b")) == {}  # neither tensor nor context parallel
    blackwell = plans("qwen2.5-72b-b200")
    assert blackwell.decision.degrees.tp > 1
    assert environment_of(blackwell) == {}


@pytest.mark.parametrize(
    ("text", "counts"),
    [
        ("Et*3|t*4|t*4|t*3L", [3, 4, 4, 3]),
        ("Ettt|(tt|)*3,m|L", [3, 2, 2, 2, 0, 0]),
        ("E|t*10|tL", [0, 10, 1]),
    ],
)
def test_layout_strings_unroll(text: str, counts: list[int]) -> None:
    assert [stage.count("t") for stage in parse_layout(text)] == counts


def test_uneven_stages_become_a_layout(plans: Plans, changed: Callable[..., Plan]) -> None:
    even = plans("llama-2-70b-full")
    runs = [(0, 17), (18, 38), (39, 60), (61, 79)]
    places: dict[str, Any] = {}
    for index, span in enumerate(runs):
        places[f"decision__stages__{index}__layers"] = span
        places[f"decision__stages__{index}__layer_strategies__0__layers"] = span
    flags = all_flags(changed(even, **places))
    assert flags["--pipeline-model-parallel-layout"] == ["Et*18|t*21|t*22|t*19L"]
    assert "--num-layers-per-virtual-pipeline-stage" not in flags


def test_one_layer_stages_in_a_layout(plans: Plans) -> None:
    text = all_flags(plans("qwen3-30b-a3b")).get("--pipeline-model-parallel-layout")
    sizes = stage_sizes(plans("qwen3-30b-a3b"))
    assert text is not None
    letters = [f"t*{n}" if n > 1 else "t" for n in sizes]
    assert text == ["E" + "|".join(letters) + "L"]


def test_even_virtual_stages_use_the_plain_flag(plans: Plans) -> None:
    flags = all_flags(plans("gpt3-175b"))
    assert flags["--num-layers-per-virtual-pipeline-stage"] == ["2"]
    assert "--pipeline-model-parallel-layout" not in flags


def test_patterns() -> None:
    assert pattern([False, True, True]) == "([0]*1+[1]*2)"
    assert pattern([True, False] * 3) == "([1]*1+[0]*1)*3"


def test_shell_quoting_survives_hostile_names(
    plans: Plans, changed: Callable[..., Plan], run_script: Callable[..., list[str]]
) -> None:
    name = "x\nexit 7 #`touch hacked`$(id)'\""
    plan = changed(plans("qwen3-30b-a3b"), inputs__model__name=name)
    files = MEGATRON.export(plan)
    assert "\nexit 7" not in files["train.sh"]
    assert "--job-name=x-exit-7-touch-hacked-id\n" in files["train.sbatch"]
    argv = run_script(files)
    assert read_flags(argv)["stage_layers"] == stage_sizes(plan)  # | and * reach torchrun unharmed


@pytest.mark.parametrize(
    "missing", ["MEGATRON_LM", "LEARNING_RATE", "ROTARY_BASE", "MASTER_ADDR", "MOCK_DATA"]
)
def test_unset_variables_are_named(plans: Plans, run_script: Callable[..., list[str]], missing: str) -> None:
    files = MEGATRON.export(plans("mixtral-8x7b"))
    wanted = "DATA_PATH" if missing == "MOCK_DATA" else missing
    with pytest.raises(RuntimeError, match=f"{wanted}: set it to"):
        run_script(files, **{missing: ""})


def test_data_paths_and_iterations(plans: Plans, run_script: Callable[..., list[str]]) -> None:
    files = MEGATRON.export(plans("llama-3-8b-fp8"))
    argv = run_script(files, MOCK_DATA="", DATA_PATH="0.3 /a b 0.7 /c", TOKENIZER="/my tok", TRAIN_ITERS="")
    flags = split_flags(argv)
    assert flags["--data-path"] == ["0.3", "/a", "b", "0.7", "/c"]
    assert flags["--tokenizer-model"] == ["/my tok"]
    assert flags["--train-iters"] == [str(-(-(10**9) // (8192 * 64)))]


def test_registry_and_limits() -> None:
    assert "megatron" in launcher_names()
    assert launcher("megatron") is MEGATRON
    assert MEGATRON.limits is MEGATRON_LIMITS
    assert "own rule table" in MEGATRON.verified_by
    with pytest.raises(UnknownName, match="megatron"):
        launcher("megatrom")


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--global-batch-size", "7"], "global batch 7"),
        (["--pipeline-model-parallel-layout", "Et*3|t*5L"], "the layout holds 8 layers"),
        (["--pipeline-model-parallel-layout", "t*31|tL"], "start with E"),
        (["--pipeline-model-parallel-size", "3"], "world size 8"),
        (["--num-layers", "x"], "positive whole number"),
        (["--micro-batch-size"], "missing or has no value"),
    ],
)
def test_read_back_refuses_contradictions(plans: Plans, extra: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_flags([*words(plans("llama-2-7b")), *extra])


def test_read_back_without_a_world_size(plans: Plans) -> None:
    read = read_flags(words(plans("llama-2-7b"))[4:])
    assert (read["world_size"], read["dp"], read["microbatches"]) == (None, None, None)
