"""planner.importing: scripts as people write them, contradictions, what is missing, what cannot be priced."""

from __future__ import annotations

import json

import pytest
from file_checks import ACCELERATE, DEEPSPEED, EXPERTS, GALVATRON, json_file, megatron_file, torchtitan_file

from planner.errors import InputError, UnknownName, UnsupportedFeature
from planner.imported_estimate import estimate_file
from planner.importing import Answers, import_plan
from planner.request import Request

SCRIPT = r"""#!/bin/bash
# Llama 2 70B, three-dimensional
export CUDA_DEVICE_MAX_CONNECTIONS=1
GPUS_PER_NODE=8
NNODES=${NNODES:-8}
TP=${1:-8}
PP=4; WORLD_SIZE=$(($GPUS_PER_NODE*$NNODES))
DISTRIBUTED_ARGS="
    --nproc_per_node $GPUS_PER_NODE \
    --nnodes $NNODES \
    --master_addr $MASTER_ADDR
"
MODEL_ARGS=(
    --num-layers 80   # the 70B
    --hidden-size 8192 --ffn-hidden-size 28672 --num-attention-heads 64
    --group-query-attention --num-query-groups 8 --seq-length 4096
    --max-position-embeddings 4096 --position-embedding-type rope --normalization RMSNorm --swiglu
    --disable-bias-linear --untie-embeddings-and-output-weights --vocab-size 32000
    --attention-dropout 0 --hidden-dropout 0
)
TRAINING_ARGS=(--micro-batch-size 1 --global-batch-size=256 --bf16 --lr 1.5e-4)
if [ -n "$RESUME" ]; then
    LOAD=--finetune
    TRAINING_ARGS+=(--load checkpoints)
fi
PARALLEL_ARGS=(
    --tensor-model-parallel-size ${TP}
    --pipeline-model-parallel-size "$PP"
    --num-layers-per-virtual-pipeline-stage $((80/PP/4))
    --sequence-parallel --use-distributed-optimizer --overlap-grad-reduce
)
mkdir -p logs && echo "start $(date)"
torchrun ${DISTRIBUTED_ARGS} pretrain_gpt.py \
    ${MODEL_ARGS[@]} "${TRAINING_ARGS[@]}" ${PARALLEL_ARGS[@]} \
    --data-path $DATA 2>&1 | tee logs/log.txt
"""
A100 = Request(model="", cluster="dgx-a100", optimizer=None, attention=None)


def estimated(folder, name, text, target, request=A100, **answers):
    (folder / name).write_text(text, encoding="utf-8")
    return estimate_file(target, str(folder / name), request, Answers(**answers))


def words(error: pytest.ExceptionInfo[InputError]) -> str:
    return f"{error.value} {error.value.hint}"


def test_a_script_with_variables_and_arrays(tmp_path):
    plan = estimated(tmp_path, "run.sh", SCRIPT, "megatron")
    d = plan.decision
    assert (d.degrees.tp, d.degrees.pp, d.degrees.dp, d.virtual_stages) == (8, 4, 2, 4)
    assert (d.microbatch_size, d.microbatches, d.sharding, d.schedule) == (1, 128, "optimizer", "interleaved")
    assert plan.inputs.cluster.gpus == 64
    assert plan.inputs.workload.sequence_length == 4096
    notes = " ".join(plan.inputs.options.assumptions)
    assert "NNODES=8 (default in run.sh)" not in notes or "run.sh" in notes
    assert "not read in run.sh: --lr, --load, --data-path" in notes


def test_the_same_as_an_argument_list_and_as_flags_json(tmp_path):
    script = estimated(tmp_path, "run.sh", megatron_file({}), "megatron")
    text = megatron_file({}).partition("torchrun ")[2].replace("pretrain_gpt.py", "").replace("\\\n", "\n")
    arguments = estimated(tmp_path, "run.args", text, "megatron")
    assert arguments.decision == script.decision
    assert arguments.prediction == script.prediction


def test_bridge_overrides_are_megatrons_flags(tmp_path):
    overrides = (
        "python run_recipe.py --recipe llama3_8b --mode pretrain model.tensor_model_parallel_size=4 "
        "model.pipeline_model_parallel_size=4 model.virtual_pipeline_model_parallel_size=2 "
        "model.sequence_parallel=true model.context_parallel_size=1 train.micro_batch_size=1 "
        "train.global_batch_size=128 ddp.use_distributed_optimizer=true ddp.overlap_grad_reduce=true "
        "model.recompute_granularity=full model.recompute_method=uniform model.recompute_num_layers=1\n"
    )
    request = Request(model="llama-3.1-8b", cluster="dgx-a100", gpus=64, seq_len=4096)
    plan = estimated(tmp_path, "bridge.sh", overrides, "megatron-bridge", request)
    d = plan.decision
    assert (d.degrees.tp, d.degrees.pp, d.degrees.dp, d.virtual_stages) == (4, 4, 4, 2)
    assert (d.sharding, d.recompute, d.sequence_parallel, d.microbatches) == ("optimizer", "full", True, 32)


def test_what_a_bridge_recipe_decides_is_asked_for(tmp_path):
    recipe = "python run_recipe.py --recipe llama3_8b"
    text = f"{recipe} model.pipeline_model_parallel_size=4 train.micro_batch_size=1\n"
    request = Request(model="llama-3.1-8b", cluster="dgx-a100", gpus=64, seq_len=4096, global_batch=128)
    with pytest.raises(InputError) as error:
        estimated(tmp_path, "bridge.sh", text, "megatron-bridge", request)
    assert "add --tp" in words(error)


@pytest.mark.parametrize(
    ("request_changes", "answers", "message"),
    [
        ({"model": "llama-2-13b"}, {}, "layers 80 in run.sh, 40 in llama-2-13b"),
        ({"gpus": 128}, {}, "run.sh says 64 GPUs, --gpus says 128"),
        ({"seq_len": 8192}, {}, "run.sh says --seq-length 4096, --seq-len says 8192"),
        ({"global_batch": 64}, {}, "run.sh says --global-batch-size 256, --global-batch says 64"),
        ({"precision": "fp16"}, {}, "run.sh says --bf16, --precision says fp16"),
        ({}, {"tp": 4}, "run.sh says --tensor-model-parallel-size 8, --tp says 4"),
        ({}, {"sharding": "none"}, "run.sh says --use-distributed-optimizer, --sharding says none"),
        ({}, {"microbatch_size": 2}, "run.sh says --micro-batch-size 1, --micro-batch says 2"),
        ({"cluster": None}, {}, "does not say which GPUs"),
    ],
)
def test_a_flag_against_the_file_is_an_error_naming_both(tmp_path, request_changes, answers, message):
    with pytest.raises(InputError) as error:
        estimated(tmp_path, "run.sh", SCRIPT, "megatron", A100.changed(**request_changes), **answers)
    assert message in words(error)


def test_a_flag_that_agrees_is_no_error(tmp_path):
    request = A100.changed(model="llama-2-70b", gpus=64, seq_len=4096)
    plan = estimated(tmp_path, "run.sh", SCRIPT, "megatron", request, tp=8, microbatch_size=1)
    assert plan.inputs.model.name == "llama-2-70b"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("TP=${1:-8}", "TP=$(cat tp)", "the output of a command"),
        ("TP=${1:-8}", "TP=$SIZE", "$SIZE is not set in the file"),
        ("TP=${1:-8}", "if [ $X = 1 ]; then TP=4; else TP=8; fi", "inside a condition"),
        ("--micro-batch-size 1", "--micro-batch-size x", "--micro-batch-size must be a whole number"),
        (
            "torchrun ${DISTRIBUTED_ARGS} pretrain_gpt.py",
            "torchrun a.py --tensor-model-parallel-size 1\ntorchrun",
            "2 commands",
        ),
    ],
)
def test_a_value_the_file_does_not_hold_is_named(tmp_path, old, new, message):
    assert old in SCRIPT
    with pytest.raises(InputError) as error:
        estimated(tmp_path, "run.sh", SCRIPT.replace(old, new), "megatron")
    assert message in words(error)


@pytest.mark.parametrize(
    ("changes", "setting"),
    [
        ({"--use-precision-aware-optimizer": ""}, "--use-precision-aware-optimizer"),
        (
            {
                "--optimizer-cpu-offload": "",
                "--use-precision-aware-optimizer": "",
                "--optimizer-offload-fraction": "0.5",
            },
            "--optimizer-offload-fraction 0.5",
        ),
        ({"--mtp-num-layers": "1"}, "--mtp-num-layers"),
        ({"--context-parallel-size": "2", "--cp-comm-type": "a2a"}, "--cp-comm-type a2a"),
        ({"--recompute-granularity": "selective", "--recompute-modules": "mlp"}, "--recompute-modules mlp"),
        ({"--optimizer": "muon"}, "--optimizer muon"),
        ({"--rampup-batch-size": "16 16 1000"}, "--rampup-batch-size"),
    ],
)
def test_settings_that_cannot_be_priced_are_refused_by_name(tmp_path, changes, setting):
    with pytest.raises(UnsupportedFeature) as error:
        estimated(tmp_path, "train.sh", megatron_file(changes), "megatron")
    assert setting in str(error.value)


def test_a_file_with_a_broken_rule_is_not_priced(tmp_path):
    changes = {"--num-layers-per-virtual-pipeline-stage": "2", "--global-batch-size": "24"}
    with pytest.raises(InputError, match="rule interleaving: 6 microbatches"):
        estimated(tmp_path, "train.sh", megatron_file(changes), "megatron")


def test_what_a_launcher_changes_without_a_word_is_priced_with_a_warning(tmp_path):
    changes = {
        "--recompute-granularity": "full",
        "--recompute-method": "block",
        "--recompute-num-layers": "99",
    }
    plan = estimated(tmp_path, "train.sh", megatron_file(changes), "megatron")
    assert plan.decision.recompute == "full"
    assert any("recompute-count" in warning for warning in plan.warnings)


def test_optimizer_instances_are_islands_or_refused_with_the_numbers(tmp_path):
    base = {
        "--tensor-model-parallel-size": "1",
        "--pipeline-model-parallel-size": "1",
        "--sequence-parallel": None,
    }
    plan = estimated(
        tmp_path, "a.sh", megatron_file({**base, "--num-distributed-optimizer-instances": "8"}), "megatron"
    )
    assert plan.decision.sharding_group == "island"
    with pytest.raises(UnsupportedFeature, match="over 32 of 64 data ranks; priced are all 64, or the 8"):
        estimated(
            tmp_path,
            "b.sh",
            megatron_file({**base, "--num-distributed-optimizer-instances": "2"}),
            "megatron",
        )


H100 = Request(
    model="llama-3.1-8b", cluster="dgx-h100", gpus=64, seq_len=4096, optimizer=None, attention=None
)


def test_a_deepspeed_file_alone(tmp_path):
    plan = estimated(tmp_path, "ds.json", json_file(DEEPSPEED, {}), "deepspeed", H100)
    d = plan.decision
    assert (d.degrees.dp, d.sharding, d.microbatch_size, d.microbatches) == (64, "parameters", 2, 2)
    assert any("recompute is the training script's" in note for note in plan.inputs.options.assumptions)


def test_deepspeed_auto_is_asked_for_not_guessed(tmp_path):
    text = json_file(DEEPSPEED, {"train_batch_size": "auto", "gradient_accumulation_steps": "auto"})
    with pytest.raises(InputError) as error:
        estimated(tmp_path, "ds.json", text, "deepspeed", H100)
    assert "--global-batch" in words(error)
    plan = estimated(tmp_path, "ds.json", text, "deepspeed", H100.changed(global_batch=512))
    assert plan.decision.microbatches == 4
    size = json_file(DEEPSPEED, {key: "auto" for key in DEEPSPEED if key.startswith(("train", "grad"))})
    with pytest.raises(InputError) as error:
        estimated(tmp_path, "ds.json", size, "deepspeed", H100.changed(global_batch=512))
    assert "--micro-batch" in words(error)
    plan = estimated(
        tmp_path, "ds.json", size, "deepspeed", H100.changed(global_batch=512), microbatch_size=4
    )
    assert (plan.decision.microbatch_size, plan.decision.microbatches) == (4, 2)


@pytest.mark.parametrize(
    ("changes", "setting"),
    [
        (
            {"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "cpu", "ratio": 0.5}}},
            "offload_optimizer to cpu, ratio 0.5",
        ),
        (
            {"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "nvme"}}},
            "offload_optimizer to nvme",
        ),
        (
            {"zero_optimization": {"stage": 3, "offload_param": {"device": "cpu"}}},
            "offload_param to cpu",
        ),
        ({"sequence_parallel_size": 4}, "sequence_parallel_size 4"),
        ({"zero_optimization": {"stage": 3, "zero_quantized_weights": True}}, "zero_quantized_weights"),
    ],
)
def test_deepspeed_settings_that_cannot_be_priced(tmp_path, changes, setting):
    with pytest.raises(UnsupportedFeature) as error:
        estimated(tmp_path, "ds.json", json_file(DEEPSPEED, changes), "deepspeed", H100)
    assert setting in str(error.value)


def test_an_accelerate_file_alone_asks_for_the_microbatch(tmp_path):
    request = H100.changed(gpus=None, global_batch=64)
    text = json_file(ACCELERATE, {})
    with pytest.raises(InputError) as error:
        estimated(tmp_path, "a.yaml", text, "accelerate", request)
    assert "--micro-batch" in words(error)
    plan = estimated(tmp_path, "a.yaml", text, "accelerate", request, microbatch_size=2)
    assert (plan.decision.degrees.tp, plan.decision.degrees.dp, plan.decision.microbatches) == (4, 4, 8)


def test_a_torchtitan_module_written_by_hand(tmp_path):
    request = H100.changed(model="", gpus=8, seq_len=None)
    plan = estimated(tmp_path, "my_plan.py", torchtitan_file({}), "torchtitan", request)
    d = plan.decision
    assert plan.inputs.model.name == "llama-3.1-8b"
    assert (d.degrees.tp, d.degrees.pp, d.degrees.dp, d.sharding, d.recompute) == (
        2,
        2,
        2,
        "optimizer",
        "full",
    )
    assert (d.microbatch_size, d.microbatches) == (1, 8)


def test_torchtitan_flags(tmp_path):
    text = (
        "NGPU=8 torchrun --nproc_per_node=8 -m torchtitan.train --module llama3 --config llama3_8b "
        "--parallelism.tensor_parallel_degree 2 --parallelism.pipeline_parallel_degree=1 "
        "--parallelism.fsdp_reshard_after_forward always --training.local_batch_size 2 "
        "--training.global_batch_size 16 --training.seq_len 8192 activation-checkpoint:selective\n"
    )
    request = H100.changed(gpus=8, seq_len=None)
    d = estimated(tmp_path, "run.sh", text, "torchtitan", request).decision
    assert (d.degrees.tp, d.degrees.dp, d.sharding, d.recompute) == (2, 4, "parameters", "selective")
    assert (d.microbatch_size, d.microbatches) == (2, 2)


def test_a_degree_the_base_configuration_decides_is_asked_for(tmp_path):
    text = torchtitan_file({"tensor_parallel_degree": None})
    request = H100.changed(gpus=8, seq_len=None)
    with pytest.raises(InputError) as error:
        estimated(tmp_path, "c.py", text, "torchtitan", request)
    assert "add --tp" in words(error)


def test_a_galvatron_file_needs_a_model_and_a_machine(tmp_path):
    text = json_file(GALVATRON, {})
    with pytest.raises(InputError) as error:
        estimated(tmp_path, "g.json", text, "galvatron", A100.changed(gpus=16))
    assert "--model" in words(error)


def test_a_model_of_experts_keeps_its_expert_degrees(tmp_path):
    changes = {**EXPERTS, "--expert-model-parallel-size": "8"}
    d = estimated(tmp_path, "moe.sh", megatron_file(changes), "megatron").decision
    assert (d.degrees.ep, d.degrees.expert_tp) == (8, 1)


def test_an_unknown_launcher_is_named(tmp_path):
    with pytest.raises(UnknownName, match="megatron"):
        estimated(tmp_path, "x.sh", SCRIPT, "megatorn")


def test_better_plans_one_flag_away_fit_are_faster_and_can_be_applied(tmp_path):
    """Applying the flag change to the file gives the neighbour's price."""
    plan = estimated(tmp_path, "run.sh", SCRIPT, "megatron")
    best = plan.alternatives[0]
    assert best.prediction.peak_memory_bytes <= plan.prediction.memory_limit_bytes
    assert best.prediction.step_seconds < plan.prediction.step_seconds
    assert "--tensor-model-parallel-size 8 -> 4" in best.why
    changed = estimated(tmp_path, "other.sh", SCRIPT.replace("TP=${1:-8}", "TP=4"), "megatron")
    assert changed.decision == best.decision
    assert changed.prediction.step_seconds == pytest.approx(best.prediction.step_seconds, rel=1e-12)


def test_a_plan_that_does_not_fit_is_offered_neighbours_that_do(tmp_path):
    text = json_file(DEEPSPEED, {"train_micro_batch_size_per_gpu": 8, "train_batch_size": 1024})
    plan = estimated(tmp_path, "ds.json", text, "deepspeed", H100)
    limit = plan.prediction.memory_limit_bytes
    assert plan.prediction.peak_memory_bytes > limit
    assert plan.alternatives
    assert all(other.prediction.peak_memory_bytes <= limit for other in plan.alternatives)


def test_import_and_estimate_are_one_price(tmp_path):
    (tmp_path / "run.sh").write_text(SCRIPT, encoding="utf-8")
    imported = import_plan("megatron", str(tmp_path / "run.sh"), A100, Answers())
    assert json.loads(imported.plan.to_json())["search"]["status"] == "estimate"
