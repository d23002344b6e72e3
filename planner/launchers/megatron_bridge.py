"""Megatron Bridge: the Megatron-LM flags of a plan as overrides of a recipe's ConfigContainer.

A renaming of the Megatron-LM export, same limits and rules. Names: Megatron Bridge of August 2026
(scripts/translate_mlm_to_bridge.py for the flags it maps; ddp, dist and model configuration for the others).
The base recipe is vanilla_gpt_pretrain_config, which takes the model's shape from overrides. It has no latent
attention and no clamped gate: for those RECIPE must name the model's own recipe, and the shape is its own.
"""

from __future__ import annotations

import json
import shlex
from dataclasses import replace

from planner.launchers.base import Reason, broken, require_expressible
from planner.launchers.megatron import MEGATRON_LIMITS, all_flags, environment_of, notes
from planner.launchers.megatron_model import (
    blocks_in_order,
    first_moe,
    has_rotary_positions,
    model_flags,
    windows_in_use,
)
from planner.launchers.megatron_model_rules import MODEL_RULES
from planner.launchers.megatron_rules import PARALLEL_RULES
from planner.launchers.run_scripts import header, run_job, run_script, stamp
from planner.model.spec import LatentAttention, MixtureOfExperts
from planner.plan_file.schema import Plan

WRITTEN_FOR = "Megatron Bridge of August 2026"
VANILLA = "vanilla_gpt_pretrain_config"
Overrides = dict[str, str]

# Flags whose value moves unchanged, by their place in ConfigContainer.
VALUES = {
    "--tensor-model-parallel-size": "model.tensor_model_parallel_size",
    "--pipeline-model-parallel-size": "model.pipeline_model_parallel_size",
    "--context-parallel-size": "model.context_parallel_size",
    "--expert-model-parallel-size": "model.expert_model_parallel_size",
    "--expert-tensor-parallel-size": "model.expert_tensor_parallel_size",
    "--cp-comm-type": "model.cp_comm_type",
    "--micro-batch-size": "train.micro_batch_size",
    "--global-batch-size": "train.global_batch_size",
    "--recompute-granularity": "model.recompute_granularity",
    "--recompute-method": "model.recompute_method",
    "--recompute-num-layers": "model.recompute_num_layers",
    "--data-parallel-sharding-strategy": "ddp.data_parallel_sharding_strategy",
    "--num-distributed-optimizer-instances": "ddp.num_distributed_optimizer_instances",
    "--ckpt-format": "checkpoint.ckpt_format",
    "--optimizer": "optimizer.optimizer",
    "--optimizer-offload-fraction": "optimizer.optimizer_offload_fraction",
    "--num-layers": "model.num_layers",
    "--hidden-size": "model.hidden_size",
    "--ffn-hidden-size": "model.ffn_hidden_size",
    "--num-attention-heads": "model.num_attention_heads",
    "--num-query-groups": "model.num_query_groups",
    "--kv-channels": "model.kv_channels",
    "--softmax-type": "model.softmax_type",
    "--max-position-embeddings": "model.max_position_embeddings",
    "--position-embedding-type": "model.position_embedding_type",
    "--normalization": "model.normalization",
    "--attention-dropout": "model.attention_dropout",
    "--hidden-dropout": "model.hidden_dropout",
    "--num-experts": "model.num_moe_experts",
    "--moe-router-topk": "model.moe_router_topk",
    "--moe-ffn-hidden-size": "model.moe_ffn_hidden_size",
    "--moe-shared-expert-intermediate-size": "model.moe_shared_expert_intermediate_size",
    "--moe-router-score-function": "model.moe_router_score_function",
    "--moe-token-dispatcher-type": "model.moe_token_dispatcher_type",
    "--vocab-size": "tokenizer.vocab_size",
    "--make-vocab-size-divisible-by": "model.make_vocab_size_divisible_by",
    "--attention-backend": "model.attention_backend",
}
# Switches: (place, what the switch sets it to).
SWITCHES = {
    "--sequence-parallel": (("model.sequence_parallel", "true"),),
    "--use-distributed-optimizer": (("ddp.use_distributed_optimizer", "true"),),
    "--use-precision-aware-optimizer": (("optimizer.use_precision_aware_optimizer", "true"),),
    "--optimizer-cpu-offload": (("optimizer.optimizer_cpu_offload", "true"),),
    "--overlap-grad-reduce": (("ddp.overlap_grad_reduce", "true"),),
    "--overlap-param-gather": (("ddp.overlap_param_gather", "true"),),
    "--use-megatron-fsdp": (("dist.use_megatron_fsdp", "true"), ("ddp.use_megatron_fsdp", "true")),
    "--init-model-with-meta-device": (("model.init_model_with_meta_device", "true"),),
    "--accumulate-allreduce-grads-in-fp32": (("ddp.grad_reduce_in_fp32", "true"),),
    "--group-query-attention": (),  # follows from the number of query groups
    "--qk-layernorm": (("model.qk_layernorm", "true"),),
    "--swiglu": (("model.gated_linear_unit", "true"), ("model.activation_func", "silu")),
    "--disable-bias-linear": (("model.add_bias_linear", "false"),),
    "--add-qkv-bias": (("model.add_qkv_bias", "true"),),
    "--moe-grouped-gemm": (("model.moe_grouped_gemm", "true"),),
    "--moe-shared-expert-gate": (("model.moe_shared_expert_gate", "true"),),
    "--moe-router-enable-expert-bias": (("model.moe_router_enable_expert_bias", "true"),),
    "--no-bias-dropout-fusion": (("model.bias_dropout_fusion", "false"),),
    "--untie-embeddings-and-output-weights": (("model.share_embeddings_and_output_weights", "false"),),
}
# Flags with a form of their own, handled in ``overrides``.
OTHERS = (
    "--pipeline-model-parallel-layout",
    "--num-layers-per-virtual-pipeline-stage",
    "--recompute-modules",
    "--seq-length",
    "--window-size",
    "--window-attn-skip-freq",
    "--moe-layer-freq",
    "--bf16",
    "--fp16",
    "--fp8-format",
    "--fp8-recipe",
)
PRECISIONS = {
    "bf16": "bf16_mixed",
    "fp16": "fp16_mixed",
    "fp8": "bf16_with_fp8_current_scaling_mixed",  # tensorwise scaling, as the Megatron-LM flags
}


class MegatronBridge:
    """The Megatron Bridge launcher."""

    name = "megatron-bridge"
    limits = replace(MEGATRON_LIMITS, target="megatron-bridge")
    verified_by = (
        "the Megatron-LM export's rules; every flag renamed one to one. Sample plans equal the output of "
        "Megatron Bridge's own translator for the flags it knows; none was run"
    )

    def reasons(self, plan: Plan) -> list[Reason]:
        """Every rule of the model and of the strategy that the plan breaks: those of Megatron-LM."""
        return broken((*MODEL_RULES, *PARALLEL_RULES), plan)

    def export(self, plan: Plan) -> dict[str, str]:
        """run.sh, run.sbatch and overrides.json. Raises UnsupportedByTarget with all reasons."""
        require_expressible(self.name, self.reasons(plan))
        found, environment = overrides(plan), environment_of(plan)
        said = [note.replace("train.sh", "run.sh") for note in notes(plan)]
        lines = header(plan, WRITTEN_FOR, self.verified_by, said)
        machine = {
            **stamp(plan, self.name, WRITTEN_FOR, self.verified_by),
            "environment": environment,
            "recipe": None if needs_own_recipe(plan) else VANILLA,
            "overrides": found,
            "notes": said,
        }
        command = (
            '"$MEGATRON_BRIDGE/scripts/training/run_recipe.py" --recipe "$RECIPE" --mode pretrain '
            '"${OVERRIDES[@]}" "${RUN_OVERRIDES[@]}"'
        )
        return {
            "run.sh": run_script(plan, lines, setup(plan, found, environment), command),
            "run.sbatch": run_job(plan, lines),
            "overrides.json": json.dumps(machine, indent=2) + "\n",
        }


MEGATRON_BRIDGE = MegatronBridge()


def needs_own_recipe(plan: Plan) -> bool:
    """Whether the vanilla recipe's model cannot take the shape: latent attention, GPT-OSS's clamped gate."""
    is_latent = any(isinstance(b.attention, LatentAttention) for b in blocks_in_order(plan.inputs.model))
    return is_latent or "--quick-geglu" in model_flags(plan)


def overrides(plan: Plan) -> Overrides:
    """place in ConfigContainer -> value as Hydra reads it, of an expressible plan."""
    flags = all_flags(plan)
    if needs_own_recipe(plan):
        shape = set(model_flags(plan)) - {"--seq-length", "--attention-backend"}
        flags = {name: values for name, values in flags.items() if name not in shape}
    found: Overrides = {}
    for name, values in flags.items():
        if name in VALUES:
            found[VALUES[name]] = values[0]
        elif name in SWITCHES:
            found.update(SWITCHES[name])
        elif name not in OTHERS:
            raise ValueError(f"{name} has no place in Megatron Bridge's configuration")
    return found | _others(plan, flags)


def _others(plan: Plan, flags: dict[str, list[str]]) -> Overrides:
    found: Overrides = {"mixed_precision": PRECISIONS[plan.inputs.workload.precision]}
    length = str(plan.inputs.workload.sequence_length)
    found |= {"dataset.seq_length": length, "model.seq_length": length}
    if "--pipeline-model-parallel-layout" in flags:
        found["model.pipeline_model_parallel_layout"] = f"'{flags['--pipeline-model-parallel-layout'][0]}'"
    elif plan.decision.virtual_stages > 1:
        found["model.virtual_pipeline_model_parallel_size"] = str(plan.decision.virtual_stages)
    if "--recompute-modules" in flags:
        found["model.recompute_modules"] = f"[{','.join(flags['--recompute-modules'])}]"
    if "--window-size" in flags:
        found["model.window_size"] = flags["--window-size"][0].replace("(", "[").replace(")", "]")
    if "--window-attn-skip-freq" in flags:
        found["model.window_attn_skip_freq"] = _list([w is not None for w in windows_in_use(plan)])
    if "--moe-layer-freq" in flags and first_moe(plan.inputs.model) is not None:
        blocks = blocks_in_order(plan.inputs.model)
        found["model.moe_layer_freq"] = _list([isinstance(b.feed_forward, MixtureOfExperts) for b in blocks])
    return found


def setup(plan: Plan, found: Overrides, environment: dict[str, str | None]) -> list[str]:
    """Shell lines that set the environment and the overrides and ask for what the plan does not state."""
    lines = [': "${MEGATRON_BRIDGE:?set it to a Megatron Bridge checkout}"']
    if needs_own_recipe(plan):
        lines.append(': "${RECIPE:?set it to the recipe of this model; its shape is not overridden}"')
    else:
        lines.append(f'RECIPE="${{RECIPE:-{VANILLA}}}"')
    lines += [
        ': "${LEARNING_RATE:?set it to the peak learning rate}"',
        ': "${TRAIN_ITERS:?set it to the number of optimizer steps}"',
        'RUN_OVERRIDES=("optimizer.lr=$LEARNING_RATE" "train.train_iters=$TRAIN_ITERS")',
    ]
    if has_rotary_positions(plan.inputs.model) and not needs_own_recipe(plan):
        lines += [
            ': "${ROTARY_BASE:?set it to the rotary base (rope_theta in the config.json)}"',
            'RUN_OVERRIDES+=("model.rotary_base=$ROTARY_BASE")',
        ]
    for name, value in environment.items():
        lines.append(f"unset {name}" if value is None else f"export {name}={shlex.quote(value)}")
    rows = [f"  {shlex.quote(f'{place}={value}')}" for place, value in found.items()]
    return [*lines, "OVERRIDES=(", *rows, ")"]


def _list(values: list[bool]) -> str:
    return f"[{','.join(str(int(value)) for value in values)}]"
