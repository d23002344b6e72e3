"""Hetu-Galvatron's measured profile as tables of plain numbers, strictly read.

Meaning and units are those of the code that writes the files (galvatron/core/profiler/model_profiler.py,
galvatron/profile_hardware/profile_*.py, June 2026): milliseconds and MiB; the machine's own files are read in
``galvatron_network``. Everything leaves this file in seconds, bytes and bytes/s.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from planner.errors import InputError
from planner.profiles.files import ProfileFile, number, unknown_key
from planner.profiles.galvatron_network import read_bandwidths, read_p2p, read_size_tables, read_slowdown
from planner.profiles.tables import SampleTable, SizeTable
from planner.units import MIB, MILLI

PARAMETER_BYTES = 4.0
RAW_TIME = re.compile(r"layernum\[[\d,]+\]_bsz\d+_seq[\d,]+")
TIME_ROW = re.compile(r"layertype_(\d+|other)_bsz(\d+)_seq(\d+)")
RAW_MEMORY = re.compile(r"\d+_\d+_\d+(_c)?(_vtp)?(_sp)?")
LAYER_MEMORY = re.compile(r"layertype_(\d+)(_sp)?")
OTHER_MEMORY = re.compile(r"other_memory_pp_(off|on_first|on_last)(_sp)?")


@dataclass(frozen=True)
class LayerMemory:
    """One layer kind: parameters; bytes kept a sample, by split degree and when recomputed."""

    parameters: float
    activation_bytes: dict[int, float]
    recomputed_bytes: float


@dataclass(frozen=True)
class EndMemory:
    """Everything that is no layer: bytes of unsharded states by tp, bytes a sample by split degree."""

    state_bytes: dict[int, float]
    activation_bytes: dict[int, float]


@dataclass(frozen=True)
class GalvatronProfile:
    """A complete profile of one model on one machine shape; ``files`` are the documents it was read from."""

    model: str
    precision: str
    sequence_length: int
    nodes: int
    gpus_per_node: int
    layer_seconds: tuple[SampleTable, ...]
    end_seconds: SampleTable
    layer_memory: tuple[LayerMemory, ...]
    end_off: EndMemory
    end_first: EndMemory
    end_last: EndMemory
    bus_bytes_per_s: dict[tuple[int, bool], float]
    p2p_bytes_per_s: dict[int, float]
    overlap_slowdown: float
    all_reduce: dict[int, SizeTable]
    all_to_all: dict[int, SizeTable]
    files: dict[str, dict[str, Any]]
    notes: list[str] = field(default_factory=list)

    @property
    def gpus(self) -> int:
        return self.nodes * self.gpus_per_node


def read_galvatron(
    files: Sequence[ProfileFile], gpus: int | None = None, sequence_length: int | None = None
) -> GalvatronProfile:
    """The profile that ``files`` hold for ``gpus`` devices at ``sequence_length``.

    Both may be left out when the files hold one choice. Raises InputError naming the missing file, the
    unknown key, the gap, or the unit that does not fit.
    """
    notes: list[str] = []
    computation = _one_model(files, "computation", notes)
    memory = _matching_memory(files, computation)
    nodes, per_node = _shape(files, gpus)
    allreduce = _machine(files, "allreduce", nodes, per_node)
    p2p = _machine(files, "p2p", nodes, per_node)
    sizes = _machine(files, "sp_time", nodes, per_node, or_one_node=True)
    if int(sizes.facts["nodes"]) != nodes:
        notes.append(f"tp and sp timed inside one node ({sizes.name}): only groups of up to {per_node}")
    overlap = _required(files, "overlap", "overlap_coefficient.json")
    times, length = _times(computation, sequence_length)
    kinds = sorted(key for key in times if key != "other")
    if kinds != [str(i) for i in range(len(kinds))]:
        raise InputError(f"layer types {kinds} are not 0, 1, ...", file=computation.path)
    layers, ends = _memory(memory, length, len(kinds))
    reduce, to_all = read_size_tables(sizes)
    used = (computation, memory, allreduce, p2p, sizes, overlap)
    return GalvatronProfile(
        model=computation.facts["model"],
        precision=computation.facts["precision"],
        sequence_length=length,
        nodes=nodes,
        gpus_per_node=per_node,
        layer_seconds=tuple(times[key] for key in kinds),
        end_seconds=times["other"],
        layer_memory=layers,
        end_off=ends[0],
        end_first=ends[1],
        end_last=ends[2],
        bus_bytes_per_s=read_bandwidths(allreduce),
        p2p_bytes_per_s=read_p2p(p2p),
        overlap_slowdown=read_slowdown(overlap),
        all_reduce=reduce,
        all_to_all=to_all,
        files={file.name: file.content for file in used},
        notes=notes,
    )


def _required(files: Sequence[ProfileFile], kind: str, name: str) -> ProfileFile:
    found = [file for file in files if file.kind == kind]
    if not found:
        raise InputError(
            f"the profile has no {name}",
            allowed=[name],
            hint=f"add --profile {name}, or give the folder that holds it",
        )
    return found[0]


def _one_model(files: Sequence[ProfileFile], kind: str, notes: list[str]) -> ProfileFile:
    """The computation file with processed rows; files of raw rows alone are passed over with a note."""
    pattern = "computation_profiling_{precision}_{model}_all.json"
    found = [file for file in files if file.kind == kind]
    ready = [file for file in found if any(TIME_ROW.fullmatch(key) for key in file.content)]
    raw = [file for file in found if file not in ready]
    if not ready and raw:
        raise InputError(
            "holds raw rows only (layernum[..]), no layertype_0_bsz.. row",
            file=raw[0].path,
            allowed=["layertype_0_bsz1_seq2048", "layertype_other_bsz1_seq2048"],
            hint="run the profiler's processing step, which writes the layertype rows",
        )
    if not ready:
        _required(files, kind, pattern)
    if len(ready) > 1:
        names = [file.name for file in ready]
        raise InputError(
            f"the profile holds {len(ready)} models: {', '.join(names)}",
            allowed=names,
            hint="give the files of one model instead of the folder",
        )
    notes += [f"{file.name} holds raw rows only and is not used" for file in raw]
    return ready[0]


def _matching_memory(files: Sequence[ProfileFile], computation: ProfileFile) -> ProfileFile:
    facts = computation.facts
    name = f"memory_profiling_{facts['precision']}_{facts['model']}_all.json"
    same = [file for file in files if file.kind == "memory" and file.facts == facts]
    return same[0] if same else _missing(files, "memory", name)


def _missing(files: Sequence[ProfileFile], kind: str, name: str) -> ProfileFile:
    have = [file.name for file in files if file.kind == kind]
    raise InputError(
        f"the profile has no {name}" + (f"; it has {', '.join(have)}" if have else ""),
        allowed=[name],
        hint=f"add --profile {name}",
    )


def _shape(files: Sequence[ProfileFile], gpus: int | None) -> tuple[int, int]:
    """(nodes, GPUs per node) of the machine with ``gpus`` devices that the all-reduce files cover."""
    _required(files, "allreduce", "allreduce_bandwidth_{N}nodes_{G}gpus_per_node.json")
    shapes = sorted((int(f.facts["nodes"]), int(f.facts["per_node"])) for f in files if f.kind == "allreduce")
    fitting = [s for s in shapes if gpus is None or s[0] * s[1] == gpus]
    sizes = sorted({n * g for n, g in shapes})
    if len(fitting) == 1:
        return fitting[0]
    if not fitting:
        raise InputError(
            f"no all-reduce table for {gpus} GPUs; the profile covers {sizes}",
            allowed=sizes,
            hint=f"use --gpus {sizes[-1]}",
        )
    if gpus is None:
        raise InputError(
            f"the profile covers several machines: {sizes} GPUs",
            allowed=sizes,
            hint=f"use --gpus {sizes[-1]}",
        )
    raise InputError(
        f"several machines of {gpus} GPUs: {fitting} as (nodes, GPUs per node)",
        allowed=fitting,
        hint="give the files of one machine",
    )


def _machine(
    files: Sequence[ProfileFile], kind: str, nodes: int, per_node: int, *, or_one_node: bool = False
) -> ProfileFile:
    prefix = {"allreduce": "allreduce_bandwidth", "p2p": "p2p_bandwidth", "sp_time": "sp_time"}[kind]
    for count in (nodes, 1) if or_one_node else (nodes,):
        want = {"nodes": str(count), "per_node": str(per_node)}
        for file in files:
            if file.kind == kind and file.facts == want:
                return file
    return _missing(files, kind, f"{prefix}_{nodes}nodes_{per_node}gpus_per_node.json")


def _times(file: ProfileFile, length: int | None) -> tuple[dict[str, SampleTable], int]:
    """Forward seconds by layer type at one sequence length."""
    rows: dict[tuple[str, int], dict[int, float]] = {}
    for key, value in file.content.items():
        match = TIME_ROW.fullmatch(key)
        if match:
            kind, samples, sequence = match[1], int(match[2]), int(match[3])
            rows.setdefault((kind, sequence), {})[samples] = number(file, value, key) * MILLI * samples
        elif not RAW_TIME.fullmatch(key):
            raise unknown_key(file, key, ["layertype_0_bsz1_seq2048", "layertype_other_bsz1_seq2048"])
    lengths = sorted({sequence for _, sequence in rows})
    chosen = length if length is not None else lengths[0]
    if chosen not in lengths or (length is None and len(lengths) > 1):
        raise InputError(
            f"measured at sequence lengths {lengths}" + (f", not {length}" if length else ": choose one"),
            file=file.path,
            allowed=lengths,
            hint=f"use --seq-len {lengths[-1]}",
        )
    found = {
        kind: SampleTable.fit(samples, file.path, f"layertype_{kind}")
        for (kind, sequence), samples in rows.items()
        if sequence == chosen
    }
    for kind in ("0", "other"):
        if kind not in found:
            raise InputError(f"no layertype_{kind}_bsz.._seq{chosen} row", file=file.path)
    return found, chosen


def _memory(
    file: ProfileFile, length: int, kinds: int
) -> tuple[tuple[LayerMemory, ...], tuple[EndMemory, EndMemory, EndMemory]]:
    """Memory of every layer kind and of the ends, with sequence parallelism (the _sp tables)."""
    for key in file.content:
        if not any(p.fullmatch(key) for p in (RAW_MEMORY, LAYER_MEMORY, OTHER_MEMORY)):
            raise unknown_key(
                file, key, ["layertype_0_sp", "other_memory_pp_off_sp", "other_memory_pp_on_first_sp"]
            )
    layers = []
    for kind in range(kinds):
        where = (f"layertype_{kind}_sp", str(length))
        entry = _entry(file, *where)
        _only(file, entry, ("parameter_size", "tp_activation_per_bsz_dict"), where)
        kept = _entry(file, *where, "tp_activation_per_bsz_dict")
        if "checkpoint" not in kept:
            raise InputError("no 'checkpoint' entry", file=file.path, pointer="/" + "/".join(where))
        degrees = _degrees(file, {k: v for k, v in kept.items() if k != "checkpoint"}, *where)
        layers.append(
            LayerMemory(
                parameters=number(file, entry.get("parameter_size"), *where, "parameter_size")
                * MIB
                / PARAMETER_BYTES,
                activation_bytes=degrees,
                recomputed_bytes=number(file, kept["checkpoint"], *where, "checkpoint") * MIB,
            )
        )
    ends = []
    for part in ("off", "on_first", "on_last"):
        where = (f"other_memory_pp_{part}_sp", str(length))
        _only(file, _entry(file, *where), ("model_states", "activation"), where)
        ends.append(
            EndMemory(
                _degrees(file, _entry(file, *where, "model_states"), *where, "model_states"),
                _degrees(file, _entry(file, *where, "activation"), *where, "activation"),
            )
        )
    return tuple(layers), (ends[0], ends[1], ends[2])


def _entry(file: ProfileFile, *where: str) -> dict[str, Any]:
    value: Any = file.content
    for depth, key in enumerate(where):
        if not isinstance(value, dict) or key not in value:
            have = sorted(value) if isinstance(value, dict) else []
            raise InputError(
                f"no {key!r}",
                file=file.path,
                pointer="/" + "/".join(where[: depth + 1]),
                allowed=have or None,
            )
        value = value[key]
    if not isinstance(value, dict):
        raise InputError("must be an object", file=file.path, pointer="/" + "/".join(where))
    return value


def _only(file: ProfileFile, entry: dict[str, Any], known: tuple[str, ...], where: tuple[str, ...]) -> None:
    for key in entry:
        if key not in known:
            raise InputError(
                f"unknown key {key!r}",
                file=file.path,
                pointer="/" + "/".join((*where, key)),
                allowed=list(known),
            )


def _degrees(file: ProfileFile, entry: dict[str, Any], *where: str) -> dict[int, float]:
    """MiB by degree as bytes by degree."""
    found = {}
    for key, value in entry.items():
        if not key.isdigit():
            raise InputError(f"{key!r} is no degree", file=file.path, pointer="/" + "/".join((*where, key)))
        found[int(key)] = number(file, value, *where, key) * MIB
    if 1 not in found:
        raise InputError("no entry for degree 1", file=file.path, pointer="/" + "/".join(where))
    return dict(sorted(found.items()))
