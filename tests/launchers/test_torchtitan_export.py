"""torchtitan export: what the module makes torchtitan do equals the plan, in both versions."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from planner.catalog import load_model
from planner.errors import InputError, UnsupportedByTarget
from planner.launchers.registry import launcher
from planner.launchers.run_scripts import machine_size
from planner.launchers.torchtitan import TORCHTITAN, batches, parallelism, stage_modules
from planner.launchers.torchtitan_models import flavor_of
from planner.launchers.torchtitan_read import check_stages, read_config
from planner.launchers.torchtitan_rules import TORCHTITAN_RULES
from planner.plan_file.schema import Plan

Planned = Callable[..., Plan]
Changed = Callable[..., Plan]
D, W, MODEL = "decision__", "inputs__workload__", "inputs__model__"

CASES: dict[str, tuple[Any, ...]] = {
    "llama-3-8b": ("llama-3-8b", "dgx-h100", 16, 8192, 64, (("pp", 1),)),
    "llama-3-8b-v": ("llama-3-8b", "dgx-h100", 16, 8192, 64, (("schedule", "zb-v"), ("pp", 4))),
    "llama-3-8b-full": (
        "llama-3-8b",
        "dgx-h100",
        16,
        8192,
        64,
        (("recompute", "full"), ("sharding", "parameters"), ("tp", 1)),
    ),
    "llama-3-8b-cp": ("llama-3-8b", "dgx-h100", 16, 65536, 16, (("cp", 4), ("pp", 1), ("tp", 1))),
    "llama-3-70b": (
        "llama-3-70b",
        "dgx-h100",
        64,
        8192,
        64,
        (("tp", 4), ("pp", 4), ("cp", 1), ("virtual_stages", 1)),
    ),
    "llama-3.1-405b": ("llama-3.1-405b", "dgx-h100", 512, 8192, 512),
    "qwen3-32b": ("qwen3-32b", "dgx-h100", 32, 4096, 64, (("tp", 4), ("pp", 2))),
    "qwen3-30b-a3b": ("qwen3-30b-a3b", "dgx-h100", 16, 4096, 64, (("pp", 4), ("ep", 2))),
    "deepseek-v3": ("deepseek-v3", "dgx-h100", 512, 4096, 1024),
    "gpipe": ("llama-3-8b", "dgx-h100", 16, 8192, 64, (("schedule", "gpipe"), ("pp", 2))),
}


@pytest.fixture(scope="session")
def titan_plans(planned: Planned) -> Callable[[str], Plan]:
    return lambda name: planned("torchtitan", *CASES[name])


@pytest.mark.parametrize("version", ["plan", "plan_main"])
@pytest.mark.parametrize("name", CASES)
def test_read_back_equals_the_plan(titan_plans: Callable[[str], Plan], name: str, version: str) -> None:
    plan = titan_plans(name)
    q, d = plan.decision, plan.decision.degrees
    files = TORCHTITAN.export(plan)
    read = read_config(files["planner_config.py"], plan.inputs.model.num_layers, version)
    assert read["world_size"] == plan.inputs.cluster.gpus
    assert (read["tp"], read["pp"], read["cp"], read["dp"], read["ep"]) == (d.tp, d.pp, d.cp, d.dp, d.ep)
    assert (read["schedule"], read["virtual_stages"]) == (q.schedule, q.virtual_stages)
    assert read["stage_layers"] == [stage.layers[1] - stage.layers[0] + 1 for stage in q.stages]
    assert (read["microbatch_size"], read["microbatches"]) == (q.microbatch_size, q.microbatches)
    assert read["global_batch"] == plan.inputs.workload.global_batch
    assert read["sequence_length"] == plan.inputs.workload.sequence_length
    assert read["recompute"] == q.recompute
    assert read["sequence_parallel"] == (q.sequence_parallel and d.tp > 1)
    assert (read["reshard"] == "always") == (q.sharding == "parameters")
    if q.sharding == "none" or q.sharding_group == "global":
        assert read["dp_replicate"] == (d.dp if q.sharding == "none" else 1)
    assert read["has_cuda_graphs"] == (d.pp == 1 and d.ep == 1)
    nodes, per_node = machine_size(files["run.sh"])
    assert nodes * per_node == plan.inputs.cluster.gpus


@pytest.mark.parametrize("name", CASES)
def test_files_compile_and_name_their_plan(titan_plans: Callable[[str], Plan], name: str) -> None:
    plan = titan_plans(name)
    files = TORCHTITAN.export(plan)
    assert sorted(files) == ["planner_config.py", "run.sbatch", "run.sh"]
    compile(files["planner_config.py"], "planner_config.py", "exec")
    for file in ("run.sh", "run.sbatch"):
        done = subprocess.run(["bash", "-n"], input=files[file], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    assert all(plan.inputs.digest in text for text in files.values())
    assert TORCHTITAN.export(plan) == files


def test_golden_pipeline(titan_plans: Callable[[str], Plan]) -> None:
    plan = titan_plans("llama-3-70b")
    text = TORCHTITAN.export(plan)["planner_config.py"]
    assert "from torchtitan.models.llama3 import model_registry\n" in text
    assert 'model_registry("70B")' in text
    assert parallelism(plan) == {
        "data_parallel_replicate_degree": 1,
        "data_parallel_shard_degree": 4,
        "fsdp_reshard_after_forward": "never",
        "tensor_parallel_degree": 4,
        "enable_sequence_parallel": plan.decision.sequence_parallel,
        "context_parallel_degree": 1,
        "expert_parallel_degree": 1,
        "pipeline_parallel_degree": 4,
        "pipeline_parallel_schedule": "1F1B",
    }
    stages = stage_modules(plan)
    assert stages[0][:2] == ["tok_embeddings", "layers.0"]
    assert stages[-1][-3:] == ["layers.79", "norm", "lm_head"]
    size = plan.decision.microbatch_size
    assert batches(plan) == {
        "plan": {
            "training": {"local_batch_size": 16, "global_batch_size": 64, "seq_len": 8192},
            "parallelism": {"pipeline_parallel_microbatch_size": size},
        },
        "plan_main": {
            "training": {
                "num_tokens_per_microbatch_per_dp_rank": size * 8192,
                "num_tokens_per_train_step": 64 * 8192,
                "max_context_length": 8192,
            },
            "parallelism": {"num_pp_microbatches": 16 // size},
        },
    }


def test_checkpointing_classes(titan_plans: Callable[[str], Plan], changed: Changed) -> None:
    full = TORCHTITAN.export(titan_plans("llama-3-8b-full"))["planner_config.py"]
    assert "import FullAC\n" in full
    assert "activation_checkpoint=FullAC.Config()," in full
    assert '"fsdp_reshard_after_forward": "always"' in full
    none = TORCHTITAN.export(titan_plans("llama-3-8b"))["planner_config.py"]
    assert "activation_checkpoint=None," in none
    assert "AC\n" not in none
    run = D + "stages__0__layer_strategies__0__recompute"
    plan = changed(titan_plans("llama-3-8b"), **{run: "selective", D + "recompute": "selective"})
    assert "SelectiveAC.Config()" in TORCHTITAN.export(plan)["planner_config.py"]


def test_run_script_chooses_the_version(titan_plans: Callable[[str], Plan], tmp_path: Path) -> None:
    fake = tmp_path / "torchrun"
    fake.write_text('#!/bin/sh\necho "$@" "path:$PYTHONPATH"\n')
    fake.chmod(0o755)
    (tmp_path / "run.sh").write_text(TORCHTITAN.export(titan_plans("llama-3-8b"))["run.sh"])
    base = {"PATH": f"{tmp_path}:/usr/bin:/bin", "MASTER_ADDR": "node0", "NODE_RANK": "1"}
    command = ["bash", str(tmp_path / "run.sh"), "--training.steps", "5"]
    for version, function in (("", "plan"), ("0.3.0", "plan"), ("main", "plan_main")):
        environment = base | ({"TORCHTITAN": version} if version else {})
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        assert f"-m torchtitan.train --module planner_config --config {function} " in done.stdout
        assert f"--training.steps 5 path:{tmp_path}" in done.stdout
        assert "--rdzv-endpoint node0:29500" in done.stdout
    done = subprocess.run(
        command, env=base | {"TORCHTITAN": "1"}, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (2, "TORCHTITAN must be 0.3 or main\n")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("llama-3.1-8b", ("llama3", "8B")),
        ("llama-3-70b", ("llama3", "70B")),
        ("llama-3.1-405b", ("llama3", "405B")),
        ("qwen3-8b", ("qwen3", "8B")),
        ("qwen3-235b-a22b", ("qwen3", "235B-A22B")),
        ("deepseek-v2", ("deepseek_v3", "236B")),
        ("deepseek-v3", ("deepseek_v3", "671B")),
        ("llama-2-7b", None),
        ("mixtral-8x7b", None),
        ("qwen2.5-7b", None),
        ("gpt3-175b", None),
        ("t5-large", None),
        ("vit-huge-32", None),
        ("gpt-oss-120b", None),
    ],
)
def test_models_are_matched_by_shape(name: str, expected: tuple[str, str] | None) -> None:
    flavor = flavor_of(load_model(name)[0])
    assert (None if flavor is None else (flavor.module, flavor.flavor)) == expected


def sharded(plan: Plan, sharding: str, group: str = "global", **more: Any) -> dict[str, Any]:
    """Changes that give every layer of the plan another sharding."""
    places: dict[str, Any] = {D + "sharding": sharding, D + "sharding_group": group, **more}
    for index, stage in enumerate(plan.decision.stages):
        for at in range(len(stage.layer_strategies)):
            places[f"{D}stages__{index}__layer_strategies__{at}__sharding"] = sharding
    return places


def test_islands_are_replicas_of_shards(titan_plans: Callable[[str], Plan], changed: Changed) -> None:
    plan = changed(titan_plans("llama-3-8b"), **sharded(titan_plans("llama-3-8b"), "parameters", "island"))
    fields = parallelism(plan)
    assert (fields["data_parallel_replicate_degree"], fields["data_parallel_shard_degree"]) == (2, 8)


BAD: list[tuple[str, str, dict[str, Any], str, str]] = [
    ("shipped-model", "llama-3-8b", {MODEL + "vocab_size": 32000}, "vocabulary 32000", "llama3 8B"),
    ("sequence-length", "llama-3-8b", {W + "sequence_length": 262144}, "262144", "131072"),
    ("world-identity", "llama-3-8b", {D + "degrees__dp": 4}, "for 16 GPUs", "4 GPUs"),
    ("batch-identity", "llama-3-8b", {D + "microbatches": 3}, "3 microbatches", "64"),
    ("whole-nodes", "llama-3-8b", {"inputs__cluster__gpus": 12}, "12 GPUs", "8 GPUs"),
    ("ffn-by-tp", "llama-3-70b", {D + "degrees__tp": 3}, "over tp 3", "tp"),
    ("stages-cover-layers", "llama-3-8b", {D + "stages__0__layers": (0, 30)}, "32 layers", "0 to 31"),
    ("experts-by-ep", "llama-3-8b", {D + "degrees__ep": 2}, "no experts", "ep 1"),
    (
        "layer-choices",
        "llama-3-8b",
        {D + "stages__0__layer_strategies__0__tp": 2},
        "tp 2",
        "every layer",
    ),
    ("kernels", "llama-3-8b", {"inputs__cluster__device__generation": "volta"}, "volta", "ampere"),
    ("rank-order", "llama-3-8b", {D + "rank_order": "pp-dp"}, "pp-dp", "tp-cp-dp-pp"),
    ("heads-by-tp", "llama-3-70b", {D + "degrees__tp": 16}, "8 heads over tp 16", "tp 8"),
    ("schedule", "llama-3-70b", {D + "virtual_stages": 2}, "2 virtual stages", "interleaved"),
    ("tied-embedding", "llama-3-70b", {MODEL + "head__tied": True}, "pp is 4", "pp 1"),
    ("precision", "llama-3-8b", {W + "precision": "fp8"}, "fp8", "bf16"),
    ("sequence-by-mesh", "llama-3-8b-cp", {W + "sequence_length": 4100}, "4100", "4096"),
    ("recompute", "llama-3-70b", {D + "stages__0__layer_strategies__0__recompute": "full"}, "full", "one"),
    ("expert-ranks", "qwen3-30b-a3b", {D + "degrees__ep": 16}, "ep 16 inside 4 ranks", "ep 4"),
    ("expert-tp", "qwen3-30b-a3b", {D + "degrees__expert_tp": 2}, "expert_tp 2", "expert_tp 1"),
    (
        "experts-need-sequence-parallel",
        "qwen3-30b-a3b",
        {D + "degrees__tp": 2, D + "sequence_parallel": False},
        "tp 2",
        "on",
    ),
    (
        "gather-units",
        "llama-3-8b",
        {D + "stages__0__layer_strategies__0__gather_unit": "part"},
        "gather by part",
        "by block",
    ),
    ("offload", "llama-3-8b", {D + "offload": "optimizer"}, "optimizer on the host", "offload none"),
    ("optimizer", "llama-3-8b", {W + "optimizer": "adam"}, "adam", "adamw"),
    ("attention-kernel", "llama-3-8b", {W + "attention": "unfused"}, "unfused", "flash"),
]


@pytest.mark.parametrize(("rule", "name", "changes", "numbers", "nearest"), BAD)
def test_a_broken_rule_says_its_numbers(
    titan_plans: Callable[[str], Plan],
    changed: Changed,
    rule: str,
    name: str,
    changes: dict[str, Any],
    numbers: str,
    nearest: str,
) -> None:
    good = titan_plans(name)
    assert TORCHTITAN.reasons(good) == []
    found = {reason.rule: reason for reason in TORCHTITAN.reasons(changed(good, **changes))}
    assert rule in found
    assert numbers in found[rule].numbers
    assert nearest in found[rule].nearest


def test_every_rule_has_a_plan_that_breaks_it() -> None:
    others = {"sharding-mode", "island-mesh"}
    assert {rule.name for rule in TORCHTITAN_RULES} == {row[0] for row in BAD} | others


@pytest.mark.parametrize(
    ("name", "sharding", "more", "numbers"),
    [
        ("llama-3-8b", "optimizer", {}, "sharding optimizer over 16 ranks with pp 1"),
        ("llama-3-70b", "parameters", {}, "sharding parameters over 4 ranks with pp 4"),
        ("llama-3-70b", "gradients", {}, "with pp 4"),
        ("llama-3-8b-cp", "none", {}, "sharding none with cp 4"),
    ],
)
def test_sharding_follows_the_pipeline(
    titan_plans: Callable[[str], Plan],
    changed: Changed,
    name: str,
    sharding: str,
    more: dict[str, Any],
    numbers: str,
) -> None:
    plan = titan_plans(name)
    (reason,) = TORCHTITAN.reasons(changed(plan, **sharded(plan, sharding, **more)))
    assert reason.rule == "sharding-mode"
    assert numbers in reason.numbers


def test_an_island_narrower_than_cp_is_refused(titan_plans: Callable[[str], Plan], changed: Changed) -> None:
    plan = titan_plans("llama-3-8b-cp")
    island = "inputs__cluster__profile__node_groups__0__tiers__0__devices"
    (reason,) = TORCHTITAN.reasons(changed(plan, **sharded(plan, "parameters", "island", **{island: 2})))
    assert reason.rule == "island-mesh"
    assert "8 islands with dp 4" in reason.numbers


def test_export_refuses_with_all_reasons(titan_plans: Callable[[str], Plan], changed: Changed) -> None:
    plan = changed(titan_plans("llama-3-8b"), decision__rank_order="pp", inputs__workload__optimizer="adam")
    with pytest.raises(UnsupportedByTarget) as caught:
        TORCHTITAN.export(plan)
    assert [reason["rule"] for reason in caught.value.details["reasons"]] == ["rank-order", "optimizer"]


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([["tok_embeddings", "layers.0"], ["layers.1", "norm", "output"]], r"missing \['lm_head'\]"),
        ([["tok_embeddings", "layers.0"], ["norm", "lm_head"]], r"missing \['layers.1'\]"),
        ([["tok_embeddings", "layers.1"], ["layers.0", "norm", "lm_head"]], "in this order"),
        ([["tok_embeddings", "layers.0", "layers.1"], ["layers.1", "norm", "lm_head"]], "each once"),
    ],
)
def test_stage_lists_must_cover_the_model(stages: list[list[str]], message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_stages(stages, 2)


def test_search_keeps_to_the_limits(planned: Planned) -> None:
    assert launcher("torchtitan") is TORCHTITAN
    pins: tuple[tuple[tuple[str, Any], ...], ...] = ((), (("pp", 1),), (("cp", 2),), (("tp", 4), ("pp", 4)))
    for pinned in pins:
        for model in ("llama-3-70b", "qwen3-30b-a3b"):
            plan = planned("torchtitan", model, "dgx-h100", 64, 4096, 128, pinned)
            assert TORCHTITAN.reasons(plan) == []


@pytest.mark.heavy
@pytest.mark.parametrize("name", [name for name in CASES if name != "gpipe"])
def test_torchtitan_accepts_the_module(
    titan_plans: Callable[[str], Plan], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """0.3.0's own classes take the configuration, its model rules too, and its schedule and mesh agree."""
    pytest.importorskip("torch")
    pytest.importorskip("torchtitan")
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    importlib.import_module("triton_stand_in").install()
    plan = titan_plans(name)
    (tmp_path / "planner_config.py").write_text(TORCHTITAN.export(plan)["planner_config.py"])
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "planner_config", raising=False)
    manager = importlib.import_module("torchtitan.config.manager").ConfigManager()
    config = manager.parse_args(["--module", "planner_config", "--config", "plan"])
    config.model_spec.model.update_from_config(config=config)
    assert len(config.model_spec.model.layers) == plan.inputs.model.num_layers
    p = config.parallelism
    dims = importlib.import_module("torchtitan.distributed").ParallelDims(
        dp_replicate=p.data_parallel_replicate_degree,
        dp_shard=p.data_parallel_shard_degree,
        cp=p.context_parallel_degree,
        tp=p.tensor_parallel_degree,
        pp=p.pipeline_parallel_degree,
        ep=p.expert_parallel_degree,
        world_size=plan.inputs.cluster.gpus,
    )
    assert dims.dp_replicate * dims.dp_shard == plan.decision.degrees.dp
    assert config.training.global_batch_size == plan.inputs.workload.global_batch
    assert dims.pp == plan.decision.degrees.pp
    local, dp = config.training.local_batch_size, dims.dp_replicate * dims.dp_shard
    per_call = plan.decision.microbatches if dims.pp > 1 else 1
    assert local == plan.decision.microbatch_size * per_call
    assert config.training.global_batch_size // (local * dp) * per_call == plan.decision.microbatches
    if dims.pp > 1:
        assert_stages(config, plan)


def assert_stages(config: Any, plan: Plan) -> None:
    """torchtitan's own split of the model on a process group of the plan's size, and its own schedule.

    The first, a middle and the last pipeline rank: every stage is a copy of the whole model, cut down.
    """
    torch, dist = importlib.import_module("torch"), importlib.import_module("torch.distributed")
    pipelines = importlib.import_module("torchtitan.distributed.pipeline_parallel")
    meshes = importlib.import_module("torch.distributed.device_mesh")
    p, q = config.parallelism, plan.decision
    with torch.device("meta"):
        model = config.model_spec.model.build()
    names = p.module_fqns_per_model_part
    gpus, seen = plan.inputs.cluster.gpus, {}
    ranks = sorted({0, q.degrees.pp - 1} | ({q.degrees.pp // 2} if len(names) < 16 else set()))
    for rank in ranks:
        dist.init_process_group("fake", rank=rank * (gpus // q.degrees.pp), world_size=gpus)
        try:
            shape = (q.degrees.pp, gpus // q.degrees.pp)
            mesh = meshes.init_device_mesh("cpu", shape, mesh_dim_names=("pp", "rest"))
            stages, parts = pipelines._pipeline_module_split(
                model, mesh["pp"], p.pipeline_parallel_schedule, torch.device("cpu"), names
            )
            schedule = pipelines._build_pipeline_schedule(
                parallelism=p,
                local_batch_size=config.training.local_batch_size,
                stages=stages,
                loss_fn=lambda *_: None,
            )
        finally:
            dist.destroy_process_group()
        assert schedule._n_microbatches == q.microbatches
        assert len(stages) == q.virtual_stages
        for stage, part in zip(stages, parts, strict=True):
            held = sorted(int(name) for name in part.layers)
            has_ends = (part.tok_embeddings is not None, part.lm_head is not None)
            seen[stage.stage_index] = (rank, held, has_ends)
    wanted = {
        s.index: (s.rank, list(range(s.layers[0], s.layers[1] + 1)), (s.has_embedding, s.has_head))
        for s in q.stages
        if s.rank in ranks
    }
    assert seen == wanted
