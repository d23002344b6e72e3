"""Pipeline layout and recompute in Megatron-LM's words.

Layout string: one entry per virtual stage separated by ``|``, in model order, which is Megatron's
virtual-major order (entry k is chunk k // pp of pipeline rank k % pp); E embedding, t decoder layer, L loss;
``t*n`` repeats (Megatron-Core, transformer/pipeline_parallel_layer_layout.py).
"""

from __future__ import annotations

from dataclasses import dataclass

from planner.launchers.base import Break
from planner.model.spec import LatentAttention
from planner.plan_file.schema import Plan, StageRecord

Flags = dict[str, list[str]]


def stage_sizes(plan: Plan) -> list[int]:
    """Layers of every virtual stage, in model order."""
    return [stage.layers[1] - stage.layers[0] + 1 for stage in plan.decision.stages]


def pipeline_flags(plan: Plan) -> Flags:
    """Stage split: nothing or layers per virtual stage when even, the layout string when not."""
    decision, sizes = plan.decision, stage_sizes(plan)
    if len(set(sizes)) > 1:
        return {"--pipeline-model-parallel-layout": [layout(plan.decision.stages)]}
    if decision.virtual_stages > 1:
        return {"--num-layers-per-virtual-pipeline-stage": [str(sizes[0])]}
    return {}


def layout(stages: list[StageRecord]) -> str:
    """The layout string of the plan's virtual stages."""
    entries = []
    for stage in stages:
        count = stage.layers[1] - stage.layers[0] + 1
        layers = f"t*{count}" if count > 1 else "t"
        entries.append("E" * stage.has_embedding + layers + "L" * stage.has_head)
    return "|".join(entries)


@dataclass(frozen=True)
class Recompute:
    """mode: none, selective, full (every layer) or block (full on the first ``count`` of each stage)."""

    mode: str
    count: int = 0


def recompute_setting(plan: Plan) -> Recompute | Break:
    """The one setting Megatron-LM needs for the plan's recompute, or why there is none."""
    stages = [_modes(stage) for stage in plan.decision.stages]
    used = sorted({mode for modes in stages for mode in modes})
    if len(used) == 1:
        return Recompute(used[0])
    if "selective" in used:
        counts = {mode: sum(modes.count(mode) for modes in stages) for mode in used}
        numbers = ", ".join(f"{count} layers {mode}" for mode, count in counts.items())
        return Break(numbers, "one mode for all layers, or full on the first N layers of every virtual stage")
    full = [modes.count("full") for modes in stages]
    most = max(full)
    for index, modes in enumerate(stages):
        if "none" in modes and "full" in modes[modes.index("none") :]:
            at = plan.decision.stages[index].layers[0] + modes.index("none")
            return Break(
                f"virtual stage {index} keeps layer {at} but recomputes a later one",
                f"full recompute on its first {full[index]} layers",
            )
    if any(count != min(most, len(modes)) for count, modes in zip(full, stages, strict=True)):
        return Break(
            f"layers recomputed in full per virtual stage: {_short(full)}",
            f"full on the first {most} layers of every virtual stage",
        )
    return Recompute("block", most)


def recompute_flags(plan: Plan) -> Flags:
    """Recompute flags of an expressible plan. Raises ValueError when it is not."""
    setting = recompute_setting(plan)
    if isinstance(setting, Break):
        raise ValueError(f"recompute is not expressible: {setting.numbers}")
    if setting.mode == "none":
        return {}
    if setting.mode == "selective":
        return {
            "--recompute-granularity": ["selective"],
            "--recompute-modules": selective_modules(plan),
        }
    method, count = ("uniform", 1) if setting.mode == "full" else ("block", setting.count)
    return {
        "--recompute-granularity": ["full"],
        "--recompute-method": [method],
        "--recompute-num-layers": [str(count)],
    }


def selective_modules(plan: Plan) -> list[str]:
    """What the plan's selective recompute drops, by Megatron's module names.

    Unfused attention: the score matrix. Fused: the norms' outputs. Either way the expert activation and the
    up projections of latent attention, as the cost model prices it.
    """
    model = plan.inputs.model
    modules = ["core_attn" if plan.inputs.workload.attention == "unfused" else "layernorm"]
    if model.is_moe:
        modules.append("moe_act")
    if any(isinstance(block.attention, LatentAttention) for block in model.block_kinds.values()):
        modules.append("mla_up_proj")
    return modules


def _modes(stage: StageRecord) -> list[str]:
    """Recompute mode of every layer of a virtual stage."""
    return [run.recompute for run in stage.layer_strategies for _ in range(run.layers[0], run.layers[1] + 1)]


def _short(counts: list[int], limit: int = 16) -> str:
    shown = ", ".join(map(str, counts[:limit]))
    return f"[{shown}{', ...' if len(counts) > limit else ''}]"
