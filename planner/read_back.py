"""Exported files read back: what a launcher derives from them, worked out as it does, against the plan.

Run at every export: a file that says something else than the plan is a bug here, never a user's run.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from planner.documents import parse_yaml
from planner.launchers.accelerate_read import read_accelerate
from planner.launchers.deepspeed_read import read_deepspeed
from planner.launchers.galvatron_read import read_galvatron
from planner.launchers.megatron_read import read_flags
from planner.launchers.pytorch_read import read_script
from planner.launchers.torchtitan_read import read_config
from planner.plan_file.schema import Plan

Values = dict[str, Any]
Files = Mapping[str, str]


def derived_differences(plan: Plan, target: str, files: Files) -> list[str]:
    """Numbers that the launcher would derive from ``files`` (name to text) and that are not the plan's.

    Empty for a launcher without a reader (Megatron Bridge: Megatron's flags under its own names). Raises
    InputError for files that the launcher would refuse.
    """
    if target not in READERS:
        return []
    wanted, by_layer = _wanted(plan), _by_layer(plan)
    found = []
    for values in READERS[target](plan, files):
        for name, derived in values.items():
            value = by_layer[name] if name in by_layer and isinstance(derived, list) else wanted.get(name)
            if not _agree(value, derived):
                found.append(f"{name}: {value} -> {derived}")
    return found


def _agree(value: Any, derived: Any) -> bool:
    """Whether two values are the same; None on the plan's side, or for a layer, is not compared."""
    if isinstance(value, list) and isinstance(derived, list):
        return len(value) == len(derived) and all(map(_agree, value, derived))
    return value is None or bool(value == derived)


def _wanted(plan: Plan) -> Values:
    """The plan's own numbers and names.

    None is not compared: a mixed recompute is no single one, and sharding over one rank is none at all.
    """
    q = plan.decision
    data_ranks = q.degrees.dp * q.degrees.cp
    return {
        "world_size": plan.inputs.cluster.gpus,
        "sequence_parallel": q.sequence_parallel,
        "schedule": q.schedule,
        "virtual_stages": q.virtual_stages,
        "sharding": q.sharding if data_ranks > 1 else None,
        "recompute": None if q.recompute == "mixed" else q.recompute,
        "tp": q.degrees.tp,
        "pp": q.degrees.pp,
        "cp": q.degrees.cp,
        "dp": q.degrees.dp,
        "microbatch_size": q.microbatch_size,
        "microbatches": q.microbatches,
        "global_batch": q.global_batch,
        "stage_layers": [stage.layers[1] - stage.layers[0] + 1 for stage in q.stages],
    }


def _by_layer(plan: Plan) -> Values:
    """What each layer chooses, for launchers that say it layer by layer."""
    runs = [
        (choice, choice.layers[1] - choice.layers[0] + 1)
        for stage in plan.decision.stages
        for choice in stage.layer_strategies
    ]
    names = ("tp", "cp", "dp", "ep", "expert_tp", "sharding", "recompute")
    found: Values = {name: [] for name in names}
    for choice, count in runs:
        values = {"expert_tp": plan.decision.degrees.expert_tp, **choice.model_dump()}
        if choice.dp * choice.cp == 1:
            values["sharding"] = None
        for name in names:
            found[name] += [values[name]] * count
    return found


def _megatron(plan: Plan, files: Files) -> list[Values]:
    document = json.loads(files["flags.json"])
    words = ["--nnodes", str(document["nodes"]), "--nproc-per-node", str(document["gpus_per_node"])]
    for name, values in document["flags"].items():
        words += [name, *values]
    return [dict(read_flags(words))]


def _torchtitan(plan: Plan, files: Files) -> list[Values]:
    text, layers = files["planner_config.py"], plan.inputs.model.num_layers
    return [dict(read_config(text, layers, version)) for version in ("plan", "plan_main")]


def _deepspeed(plan: Plan, files: Files) -> list[Values]:
    values = dict(read_deepspeed(json.loads(files["ds_config.json"]), plan.inputs.cluster.gpus))
    return [values | {"microbatches": values["accumulation"]}]


def _accelerate(plan: Plan, files: Files) -> list[Values]:
    config = parse_yaml(files["accelerate.yaml"], "accelerate.yaml")
    values = dict(read_accelerate(config, json.loads(files["training_args.json"])))
    return [values | {"microbatches": values["accumulation"]}]


def _galvatron(plan: Plan, files: Files) -> list[Values]:
    (text,) = (text for name, text in files.items() if name.startswith("galvatron_config"))
    values: Values = dict(read_galvatron(json.loads(text), plan.inputs.cluster.gpus))
    for layer, is_ulysses in enumerate(values["is_ulysses"]):
        if is_ulysses:  # its tp splits the sequence, which the plan calls cp
            values["tp"][layer], values["cp"][layer] = 1, values["tp"][layer]
    if len(set(values["dp"])) > 1:  # a data rank's sequences differ by layer
        del values["microbatch_size"]
    return [values]


def _pytorch(plan: Plan, files: Files) -> list[Values]:
    return [dict(read_script(files["train.py"]))]


READERS: dict[str, Callable[[Plan, Files], list[Values]]] = {
    "accelerate": _accelerate,
    "deepspeed": _deepspeed,
    "galvatron": _galvatron,
    "megatron": _megatron,
    "pytorch": _pytorch,
    "torchtitan": _torchtitan,
}
