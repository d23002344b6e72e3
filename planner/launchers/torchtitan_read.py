"""Read an exported torchtitan module back: what torchtitan derives from it, worked out the way it does.

Facts: torchtitan trainer.py (accumulation steps, microbatches), distributed/parallel_dims.py (mesh),
distributed/pipeline_parallel.py (stages).
"""

from __future__ import annotations

import ast
import re
from typing import Any, TypedDict

from planner.errors import InputError
from planner.launchers.torch_rules import SCHEDULE_OF

_MODES = {"None": "none", "SelectiveAC.Config()": "selective", "FullAC.Config()": "full"}


class Derived(TypedDict):
    """What torchtitan makes of the module. stage_layers: layers of every virtual stage in model order.

    microbatches: per step and data rank, through a pipeline or by accumulation. world_size: dp_replicate x
    dp_shard x cp x tp x pp.
    """

    module: str
    flavor: str
    world_size: int
    tp: int
    pp: int
    cp: int
    ep: int
    dp: int
    dp_replicate: int
    dp_shard: int
    sequence_parallel: bool
    schedule: str
    virtual_stages: int
    stage_layers: list[int]
    recompute: str
    reshard: str
    has_cuda_graphs: bool
    microbatch_size: int
    microbatches: int
    global_batch: int
    sequence_length: int


def read_config(text: str, num_layers: int, version: str = "plan") -> Derived:
    """What the module's function ``version`` trains.

    Raises InputError when stages lose, repeat or misplace a module, or batch sizes do not divide.
    """
    found = _constants(text)
    mesh = found["PARALLELISM"]
    tp, cp = mesh["tensor_parallel_degree"], mesh["context_parallel_degree"]
    pp, ep = mesh["pipeline_parallel_degree"], mesh["expert_parallel_degree"]
    replicas, shards = mesh["data_parallel_replicate_degree"], mesh["data_parallel_shard_degree"]
    dp = replicas * shards
    stages = found["STAGES"] or [_whole(num_layers)]
    sizes = check_stages(stages, num_layers)
    size, count, batch, length = _batch(found["BATCHES"][version], dp, pp, version)
    return Derived(
        module=_match(text, r"torchtitan\.models\.(\w+) import model_registry"),
        flavor=_match(text, r'model_registry\("([^"]+)"\)'),
        world_size=dp * cp * tp * pp,
        tp=tp,
        pp=pp,
        cp=cp,
        ep=ep,
        dp=dp,
        dp_replicate=replicas,
        dp_shard=shards,
        sequence_parallel=mesh["enable_sequence_parallel"] and tp > 1,
        schedule=SCHEDULE_OF[mesh["pipeline_parallel_schedule"]],
        virtual_stages=_exact(len(stages), pp, "stages"),
        stage_layers=sizes,
        recompute=_MODES[_match(text, r"activation_checkpoint=([\w.()]+),")],
        reshard=mesh["fsdp_reshard_after_forward"],
        has_cuda_graphs=_match(text, r"disable_cuda_graphs=(\w+)") == "False",
        microbatch_size=size,
        microbatches=count,
        global_batch=batch,
        sequence_length=length,
    )


def check_stages(stages: list[list[str]], num_layers: int) -> list[int]:
    """Layers of every stage. Raises InputError unless the stages hold every module once, in order."""
    names = [name for stage in stages for name in stage]
    if names != _whole(num_layers):
        wanted = set(_whole(num_layers))
        lost, unknown = sorted(wanted - set(names)), sorted(set(names) - wanted)
        raise InputError(
            f"stages must hold tok_embeddings, layers.0 to layers.{num_layers - 1}, norm and lm_head, each "
            f"once, in this order; missing {lost[:8]}, unknown {unknown[:8]}"
        )
    return [sum(name.startswith("layers.") for name in stage) for stage in stages]


def _whole(num_layers: int) -> list[str]:
    return ["tok_embeddings", *(f"layers.{i}" for i in range(num_layers)), "norm", "lm_head"]


def _batch(batches: dict[str, dict[str, int]], dp: int, pp: int, version: str) -> tuple[int, int, int, int]:
    """(microbatch size, microbatches, global batch, sequence length) in sequences and tokens."""
    training, mesh = batches["training"], batches["parallelism"]
    if version == "plan":
        local, length = training["local_batch_size"], training["seq_len"]
        size = mesh["pipeline_parallel_microbatch_size"] if pp > 1 else local
        per_call, batch = _exact(local, size, "local batch size"), training["global_batch_size"]
    else:
        length = training["max_context_length"]
        size = _exact(training["num_tokens_per_microbatch_per_dp_rank"], length, "tokens per microbatch")
        per_call = mesh["num_pp_microbatches"] if pp > 1 else 1
        batch = _exact(training["num_tokens_per_train_step"], length, "tokens per step")
    steps = _exact(batch, size * per_call * dp, "global batch")
    return size, per_call * steps, batch, length


def _constants(text: str) -> dict[str, Any]:
    found = {}
    for node in ast.parse(text).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            found[node.targets[0].id] = ast.literal_eval(node.value)
    missing = [name for name in ("PARALLELISM", "STAGES", "BATCHES") if name not in found]
    if missing:
        raise InputError(f"the module does not set {', '.join(missing)}")
    return found


def _match(text: str, pattern: str) -> str:
    match = re.search(pattern, text)
    if match is None:
        raise InputError(f"the module has nothing like {pattern}")
    return match[1]


def _exact(value: int, divisor: int, what: str) -> int:
    if value % divisor:
        raise InputError(f"{what} {value} is not a multiple of {divisor}")
    return value // divisor
