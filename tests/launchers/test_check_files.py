"""planner check on launchers' own files: a good one passes, and every rule catches its bad one with numbers.

The bad files named "silent" are those the launcher's own argument check takes without a word.
"""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest
from file_checks import (
    ACCELERATE,
    DEEPSPEED,
    EXPERTS,
    GALVATRON,
    INTERLEAVED,
    json_file,
    megatron_file,
    stage_names,
    torchtitan_file,
)

from planner.file_checking import Finding, check_file
from planner.launchers.registry import launcher

FSDP = {
    "--pipeline-model-parallel-size": "1",
    "--tensor-model-parallel-size": "1",
    "--sequence-parallel": None,
    "--use-megatron-fsdp": "",
    "--data-parallel-sharding-strategy": "optim_grads_params",
    "--ckpt-format": "fsdp_dtensor",
}


def checked(folder: Path, name: str, text: str, target: str, **facts: Any) -> list[Finding]:
    (folder / name).write_text(text, encoding="utf-8")
    return check_file(str(folder / name), target, **facts)


def failures(findings: list[Finding]) -> dict[str, str]:
    found: dict[str, str] = {}
    for finding in findings:
        if not finding.holds:
            found[finding.name] = f"{found.get(finding.name, '')} | {finding.numbers}"
    return found


def derived(findings: list[Finding]) -> dict[str, str]:
    return {finding.name: finding.numbers for finding in findings if finding.holds}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {},
            {
                "dp": "4 of 64 GPUs",
                "microbatches": "32 of 1, global batch 128",
                "layers per stage": "8, 8, 8, 8",
            },
        ),
        (INTERLEAVED, {"layers per stage": ", ".join(["2"] * 16)}),
        ({"--num-virtual-stages-per-pipeline-rank": "4"}, {"layers per stage": ", ".join(["2"] * 16)}),
        (
            {"--decoder-first-pipeline-num-layers": "6", "--decoder-last-pipeline-num-layers": "6"},
            {"layers per stage": "6, 10, 10, 6"},
        ),
        ({"--pipeline-model-parallel-layout": "'Et*7|t*9|t*9|t*7L'"}, {"layers per stage": "7, 9, 9, 7"}),
        (
            {
                "--account-for-embedding-in-pipeline-split": "",
                "--account-for-loss-in-pipeline-split": "",
                "--num-layers": "30",
            },
            {"layers per stage": "7, 8, 8, 7"},
        ),
        ({**EXPERTS, "--expert-model-parallel-size": "8"}, {"degrees": "tp 4, pp 4, cp 1, ep 8"}),
        (FSDP, {"sharding": "parameters"}),
        ({"--num-distributed-optimizer-instances": "2"}, {"sharding": "optimizer over 2 ranks"}),
        (
            {"--recompute-granularity": "full", "--recompute-method": "block", "--recompute-num-layers": "3"},
            {"recompute": "full on the first 3 of a stage"},
        ),
    ],
)
def test_good_megatron_files_pass_and_say_what_follows(tmp_path, changes, expected):
    environment = None if "--use-megatron-fsdp" in changes else "export CUDA_DEVICE_MAX_CONNECTIONS=1"
    findings = checked(tmp_path, "train.sh", megatron_file(changes, environment), "megatron")
    assert not failures(findings)
    assert expected.items() <= derived(findings).items()


MEGATRON_BAD: dict[str, tuple[dict[str, str | None], str, str]] = {
    "silent: virtual stages that do not divide the layers": (
        {"--num-virtual-stages-per-pipeline-rank": "3"},
        "virtual-stages-by-layers",
        "3 virtual stages for 8 layers a rank: 2 each, 2 lost",
    ),
    "silent: recompute count above the stage": (
        {"--recompute-granularity": "full", "--recompute-method": "block", "--recompute-num-layers": "99"},
        "recompute-count",
        "99 (block) but a stage holds 8",
    ),
    "silent: expert groups larger than a stage": (
        {
            **EXPERTS,
            "--expert-model-parallel-size": "8",
            "--pipeline-model-parallel-size": "16",
            "--tensor-model-parallel-size": "1",
            "--sequence-parallel": None,
        },
        "expert-ranks",
        "ep 8 x expert_tp 1 x pp 16 on 64 GPUs: 4 ranks a stage",
    ),
    "silent: experts with tp without sequence parallelism": (
        {**EXPERTS, "--sequence-parallel": None},
        "experts-need-sequence-parallel",
        "tp 4",
    ),
    "silent: microbatches the interleaved schedule cannot deal out": (
        {**INTERLEAVED, "--global-batch-size": "24"},
        "interleaving",
        "6 microbatches with 4 virtual stages over pp 4: 6 % 4 = 2",
    ),
    "silent: optimizer instances that do not divide": (
        {"--num-distributed-optimizer-instances": "3"},
        "optimizer-instances",
        "3 over 4 dp x cp ranks",
    ),
    "silent: sequence parallelism without tensor parallelism": (
        {"--tensor-model-parallel-size": "1"},
        "sequence-parallel",
        "tp 1 is switched off",
    ),
    "silent: Megatron-FSDP that shards nothing": (
        {**FSDP, "--data-parallel-sharding-strategy": None},
        "sharding-strategy",
        "the default is no_shard",
    ),
    "silent: a strategy without Megatron-FSDP": (
        {"--data-parallel-sharding-strategy": "optim_grads_params"},
        "sharding-strategy",
        "ignored without --use-megatron-fsdp",
    ),
    "world": ({"--nnodes": "7", "--nproc-per-node": "9"}, "world-identity", "16 for 63 GPUs: 15 would idle"),
    "batch": ({"--global-batch-size": "130"}, "batch-identity", "global batch 130"),
    "heads": (
        {"--num-attention-heads": "30", "--kv-channels": "128", "--num-query-groups": "10"},
        "heads-by-tp",
        "30 attention heads over tp 4",
    ),
    "key/value heads": ({"--num-query-groups": "6"}, "model-shape", "32 % 6 = 2"),
    "key/value heads over tp": (
        {"--num-attention-heads": "48", "--num-query-groups": "6"},
        "kv-heads-by-tp",
        "6 key/value heads over tp 4",
    ),
    "layers": ({"--num-layers": "30"}, "layers-by-stages", "30 layers over pp 4 leave 2"),
    "uneven ends": (
        {"--decoder-first-pipeline-num-layers": "7"},
        "uneven-ends",
        "32 layers less 7 at the ends leave 25 for 3 stages",
    ),
    "layout loses layers": (
        {"--pipeline-model-parallel-layout": "'Et*7|t*8|t*8|t*8L'"},
        "stages-cover-layers",
        "holds 31 layers, the model has 32",
    ),
    "layout of too few stages": (
        {"--pipeline-model-parallel-layout": "'Et*16|t*8|t*8L'"},
        "stages-cover-layers",
        "3 stages for pp 4",
    ),
    "prediction layers on two stages": (
        {"--pipeline-model-parallel-layout": "'Et*8|t*8|t*8m|t*8mL'"},
        "mtp-stage",
        "stages [2, 3]",
    ),
    "two ways to split": (
        {**INTERLEAVED, "--num-virtual-stages-per-pipeline-rank": "4"},
        "one-stage-split",
        "exclude each other",
    ),
    "layers a virtual stage": (
        {"--num-layers-per-virtual-pipeline-stage": "3"},
        "virtual-stages-by-layers",
        "8 layers a rank in virtual stages of 3",
    ),
    "interleaving without a pipeline": (
        {**INTERLEAVED, "--pipeline-model-parallel-size": "1"},
        "interleaving",
        "16 virtual stages with pp 1",
    ),
    "experts": (
        {**EXPERTS, "--expert-model-parallel-size": "16", "--num-experts": "60"},
        "experts-by-ep",
        "60 experts",
    ),
    "experts missing": ({"--expert-model-parallel-size": "4"}, "experts-by-ep", "has no experts"),
    "sequence over cp": (
        {"--context-parallel-size": "2", "--seq-length": "4090", "--tensor-model-parallel-size": "2"},
        "sequence-by-mesh",
        "4090",
    ),
    "positions": ({"--seq-length": "16384"}, "positions", "16384 is above --max-position-embeddings 8192"),
    "full without method": ({"--recompute-granularity": "full"}, "recompute", "without --recompute-method"),
    "selective with count": (
        {"--recompute-granularity": "selective", "--recompute-num-layers": "2"},
        "recompute",
        "takes no",
    ),
    "gather without reduce": (
        {"--overlap-grad-reduce": None},
        "gather-overlap",
        "without --overlap-grad-reduce",
    ),
    "gather without sharding": (
        {"--use-distributed-optimizer": None},
        "gather-overlap",
        "without --use-distributed-optimizer",
    ),
    "checkpoint format": ({**FSDP, "--ckpt-format": "torch"}, "checkpoint-format", "torch"),
    "fsdp version 2": (
        {**FSDP, "--megatron-fsdp-version": "2"},
        "fsdp-version",
        "--use-distributed-optimizer",
    ),
    "torch FSDP2": ({"--use-torch-fsdp2": ""}, "torch-fsdp2", "pp 4"),
    "precision": ({"--fp16": ""}, "precision", "--bf16 and --fp16"),
    "hierarchical context": (
        {
            "--context-parallel-size": "4",
            "--cp-comm-type": "a2a+p2p",
            "--hierarchical-context-parallel-sizes": "2 4",
        },
        "hierarchical-context",
        "multiply to 8, cp is 4",
    ),
    "hierarchical sizes missing": (
        {"--context-parallel-size": "4", "--cp-comm-type": "a2a+p2p"},
        "hierarchical-context",
        "needs --hierarchical",
    ),
    "misspelt flag": (
        {"--tensor-model-parallel-sizes": "4"},
        "unknown-flag",
        "--tensor-model-parallel-sizes",
    ),
}


@pytest.mark.parametrize("name", MEGATRON_BAD)
def test_bad_megatron_files_are_caught_with_their_numbers(tmp_path, name):
    changes, rule, numbers = MEGATRON_BAD[name]
    environment = None if "--use-megatron-fsdp" in changes else "export CUDA_DEVICE_MAX_CONNECTIONS=1"
    found = failures(checked(tmp_path, "train.sh", megatron_file(changes, environment), "megatron"))
    assert rule in found, found
    assert numbers in found[rule]


@pytest.mark.parametrize(
    ("changes", "environment", "gpu", "holds"),
    [
        ({}, "export CUDA_DEVICE_MAX_CONNECTIONS=1", "h100-sxm", True),
        ({}, "unset CUDA_DEVICE_MAX_CONNECTIONS", "h100-sxm", False),
        ({}, "export CUDA_DEVICE_MAX_CONNECTIONS=8", "a100-80g-sxm", False),
        ({}, None, "b200-sxm", True),
        (FSDP, "export CUDA_DEVICE_MAX_CONNECTIONS=1", "h100-sxm", False),
        (FSDP, "unset CUDA_DEVICE_MAX_CONNECTIONS", "h100-sxm", True),
    ],
)
def test_the_number_of_connections_follows_tp_fsdp_and_the_gpu(tmp_path, changes, environment, gpu, holds):
    text = megatron_file(changes, environment)
    found = failures(checked(tmp_path, "train.sh", text, "megatron", gpu=gpu))
    assert ("connections" not in found) == holds


def test_what_megatron_fills_in_is_said(tmp_path):
    changes = {**EXPERTS, "--expert-tensor-parallel-size": None, "--global-batch-size": None}
    findings = checked(tmp_path, "train.sh", megatron_file(changes), "megatron")
    said = " ".join(finding.numbers for finding in findings if finding.name == "assumed")
    assert "Megatron-LM takes tp 4, not 1" in said
    assert "micro batch 1 x dp 4 = 4, one microbatch a step" in said


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, {"dp": "64 of 64 GPUs", "microbatches": "2 of 2, global batch 256", "sharding": "parameters"}),
        (
            {"zero_optimization": {"stage": 3, "zero_hpz_partition_size": 8}},
            {"sharding": "parameters over 8 ranks"},
        ),
        (
            {"tensor_parallel": {"autotp_size": 4}, "train_batch_size": None},
            {"dp": "16 of 64 GPUs", "microbatches": "2 of 2, global batch 64"},
        ),
        ({"gradient_accumulation_steps": None}, {"microbatches": "2 of 2, global batch 256"}),
    ],
)
def test_good_deepspeed_files_pass(tmp_path, changes, expected):
    findings = checked(
        tmp_path, "ds.json", json_file(DEEPSPEED, changes), "deepspeed", gpus=64, model="llama-3.1-8b"
    )
    assert not failures(findings)
    assert expected.items() <= derived(findings).items()


@pytest.mark.parametrize(
    ("changes", "rule", "numbers"),
    [
        # Silent: a misspelt section trains without sharding.
        ({"zero_optimizatoin": {"stage": 3}}, "unknown-section", "zero_optimizatoin"),
        # Silent: the rest of a division is dropped.
        ({"train_batch_size": 300, "gradient_accumulation_steps": None}, "batch-identity", "300"),
        (
            {"train_batch_size": 100},
            "batch-identity",
            "train_batch_size 100 for micro batch 2 x accumulation 2 x 64 ranks",
        ),
        # Silent: a partition that divides nothing, or does nothing.
        (
            {"zero_optimization": {"stage": 3, "zero_hpz_partition_size": 5}},
            "hpz-partition",
            "5 over 64 data ranks",
        ),
        ({"zero_optimization": {"stage": 2, "zero_hpz_partition_size": 8}}, "hpz-partition", "stage 2"),
        # Silent: ranks idle beyond the key/value heads.
        (
            {"tensor_parallel": {"autotp_size": 16}, "train_batch_size": None},
            "kv-heads-by-tp",
            "8 key/value heads over tp 16: 8 ranks of each 16 idle",
        ),
        (
            {"tensor_parallel": {"autotp_size": 24}, "train_batch_size": None},
            "world-identity",
            "24 for 64 GPUs",
        ),
        ({"pipeline": {}}, "zero-with-pipeline", "ZeRO 3 with a pipeline"),
        ({"fp16": {"enabled": True}}, "precision", "both"),
        ({"zero_optimization": {"stage": 3, "mics_shard_size": 8}}, "removed-key", "mics_shard_size"),
        ({"zero_optimization": {"stage": 3, "overlap_com": True}}, "unknown-key", "overlap_com"),
        ({"zero_optimization": {"stage": 4}}, "readable", "stage 4"),
        (
            {"train_batch_size": None, "train_micro_batch_size_per_gpu": None},
            "readable",
            "train_micro_batch_size_per_gpu",
        ),
    ],
)
def test_bad_deepspeed_files_are_caught(tmp_path, changes, rule, numbers):
    text = json_file(DEEPSPEED, changes)
    found = failures(checked(tmp_path, "ds.json", text, "deepspeed", gpus=64, model="llama-3.1-8b"))
    assert rule in found, found
    assert numbers in found[rule]


def accelerate(changes: dict[str, Any]) -> str:
    """The good file with keys replaced and mesh sizes (by axis) changed; JSON is YAML."""
    sizes = {f"parallelism_config_{key}_size": value for key, value in changes.items() if key in AXES}
    rest = {key: value for key, value in changes.items() if key not in AXES}
    mesh = {**ACCELERATE["parallelism_config"], **sizes}
    return json_file({**ACCELERATE, "parallelism_config": mesh}, rest)


AXES = ("dp_replicate", "dp_shard", "tp", "cp", "sp", "tpp")


def test_a_good_accelerate_file_passes(tmp_path):
    findings = checked(tmp_path, "a.yaml", accelerate({}), "accelerate", model="llama-3.1-8b")
    assert not failures(findings)
    assert {"dp": "4 of 16 GPUs", "sharding": "parameters"}.items() <= derived(findings).items()


@pytest.mark.parametrize(
    ("changes", "rule", "numbers"),
    [
        # Silent: the mesh is compared with the processes only when training starts.
        ({"cp": 3}, "world-identity", "dp_shard 4 x tp 4 x cp 3 = 48 ranks, num_processes is 16"),
        # Silent: unknown keys inside the sections are passed over.
        ({"tpp": 4, "tp": 1}, "unknown-key", "parallelism_config.parallelism_config_tpp_size"),
        (
            {"fsdp_config": {"fsdp_version": 2, "fsdp_reshard": True}},
            "unknown-key",
            "fsdp_config.fsdp_reshard",
        ),
        (
            {"fsdp_config": {"fsdp_version": 2, "fsdp_sharding_strategy": "SHARD_GRAD_OP"}},
            "fsdp-reshard",
            "ignored by FSDP2",
        ),
        ({"bogus_key": 1}, "unknown-key", "bogus_key"),
        (
            {"fsdp_config": {"fsdp_version": 2, "fsdp_reshard_after_forward": "FULL_SHARD"}},
            "fsdp-reshard",
            "FSDP1",
        ),
        ({"fsdp_config": {"fsdp_version": 1}}, "fsdp-version", "fsdp_version 1"),
        ({"dp_replicate": 4, "dp_shard": 1}, "replicas-with-tp-or-cp", "tp or cp with replicas only"),
        ({"cp": 2, "sp": 2, "dp_shard": 1}, "cp-or-sp", "exclude"),
        ({"tp": 16, "dp_shard": 1}, "shard-group", "no group to shard over"),
        ({"tp": 16, "dp_shard": 1}, "kv-heads-by-tp", "8 key/value heads over tp 16"),
        ({"num_machines": 3}, "world-identity", "3 machines"),
        ({"distributed_type": "MULTI_GPU"}, "mesh-needs-fsdp", "without distributed_type FSDP"),
        ({"distributed_type": "NO"}, "distributed-type", "16 processes"),
    ],
)
def test_bad_accelerate_files_are_caught(tmp_path, changes, rule, numbers):
    found = failures(checked(tmp_path, "a.yaml", accelerate(changes), "accelerate", model="llama-3.1-8b"))
    assert rule in found, found
    assert numbers in found[rule]


@pytest.mark.parametrize(
    ("mesh", "training", "expected"),
    [
        # Embedding and head count as layers: 34 units over two stages, one less at each end.
        (
            {},
            {},
            {"dp": "2 of 8 GPUs", "microbatches": "8 of 1, global batch 16", "layers per stage": "16, 16"},
        ),
        (
            {"module_fqns_per_model_part": stage_names((0, 14), (15, 31))},
            {},
            {"layers per stage": "15, 17"},
        ),
        (
            {"pipeline_parallel_schedule": "Interleaved1F1B", "pipeline_parallel_layers_per_stage": 6},
            {},
            {"layers per stage": "5, 6, 6, 6, 5, 4"},
        ),
        (
            {"pipeline_parallel_microbatch_size": None, "num_pp_microbatches": 4},
            {
                "local_batch_size": None,
                "global_batch_size": None,
                "seq_len": None,
                "num_tokens_per_microbatch_per_dp_rank": 4096,
                "num_tokens_per_train_step": 65536,
                "max_context_length": 4096,
            },
            {"microbatches": "8 of 1, global batch 16"},
        ),
    ],
)
def test_good_torchtitan_files_pass(tmp_path, mesh, training, expected):
    text = torchtitan_file(mesh, training)
    findings = checked(tmp_path, "c.py", text, "torchtitan", gpus=8, model="llama-3.1-8b")
    assert not failures(findings)
    assert expected.items() <= derived(findings).items()


@pytest.mark.parametrize(
    ("mesh", "training", "rule", "numbers"),
    [
        # Silent: the head's old name, and layers nobody lists.
        (
            {"module_fqns_per_model_part": stage_names((0, 15), (16, 31), head="output")},
            {},
            "stages-cover-layers",
            "loses lm_head; names what is not there: output",
        ),
        (
            {"module_fqns_per_model_part": stage_names((0, 14), (16, 31))},
            {},
            "stages-cover-layers",
            "loses layers.15",
        ),
        (
            {"module_fqns_per_model_part": stage_names((0, 15), (15, 31))},
            {},
            "stages-cover-layers",
            "repeats layers.15",
        ),
        ({"data_parallel_shard_degree": 4}, {}, "world-identity", "a mesh of 16 ranks, --gpus says 8"),
        (
            {"data_parallel_shard_degree": -1, "tensor_parallel_degree": 3},
            {},
            "world-identity",
            "6 for 8 GPUs",
        ),
        ({}, {"global_batch_size": 20}, "batch-identity", "global batch 20"),
        (
            {"pipeline_parallel_microbatch_size": 3},
            {},
            "batch-identity",
            "local_batch_size 4 in microbatches of 3",
        ),
        (
            {"pipeline_parallel_schedule": "Interleaved1F1B", "pipeline_parallel_layers_per_stage": 17},
            {},
            "stages-per-rank",
            "1 stages",
        ),
        ({"pipeline_parallel_layers_per_stage": 9}, {}, "stages-per-rank", "2 stages a rank"),
        ({"pipeline_parallel_layers_per_stage": 12}, {}, "stages-cover-layers", "3 stages for pp 2"),
        (
            {"pipeline_parallel_schedule": "ZBVZeroBubble", "pipeline_parallel_layers_per_stage": 6},
            {},
            "stages-per-rank",
            "exactly 2",
        ),
        ({"pipeline_parallel_schedule": "Bogus"}, {}, "schedule", "Bogus"),
        (
            {
                "tensor_parallel_degree": 16,
                "data_parallel_shard_degree": -1,
                "pipeline_parallel_degree": 1,
                "pipeline_parallel_microbatch_size": None,
            },
            {},
            "world-identity",
            "16 for 8 GPUs",
        ),
        ({}, {"disable_cuda_graphs": False}, "cuda-graphs", "pp 2"),
        ({"tensor_paralel_degree": 2}, {}, "unknown-key", "tensor_paralel_degree"),
        ({"context_parallel_degree": 1}, {"seq_len": 4097}, "sequence-by-mesh", "4097"),
    ],
)
def test_bad_torchtitan_files_are_caught(tmp_path, mesh, training, rule, numbers):
    text = torchtitan_file(mesh, training)
    found = failures(checked(tmp_path, "c.py", text, "torchtitan", gpus=8, model="llama-3.1-8b"))
    assert rule in found, found
    assert numbers in found[rule]


def test_torchtitan_needs_divisible_key_value_heads(tmp_path):
    """Megatron-LM would copy them."""
    mesh = {"tensor_parallel_degree": 16, "data_parallel_shard_degree": 1, "pipeline_parallel_degree": 1}
    text = torchtitan_file({**mesh, "pipeline_parallel_microbatch_size": None})
    found = failures(checked(tmp_path, "c.py", text, "torchtitan", gpus=16, model="llama-3.1-8b"))
    assert "8 key/value heads over tp 16" in found["kv-heads-by-tp"]


def test_a_good_galvatron_file_passes(tmp_path):
    findings = checked(tmp_path, "g.json", json_file(GALVATRON, {}), "galvatron", gpus=16)
    assert not failures(findings)
    assert {
        "dp": "2 of 16 GPUs",
        "microbatches": "4 of 4, global batch 32",
        "recompute": "by layer",
    }.items() <= derived(findings).items()


@pytest.mark.parametrize(
    ("changes", "rule", "numbers"),
    [
        # Silent: unknown keys are ignored, and a batch is rounded down.
        ({"tp_size_enc": "4,4,4,4"}, "unknown-key", "tp_size_enc"),
        ({"global_bsz": 36}, "batch-identity", "global_bsz 36 over dp 2 x 4 chunks leaves 4"),
        ({"vocab_sdp": 1, "embed_sdp": 0}, "vocab-sharding", "differ"),
        ({"chunks": None}, "missing-key", "chunks"),
        ({"pp_division": "2,1"}, "stages-cover-layers", "2 stages of 3 layers"),
        ({"checkpoint": "0,1,0"}, "list-length", "checkpoint has 3 entries for 4 layers"),
        ({"dp_types_enc": "0,2,0,0"}, "list-values", "dp_types_enc has 2"),
        ({"tp_sizes_enc": "4,4,4,16"}, "world-identity", "layer 3: tp 16 x cp 1 in a stage of 8 ranks"),
        ({"pp_deg": 3, "pp_division": "1,1,2"}, "world-identity", "pp_deg 3 for 16 GPUs"),
        ({"ep_sizes_enc": "3,3,3,3"}, "expert-ranks", "ep 3"),
        ({"default_dp_type": "zero1"}, "sharding", "zero1"),
        ({"pipeline_type": "interleaved"}, "schedule", "interleaved"),
    ],
)
def test_bad_galvatron_files_are_caught(tmp_path, changes, rule, numbers):
    found = failures(checked(tmp_path, "g.json", json_file(GALVATRON, changes), "galvatron", gpus=16))
    assert rule in found, found
    assert numbers in found[rule]


def test_a_galvatron_file_of_too_few_layers_is_caught(tmp_path):
    found = failures(checked(tmp_path, "g.json", json_file(GALVATRON, {}), "galvatron", model="llama-3.1-8b"))
    assert "layers 4 in g.json, 32 in llama-3.1-8b" in found["model"]


def test_layers_that_differ_in_tp_pass_and_are_named(tmp_path):
    changes = {"tp_sizes_enc": "4,4,2,2"}
    findings = checked(tmp_path, "g.json", json_file(GALVATRON, changes), "galvatron", gpus=16)
    assert not failures(findings)
    assert derived(findings)["tp by layer"].startswith("2 layers 2, 2 layers 4, embedding and head")
    assert "not priced" not in derived(findings)


def test_layers_that_differ_in_cp_are_not_priced_but_pass(tmp_path):
    changes = {"cp_sizes_enc": "2,2,1,1"}
    findings = checked(tmp_path, "g.json", json_file(GALVATRON, changes), "galvatron", gpus=16)
    assert "2 layers 1, 2 layers 2" in derived(findings)["not priced"]


@pytest.mark.parametrize(
    ("name", "value", "rule"),
    [
        ("STAGES", "[[0, 14], [16, 31]]", "stages-cover-layers"),
        ("STAGES", "[[0, 31]]", "stages-cover-layers"),
        ("GLOBAL_BATCH", "63", "batch-identity"),
        ("SCHEDULE", '"ZBV"', "schedule"),
        ("SHARDING", '"zero"', "sharding"),
        ("SHARDING", '"none"', "shard-group"),
    ],
)
def test_a_changed_native_script_is_caught(tmp_path, planned, name, value, rule):
    pins = (("tp", 2), ("pp", 2), ("dp", 2), ("virtual_stages", 1), ("sharding", "optimizer"))
    plan = planned("pytorch", "llama-3.1-8b", "dgx-h100", 8, 4096, 64, pins)
    text = launcher("pytorch").export(plan)["train.py"]
    assert not failures(checked(tmp_path, "train.py", text, "pytorch"))
    assert rule in failures(checked(tmp_path, "train.py", with_constant(text, name, value), "pytorch"))


def with_constant(text: str, name: str, value: str) -> str:
    """The script with the statement that sets ``name`` replaced."""
    lines = text.splitlines()
    for node in ast.parse(text).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name:
            return "\n".join([*lines[: node.lineno - 1], f"{name} = {value}", *lines[node.end_lineno :]])
    raise ValueError(name)
