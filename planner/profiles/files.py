"""Profile files on disk: a list of files or folders in, named JSON documents out.

Hetu-Galvatron tells what a file is by its name (docs of its profiler; galvatron/core/search_engine), so the
names are parsed here and nowhere else.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from planner.documents import read_document
from planner.errors import InputError, nearest_names

PATTERNS = {
    "computation": re.compile(r"computation_profiling_(?P<precision>fp32|fp16|bf16)_(?P<model>.+)_all\.json"),
    "memory": re.compile(r"memory_profiling_(?P<precision>fp32|fp16|bf16)_(?P<model>.+)_all\.json"),
    "allreduce": re.compile(r"allreduce_bandwidth_(?P<nodes>\d+)nodes_(?P<per_node>\d+)gpus_per_node\.json"),
    "p2p": re.compile(r"p2p_bandwidth_(?P<nodes>\d+)nodes_(?P<per_node>\d+)gpus_per_node\.json"),
    "sp_time": re.compile(r"sp_time_(?P<nodes>\d+)nodes_(?P<per_node>\d+)gpus_per_node\.json"),
    "overlap": re.compile(r"overlap_coefficient\.json"),
    "config": re.compile(r"galvatron_config_.+\.json"),
}
PIPER_KEYS = ("maxMemoryPerDevice", "maxDevices", "bandwidth", "mbsInBatch", "nodes", "edges")


@dataclass(frozen=True)
class ProfileFile:
    """One document: where it is, which table it is, what its name says."""

    path: str
    kind: str
    facts: dict[str, str]
    content: dict[str, Any]

    @property
    def name(self) -> str:
        """File name without folders."""
        return Path(self.path).name


def read_files(paths: Sequence[str]) -> list[ProfileFile]:
    """Every JSON of ``paths``; a folder stands for the JSON files in it.

    Raises InputError for a missing file, a name or content that is no known profile, a name given twice.
    """
    found: list[ProfileFile] = []
    for text in paths:
        path = Path(text)
        if path.is_dir():
            inside = sorted(path.glob("*.json"))
            if not inside:
                raise InputError("the folder holds no .json file", file=text, hint="give the profile files")
            found += [read_file(str(file)) for file in inside]
        else:
            found.append(read_file(text))
    seen: dict[str, str] = {}
    for file in found:
        if file.name in seen:
            raise InputError(
                f"two profile files are called {file.name}",
                file=file.path,
                hint=f"drop one; the other is {seen[file.name]}",
            )
        seen[file.name] = file.path
    return found


def read_file(path: str) -> ProfileFile:
    """One profile file, recognised. Raises InputError."""
    return recognise(path, read_document(path))


def recognise(path: str, content: dict[str, Any]) -> ProfileFile:
    """Which table a document is. Raises InputError when its name and content say neither tool's."""
    name = Path(path).name
    for kind, pattern in PATTERNS.items():
        match = pattern.fullmatch(name)
        if match:
            return ProfileFile(path, kind, match.groupdict(), content)
    if any(key in content for key in PIPER_KEYS):
        return ProfileFile(path, "piper", {}, content)
    raise InputError(
        f"{name} is no profile: its name is none of Hetu-Galvatron's and it has no key of a Piper graph",
        file=path,
        allowed=[*(p.pattern.replace("\\", "") for p in PATTERNS.values()), f"keys {', '.join(PIPER_KEYS)}"],
        hint="keep the names the profiler wrote, such as computation_profiling_bf16_llama2-7b_all.json",
    )


def number(file: ProfileFile, value: Any, *where: str) -> float:
    """A positive finite number at a place of ``file``. Raises InputError."""
    pointer = "/" + "/".join(where)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise InputError(f"must be a number, not {value!r}", file=file.path, pointer=pointer)
    if not (math.isfinite(value) and value > 0):
        raise InputError(f"must be positive and finite, not {value}", file=file.path, pointer=pointer)
    return float(value)


def unknown_key(file: ProfileFile, key: str, known: Sequence[str]) -> InputError:
    """The error for a key that files of this kind do not have; ``known`` are examples of those they have."""
    return InputError(
        f"unknown key {key!r}",
        file=file.path,
        pointer=f"/{key}",
        allowed=list(known),
        nearest=nearest_names(key, known),
        hint=f"keys of this file look like {known[0]}",
    )
