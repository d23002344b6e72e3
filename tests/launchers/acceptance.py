"""Does the launcher's own code take the exported files, and does it derive from them what the plan says?

One function a launcher: it gets a plan and the folder of its exported files, and returns what differs
(nothing when the launcher agrees); it raises what the launcher raises. The launchers' packages come with the
``launchers`` and ``titan`` extras and hetu-galvatron. ``ACCEPTANCE`` is where a launcher's function belongs.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from planner.launchers.config_rules import recomputes, shardings
from planner.launchers.galvatron import config_name
from planner.launchers.galvatron_rules import DP_TYPES
from planner.launchers.torch_rules import split_heads
from planner.plan_file.schema import Plan

Accept = Callable[[Plan, Path], list[str]]
SHARDINGS = ("none", "optimizer", "gradients", "parameters")

COUNTS = {
    "--num-layers": "num_layers",
    "--hidden-size": "hidden_size",
    "--ffn-hidden-size": "ffn_hidden_size",
    "--num-attention-heads": "num_attention_heads",
    "--num-query-groups": "num_query_groups",
    "--kv-channels": "kv_channels",
    "--tensor-model-parallel-size": "tensor_model_parallel_size",
    "--pipeline-model-parallel-size": "pipeline_model_parallel_size",
    "--context-parallel-size": "context_parallel_size",
    "--expert-model-parallel-size": "expert_model_parallel_size",
    "--expert-tensor-parallel-size": "expert_tensor_parallel_size",
    "--num-experts": "num_moe_experts",
    "--moe-router-topk": "moe_router_topk",
    "--moe-ffn-hidden-size": "moe_ffn_hidden_size",
    "--recompute-num-layers": "recompute_num_layers",
}
WORDS = {
    "--recompute-granularity": "recompute_granularity",
    "--recompute-method": "recompute_method",
    "--pipeline-model-parallel-layout": "pipeline_model_parallel_layout",
    "--moe-router-score-function": "moe_router_score_function",
    "--moe-token-dispatcher-type": "moe_token_dispatcher_type",
    "--normalization": "normalization",
}
SWITCHES = {
    "--sequence-parallel": "sequence_parallel",
    "--moe-grouped-gemm": "moe_grouped_gemm",
    "--moe-router-enable-expert-bias": "moe_router_enable_expert_bias",
    "--swiglu": "gated_linear_unit",
    "--qk-layernorm": "qk_layernorm",
}


@contextmanager
def fake_ranks(world: int) -> Iterator[None]:
    """PyTorch's fake process group: every rank of a world in one process, nothing sent."""
    import torch.distributed as dist
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", rank=0, world_size=world, store=FakeStore())
    try:
        yield
    finally:
        dist.destroy_process_group()


def differing(wanted: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """``name: wanted, found`` for every value that differs."""
    return [
        f"{name}: {wanted[name]}, the launcher has {found[name]}"
        for name in wanted
        if wanted[name] != found[name]
    ]


def megatron(plan: Plan, folder: Path) -> list[str]:
    """megatron-core: its configuration class takes the flags, its process groups have the plan's sizes."""
    import torch
    from megatron.core import parallel_state
    from megatron.core.transformer.enums import LayerType
    from megatron.core.transformer.transformer_config import MLATransformerConfig, TransformerConfig

    q, d = plan.decision, plan.decision.degrees
    flags = json.loads((folder / "flags.json").read_text(encoding="utf-8"))["flags"]
    fields: dict[str, Any] = {field: int(flags[f][0]) for f, field in COUNTS.items() if f in flags}
    fields |= {field: flags[f][0] for f, field in WORDS.items() if f in flags}
    fields |= {field: True for f, field in SWITCHES.items() if f in flags}
    if "--recompute-modules" in flags:
        fields["recompute_modules"] = list(flags["--recompute-modules"])
    fields |= {"add_bias_linear": "--disable-bias-linear" not in flags, "bf16": True}
    fields |= {"pipeline_dtype": torch.bfloat16}
    if q.virtual_stages > 1:
        fields["virtual_pipeline_model_parallel_size"] = q.virtual_stages
    kind = MLATransformerConfig if "--multi-latent-attention" in flags else TransformerConfig
    config = kind(**fields)
    found: list[str] = []
    layout = config.pipeline_model_parallel_layout
    if layout is not None:
        counts = [layout.layout[k % d.pp][k // d.pp].count(LayerType.decoder) for k in range(len(q.stages))]
        found += differing({"layers": stage_layers(plan)}, {"layers": counts})
    with fake_ranks(plan.inputs.cluster.gpus):
        parallel_state.initialize_model_parallel(
            tensor_model_parallel_size=d.tp,
            pipeline_model_parallel_size=d.pp,
            virtual_pipeline_model_parallel_size=q.virtual_stages if q.virtual_stages > 1 else None,
            context_parallel_size=d.cp,
            expert_model_parallel_size=d.ep,
            expert_tensor_parallel_size=d.expert_tp if plan.inputs.model.is_moe else None,
            num_distributed_optimizer_instances=int(
                flags.get("--num-distributed-optimizer-instances", ["1"])[0]
            ),
            create_gloo_process_groups=False,
        )
        sizes = {
            "tp": parallel_state.get_tensor_model_parallel_world_size(),
            "pp": parallel_state.get_pipeline_model_parallel_world_size(),
            "cp": parallel_state.get_context_parallel_world_size(),
            "dp": parallel_state.get_data_parallel_world_size(),
        }
        parallel_state.destroy_model_parallel()
    return found + differing({"tp": d.tp, "pp": d.pp, "cp": d.cp, "dp": d.dp}, sizes)


def deepspeed(plan: Plan, folder: Path) -> list[str]:
    """DeepSpeed: its configuration class at the plan's number of ranks."""
    import deepspeed.runtime.config as module

    q, d, world = plan.decision, plan.decision.degrees, plan.inputs.cluster.gpus
    before = module.dist.get_rank, module.dist.get_world_size
    module.dist.get_rank, module.dist.get_world_size = (lambda *_: 0), (lambda *_: world)
    try:
        config = module.DeepSpeedConfig(json.loads((folder / "ds_config.json").read_text(encoding="utf-8")))
    finally:
        module.dist.get_rank, module.dist.get_world_size = before
    wanted = {
        "microbatch size": q.microbatch_size,
        "accumulation": q.microbatches,
        "sequences over all ranks": q.global_batch * d.tp,
        "stage": SHARDINGS.index(q.sharding),
        "tp": d.tp,
    }
    return differing(
        wanted,
        {
            "microbatch size": config.train_micro_batch_size_per_gpu,
            "accumulation": config.gradient_accumulation_steps,
            "sequences over all ranks": config.train_batch_size,
            "stage": int(config.zero_optimization_stage),
            "tp": max(1, config.tensor_parallel_config.autotp_size),
        },
    )


def accelerate(plan: Plan, folder: Path) -> list[str]:
    """Accelerate and transformers: the YAML, the mesh it makes, the training arguments."""
    from accelerate.commands.config.config_args import load_config_from_file
    from accelerate.parallelism_config import ParallelismConfig
    from transformers import TrainingArguments

    q, d = plan.decision, plan.decision.degrees
    config = load_config_from_file(str(folder / "accelerate.yaml"))
    training = json.loads((folder / "training_args.json").read_text(encoding="utf-8"))
    without = {name: value for name, value in training.items() if name not in ("bf16", "fp16")}  # no GPU here
    arguments = TrainingArguments(output_dir=str(folder / "out"), use_cpu=True, **without)
    wanted = {"ranks": plan.inputs.cluster.gpus, "size": q.microbatch_size, "accumulation": q.microbatches}
    found = {
        "ranks": config.num_processes,
        "size": arguments.per_device_train_batch_size,
        "accumulation": arguments.gradient_accumulation_steps,
    }
    if config.parallelism_config:
        sizes = {
            name.removeprefix("parallelism_config_"): value
            for name, value in config.parallelism_config.items()
            if name.endswith("_size")
        }
        mesh = ParallelismConfig(**sizes)
        wanted |= {"mesh": plan.inputs.cluster.gpus, "dp": d.dp, "tp": d.tp, "cp": d.cp}
        found |= {
            "mesh": mesh.total_size,
            "dp": mesh.data_parallel_size,
            "tp": mesh.tp_size,
            "cp": mesh.cp_size,
        }
    return differing(wanted, found)


def pytorch(plan: Plan, folder: Path) -> list[str]:
    """PyTorch: the script's mesh at full world size, its schedule, its heads over the tensor group."""
    import ast

    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.pipelining.schedules import PipelineScheduleMulti, get_schedule_class

    q, d = plan.decision, plan.decision.degrees
    tree = ast.parse((folder / "train.py").read_text(encoding="utf-8"))
    constants = {
        node.targets[0].id: ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign)
        and isinstance(node.targets[0], ast.Name)
        and node.targets[0].id in ("MESH", "SCHEDULE", "STAGES")
    }
    sizes = constants["MESH"]
    with fake_ranks(plan.inputs.cluster.gpus):
        mesh = init_device_mesh("cpu", tuple(sizes.values()), mesh_dim_names=tuple(sizes))
        found = {"ranks": mesh.size(), "pp": mesh["pp"].size(), "tp": mesh["tp"].size()}
        found["dp"] = mesh["dp_replicate"].size() * mesh["dp_shard"].size()
    schedule = get_schedule_class(constants["SCHEDULE"])
    found["several stages a rank"] = issubclass(schedule, PipelineScheduleMulti)
    found["stages"] = len(constants["STAGES"])
    found["heads left over"] = [heads % found["tp"] for heads in split_heads(plan.inputs.model)]
    wanted = {"ranks": plan.inputs.cluster.gpus, "pp": d.pp, "tp": d.tp, "dp": d.dp}
    wanted |= {"several stages a rank": q.virtual_stages > 1, "stages": len(q.stages)}
    wanted["heads left over"] = [0] * len(found["heads left over"])
    return differing(wanted, found)


def stage_layers(plan: Plan) -> list[int]:
    """Layers of every virtual stage."""
    return [stage.layers[1] - stage.layers[0] + 1 for stage in plan.decision.stages]


def torchtitan(plan: Plan, folder: Path) -> list[str]:
    """torchtitan 0.3.0: its configuration manager takes the module, its model rules too, its mesh agrees."""
    import triton_stand_in

    q, d = plan.decision, plan.decision.degrees
    triton_stand_in.install()
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        patch.delitem(sys.modules, "planner_config", raising=False)
        manager = importlib.import_module("torchtitan.config.manager").ConfigManager()
        config = manager.parse_args(["--module", "planner_config", "--config", "plan"])
        config.model_spec.model.update_from_config(config=config)
    p, training = config.parallelism, config.training
    dims = importlib.import_module("torchtitan.distributed").ParallelDims(
        dp_replicate=p.data_parallel_replicate_degree,
        dp_shard=p.data_parallel_shard_degree,
        cp=p.context_parallel_degree,
        tp=p.tensor_parallel_degree,
        pp=p.pipeline_parallel_degree,
        ep=p.expert_parallel_degree,
        world_size=plan.inputs.cluster.gpus,
    )
    dp = dims.dp_replicate * dims.dp_shard
    found = {"tp": dims.tp, "pp": dims.pp, "cp": dims.cp, "dp": dp, "ep": dims.ep}
    found |= {"layers": len(config.model_spec.model.layers), "sequences": training.global_batch_size}
    found |= {"sequences a call": training.local_batch_size}
    wanted = {"tp": d.tp, "pp": d.pp, "cp": d.cp, "dp": d.dp, "ep": d.ep}
    wanted |= {"layers": plan.inputs.model.num_layers, "sequences": q.global_batch}
    wanted |= {"sequences a call": q.microbatch_size * (q.microbatches if d.pp > 1 else 1)}
    if d.pp > 1:
        found["stages"], wanted["stages"] = len(p.module_fqns_per_model_part), len(q.stages)
    return differing(wanted, found)


@contextmanager
def without_megatron() -> Iterator[None]:
    """Galvatron brings a Megatron of its own and puts it first on the path: neither may stay behind."""
    path, known = list(sys.path), dict(sys.modules)

    def forget() -> None:
        for name in [n for n in sys.modules if n == "megatron" or n.startswith("megatron.")]:
            del sys.modules[name]

    forget()
    try:
        yield
    finally:
        forget()
        sys.path[:] = path
        sys.modules.update({n: m for n, m in known.items() if n == "megatron" or n.startswith("megatron.")})


def galvatron(plan: Plan, folder: Path) -> list[str]:
    """Hetu-Galvatron 2.4.0: its reader's data ranks, stages, microbatches, recompute and sharding."""
    from galvatron_reader import derived_by_galvatron

    q, d, layers = plan.decision, plan.decision.degrees, plan.inputs.model.num_layers
    config = json.loads((folder / config_name(plan)).read_text(encoding="utf-8"))
    with without_megatron(), pytest.MonkeyPatch.context() as patch:
        found, args = derived_by_galvatron(config, layers, plan.inputs.cluster.gpus, patch)
    kinds = {0: args.default_dp_type, 1: "zero3"}
    runs = [run for stage in q.stages for run in stage.layer_strategies]
    blocks = [(run.tp, run.dp) for run in runs for _ in range(run.layers[0], run.layers[1] + 1)]
    own = (d.tp, d.dp) if q.ends is None else (q.ends.tp, q.ends.dp)
    # Embedding, layers, norm, head; a layer alone on its weights may have any sharding.
    widths = [own, *blocks, own, own]
    return differing(
        {
            "pp": d.pp,
            "tp": [tp for tp, _ in widths],
            # Release 2.4.0 does not know context parallelism: its data ranks are dp x cp.
            "dp": [dp * d.cp for _, dp in widths],
            "stages": stage_layers(plan),
            "recompute": [int(mode == "full") for mode in recomputes(plan)],
            "sharding": [
                DP_TYPES[name] if dp * d.cp > 1 else ""
                for name, (_, dp) in zip(shardings(plan), blocks, strict=True)
            ],
            "microbatches": q.microbatches,
            "sequences": q.global_batch,
        },
        {
            "pp": found["pp_deg"],
            "tp": found["tp_sizes_whole"],
            "dp": found["dp_sizes_whole"],
            "stages": found["pp_division"],
            "recompute": found["checkpoint_flags_enc"],
            "sharding": [
                kinds[code] if dp * d.cp > 1 else ""
                for code, (_, dp) in zip(found["dp_types_enc"], blocks, strict=True)
            ],
            "microbatches": args.chunks,
            "sequences": args.global_train_batch_size,
        },
    )


ACCEPTANCE: dict[str, Accept] = {
    "accelerate": accelerate,
    "deepspeed": deepspeed,
    "galvatron": galvatron,
    "megatron": megatron,
    "pytorch": pytorch,
    "torchtitan": torchtitan,
}
