"""What each launcher derives from its exported files, worked out as the launcher does it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from planner.documents import read_document
from planner.launchers.accelerate_read import read_accelerate
from planner.launchers.deepspeed_read import read_deepspeed
from planner.launchers.galvatron_read import read_galvatron
from planner.launchers.megatron_read import read_flags
from planner.launchers.pytorch_read import read_script
from planner.launchers.torchtitan_read import read_config
from planner.plan_file.schema import Plan

Values = dict[str, Any]


def wanted(plan: Plan) -> Values:
    """The plan's own numbers."""
    q = plan.decision
    return {
        "tp": q.degrees.tp,
        "pp": q.degrees.pp,
        "cp": q.degrees.cp,
        "dp": q.degrees.dp,
        "microbatch_size": q.microbatch_size,
        "microbatches": q.microbatches,
        "global_batch": q.global_batch,
        "stage_layers": [stage.layers[1] - stage.layers[0] + 1 for stage in q.stages],
    }


def derived_differences(plan: Plan, target: str, folder: Path) -> list[str]:
    """Numbers the launcher would derive that are not the plan's."""
    found = []
    for values in READERS[target](plan, folder):
        for name, value in wanted(plan).items():
            if name in values and values[name] != value:
                found.append(f"{name}: {value} -> {values[name]}")
    return found


def _megatron(plan: Plan, folder: Path) -> list[Values]:
    document = json.loads((folder / "flags.json").read_text(encoding="utf-8"))
    words = ["--nnodes", str(document["nodes"]), "--nproc-per-node", str(document["gpus_per_node"])]
    for name, values in document["flags"].items():
        words += [name, *values]
    return [dict(read_flags(words))]


def _torchtitan(plan: Plan, folder: Path) -> list[Values]:
    text = (folder / "planner_config.py").read_text(encoding="utf-8")
    layers = plan.inputs.model.num_layers
    return [dict(read_config(text, layers, version)) for version in ("plan", "plan_main")]


def _deepspeed(plan: Plan, folder: Path) -> list[Values]:
    config = json.loads((folder / "ds_config.json").read_text(encoding="utf-8"))
    values = dict(read_deepspeed(config, plan.inputs.cluster.gpus))
    return [values | {"microbatches": values["accumulation"]}]


def _accelerate(plan: Plan, folder: Path) -> list[Values]:
    training = json.loads((folder / "training_args.json").read_text(encoding="utf-8"))
    values = dict(read_accelerate(read_document(folder / "accelerate.yaml"), training))
    return [values | {"microbatches": values["accumulation"]}]


def _galvatron(plan: Plan, folder: Path) -> list[Values]:
    (file,) = folder.glob("galvatron_config*.json")
    values = read_galvatron(json.loads(file.read_text(encoding="utf-8")), plan.inputs.cluster.gpus)
    first: Values = {name: values[name][0] for name in ("tp", "cp", "dp")}
    return [dict(values) | first]


def _pytorch(plan: Plan, folder: Path) -> list[Values]:
    return [dict(read_script((folder / "train.py").read_text(encoding="utf-8")))]


READERS: dict[str, Callable[[Plan, Path], list[Values]]] = {
    "accelerate": _accelerate,
    "deepspeed": _deepspeed,
    "galvatron": _galvatron,
    "megatron": _megatron,
    "pytorch": _pytorch,
    "torchtitan": _torchtitan,
}
