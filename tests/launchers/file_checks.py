"""Good launcher files, and bad ones made from them by a change: one pair for every rule."""

from __future__ import annotations

import json
from typing import Any

MEGATRON = {
    "--nproc-per-node": "8",
    "--nnodes": "8",
    "--num-layers": "32",
    "--hidden-size": "4096",
    "--ffn-hidden-size": "14336",
    "--num-attention-heads": "32",
    "--group-query-attention": "",
    "--num-query-groups": "8",
    "--seq-length": "4096",
    "--max-position-embeddings": "8192",
    "--position-embedding-type": "rope",
    "--normalization": "RMSNorm",
    "--swiglu": "",
    "--disable-bias-linear": "",
    "--untie-embeddings-and-output-weights": "",
    "--vocab-size": "128256",
    "--attention-dropout": "0.0",
    "--hidden-dropout": "0.0",
    "--tensor-model-parallel-size": "4",
    "--pipeline-model-parallel-size": "4",
    "--sequence-parallel": "",
    "--micro-batch-size": "1",
    "--global-batch-size": "128",
    "--bf16": "",
    "--use-distributed-optimizer": "",
    "--overlap-grad-reduce": "",
    "--overlap-param-gather": "",
}
EXPERTS = {
    "--num-experts": "64",
    "--moe-router-topk": "4",
    "--moe-ffn-hidden-size": "1024",
    "--expert-tensor-parallel-size": "1",
}
INTERLEAVED = {"--num-layers-per-virtual-pipeline-stage": "2"}
DEEPSPEED: dict[str, Any] = {
    "train_batch_size": 256,
    "train_micro_batch_size_per_gpu": 2,
    "gradient_accumulation_steps": 2,
    "bf16": {"enabled": True},
    "zero_optimization": {"stage": 3, "overlap_comm": True},
}
ACCELERATE: dict[str, Any] = {
    "compute_environment": "LOCAL_MACHINE",
    "distributed_type": "FSDP",
    "mixed_precision": "bf16",
    "num_machines": 2,
    "num_processes": 16,
    "fsdp_config": {"fsdp_version": 2, "fsdp_reshard_after_forward": True},
    "parallelism_config": {
        "parallelism_config_dp_replicate_size": 1,
        "parallelism_config_dp_shard_size": 4,
        "parallelism_config_tp_size": 4,
    },
}
GALVATRON: dict[str, Any] = {
    "pp_deg": 2,
    "tp_sizes_enc": "4,4,4,4",
    "tp_consecutive_flags": "1,1,1,1",
    "dp_types_enc": "0,0,1,1",
    "checkpoint": "0,1,0,0",
    "global_bsz": 32,
    "chunks": 4,
    "pp_division": "2,2",
    "pipeline_type": "pipedream_flush",
    "default_dp_type": "zero2",
    "vtp": 4,
    "vocab_sdp": 0,
}
TORCHTITAN: dict[str, Any] = {
    "data_parallel_replicate_degree": 1,
    "data_parallel_shard_degree": 2,
    "fsdp_reshard_after_forward": "never",
    "tensor_parallel_degree": 2,
    "enable_sequence_parallel": True,
    "context_parallel_degree": 1,
    "expert_parallel_degree": 1,
    "pipeline_parallel_degree": 2,
    "pipeline_parallel_schedule": "1F1B",
    "pipeline_parallel_microbatch_size": 1,
}
TRAINING: dict[str, Any] = {
    "local_batch_size": 4,
    "global_batch_size": 16,
    "seq_len": 4096,
    "disable_cuda_graphs": True,
}


def megatron_file(
    changes: dict[str, str | None], environment: str | None = "export CUDA_DEVICE_MAX_CONNECTIONS=1"
) -> str:
    """A launch script with flags changed; None drops one."""
    flags = {name: value for name, value in {**MEGATRON, **changes}.items() if value is not None}
    launcher = " ".join(f"{name} {flags.pop(name)}" for name in ("--nnodes", "--nproc-per-node"))
    words = " \\\n  ".join(f"{name} {value}".rstrip() for name, value in flags.items())
    return f"#!/bin/bash\n{environment or ''}\ntorchrun {launcher} pretrain_gpt.py \\\n  {words}\n"


def json_file(good: dict[str, Any], changes: dict[str, Any]) -> str:
    """The good object with keys replaced; None drops one."""
    return json.dumps({key: value for key, value in {**good, **changes}.items() if value is not None})


def torchtitan_file(mesh: dict[str, Any], training: dict[str, Any] | None = None, flavor: str = "8B") -> str:
    """A configuration module that sets every field by hand."""
    values = {**TORCHTITAN, **mesh}
    sections = {"parallelism": values, "training": {**TRAINING, **(training or {})}}
    lines = [
        f"    c.{section}.{name} = {value!r}"
        for section, items in sections.items()
        for name, value in items.items()
        if value is not None
    ]
    return "\n".join(
        [
            "from torchtitan.models.llama3 import model_registry",
            "from torchtitan.models.llama3.config_registry import llama3_8b",
            "from torchtitan.distributed.activation_checkpoint import FullAC",
            "",
            "def plan():",
            "    c = llama3_8b()",
            f'    c.model_spec = model_registry("{flavor}")',
            *lines,
            "    c.activation_checkpoint = FullAC.Config()",
            "    return c",
            "",
        ]
    )


def stage_names(*spans: tuple[int, int], head: str = "lm_head") -> list[list[str]]:
    """Module lists of stages holding layers first to last."""
    stages = [[f"layers.{i}" for i in range(first, last + 1)] for first, last in spans]
    stages[0].insert(0, "tok_embeddings")
    stages[-1] += ["norm", head]
    return stages
