"""Hugging Face Accelerate: a plan as accelerate.yaml and training_args.json, with scripts that launch them.

Written for Accelerate 1.12 to 1.15 and transformers 5. Choices of this exporter:

- Sharding none is DDP (MULTI_GPU). Sharded gradients or parameters are FSDP2, kept or dropped after the
  forward pass (fsdp_reshard_after_forward); an island is dp_replicate x dp_shard.
- Accelerate shards over dp_shard x cp, as a plan does over dp x cp. tp or cp without such a group has no
  FSDP2 mesh, and a parallelism_config without FSDP2 is refused by the launcher.
- Gradients are reduced after every microbatch (sync_each_batch), as a plan with sharded gradients prices it;
  without it they would be kept whole until the last one.
"""

from __future__ import annotations

import json
from typing import Any

from planner.launchers.accelerate_rules import (
    ACCELERATE_RULES,
    HYBRID_SEARCH,
    SHARDED_SPLIT_SEARCH,
    data_mesh,
)
from planner.launchers.base import Reason, broken, require_expressible
from planner.launchers.config_rules import CAUSAL_SPLIT_SEARCH, NO_SEQUENCE_PARALLEL_SEARCH
from planner.launchers.megatron_groups import nodes
from planner.launchers.run_scripts import header, run_job, run_script, stamp
from planner.launchers.scripts import comment
from planner.plan_file.schema import Plan
from planner.strategy.limits import Limits

ACCELERATE_LIMITS = Limits(
    target="accelerate",
    shardings=("none", "gradients", "parameters"),
    schedules=("1f1b",),
    recompute_granularity="uniform",
    has_layer_sharding=False,
    parameter_sharding_with_pipeline=False,
    max_ep=1,
    max_pp=1,
    kv_heads_by_tp=True,
    stack="accelerate",
    recomputes=("none", "full"),
    rules=(NO_SEQUENCE_PARALLEL_SEARCH, SHARDED_SPLIT_SEARCH, HYBRID_SEARCH, CAUSAL_SPLIT_SEARCH),
)
WRITTEN_FOR = "Accelerate 1.12 to 1.15 with transformers 5"
SETUP = (': "${TRAIN_SCRIPT:?set it to the training script}"',)
COMMAND = (
    "exec accelerate launch \\",
    '  --config_file "$HERE/accelerate.yaml" \\',
    '  --machine_rank "$NODE_RANK" \\',
    '  --main_process_ip "$MASTER_ADDR" --main_process_port "$MASTER_PORT" \\',
    '  "$TRAIN_SCRIPT" "$@"',
)


class Accelerate:
    """The Accelerate launcher."""

    name = "accelerate"
    limits = ACCELERATE_LIMITS
    verified_by = (
        "own rule table; both files read back to the plan's mesh, accumulation and sharding. Sample files "
        "passed Accelerate 1.15's file reader and ParallelismConfig; this one was not run"
    )

    def reasons(self, plan: Plan) -> list[Reason]:
        """Every rule of the strategy that the plan breaks."""
        return broken(ACCELERATE_RULES, plan)

    def export(self, plan: Plan) -> dict[str, str]:
        """accelerate.yaml, training_args.json, run.sh, run.sbatch, summary.json.

        Raises UnsupportedByTarget with every reason.
        """
        require_expressible(self.name, self.reasons(plan))
        lines = header(plan, WRITTEN_FOR, self.verified_by, notes(plan))
        summary = {
            **stamp(plan, self.name, WRITTEN_FOR, self.verified_by),
            "training_script": script_settings(plan),
            "notes": notes(plan),
        }
        before, _, _ = run_script(plan, lines, SETUP, "").partition("exec torchrun")
        comments = "\n".join(map(comment, lines))
        return {
            "accelerate.yaml": f"{comments}\n{yaml_text(accelerate_config(plan))}",
            "training_args.json": json.dumps(training_args(plan), indent=2) + "\n",
            "run.sh": before + "\n".join(COMMAND) + "\n",
            "run.sbatch": run_job(plan, lines),
            "summary.json": json.dumps(summary, indent=2) + "\n",
        }


ACCELERATE = Accelerate()


def accelerate_config(plan: Plan) -> dict[str, Any]:
    """The content of accelerate.yaml of an expressible plan. num_processes is the total of all machines."""
    q, gpus = plan.decision, plan.inputs.cluster.gpus
    is_sharded = q.sharding != "none"
    kind = "FSDP" if is_sharded else "MULTI_GPU" if gpus > 1 else "NO"
    config: dict[str, Any] = {
        "compute_environment": "LOCAL_MACHINE",
        "distributed_type": kind,
        "mixed_precision": plan.inputs.workload.precision,
        "num_machines": nodes(plan)[0],
        "num_processes": gpus,
        "machine_rank": 0,
        "rdzv_backend": "static",
        "same_network": True,
        "main_training_function": "main",
        "use_cpu": False,
        "debug": False,
    }
    if is_sharded:
        replicas, shards = data_mesh(plan)
        config["fsdp_config"] = {
            "fsdp_version": 2,
            "fsdp_reshard_after_forward": q.sharding == "parameters",
            "fsdp_auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
            "fsdp_activation_checkpointing": q.recompute == "full",
            "fsdp_offload_params": False,
            "fsdp_state_dict_type": "SHARDED_STATE_DICT",
        }
        config["parallelism_config"] = {
            "parallelism_config_dp_replicate_size": replicas,
            "parallelism_config_dp_shard_size": shards,
            "parallelism_config_tp_size": q.degrees.tp,
            "parallelism_config_cp_size": q.degrees.cp,
            "parallelism_config_cp_backend": "torch",
            "parallelism_config_cp_comm_strategy": "allgather",
        }
    return config


def training_args(plan: Plan) -> dict[str, Any]:
    """Arguments of transformers.TrainingArguments that the plan decides."""
    q = plan.decision
    is_sharded = q.sharding != "none"
    found: dict[str, Any] = {
        "per_device_train_batch_size": q.microbatch_size,
        "gradient_accumulation_steps": q.microbatches,
        plan.inputs.workload.precision: True,
        "optim": "adamw_torch_fused",
    }
    if q.recompute == "full" and not is_sharded:
        found["gradient_checkpointing"] = True  # with FSDP2 the switch is in fsdp_config
    if is_sharded and q.microbatches > 1:
        found["accelerator_config"] = {"gradient_accumulation_kwargs": {"sync_each_batch": True}}
    return found


def script_settings(plan: Plan) -> dict[str, Any]:
    """What the plan decides and neither file has a key for: the training script must do it."""
    q, workload = plan.decision, plan.inputs.workload
    kernel = "flash_attention_2" if q.degrees.cp == 1 else "sdpa"
    settings: dict[str, Any] = {
        "sequence_length": workload.sequence_length,
        "attn_implementation": "eager" if workload.attention == "unfused" else kernel,
    }
    if q.degrees.tp > 1:
        settings["tp_plan"] = "auto"
    return settings


def notes(plan: Plan) -> list[str]:
    """What the plan does not state and the run still needs, or does differently."""
    q, workload = plan.decision, plan.inputs.workload
    found = [
        "Not in the plan: learning rate, gradient clipping, scheduler, weight decay, data, checkpoints.",
        "The training script reads training_args.json and sets what summary.json names.",
    ]
    if workload.optimizer == "adam":
        found.append("adamw_torch_fused decouples weight decay; equal to Adam at weight decay 0.")
    if q.degrees.tp > 1:
        found.append("tp: load the model with tp_plan='auto'; it must have a plan for tensor parallelism.")
    if q.degrees.cp > 1:
        found.append("cp: the collator shifts the labels (shift_labels); attention masks are not supported.")
    is_priced = plan.inputs.options.stack == ACCELERATE_LIMITS.stack
    if q.sharding == "gradients" and q.microbatches > 1 and not is_priced:
        found.append(
            "FSDP2 gathers weights for every microbatch; the predicted time has one gather a step for "
            "sharded gradients."
        )
    return found


def yaml_text(config: dict[str, Any]) -> str:
    """One or two levels of names and plain values as YAML; JSON's scalars are YAML's."""
    lines = []
    for key, value in config.items():
        if isinstance(value, dict):
            lines += [f"{key}:", *(f"  {name}: {json.dumps(item)}" for name, item in value.items())]
        else:
            lines.append(f"{key}: {json.dumps(value)}")
    return "\n".join(lines) + "\n"
