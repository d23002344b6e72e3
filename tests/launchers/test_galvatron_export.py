"""Galvatron export: what Galvatron derives from the JSON equals the plan, layer by layer."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from galvatron_reader import derived_by_galvatron

from planner.errors import InputError, UnsupportedByTarget
from planner.launchers.config_rules import recomputes, shardings
from planner.launchers.galvatron import GALVATRON, GALVATRON_LIMITS, config_name
from planner.launchers.galvatron_read import read_galvatron
from planner.launchers.galvatron_rules import DP_TYPES, GALVATRON_RULES
from planner.launchers.megatron_stages import stage_sizes
from planner.launchers.registry import launcher
from planner.plan_file.schema import Plan

Planned = Callable[..., Plan]
CASES = {
    "zero2": ("llama-2-7b", "dgx-a100", 8, 4096, 64),
    "pipeline": ("llama-2-70b", "dgx-a100", 32, 4096, 64),
    "context": ("llama-2-70b", "dgx-a100", 32, 4096, 64, (("cp", 2),)),
    "uneven": ("llama-2-70b", "dgx-a100", 32, 4096, 64, (("pp", 8), ("cp", 1))),
    "zero3": ("llama-2-70b", "dgx-a100", 32, 4096, 64, (("pp", 1), ("tp", 1), ("sharding", "parameters"))),
    "experts": ("mixtral-8x7b", "dgx-h100", 16, 4096, 64),
    "tp": ("qwen2.5-72b", "dgx-b200", 64, 8192, 64),
    "ddp": ("llama-3-8b", "pcie-4090x8", 8, 4096, 32, (("tp", 4), ("pp", 2))),
    "gpt": (
        "gpt2-xl",
        "dgx-a100",
        8,
        1024,
        64,
        (("sharding", "none"), ("recompute", "full"), ("pp", 2), ("tp", 1)),
        (("precision", "fp16"), ("attention", "unfused"), ("optimizer", "adam")),
    ),
}


@pytest.fixture(params=list(CASES))
def plan(request: pytest.FixtureRequest, planned: Planned) -> Plan:
    return planned("galvatron", *CASES[request.param])


def config_of(plan: Plan) -> dict[str, Any]:
    return dict(json.loads(GALVATRON.export(plan)[config_name(plan)]))


def assert_equal(plan: Plan) -> None:
    q, d = plan.decision, plan.decision.degrees
    read = read_galvatron(config_of(plan), plan.inputs.cluster.gpus)
    layers = plan.inputs.model.num_layers
    assert read["pp"] == d.pp
    for axis, size in (("tp", d.tp), ("cp", d.cp), ("dp", d.dp), ("ep", d.ep), ("expert_tp", d.expert_tp)):
        assert read[axis] == [size] * layers  # type: ignore[literal-required]
    assert read["stage_layers"] == stage_sizes(plan)
    assert (read["microbatches"], read["microbatch_size"]) == (q.microbatches, q.microbatch_size)
    assert read["global_batch"] == plan.inputs.workload.global_batch
    assert read["sharding"] == shardings(plan)
    assert read["vocab_sharding"] == q.sharding
    assert read["recompute"] == recomputes(plan)
    assert read["schedule"] == q.schedule
    assert not any(read["is_ulysses"])


def test_read_back_equals_the_plan(plan: Plan) -> None:
    assert_equal(plan)


def test_layers_may_differ(planned: Planned, changed: Callable[..., Plan]) -> None:
    plan = planned("galvatron", *CASES["zero2"])
    run = plan.decision.stages[0].layer_strategies[0].model_dump(mode="json")
    runs = [
        run | {"layers": [0, 9], "recompute": "full"},
        run | {"layers": [10, 19], "sharding": "parameters"},
        run | {"layers": [20, 31]},
    ]
    mixed = changed(
        plan,
        decision__stages__0__layer_strategies=runs,
        decision__recompute="mixed",
        decision__schedule="gpipe",
    )
    assert_equal(mixed)
    config = config_of(mixed)
    assert config["dp_types_enc"] == ",".join("0" * 10 + "1" * 10 + "0" * 12)
    assert config["checkpoint"] == ",".join("1" * 10 + "0" * 22)
    assert (config["default_dp_type"], config["vocab_sdp"], config["embed_sdp"]) == ("zero2", 0, 0)


def test_files_name_their_plan_and_bash_accepts_them(plan: Plan) -> None:
    files = GALVATRON.export(plan)
    assert sorted(files) == sorted([config_name(plan), "run.sbatch", "run.sh", "summary.json", "train.yaml"])
    for name in ("run.sh", "run.sbatch"):
        done = subprocess.run(["bash", "-n"], input=files[name], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    for name in ("run.sh", "run.sbatch", "train.yaml", "summary.json"):
        assert plan.inputs.digest in files[name]
    assert GALVATRON.export(plan) == files
    train = yaml.safe_load(files["train.yaml"])["runtime"]
    assert train == json.loads(files["summary.json"])["runtime"]
    assert train["train"]["seq_length"] == plan.inputs.workload.sequence_length
    is_sharded = plan.decision.sharding != "none" and plan.decision.microbatches > 1
    assert train["parallel"]["async_grad_reduce"] is not is_sharded


def test_golden(planned: Planned) -> None:
    plan = planned("galvatron", *CASES["gpt"])
    assert config_name(plan) == "galvatron_config_gpt-gpt2-xl_1nodes_8gpus_per_node_80GB_fp16.json"
    q = plan.decision
    config = config_of(plan)
    each = ",".join("1" * 48)
    assert config == {
        "pp_deg": 2,
        "tp_sizes_enc": each,
        "tp_consecutive_flags": each,
        "cp_sizes_enc": each,
        "dp_types_enc": ",".join("0" * 48),
        "use_sp": ",".join("0" * 48),
        "checkpoint": each,
        "global_bsz": 64,
        "chunks": q.microbatches,
        "pp_division": ",".join(map(str, stage_sizes(plan))),
        "pipeline_type": "pipedream_flush",
        "default_dp_type": "ddp",
        "vtp": 1,
        "vsp": 0,
        "vcp": 1,
        "vocab_sdp": 0,
        "embed_sdp": 0,
    }


def test_notes_warn_of_releases_that_ignore_a_degree(planned: Planned) -> None:
    for case, is_warned in (("context", True), ("experts", True), ("ddp", False)):
        notes = json.loads(GALVATRON.export(planned("galvatron", *CASES[case]))["summary.json"])["notes"]
        assert any("2.4.0 ignores" in note for note in notes) is is_warned


@pytest.mark.parametrize(
    ("which", "expected"),
    [
        ("zero2", {"model_size": "llama-2-7b", "activation_func": "torch.nn.functional.silu"}),
        ("gpt", {"model_size": "gpt-gpt2-xl", "position_embedding_type": "learned_absolute"}),
        ("gpt", {"add_bias_linear": True, "gated_linear_unit": False, "normalization": "LayerNorm"}),
        ("experts", {"model_size": "mixtral-8x7b", "num_moe_experts": 8, "moe_router_topk": 2}),
        ("experts", {"is_moe_model": True, "moe_ffn_hidden_size": 14336, "num_query_groups": 8}),
        ("tp", {"model_size": "llama-qwen2.5-72b", "add_qkv_bias": True, "add_bias_linear": False}),
    ],
)
def test_model_section(planned: Planned, which: str, expected: dict[str, Any]) -> None:
    files = GALVATRON.export(planned("galvatron", *CASES[which]))
    section = yaml.safe_load(files["train.yaml"])["runtime"]["model"]
    assert {name: section[name] for name in expected} == expected


def test_run_script_names_the_json(planned: Planned, tmp_path: Path) -> None:
    plan = planned("galvatron", *CASES["experts"])
    (tmp_path / "run.sh").write_text(GALVATRON.export(plan)["run.sh"])
    fake = tmp_path / "torchrun"
    fake.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    fake.chmod(0o755)
    environment = {
        "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}",
        "GALVATRON": "/g",
        "LEARNING_RATE": "1e-4",
        "TRAIN_ITERS": "5",
        "ROTARY_BASE": "1000000",
        "MOCK_DATA": "1",
        "MASTER_ADDR": "n0",
        "NODE_RANK": "1",
    }
    done = subprocess.run(
        ["bash", str(tmp_path / "run.sh")], env=environment, capture_output=True, text=True, check=False
    )
    words = done.stdout.split()
    assert "/g/galvatron/models/moe/train_dist.py" in words
    assert f"++runtime.parallel.galvatron_config_path={tmp_path}/{config_name(plan)}" in words
    assert "++runtime.data.use_random_dataset=true" in words


@pytest.mark.parametrize(
    ("rule", "places"),
    [
        ("model-kind", {"inputs__model__block_kinds__KIND__attention__causal": False}),
        ("block-order", {"inputs__model__block_kinds__KIND__parallel": True}),
        ("model-ends", {"inputs__model__head__soft_cap": True}),
        ("positions", {"inputs__model__family": "bloom"}),
        ("activation", {"inputs__model__family": "opt"}),
        ("biases", {"inputs__model__block_kinds__KIND__attention__out_bias": True}),
        ("blocks", {"inputs__model__block_kinds__KIND__attention__window": 128}),
        ("world-identity", {"decision__degrees__dp": 4}),
        ("batch-identity", {"decision__microbatches": 3}),
        ("whole-nodes", {"inputs__cluster__gpus": 12}),
        ("rank-order", {"decision__rank_order": "dp-tp"}),
        ("tp-power-of-two", {"decision__degrees__tp": 3}),
        ("heads-by-tp", {"decision__degrees__tp": 3}),
        ("ffn-by-tp", {"decision__degrees__tp": 3}),
        ("stages-cover-layers", {"decision__stages__0__layers": (0, 30)}),
        ("no-virtual-stages", {"decision__virtual_stages": 2}),
        ("schedule", {"decision__schedule": "interleaved"}),
        ("experts-by-ep", {"decision__degrees__ep": 2}),
        ("expert-ranks", {"decision__degrees__ep": 3}),
        ("sequence-parallel", {"decision__degrees__tp": 2, "decision__sequence_parallel": False}),
        ("sequence-by-cp", {"decision__degrees__cp": 3}),
        (
            "context-parallel-kernel",
            {"decision__degrees__cp": 2, "inputs__workload__attention": "unfused"},
        ),
        (
            "context-attention",
            {"decision__degrees__cp": 2, "inputs__model__block_kinds__KIND__attention__window": 128},
        ),
        ("recompute", {"decision__stages__0__layer_strategies__0__recompute": "selective"}),
        ("layer-degrees", {"decision__stages__0__layer_strategies__0__tp": 2}),
        ("sharding", {"decision__stages__0__layer_strategies__0__sharding": "none"}),
        ("sharding", {"decision__sharding": "optimizer"}),
        ("island-sharding", {"decision__sharding_group": "island"}),
        ("precision", {"inputs__workload__precision": "fp8"}),
        ("optimizer", {"inputs__workload__optimizer": "sgd-momentum"}),
        ("offload", {"decision__offload": "optimizer"}),
        ("gather-units", {"decision__stages__0__layer_strategies__0__gather_unit": "part"}),
        ("kernels", {"inputs__cluster__device__generation": "volta"}),
    ],
)
def test_every_rule_has_a_reason(
    planned: Planned, changed: Callable[..., Plan], rule: str, places: dict[str, Any]
) -> None:
    good = planned("galvatron", *CASES["zero2"])
    assert GALVATRON.reasons(good) == []
    kind = next(iter(good.inputs.model.block_kinds))
    places = {place.replace("__KIND__", f"__{kind}__"): value for place, value in places.items()}
    reasons = {reason.rule: reason for reason in GALVATRON.reasons(changed(good, **places))}
    assert rule in reasons
    assert reasons[rule].numbers
    assert reasons[rule].nearest


def test_models_it_cannot_build(plans: Callable[[str], Plan]) -> None:
    with pytest.raises(UnsupportedByTarget) as caught:
        GALVATRON.export(plans("deepseek-v2"))
    assert {"blocks", "recompute"} <= {reason["rule"] for reason in caught.value.details["reasons"]}
    assert "blocks" in {reason.rule for reason in GALVATRON.reasons(plans("gpt-oss-120b"))}


def test_registry_and_rule_names() -> None:
    assert launcher("galvatron") is GALVATRON
    assert GALVATRON.limits is GALVATRON_LIMITS
    names = [rule.name for rule in GALVATRON_RULES]
    assert len(set(names)) == len(names)


GOOD: dict[str, Any] = {
    "pp_deg": 2,
    "tp_sizes_enc": "2,2,1,1",
    "tp_consecutive_flags": "1,1,1,1",
    "dp_types_enc": "0,1,0,0",
    "global_bsz": 32,
    "chunks": 4,
    "default_dp_type": "zero2",
}


def test_reader_on_layers_that_differ() -> None:
    read = read_galvatron(GOOD | {"pp_division": "1,3"}, 8)
    assert read["dp"] == [2, 2, 4, 4]
    assert read["sharding"] == ["gradients", "parameters", "gradients", "gradients"]
    assert read["stage_layers"] == [1, 3]
    assert (
        read_galvatron(GOOD | {"pp_deg": 1, "chunks": 1, "embed_sdp": 1}, 8)["vocab_sharding"] == "parameters"
    )


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"chekpoint": "1,1,1,1"}, "ignores it"),  # Galvatron: accepted, nothing recomputed
        ({"checkpoint": "1,1,1"}, "3 entries"),
        ({"checkpoint": "2,0,0,0"}, "0 or 1"),
        ({"dp_types_enc": "0,0,0,2"}, "0 or 1"),
        ({"tp_sizes_enc": "3,1,1,1"}, "does not divide the 4 ranks"),
        ({"tp_sizes_enc": "8,1,1,1"}, "does not divide the 4 ranks"),
        ({"tp_sizes_enc": "a,1,1,1"}, "whole numbers"),
        ({"cp_sizes_enc": "8,1,1,1"}, "does not divide"),  # Galvatron: accepted until groups are built
        ({"ep_sizes_enc": "8,1,1,1"}, "does not divide"),
        ({"vtp": 8}, "vtp 8"),
        ({"pp_division": "2,3"}, "5 layers together"),
        ({"pp_division": "4"}, "1 stages"),
        ({"pp_deg": 3}, "pp_deg 3"),
        ({"global_bsz": 30}, "leaves a remainder"),
        ({"chunks": 3}, "leaves a remainder"),
        ({"default_dp_type": "zero1"}, "zero1"),
        ({"pipeline_type": "interleaved"}, "interleaved"),
        ({"vocab_sdp": "1"}, "whole number"),
    ],
)
def test_reader_refuses(extra: dict[str, Any], message: str) -> None:
    read_galvatron(GOOD, 8)
    with pytest.raises(InputError, match=message):
        read_galvatron(GOOD | extra, 8)
    short = {name: value for name, value in GOOD.items() if name != "chunks"}
    with pytest.raises(InputError, match="chunks is missing"):
        read_galvatron(short, 8)


@pytest.mark.heavy
def test_galvatron_derives_the_plan(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    q, layers, config = plan.decision, plan.inputs.model.num_layers, config_of(plan)
    theirs, args = derived_by_galvatron(config, layers, plan.inputs.cluster.gpus, monkeypatch)
    assert theirs["pp_deg"] == q.degrees.pp
    assert theirs["tp_sizes_whole"] == [q.degrees.tp] * (layers + 3)
    # Release 2.4.0 does not know context parallelism: its data ranks are dp x cp.
    assert theirs["dp_sizes_whole"] == [q.degrees.dp * q.degrees.cp] * (layers + 3)
    assert theirs["pp_division"] == stage_sizes(plan)
    assert theirs["pp_ranks_enc"] == [s.rank for s in q.stages for _ in range(s.layers[0], s.layers[1] + 1)]
    assert theirs["checkpoint_flags_enc"] == [int(mode == "full") for mode in recomputes(plan)]
    kinds = {0: args.default_dp_type, 1: "zero3"}
    assert [kinds[code] for code in theirs["dp_types_enc"]] == [DP_TYPES[s] for s in shardings(plan)]
    assert (args.chunks, args.global_train_batch_size) == (q.microbatches, q.global_batch)
    assert args.pipeline_type == "pipedream_flush"
    assert args.embed_sdp == int(q.sharding == "parameters")


@pytest.mark.heavy
@pytest.mark.parametrize(
    "changes",
    [
        {"tp_sizes_enc": ",".join(["3"] * 32)},
        {"tp_sizes_enc": "1,1"},
        {"dp_types_enc": ",".join(["2"] * 32)},
        {"global_bsz": 63},
        {"pp_division": "16,15"},
    ],
)
def test_galvatron_refuses_what_we_refuse(
    planned: Planned, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = planned("galvatron", *CASES["zero2"])
    bad, gpus = config_of(plan) | changes, plan.inputs.cluster.gpus
    with pytest.raises(InputError):
        read_galvatron(bad, gpus)
    with pytest.raises(AssertionError):
        derived_by_galvatron(bad, plan.inputs.model.num_layers, gpus, monkeypatch)
