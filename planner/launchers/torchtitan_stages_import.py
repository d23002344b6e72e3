"""torchtitan's schedule, virtual stages and the layers of each; a list of modules must hold every one once.

Facts: torchtitan 0.3.0 and main of August 2026, distributed/pipeline_parallel.py.
"""

from __future__ import annotations

from typing import Any

from planner.errors import InputError
from planner.launchers.imported import MOST, MOST_LAYERS, MOST_RANKS, Imported, whole
from planner.launchers.torch_rules import SCHEDULE_OF

SCHEDULES = {name: schedule for name, schedule in SCHEDULE_OF.items() if schedule != "zb-h1"}
V_SCHEDULES = ("ZBVZeroBubble", "DualPipeV")
LOOPED = ("LoopedBFS", "InterleavedZeroBubble", "DualPipeV")


def read_schedule(mesh: dict[str, Any], found: Imported, layers: int | None) -> None:
    """Schedule, virtual stages and their layers; a list of modules must hold every one once."""
    pp = found.pp or 1
    name = str(mesh.get("pipeline_parallel_schedule", "1F1B"))
    found.schedule = SCHEDULES.get(name)
    if pp > 1 and name in LOOPED:
        found.unpriced.append(f"pipeline_parallel_schedule {name}")
    elif found.schedule is None:
        found.fault("schedule", f"pipeline_parallel_schedule {name!r} is unknown", ", ".join(SCHEDULES))
    else:
        found.where["schedule"] = f"pipeline_parallel_schedule {name}"
    if mesh.get("pipeline_parallel_schedule_csv"):
        found.unpriced.append("pipeline_parallel_schedule_csv")
    stages = mesh.get("module_fqns_per_model_part")
    if pp == 1:
        found.virtual_stages = 1
        if name == "Interleaved1F1B":
            found.schedule = "1f1b"
        if layers is not None:
            found.stage_layers = (layers,)
        return
    if stages is not None:
        found.stage_layers = _listed(stages, layers, found)
    elif layers is not None:
        found.stage_layers = _derived(mesh, found, layers, name)
    if found.stage_layers is None:
        return
    count = len(found.stage_layers)
    if count % pp:
        found.fault("stages-cover-layers", f"{count} stages for pp {pp}", f"a multiple of {pp}")
        return
    found.virtual_stages = count // pp
    is_single = name in ("1F1B", "GPipe")
    wanted = "exactly 1" if is_single else "exactly 2" if name in V_SCHEDULES else "2 or more"
    is_good = (
        found.virtual_stages == 1
        if is_single
        else found.virtual_stages == 2
        if name in V_SCHEDULES
        else found.virtual_stages > 1
    )
    if not is_good:
        found.fault(
            "stages-per-rank", f"{name} with {found.virtual_stages} stages a rank", f"{wanted} a rank"
        )


def _listed(stages: Any, layers: int | None, found: Imported) -> tuple[int, ...] | None:
    """Layers of each listed stage. torchtitan drops unknown names and unlisted layers without a word."""
    if not isinstance(stages, list) or not all(isinstance(stage, list) for stage in stages):
        raise InputError("module_fqns_per_model_part must be a list of lists", file=found.file)
    names = [str(name) for stage in stages for name in stage]
    count = layers or sum(name.startswith("layers.") for name in names)
    wanted = ["tok_embeddings", *(f"layers.{i}" for i in range(count)), "norm", "lm_head"]
    if names != wanted:
        lost = [name for name in wanted if name not in names]
        unknown = [name for name in names if name not in wanted]
        twice = sorted({name for name in names if names.count(name) > 1})
        parts = [
            f"{what} {_short(some)}"
            for what, some in (("loses", lost), ("names what is not there:", unknown), ("repeats", twice))
            if some
        ]
        found.fault(
            "stages-cover-layers",
            f"module_fqns_per_model_part {'; '.join(parts) or 'is not in model order'} of {count} layers",
            "tok_embeddings, every layer once in order, norm and lm_head",
        )
    return tuple(sum(str(name).startswith("layers.") for name in stage) for stage in stages)


def _derived(mesh: dict[str, Any], found: Imported, layers: int, name: str) -> tuple[int, ...] | None:
    """torchtitan's own split: embedding and head count as layers on the first and the last stage."""
    pp = found.pp or 1
    first = number(mesh, "pipeline_parallel_first_stage_less_layers", 1, 0) or 0
    last = number(mesh, "pipeline_parallel_last_stage_less_layers", 1, 0) or 0
    each = mesh.get("pipeline_parallel_layers_per_stage")
    units = layers + first + last
    if each is not None:
        count = -(-units // whole(each, "parallelism.pipeline_parallel_layers_per_stage"))
    else:
        count = pp * (1 if name in ("1F1B", "GPipe") else 2)
    if count % pp or count > units:
        found.fault(
            "stages-cover-layers", f"{count} stages for pp {pp} and {layers} layers", f"a multiple of {pp}"
        )
        return None
    base, more = divmod(units, count)
    if base < max(first, last):
        found.fault(
            "stages-cover-layers", f"{base} layers a stage, {max(first, last)} less at an end", "fewer stages"
        )
        return None
    sizes = [base + (stage < more) for stage in range(count)]
    sizes[0] -= first
    sizes[-1] -= last
    if first or last:
        found.assumptions.append(
            f"the stage split is torchtitan's: {sizes[0]} layers first, {sizes[-1]} last "
            f"(first/last_stage_less_layers {first} and {last})"
        )
    return tuple(sizes)


def number(values: dict[str, Any], key: str, default: int | None = None, least: int = 1) -> int | None:
    """A whole number, or the default when absent or equal to it. Raises InputError for anything else."""
    value = values.get(key, default)
    most = MOST_LAYERS if "layers" in key else MOST_RANKS if "degree" in key else MOST
    return default if value is None or value == default else whole(value, key, least, most)


def _short(names: list[str], limit: int = 4) -> str:
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")
