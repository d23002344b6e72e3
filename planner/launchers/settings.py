"""A plan's settings under each launcher as flat names and values, to say what changes between two plans."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import groupby
from typing import Any

from planner.plan_file.schema import Plan

Settings = dict[str, str]


def changed_settings(launcher: str, before: Plan, after: Plan) -> list[str]:
    """``name old -> new`` for every setting of the launcher that differs. Both plans must be expressible."""
    one, other = _READERS[launcher](before), _READERS[launcher](after)
    found = []
    for name in dict.fromkeys([*one, *other]):
        if one.get(name) != other.get(name):
            if name not in one:
                found.append(f"add {name} {_short(other[name])}".rstrip())
            elif name not in other:
                found.append(f"drop {name} {_short(one[name])}".rstrip())
            else:
                found.append(f"{name} {_short(one[name])} -> {_short(other[name])}")
    return found


def _short(value: str, limit: int = 40) -> str:
    return value if len(value) <= limit else f"{value[: limit - 3]}..."


def _megatron(plan: Plan) -> Settings:
    from planner.launchers.megatron import all_flags

    return {name: " ".join(values) for name, values in all_flags(plan).items()}


def _deepspeed(plan: Plan) -> Settings:
    from planner.launchers.deepspeed import ds_config, script_settings

    return _flat(ds_config(plan)) | _flat({"training script": script_settings(plan)})


def _accelerate(plan: Plan) -> Settings:
    from planner.launchers.accelerate import accelerate_config, training_args

    return _flat(accelerate_config(plan)) | _flat(training_args(plan))


def _torchtitan(plan: Plan) -> Settings:
    from planner.launchers.torchtitan import batches, parallelism, stage_modules

    stages = stage_modules(plan) if plan.decision.degrees.pp > 1 else None
    sections = batches(plan)["plan"]
    sections["parallelism"] = parallelism(plan) | sections["parallelism"]
    found = _flat(sections) | {"activation_checkpoint": plan.decision.recompute}
    if stages is not None:
        found["parallelism.module_fqns_per_model_part"] = f"{len(stages)} stages"
    return found


def _galvatron(plan: Plan) -> Settings:
    from planner.launchers.galvatron import galvatron_config

    return {name: _runs(str(value)) for name, value in galvatron_config(plan).items()}


def _pytorch(plan: Plan) -> Settings:
    from planner.launchers.pytorch import constants

    values = {name: value for name, value in constants(plan).items() if name != "MODEL"}
    for name in ("RECOMPUTE", "GATHER_UNITS"):
        values[name] = _runs(",".join(values[name]))
    values["STAGES"] = f"{len(values['STAGES'])} stages"
    return _flat(values)


_READERS: dict[str, Callable[[Plan], Settings]] = {
    "accelerate": _accelerate,
    "megatron-bridge": _megatron,
    "deepspeed": _deepspeed,
    "galvatron": _galvatron,
    "megatron": _megatron,
    "pytorch": _pytorch,
    "torchtitan": _torchtitan,
}


def _flat(values: Mapping[str, Any], prefix: str = "") -> Settings:
    found: Settings = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = str(value)
    return found


def _runs(text: str) -> str:
    """A comma-separated list with runs folded: ``2 x32``."""
    words = text.split(",")
    if len(words) < 3:
        return text
    runs = [(value, len(list(run))) for value, run in groupby(words)]
    return ",".join(f"{value} x{count}" if count > 1 else value for value, count in runs)
