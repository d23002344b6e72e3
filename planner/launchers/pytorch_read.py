"""Read an exported PyTorch script back: the constants of its header, and what the run makes of them."""

from __future__ import annotations

import ast
from typing import Any, TypedDict

from planner.errors import InputError
from planner.launchers.torch_rules import SCHEDULE_OF

_NAMES = [
    "MODEL",
    "MESH",
    "STAGES",
    "RECOMPUTE",
    "GATHER_UNITS",
    "SHARDING",
    "SEQUENCE_PARALLEL",
    "SCHEDULE",
    "VIRTUAL_STAGES",
    "MICROBATCH_SIZE",
    "MICROBATCHES",
    "GLOBAL_BATCH",
    "SEQUENCE_LENGTH",
    "OPTIMIZER",
    "PRECISION",
]


class Derived(TypedDict):
    """What the script trains. stage_layers: layers of every virtual stage; recompute: mode of every layer."""

    model: dict[str, Any]
    world_size: int
    tp: int
    pp: int
    dp: int
    dp_replicate: int
    dp_shard: int
    sequence_parallel: bool
    schedule: str
    virtual_stages: int
    stage_layers: list[int]
    recompute: list[str]
    gather_units: list[str]
    sharding: str
    microbatch_size: int
    microbatches: int
    global_batch: int
    sequence_length: int


def read_script(text: str) -> Derived:
    """What an exported train.py trains. Raises InputError when constants are missing or contradict."""
    found = _constants(text)
    missing = [name for name in _NAMES if name not in found]
    if missing:
        raise InputError(f"the script does not set {', '.join(missing)}")
    mesh, stages = found["MESH"], found["STAGES"]
    dp = mesh["dp_replicate"] * mesh["dp_shard"]
    sizes = [last - first + 1 for first, last in stages]
    if sum(sizes) != len(found["RECOMPUTE"]) or [i for a, b in stages for i in range(a, b + 1)] != list(
        range(sum(sizes))
    ):
        raise InputError(f"stages {stages} do not hold {len(found['RECOMPUTE'])} layers once each")
    if len(stages) != mesh["pp"] * found["VIRTUAL_STAGES"]:
        raise InputError(f"{len(stages)} stages for pp {mesh['pp']} x {found['VIRTUAL_STAGES']}")
    batch = dp * found["MICROBATCH_SIZE"] * found["MICROBATCHES"]
    if batch != found["GLOBAL_BATCH"]:
        raise InputError(f"dp x microbatch size x microbatches = {batch}, not {found['GLOBAL_BATCH']}")
    if (mesh["dp_shard"] > 1 or mesh["dp_replicate"] == 1) and found["SHARDING"] == "none" and dp > 1:
        raise InputError(f"sharding none on {mesh['dp_shard']} shards")
    return Derived(
        model=found["MODEL"],
        world_size=mesh["pp"] * dp * mesh["tp"],
        tp=mesh["tp"],
        pp=mesh["pp"],
        dp=dp,
        dp_replicate=mesh["dp_replicate"],
        dp_shard=mesh["dp_shard"],
        sequence_parallel=found["SEQUENCE_PARALLEL"],
        schedule=SCHEDULE_OF[found["SCHEDULE"]],
        virtual_stages=found["VIRTUAL_STAGES"],
        stage_layers=sizes,
        recompute=found["RECOMPUTE"],
        gather_units=found["GATHER_UNITS"],
        sharding=found["SHARDING"],
        microbatch_size=found["MICROBATCH_SIZE"],
        microbatches=found["MICROBATCHES"],
        global_batch=found["GLOBAL_BATCH"],
        sequence_length=found["SEQUENCE_LENGTH"],
    )


def _constants(text: str) -> dict[str, Any]:
    found = {}
    for node in ast.parse(text).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            name = node.targets[0].id
            if name in _NAMES:
                found[name] = ast.literal_eval(node.value)
    return found
