"""Hetu-Galvatron: a plan as its per-layer JSON, a training configuration, and scripts that start it.

Written for Hetu-Galvatron of June 2026 (train_dist.py with hydra); release 2.4.0 reads the same JSON without
context parallelism. Choices of this exporter:

- Sharding is FSDP1 per layer: default_dp_type is ddp, zero2 or zero3, and a layer may ask for zero3 instead.
- Sharded gradients are reduced after every microbatch (async_grad_reduce false), as a plan prices them;
  Galvatron's default keeps them whole until the last one.
- Both vocab_sdp and its older name embed_sdp are written; each version reads one and ignores the other.
- The block type follows the first word of model_size (mistral and mixtral mean experts), so the model's
  name is put behind gpt, llama or mixtral.
"""

from __future__ import annotations

import json
from typing import Any

from planner.launchers.base import Reason, broken, require_expressible
from planner.launchers.config_rules import (
    CAUSAL_SPLIT_SEARCH,
    SEQUENCE_PARALLEL_SEARCH,
    recomputes,
    shardings,
)
from planner.launchers.galvatron_model import model_section
from planner.launchers.galvatron_rules import GALVATRON_RULES, POWER_OF_TWO_SEARCH, base_dp_type
from planner.launchers.megatron_groups import nodes
from planner.launchers.megatron_model import has_rotary_positions
from planner.launchers.megatron_stages import stage_sizes
from planner.launchers.run_scripts import header, run_job, run_script, stamp
from planner.launchers.scripts import comment
from planner.plan_file.schema import Plan
from planner.strategy.limits import Limits
from planner.units import GIB

GALVATRON_LIMITS = Limits(
    target="galvatron",
    shardings=("none", "gradients", "parameters"),
    sharding_groups=("global",),
    schedules=("1f1b",),
    recompute_granularity="layer",
    layer_sharding_bases=("gradients",),
    kv_heads_by_tp=True,
    stack="galvatron",
    recomputes=("none", "full"),
    rules=(SEQUENCE_PARALLEL_SEARCH, POWER_OF_TWO_SEARCH, CAUSAL_SPLIT_SEARCH),
)
WRITTEN_FOR = "Hetu-Galvatron of June 2026"
PIPELINES = {"1f1b": "pipedream_flush", "gpipe": "gpipe"}


class Galvatron:
    """The Hetu-Galvatron launcher."""

    name = "galvatron"
    limits = GALVATRON_LIMITS
    verified_by = (
        "own rule table; the JSON read back to the plan's layers, stages, microbatches and sharding. Sample "
        "files passed the readers of release 2.4.0 and of June 2026; this one was not run"
    )

    def reasons(self, plan: Plan) -> list[Reason]:
        """Every rule of the model and of the strategy that the plan breaks."""
        return broken(GALVATRON_RULES, plan)

    def export(self, plan: Plan) -> dict[str, str]:
        """galvatron_config_*.json, train.yaml, run.sh, run.sbatch, summary.json.

        Raises UnsupportedByTarget with every reason.
        """
        require_expressible(self.name, self.reasons(plan))
        lines = header(plan, WRITTEN_FOR, self.verified_by, notes(plan))
        name = config_name(plan)
        summary = {
            **stamp(plan, self.name, WRITTEN_FOR, self.verified_by),
            "config": name,
            "runtime": runtime_sections(plan),
            "notes": notes(plan),
        }
        comments = "\n".join(map(comment, lines))
        return {
            name: json.dumps(galvatron_config(plan), indent=4) + "\n",
            "train.yaml": f"{comments}\n{yaml_text(runtime_sections(plan))}",
            "run.sh": run_script(plan, lines, setup(plan), command(plan)),
            "run.sbatch": run_job(plan, lines),
            "summary.json": json.dumps(summary, indent=2) + "\n",
        }


GALVATRON = Galvatron()


def config_name(plan: Plan) -> str:
    """The JSON's file name by Galvatron's custom: model, machine, memory limit and precision."""
    num_nodes, per_node = nodes(plan)
    memory = round(plan.prediction.memory_limit_bytes / GIB)
    model = model_section(plan)["model_size"]
    precision = plan.inputs.workload.precision
    return f"galvatron_config_{model}_{num_nodes}nodes_{per_node}gpus_per_node_{memory}GB_{precision}.json"


def galvatron_config(plan: Plan) -> dict[str, Any]:
    """The per-layer JSON of an expressible plan; lists are comma-separated strings, one entry a block."""
    q, d = plan.decision, plan.decision.degrees
    count = plan.inputs.model.num_layers
    is_whole = (q.sharding if q.ends is None else q.ends.sharding) == "parameters"
    widths = layer_widths(plan)
    config: dict[str, Any] = {
        "pp_deg": d.pp,
        "tp_sizes_enc": _list([width for width, _, _ in widths]),
        "tp_consecutive_flags": _each(1, count),
        "cp_sizes_enc": _list([cp for _, cp, _ in widths]),
        "dp_types_enc": _list([int(sharding == "parameters") for sharding in shardings(plan)]),
        "use_sp": _list([int(is_ulysses) for _, _, is_ulysses in widths]),
        "checkpoint": _list([int(mode == "full") for mode in recomputes(plan)]),
    }
    if plan.inputs.model.is_moe:
        config |= {"ep_sizes_enc": _each(d.ep, count), "tp_of_ep_sizes_enc": _each(d.expert_tp, count)}
    return config | {
        "global_bsz": q.global_batch,
        "chunks": q.microbatches,
        "pp_division": _list(stage_sizes(plan)),
        "pipeline_type": PIPELINES[q.schedule],
        "default_dp_type": base_dp_type(plan),
        "vtp": d.tp if q.ends is None else q.ends.tp * q.ends.cp,
        "vsp": 0 if q.ends is None else int(q.ends.cp > 1),
        "vcp": d.cp if q.ends is None else 1,
        "vocab_sdp": int(is_whole),
        "embed_sdp": int(is_whole),
    }


def layer_widths(plan: Plan) -> list[tuple[int, int, bool]]:
    """(tp width, ring cp, whether the width is Ulysses) of every block.

    The cp of a plan priced on a profile is Ulysses, which Galvatron writes as a tp width with use_sp.
    """
    d, count = plan.decision.degrees, plan.inputs.model.num_layers
    if plan.inputs.profile is None:
        return [(d.tp, d.cp, False)] * count
    return [
        (run.tp * run.cp, 1, run.cp > 1)
        for stage in plan.decision.stages
        for run in stage.layer_strategies
        for _ in range(run.layers[0], run.layers[1] + 1)
    ]


def runtime_sections(plan: Plan) -> dict[str, dict[str, Any]]:
    """The sections of train.yaml: what the JSON does not hold, by GalvatronRuntimeArgs' names."""
    q, workload = plan.decision, plan.inputs.workload
    # A profile prices one reduction a step; the analytical model one a microbatch of sharded gradients.
    is_reduced_often = plan.inputs.profile is None and any(
        sharding != "none" for sharding in (q.sharding, *shardings(plan))
    )
    return {
        "parallel": {
            "mixed_precision": workload.precision,
            "cp_mode": "zigzag",
            "async_grad_reduce": not (is_reduced_often and q.microbatches > 1),
            "reduce_in_fp32": True,
            "use_ulysses": any(is_ulysses for _, _, is_ulysses in layer_widths(plan)),
        },
        "model": model_section(plan),
        "profile": {"profile": 0, "exit_after_profiling": 0},
        "train": {
            "global_batch_size": q.global_batch,
            "chunks": q.microbatches,
            "seq_length": workload.sequence_length,
            "sequence_parallel": True,
            "use_flash_attn": workload.attention == "flash",
        },
    }


def setup(plan: Plan) -> list[str]:
    """Shell lines that ask for what the plan does not state and collect it as hydra overrides."""
    lines = [
        ': "${GALVATRON:?set it to a Hetu-Galvatron checkout}"',
        ': "${LEARNING_RATE:?set it to the peak learning rate}"',
        ': "${TRAIN_ITERS:?set it to the number of optimizer steps}"',
        f'RUN_ARGS=("++runtime.parallel.galvatron_config_path=$HERE/{config_name(plan)}")',
        'RUN_ARGS+=("++runtime.train.lr=$LEARNING_RATE" "++runtime.train.train_iters=$TRAIN_ITERS")',
    ]
    if has_rotary_positions(plan.inputs.model):
        lines += [
            ': "${ROTARY_BASE:?set it to the rotary base (rope_theta in the config.json)}"',
            'RUN_ARGS+=("++runtime.model.rotary_base=$ROTARY_BASE")',
        ]
    lines += [
        'if [[ "${MOCK_DATA:-0}" == 1 ]]; then',
        '  RUN_ARGS+=("++runtime.data.use_random_dataset=true")',
        "else",
        '  : "${DATA_PATH:?set it to the data prefix, or MOCK_DATA=1}"',
        '  : "${TOKENIZER:?set it to a tokenizer folder, or MOCK_DATA=1}"',
        '  RUN_ARGS+=("++runtime.data.data_path=$DATA_PATH" "++runtime.data.tokenizer_model=$TOKENIZER")',
        "fi",
        "export TORCH_NCCL_AVOID_RECORD_STREAMS=1",
    ]
    d, generation = plan.decision.degrees, plan.inputs.cluster.device.generation
    if (d.tp > 1 or d.cp > 1) and not generation.startswith("blackwell"):
        lines.append("export CUDA_DEVICE_MAX_CONNECTIONS=1")
    return lines


def command(plan: Plan) -> str:
    """What torchrun starts: the entry point of dense models or of models with experts."""
    kind = "moe" if plan.inputs.model.is_moe else "gpt"
    return f'"$GALVATRON/galvatron/models/{kind}/train_dist.py" "$HERE/train.yaml" "${{RUN_ARGS[@]}}"'


def notes(plan: Plan) -> list[str]:
    """What the plan does not state and the run still needs, or does differently."""
    q, workload = plan.decision, plan.inputs.workload
    used = {q.sharding, *shardings(plan)}
    found = ["Not in the plan, Galvatron's defaults apply: schedule, weight decay, clipping, checkpoints."]
    if workload.optimizer == "adam":
        found.append("Galvatron's Adam decouples weight decay (AdamW); equal to Adam at weight decay 0.")
    is_priced = plan.inputs.options.stack == GALVATRON_LIMITS.stack or plan.inputs.profile is not None
    if "gradients" in used and q.microbatches > 1 and not is_priced:
        found.append(
            "zero2 (FSDP SHARD_GRAD_OP) gathers weights for every microbatch; the predicted time has one "
            "gather a step for sharded gradients."
        )
    if "none" in used and len(used) > 1 and q.microbatches > 1:
        found.append("Layers without sharding are reduced after every microbatch too: one switch for all.")
    if any(cp > 1 for _, cp, _ in layer_widths(plan)) or plan.inputs.model.is_moe:
        found.append(
            "Release 2.4.0 ignores cp_sizes_enc and ep_sizes_enc: this plan needs a newer Galvatron."
        )
    if plan.inputs.model.is_moe:
        found.append("Expert load balancing is not in the plan: set moe_aux_loss_coeff and router options.")
    return found


def yaml_text(sections: dict[str, dict[str, Any]]) -> str:
    """The sections under ``runtime:`` as YAML; JSON's scalars are YAML's."""
    lines = ["runtime:"]
    for name, section in sections.items():
        lines += [f"  {name}:", *(f"    {key}: {json.dumps(value)}" for key, value in section.items())]
    return "\n".join(lines) + "\n"


def _each(value: int, count: int) -> str:
    return _list([value] * count)


def _list(values: list[int]) -> str:
    return ",".join(map(str, values))
