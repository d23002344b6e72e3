"""Megatron-LM: a plan as pretrain_gpt.py flags, with a torchrun script and a SLURM job.

Written for Megatron-LM core 0.16 to 0.20 dev. What a flag cannot say is refused with a reason, never left
out. Choices of this exporter:

- Sharded gradients and parameters go through Megatron-FSDP (version 1) and only without a pipeline. The
  argument check lets a pipeline pass, but each microbatch would gather and reduce every stage anew, which
  is not what a plan prices.
- Island sharding is --num-distributed-optimizer-instances, one instance an island; the state is sharded
  inside an island and copied between islands.
- Gradient reduction is overlapped in every mode, as the cost model assumes.
"""

from __future__ import annotations

import json

from planner.launchers.base import Reason, broken, require_expressible
from planner.launchers.megatron_groups import data_ranks, expert_data_ranks, islands, nodes
from planner.launchers.megatron_model import has_rotary_positions, model_flags
from planner.launchers.megatron_model_rules import MODEL_RULES, RING_SEARCH
from planner.launchers.megatron_rules import PARALLEL_RULES
from planner.launchers.megatron_stages import Flags, pipeline_flags, recompute_flags
from planner.launchers.run_scripts import header, stamp
from planner.launchers.scripts import Job, sbatch_script, train_script
from planner.plan_file.schema import Plan
from planner.strategy.limits import Limits

MEGATRON_LIMITS = Limits(
    target="megatron",
    shardings=("none", "optimizer", "gradients", "parameters"),
    sharding_groups=("global", "island"),
    schedules=("1f1b", "interleaved"),
    recompute_granularity="stage",
    has_layer_sharding=False,
    parameter_sharding_with_pipeline=False,
    rules=(RING_SEARCH,),
    offload_shardings=("none", "optimizer"),
)
WRITTEN_FOR = "Megatron-LM core 0.16 / 0.20 dev"
FSDP_STRATEGIES = {"gradients": "optim_grads", "parameters": "optim_grads_params"}
CONNECTIONS = "CUDA_DEVICE_MAX_CONNECTIONS"


class Megatron:
    """The Megatron-LM launcher."""

    name = "megatron"
    limits = MEGATRON_LIMITS
    verified_by = (
        "own rule table; flags read back to the plan's dp, microbatches, virtual stages, layers per stage. "
        "Sample plans passed the argument check of core 0.16.1 and 0.20 dev; this one was not run"
    )

    def reasons(self, plan: Plan) -> list[Reason]:
        """Every rule of the model and of the strategy that the plan breaks."""
        return broken((*MODEL_RULES, *PARALLEL_RULES), plan)

    def export(self, plan: Plan) -> dict[str, str]:
        """train.sh, train.sbatch and flags.json. Raises UnsupportedByTarget with all reasons."""
        require_expressible(self.name, self.reasons(plan))
        flags, environment, (num_nodes, per_node) = all_flags(plan), environment_of(plan), nodes(plan)
        machine = {
            **stamp(plan, self.name, WRITTEN_FOR, self.verified_by),
            "environment": environment,
            "flags": flags,
            "notes": notes(plan),
        }
        job = Job(
            name=plan.inputs.model.name,
            header=header(plan, WRITTEN_FOR, self.verified_by, notes(plan), what="Flags written"),
            num_nodes=num_nodes,
            ranks_per_node=per_node,
            environment=environment,
            flags=flags,
            needs_rotary_base=has_rotary_positions(plan.inputs.model),
            train_iters=_train_iters(plan),
        )
        return {
            "train.sh": train_script(job),
            "train.sbatch": sbatch_script(job),
            "flags.json": json.dumps(machine, indent=2) + "\n",
        }


MEGATRON = Megatron()


def all_flags(plan: Plan) -> Flags:
    """Every flag of an expressible plan, in a stable order: strategy first, then model, then numbers."""
    return (
        parallel_flags(plan)
        | pipeline_flags(plan)
        | recompute_flags(plan)
        | sharding_flags(plan)
        | offload_flags(plan)
        | model_flags(plan)
        | precision_flags(plan)
    )


def parallel_flags(plan: Plan) -> Flags:
    """Degrees, sequence parallelism and batch sizes. dp has no flag: Megatron-LM derives it."""
    q, d = plan.decision, plan.decision.degrees
    flags: Flags = {
        "--tensor-model-parallel-size": [str(d.tp)],
        "--pipeline-model-parallel-size": [str(d.pp)],
        "--context-parallel-size": [str(d.cp)],
    }
    if plan.inputs.model.is_moe:
        flags["--expert-model-parallel-size"] = [str(d.ep)]
        flags["--expert-tensor-parallel-size"] = [str(d.expert_tp)]  # its default is tp, not 1
    if d.cp > 1:
        flags["--cp-comm-type"] = ["p2p"]
    if q.sequence_parallel and d.tp > 1:
        flags["--sequence-parallel"] = []
    flags["--micro-batch-size"] = [str(q.microbatch_size)]
    flags["--global-batch-size"] = [str(q.global_batch)]
    return flags


def sharding_flags(plan: Plan) -> Flags:
    """How weights, gradients and optimizer state are kept over the data ranks."""
    q = plan.decision
    if q.sharding == "none":
        has_replicas = data_ranks(plan) > 1 or (plan.inputs.model.is_moe and expert_data_ranks(plan) > 1)
        return {"--overlap-grad-reduce": []} if has_replicas else {}
    flags: Flags = {}
    if q.sharding in FSDP_STRATEGIES:
        flags["--use-megatron-fsdp"] = []
        flags["--data-parallel-sharding-strategy"] = [FSDP_STRATEGIES[q.sharding]]
        flags["--ckpt-format"] = ["fsdp_dtensor"]
        if q.sharding == "parameters":
            flags["--init-model-with-meta-device"] = []  # the whole model need not fit to be created
    flags |= {"--use-distributed-optimizer": [], "--overlap-grad-reduce": [], "--overlap-param-gather": []}
    instances = islands(plan)[0]
    if q.sharding_group == "island" and instances > 1:
        flags["--num-distributed-optimizer-instances"] = [str(instances)]
    return flags


def offload_flags(plan: Plan) -> Flags:
    """The optimizer on the host. megatron-core's own default for the fraction is 0: all stays on the GPU."""
    if plan.decision.offload == "none":
        return {}
    return {
        "--use-distributed-optimizer": [],  # the precision-aware optimizer asks for it, one data rank or more
        "--use-precision-aware-optimizer": [],
        "--optimizer-cpu-offload": [],
        "--optimizer-offload-fraction": ["1.0"],
    }


def precision_flags(plan: Plan) -> Flags:
    """Number formats and optimizer; gradients are kept in fp32 as the memory model counts them."""
    workload = plan.inputs.workload
    flags: Flags
    if workload.precision == "fp16":
        flags = {"--fp16": [], "--accumulate-allreduce-grads-in-fp32": []}
    else:
        flags = {"--bf16": []}
    if workload.precision == "fp8":
        # Current scaling: the default (delayed) refuses to recompute norms and expert activations.
        flags |= {"--fp8-format": ["hybrid"], "--fp8-recipe": ["tensorwise"]}
    is_sgd = workload.optimizer == "sgd-momentum"
    return flags | {"--optimizer": ["sgd" if is_sgd else "adam"]}


def environment_of(plan: Plan) -> dict[str, str | None]:
    """Environment variables that are part of the plan; None means it must not be set.

    Before Blackwell, tensor or context parallelism needs one hardware queue so that communication starts
    before the kernels it overlaps; Megatron-FSDP needs more than one.
    """
    d, generation = plan.decision.degrees, plan.inputs.cluster.device.generation
    if plan.decision.sharding in FSDP_STRATEGIES:
        return {CONNECTIONS: None}
    if (d.tp > 1 or d.cp > 1) and not generation.startswith("blackwell"):
        return {CONNECTIONS: "1"}
    return {}


def notes(plan: Plan) -> list[str]:
    """What the plan does not state and the run still needs, or does differently."""
    model, workload = plan.inputs.model, plan.inputs.workload
    found = [
        "Not in the plan, Megatron-LM's defaults apply: norm epsilon, initialisation, learning-rate "
        "schedule, weight decay, checkpoints; pass them as arguments of train.sh."
    ]
    if has_rotary_positions(model):
        found.append("Rotary base comes from ROTARY_BASE; scaled rotary embeddings need further flags.")
    if model.is_moe:
        found.append("Expert load balancing is not in the plan: set --moe-aux-loss-coeff and router options.")
    if model.num_mtp_layers:
        found.append(f"The model's {model.num_mtp_layers} multi-token-prediction layers are not trained.")
    if workload.optimizer == "adam":
        found.append("Megatron-LM's adam decouples weight decay (AdamW); equal to Adam at --weight-decay 0.")
    if plan.decision.sharding in FSDP_STRATEGIES and plan.decision.degrees.tp > 1:
        found.append("Tensor parallelism with Megatron-FSDP: communication may overlap less than predicted.")
    if plan.decision.offload != "none":
        found.append(
            "The update on the host is priced after the backward, nothing hidden; "
            "--overlap-cpu-optimizer-d2h-h2d may hide part of it. Bind every rank to its own CPU cores."
        )
    vendor = plan.inputs.cluster.device.vendor
    if vendor.lower() != "nvidia":
        found.append(f"{vendor} GPUs need a Megatron-LM build for them; the flags are upstream's.")
    return found


def _train_iters(plan: Plan) -> int | None:
    """Optimizer steps of the whole run, when the plan states its tokens."""
    workload = plan.inputs.workload
    if workload.tokens is None:
        return None
    return max(1, -int(-workload.tokens // workload.tokens_per_step))
