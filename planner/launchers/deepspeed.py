"""DeepSpeed: a plan as ds_config.json, with a torchrun script and a SLURM job.

Written for DeepSpeed 0.18 to 0.19. Choices of this exporter:

- No pipeline: stages are code (PipelineModule), not configuration, and only run with ZeRO 0 or 1.
- Tensor parallelism is AutoTP. DeepSpeed checks the batch before it builds the tp groups and so counts all
  ranks as data ranks; with tp > 1 the file leaves train_batch_size out, or a right file would be refused.
- Sharding inside an island is ZeRO-3 with a secondary partition (hpZ): weights
  are gathered across islands in the forward pass, optimizer state is sharded over all ranks. Memory is not
  above the plan's, time may be; the search does not offer it. MiCS, the exact form, was removed in 0.19.
- The optimizer on the host is offload_optimizer, with ZeRO 1 where there is one data rank.
- The learning rate is "auto": transformers fills it in, run.sh puts $LEARNING_RATE there otherwise.
"""

from __future__ import annotations

import json
from typing import Any

from planner.launchers.base import Break, Reason, Rule, broken, require_expressible
from planner.launchers.config_rules import (
    ADAM,
    EXPERTS_WITHOUT_TP,
    HALF_PRECISION,
    NO_CONTEXT,
    NO_EXPERT_GROUPS,
    NO_INTERLEAVING,
    NO_PIPELINE,
    NO_SEQUENCE_PARALLEL,
    NO_SEQUENCE_PARALLEL_SEARCH,
    ONE_CHUNK,
    WHOLE_MODEL_RECOMPUTE,
)
from planner.launchers.megatron_groups import data_ranks, islands
from planner.launchers.run_scripts import header, run_job, run_script, stamp
from planner.launchers.torch_rules import HEADS, RANKS, shared
from planner.plan_file.schema import Plan
from planner.strategy.limits import Limits

DEEPSPEED_LIMITS = Limits(
    target="deepspeed",
    sharding_groups=("global",),
    schedules=("1f1b",),
    recompute_granularity="uniform",
    has_layer_sharding=False,
    parameter_sharding_with_pipeline=False,
    max_cp=1,
    max_ep=1,
    max_pp=1,
    kv_heads_by_tp=True,
    recomputes=("none", "full"),
    rules=(NO_SEQUENCE_PARALLEL_SEARCH,),
    offload_shardings=("none", "optimizer", "gradients", "parameters"),
)
WRITTEN_FOR = "DeepSpeed 0.18 to 0.19"
STAGES = {"none": 0, "optimizer": 1, "gradients": 2, "parameters": 3}
SETUP = (
    ': "${TRAIN_SCRIPT:?set it to the training script}"',
    'CONFIG="$HERE/ds_config.json"',
    "# TRAINER=transformers: the script parses TrainingArguments, which take the file as --deepspeed FILE.",
    'if [[ "${TRAINER:-deepspeed}" == transformers ]]; then',
    '  CONFIG_ARGS=(--deepspeed "$CONFIG")',
    "else",
    '  : "${LEARNING_RATE:?set it to the peak learning rate}"',
    "  NUMBER='^[0-9]+([.][0-9]+)?([eE][+-]?[0-9]+)?$'",
    '  [[ "$LEARNING_RATE" =~ $NUMBER ]] || { echo "LEARNING_RATE is not a number" >&2; exit 2; }',
    '  RUN_CONFIG="$(mktemp "${TMPDIR:-/tmp}/ds_config.XXXXXX")"',
    '  sed "s/\\"auto\\"/$LEARNING_RATE/" "$CONFIG" > "$RUN_CONFIG"',
    '  CONFIG_ARGS=(--deepspeed --deepspeed_config "$RUN_CONFIG")',
    "fi",
)


def _island(plan: Plan) -> Break | None:
    q = plan.decision
    if q.sharding == "none" or q.sharding_group == "global":
        return None
    if q.sharding != "parameters":
        return Break(f"sharding {q.sharding} inside an island", "sharding over the whole data group")
    if q.degrees.tp > 1:
        return Break(
            f"hpZ groups are consecutive ranks and tp is {q.degrees.tp}", "sharding over the whole data group"
        )
    return None


DEEPSPEED_RULES: tuple[Rule, ...] = (
    *shared("world-identity", "batch-identity", "whole-nodes"),
    RANKS,
    NO_PIPELINE,
    ONE_CHUNK,
    NO_INTERLEAVING,
    NO_CONTEXT,
    NO_EXPERT_GROUPS,
    *shared("stages-cover-layers"),
    HEADS,
    *shared("ffn-by-tp"),
    NO_SEQUENCE_PARALLEL,
    EXPERTS_WITHOUT_TP,
    WHOLE_MODEL_RECOMPUTE,
    *shared("layer-choices"),
    Rule("island-sharding", "inside an island only parameters, and only with tp 1 (hpZ)", _island),
    *shared("gather-units"),
    ADAM,
    HALF_PRECISION,
    *shared("kernels"),
)


class DeepSpeed:
    """The DeepSpeed launcher."""

    name = "deepspeed"
    limits = DEEPSPEED_LIMITS
    verified_by = (
        "own rule table; ds_config.json read back to the plan's dp, accumulation, sharding and recompute. "
        "Sample files passed DeepSpeedConfig of 0.19.8; this one was not run"
    )

    def reasons(self, plan: Plan) -> list[Reason]:
        """Every rule of the strategy that the plan breaks."""
        return broken(DEEPSPEED_RULES, plan)

    def export(self, plan: Plan) -> dict[str, str]:
        """ds_config.json, run.sh, run.sbatch and summary.json. Raises UnsupportedByTarget."""
        require_expressible(self.name, self.reasons(plan))
        summary = {
            **stamp(plan, self.name, WRITTEN_FOR, self.verified_by),
            "training_script": script_settings(plan),
            "notes": notes(plan),
        }
        lines = header(plan, WRITTEN_FOR, self.verified_by, notes(plan))
        return {
            "ds_config.json": json.dumps(ds_config(plan), indent=2) + "\n",
            "run.sh": run_script(plan, lines, SETUP, '"$TRAIN_SCRIPT" "${CONFIG_ARGS[@]}"'),
            "run.sbatch": run_job(plan, lines),
            "summary.json": json.dumps(summary, indent=2) + "\n",
        }


DEEPSPEED = DeepSpeed()


def ds_config(plan: Plan) -> dict[str, Any]:
    """The content of ds_config.json of an expressible plan."""
    q, workload = plan.decision, plan.inputs.workload
    config: dict[str, Any] = {}
    if q.degrees.tp == 1:
        config["train_batch_size"] = q.global_batch
    config["train_micro_batch_size_per_gpu"] = q.microbatch_size
    config["gradient_accumulation_steps"] = q.microbatches
    config[workload.precision] = {"enabled": True}
    if q.sharding != "none" or q.offload != "none":
        config["data_types"] = {"grad_accum_dtype": "fp32"}  # as the memory model counts gradients
    config["zero_optimization"] = zero_section(plan)
    decoupled = {"adam_w_mode": workload.optimizer == "adamw"}  # DeepSpeed's Adam decouples unless told
    config["optimizer"] = {"type": "AdamW" if decoupled["adam_w_mode"] else "Adam", "params": {"lr": "auto"}}
    if not decoupled["adam_w_mode"]:
        config["optimizer"]["params"] |= decoupled
    if q.recompute == "full":
        config["activation_checkpointing"] = {
            "partition_activations": False,
            "contiguous_memory_optimization": False,
            "cpu_checkpointing": False,
        }
    if q.degrees.tp > 1:
        config["tensor_parallel"] = {"autotp_size": q.degrees.tp}
    return config


def zero_section(plan: Plan) -> dict[str, Any]:
    """zero_optimization: the stage by what is sharded, and the secondary partition of an island."""
    q = plan.decision
    section: dict[str, Any] = {"stage": STAGES[q.sharding]}
    if q.offload != "none":
        section["stage"] = max(1, section["stage"])  # without ZeRO the key is passed over
        section["offload_optimizer"] = {"device": "cpu", "pin_memory": True}
    if q.sharding == "none":
        return section
    section |= {"overlap_comm": True, "contiguous_gradients": True, "reduce_scatter": True}
    if q.sharding_group == "island":
        section["zero_hpz_partition_size"] = data_ranks(plan) // islands(plan)[0]
    return section


def script_settings(plan: Plan) -> dict[str, Any]:
    """What the plan decides and ds_config.json has no key for: the training script must do it."""
    workload = plan.inputs.workload
    return {
        "sequence_length": workload.sequence_length,
        "gradient_checkpointing": plan.decision.recompute == "full",
        "attn_implementation": "eager" if workload.attention == "unfused" else "flash_attention_2",
    }


def notes(plan: Plan) -> list[str]:
    """What the plan does not state and the run still needs, or does differently."""
    q = plan.decision
    found = [
        "Not in the plan: learning rate, gradient clipping, scheduler, weight decay, data, checkpoints.",
        "The training script sets what summary.json names: sequence length, attention, checkpointing.",
    ]
    if q.degrees.tp > 1:
        found.append(
            f"tp {q.degrees.tp}: DeepSpeed reports a train_batch_size {q.degrees.tp} times the real "
            f"{q.global_batch}; the model needs a tp_plan (Hugging Face) or a partition_config."
        )
    if q.offload != "none":
        found.append(
            "DeepSpeed moves gradients to the host beside every backward, not once a step: less memory than "
            "predicted, more traffic than predicted with accumulation. Launch with cores bound to ranks."
        )
    elif q.sharding == "none":
        found.append("Without ZeRO gradients are kept in half precision: less memory than predicted.")
    if q.sharding != "none" and q.sharding_group == "island":
        found.append(
            "hpZ gathers weights across islands in the forward pass, which the predicted time does not "
            "contain; optimizer state is sharded over all ranks."
        )
    return found
