"""Native PyTorch export: the script's constants equal the plan, and each rule refuses with its numbers."""

from __future__ import annotations

import ast
import subprocess
from collections.abc import Callable
from typing import Any

import pytest

from planner.catalog import load_model
from planner.errors import InputError, UnsupportedByTarget
from planner.launchers.pytorch import PYTORCH, constants
from planner.launchers.pytorch_read import read_script
from planner.launchers.pytorch_rules import PYTORCH_RULES
from planner.launchers.registry import launcher
from planner.launchers.run_scripts import machine_size
from planner.plan_file.schema import Plan

Planned = Callable[..., Plan]
Changed = Callable[..., Plan]
D, W, MODEL = "decision__", "inputs__workload__", "inputs__model__"
BLOCK = MODEL + "block_kinds__block__"

# name: model, profile, GPUs, sequence, batch, pins, workload fields, memory limit
CASES: dict[str, tuple[Any, ...]] = {
    "llama-2-7b": ("llama-2-7b", "dgx-a100", 8, 4096, 64),
    "llama-3.1-405b": ("llama-3.1-405b", "dgx-h100", 512, 8192, 512),
    "gpt3-175b": ("gpt3-175b", "dgx-a100", 64, 2048, 128, (("tp", 4),)),
    "qwen2.5-7b": ("qwen2.5-7b", "dgx-h100", 16, 4096, 64, (("tp", 4), ("pp", 2), ("schedule", "1f1b"))),
    "qwen2.5-7b-v": ("qwen2.5-7b", "dgx-h100", 16, 4096, 64, (("pp", 2), ("schedule", "zb-v"))),
    "gpt2-unfused": (
        "gpt2-xl",
        "dgx-a100",
        8,
        1024,
        64,
        (("recompute", "selective"), ("pp", 1)),
        (("attention", "unfused"), ("optimizer", "sgd-momentum")),
    ),
    "gpipe": ("llama-2-70b", "dgx-a100", 64, 4096, 128, (("schedule", "gpipe"), ("pp", 8), ("tp", 4))),
}


@pytest.fixture(scope="session")
def pytorch_plans(planned: Planned) -> Callable[[str], Plan]:
    return lambda name: planned("pytorch", *CASES[name])


@pytest.mark.parametrize("name", CASES)
def test_read_back_equals_the_plan(pytorch_plans: Callable[[str], Plan], name: str) -> None:
    plan = pytorch_plans(name)
    q, d = plan.decision, plan.decision.degrees
    files = PYTORCH.export(plan)
    read = read_script(files["train.py"])
    assert read["world_size"] == plan.inputs.cluster.gpus
    assert (read["tp"], read["pp"], read["dp"]) == (d.tp, d.pp, d.dp)
    assert (read["schedule"], read["virtual_stages"]) == (q.schedule, q.virtual_stages)
    assert read["stage_layers"] == [stage.layers[1] - stage.layers[0] + 1 for stage in q.stages]
    runs = [run for stage in q.stages for run in stage.layer_strategies]
    modes = [run.recompute for run in runs for _ in range(run.layers[0], run.layers[1] + 1)]
    assert read["recompute"] == modes
    assert read["sharding"] == q.sharding
    assert read["dp_replicate"] == (d.dp if q.sharding == "none" else 1)
    assert (read["microbatch_size"], read["microbatches"]) == (q.microbatch_size, q.microbatches)
    assert (read["global_batch"], read["sequence_length"]) == (
        plan.inputs.workload.global_batch,
        plan.inputs.workload.sequence_length,
    )
    assert read["sequence_parallel"] == (q.sequence_parallel and d.tp > 1)
    nodes, per_node = machine_size(files["run.sh"])
    assert nodes * per_node == plan.inputs.cluster.gpus


@pytest.mark.parametrize("name", CASES)
def test_files_compile_and_name_their_plan(pytorch_plans: Callable[[str], Plan], name: str) -> None:
    plan = pytorch_plans(name)
    files = PYTORCH.export(plan)
    assert sorted(files) == ["run.sbatch", "run.sh", "train.py"]
    compile(files["train.py"], "train.py", "exec")
    assert max(map(len, files["train.py"].splitlines())) <= 110
    for file in ("run.sh", "run.sbatch"):
        done = subprocess.run(["bash", "-n"], input=files[file], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    assert all(plan.inputs.digest in text for text in files.values())
    assert 'bash "$PLAN_DIR/run.sh"' in files["run.sbatch"]
    assert PYTORCH.export(plan) == files


def test_the_script_needs_nothing_but_torch(pytorch_plans: Callable[[str], Plan]) -> None:
    tree = ast.parse(PYTORCH.export(pytorch_plans("llama-2-7b"))["train.py"])
    roots = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            roots |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            roots.add(str(node.module).split(".")[0])
    assert roots - {"torch"} == {"argparse", "collections", "contextlib", "functools", "os", "time", "zlib"}


def test_model_constants(pytorch_plans: Callable[[str], Plan]) -> None:
    llama = constants(pytorch_plans("llama-3.1-405b"))["MODEL"]
    assert (llama["num_heads"], llama["num_kv_heads"], llama["ffn_size"]) == (128, 8, 53248)
    assert (llama["gated"], llama["norm"], llama["positions"], llama["tied"]) == (
        True,
        "rmsnorm",
        "rotary",
        False,
    )
    gpt = constants(pytorch_plans("gpt2-unfused"))
    assert (gpt["MODEL"]["gated"], gpt["MODEL"]["norm"], gpt["MODEL"]["positions"]) == (
        False,
        "layernorm",
        "learned",
    )
    assert gpt["MODEL"]["tied"]
    assert gpt["MODEL"]["num_positions"] == 1024
    assert (gpt["MODEL"]["attention"], gpt["OPTIMIZER"]) == ("unfused", "sgd-momentum")
    qwen = constants(pytorch_plans("qwen2.5-7b"))["MODEL"]
    assert (qwen["qkv_bias"], qwen["out_bias"], qwen["ffn_bias"]) == (True, False, False)


def on_islands(plan: Plan, changed: Changed, sharding: str) -> Plan:
    """The plan with another sharding, inside islands of 8."""
    places: dict[str, Any] = {D + "sharding": sharding, D + "sharding_group": "island"}
    for index, stage in enumerate(plan.decision.stages):
        for at in range(len(stage.layer_strategies)):
            places[f"{D}stages__{index}__layer_strategies__{at}__sharding"] = sharding
    return changed(plan, **places)


@pytest.mark.parametrize("sharding", ["optimizer", "gradients", "parameters"])
def test_islands_are_replicas_of_shards(planned: Planned, changed: Changed, sharding: str) -> None:
    base = planned("pytorch", "llama-2-70b", "dgx-a100", 64, 4096, 64, (("tp", 2), ("pp", 1)))
    mesh = constants(on_islands(base, changed, sharding))["MESH"]
    assert mesh == {"pp": 1, "dp_replicate": 8, "dp_shard": 4, "tp": 2}


BAD: list[tuple[str, str, dict[str, Any], str, str]] = [
    ("model-kind", "gpt2-unfused", {MODEL + "stacks__0__embedding__num_types": 2}, "segment", "one causal"),
    ("blocks", "llama-2-7b", {BLOCK + "attention__causal": False}, "both directions", "causal"),
    ("blocks", "llama-2-7b", {BLOCK + "attention__window": 1024}, "window of 1024", "whole sequence"),
    ("blocks", "llama-2-7b", {BLOCK + "parallel": True}, "parallel attention", "pre-norm"),
    ("family", "llama-2-7b", {MODEL + "family": "bloom"}, "ALiBi", "rotary"),
    ("positions", "gpt2-unfused", {W + "sequence_length": 2048}, "table 1024", "length 1024"),
    ("world-identity", "llama-2-7b", {D + "degrees__dp": 4}, "for 8 GPUs", "4 GPUs"),
    ("batch-identity", "llama-2-7b", {D + "microbatches": 3}, "3 microbatches", "64"),
    ("whole-nodes", "llama-2-7b", {"inputs__cluster__gpus": 12}, "12 GPUs", "8 GPUs"),
    ("ffn-by-tp", "llama-2-7b", {D + "degrees__tp": 3}, "over tp 3", "tp"),
    ("stages-cover-layers", "llama-2-7b", {D + "stages__0__layers": (0, 30)}, "32 layers", "0 to 31"),
    (
        "layer-choices",
        "llama-2-7b",
        {D + "stages__0__layer_strategies__0__sharding": "optimizer"},
        "sharding optimizer",
        "every layer",
    ),
    ("kernels", "llama-2-7b", {"inputs__cluster__device__generation": "volta"}, "volta", "ampere"),
    ("rank-order", "llama-2-7b", {D + "rank_order": "pp-dp"}, "pp-dp", "tp-cp-dp-pp"),
    ("heads-by-tp", "qwen2.5-7b", {D + "degrees__tp": 8}, "4 heads over tp 8", "tp 4"),
    ("schedule", "qwen2.5-7b", {D + "virtual_stages": 2}, "2 virtual stages", "interleaved"),
    ("schedule", "llama-2-7b", {D + "schedule": "interleaved"}, "pp 1", "1f1b"),
    ("tied-embedding", "gpt2-unfused", {D + "degrees__pp": 2}, "pp is 2", "pp 1"),
    ("precision", "llama-2-7b", {W + "precision": "fp8"}, "fp8", "bf16"),
    ("context-parallel", "llama-2-7b", {D + "degrees__cp": 2}, "cp 2", "cp 1"),
    ("expert-parallel", "llama-2-7b", {D + "degrees__ep": 2}, "ep 2", "ep 1"),
    (
        "sequence-by-tp",
        "qwen2.5-7b",
        {W + "sequence_length": 4095, D + "sequence_parallel": True},
        "4095",
        "4092",
    ),
    ("dropout", "gpt3-175b", {D + "sequence_parallel": False}, "dropout with tp 4", "sequence parallelism"),
    ("offload", "llama-2-7b", {D + "offload": "optimizer"}, "optimizer on the host", "offload none"),
    ("optimizer", "llama-2-7b", {W + "optimizer": "adafactor"}, "adafactor", "adamw"),
]


@pytest.mark.parametrize(("rule", "name", "changes", "numbers", "nearest"), BAD)
def test_a_broken_rule_says_its_numbers(
    pytorch_plans: Callable[[str], Plan],
    changed: Changed,
    rule: str,
    name: str,
    changes: dict[str, Any],
    numbers: str,
    nearest: str,
) -> None:
    good = pytorch_plans(name)
    assert PYTORCH.reasons(good) == []
    found = {reason.rule: reason for reason in PYTORCH.reasons(changed(good, **changes))}
    assert rule in found
    assert numbers in found[rule].numbers
    assert nearest in found[rule].nearest


def test_every_rule_has_a_plan_that_breaks_it() -> None:
    assert {rule.name for rule in PYTORCH_RULES} == {row[0] for row in BAD} | {"equal-blocks"}


def test_blocks_of_two_shapes_are_refused(pytorch_plans: Callable[[str], Plan], changed: Changed) -> None:
    plan = pytorch_plans("llama-2-7b")
    model = plan.inputs.model.model_dump(mode="json")
    wide = model["block_kinds"]["block"] | {
        "feed_forward": model["block_kinds"]["block"]["feed_forward"] | {"ffn_size": 8192}
    }
    model["block_kinds"]["wide"] = wide
    model["stacks"][0]["layout"] = [{"kinds": ["block", "wide"], "repeat": 16}]
    (reason,) = PYTORCH.reasons(changed(plan, inputs__model=model))
    assert (reason.rule, reason.numbers) == ("equal-blocks", "2 kinds of block")


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("mixtral-8x7b", "blocks"),
        ("deepseek-v3", "blocks"),
        ("gpt-oss-120b", "blocks"),
        ("t5-large", "model-kind"),
        ("bert-large", "blocks"),
        ("vit-huge-32", "model-kind"),
        ("opt-350m", "model-kind"),
        ("gemma-2-27b", "family"),
    ],
)
def test_models_the_script_cannot_build(
    pytorch_plans: Callable[[str], Plan], changed: Changed, name: str, rule: str
) -> None:
    model, _ = load_model(name)
    plan = changed(pytorch_plans("llama-2-7b"), inputs__model=model.model_dump(mode="json"))
    assert rule in {reason.rule for reason in PYTORCH.reasons(plan)}
    with pytest.raises(UnsupportedByTarget, match="pytorch cannot express"):
        PYTORCH.export(plan)


def test_read_back_refuses_contradictions(pytorch_plans: Callable[[str], Plan]) -> None:
    text = PYTORCH.export(pytorch_plans("llama-2-7b"))["train.py"]
    with pytest.raises(InputError, match="not 65"):
        read_script(text.replace("GLOBAL_BATCH = 64", "GLOBAL_BATCH = 65"))
    with pytest.raises(InputError, match="32 layers once each"):
        read_script(text.replace("STAGES = [[0, 31]]", "STAGES = [[0, 30]]"))
    with pytest.raises(InputError, match="2 stages for pp 1"):
        read_script(text.replace("STAGES = [[0, 31]]", "STAGES = [[0, 15], [16, 31]]"))
    with pytest.raises(InputError, match="does not set MODEL"):
        read_script("x = 1\n")


def test_names_cannot_leave_their_comment(pytorch_plans: Callable[[str], Plan], changed: Changed) -> None:
    name = "x\nimport os\r#`id`\u2028raise SystemExit"
    text = PYTORCH.export(changed(pytorch_plans("llama-2-7b"), inputs__model__name=name))["train.py"]
    assert text.splitlines().count("import os") == 1  # the script's own
    assert not any(line.startswith("raise") for line in text.splitlines())
    compile(text, "train.py", "exec")


def test_search_keeps_to_the_limits(planned: Planned) -> None:
    """Plans found for this launcher are expressible: grouped keys, tied tables, no cp or ep."""
    assert launcher("pytorch") is PYTORCH
    for model, sequence in (("qwen2.5-7b", 4096), ("gpt2-xl", 1024), ("llama-3-8b", 8192)):
        plan = planned("pytorch", model, "dgx-h100", 16, sequence, 64)
        assert PYTORCH.reasons(plan) == []
        assert plan.inputs.options.target == "pytorch"
