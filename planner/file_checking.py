"""Checking a launcher's own file: every broken rule with its numbers, and what the launcher derives."""

from __future__ import annotations

from dataclasses import dataclass

from planner.errors import InputError
from planner.importing import facts_of, load_files, read_loaded
from planner.launchers.imported import Imported
from planner.launchers.registry import importer
from planner.request import Request


@dataclass(frozen=True)
class Finding:
    """One check: its name, whether it holds, and the numbers."""

    name: str
    holds: bool
    numbers: str


def check_file(
    path: str, target: str, *, model: str | None = None, gpus: int | None = None, gpu: str | None = None
) -> list[Finding]:
    """Every finding on a launcher's file; those that hold say what was derived, read over or not judged.

    Raises InputError for a path that cannot be read, UnknownName for an unknown launcher, model or GPU.
    """
    importer(target)
    files = load_files(path)
    facts = facts_of(Request(model=model or "", gpu=gpu, gpus=gpus))
    try:
        found = read_loaded(target, files, facts)
    except InputError as error:
        return [Finding(str(error.details.get("rule", "readable")), False, _words(error))]
    faults = [Finding(fault.rule, False, fault.text()) for fault in found.faults]
    return [*faults, *_derived(found)]


def _words(error: InputError) -> str:
    return f"{error}; {error.hint}" if error.hint else str(error)


def _derived(found: Imported) -> list[Finding]:
    """What follows from the file, and what could not be said."""
    rows: list[tuple[str, str]] = []
    unknown = []
    degrees = [f"{name} {getattr(found, name)}" for name in ("tp", "pp", "cp", "ep") if getattr(found, name)]
    rows.append(("degrees", ", ".join(degrees)))
    if found.dp is not None:
        of = f" of {found.world_size} GPUs" if found.world_size is not None else ""
        rows.append(("dp", f"{found.dp}{of}"))
    else:
        unknown.append("dp (add --gpus)")
    if found.layer_tp:
        degrees = [f"{found.layer_tp.count(tp)} layers {tp}" for tp in sorted(set(found.layer_tp))]
        ends = f", embedding and head {found.ends_tp}" if found.ends_tp is not None else ""
        rows.append(("tp by layer", ", ".join(degrees) + ends))
    if found.microbatches is not None and found.global_batch is not None:
        rows.append(
            (
                "microbatches",
                f"{found.microbatches} of {found.microbatch_size}, global batch {found.global_batch}",
            )
        )
    else:
        unknown.append("microbatches")
    if found.stage_layers is not None:
        shown = ", ".join(map(str, found.stage_layers[:16]))
        more = f", ... ({len(found.stage_layers)} stages)" if len(found.stage_layers) > 16 else ""
        rows.append(("layers per stage", f"{shown}{more}"))
    elif (found.pp or 1) > 1:
        unknown.append("layers per stage (add --model)")
    if found.sharding is not None:
        ranks = f" over {found.shard_ranks} ranks" if found.shard_ranks else ""
        rows.append(("sharding", f"{found.sharding}{ranks}"))
    if found.recompute is not None:
        first = f" on the first {found.recompute_block} of a stage" if found.recompute_block else ""
        word = found.recompute if isinstance(found.recompute, str) else "by layer"
        rows.append(("recompute", f"{word}{first}"))
    rows += [("assumed", text) for text in found.assumptions]
    rows += [("not priced", text) for text in found.unpriced]
    if unknown:
        rows.append(("not judged", ", ".join(unknown)))
    if found.not_read:
        rows.append(("not read", ", ".join(found.not_read)))
    return [Finding(name, True, text) for name, text in rows]
