"""The files of Hetu-Galvatron's hardware profiler: bandwidths, the overlap slowdown, times by message size.

Bandwidths are in MiB per millisecond of bus traffic, times in milliseconds, sizes in MB meaning MiB
(galvatron/profile_hardware/profile_*.py, June 2026). Everything leaves in seconds, bytes and bytes/s.
"""

from __future__ import annotations

import re
from typing import Any

from planner.errors import InputError
from planner.profiles.files import ProfileFile, number, unknown_key
from planner.profiles.tables import SizeTable
from planner.units import MIB, MILLI

MIB_PER_MS = MIB / MILLI
# Bus bandwidths outside this range are a unit mistake: 1 MB/s to 100 TB/s.
BANDWIDTH_RANGE = (1e-3, 1e5)
ALLREDUCE_ROW = re.compile(r"allreduce_size_(\d+)_consec_([01])")
P2P_ROW = re.compile(r"pp_size_(\d+)")
SIZE_ROW = re.compile(r"(allreduce|all2all)_size_(\d+)_(\d+)MB_time")


def _bandwidth(file: ProfileFile, key: str, value: Any) -> float:
    """Bytes/s from MiB per millisecond, refused where the unit cannot be that."""
    rate = number(file, value, key)
    low, high = BANDWIDTH_RANGE
    if not low <= rate <= high:
        raise InputError(
            f"{rate:g} MB/ms is outside {low:g} to {high:g}: bandwidths of this file are MiB per millisecond "
            f"(about GB/s)",
            file=file.path,
            pointer=f"/{key}",
            hint="divide bytes per second by 1.05e9",
        )
    return rate * MIB_PER_MS


def read_bandwidths(file: ProfileFile) -> dict[tuple[int, bool], float]:
    """All-reduce bus bytes/s by (group size, whether its ranks are consecutive). Raises InputError."""
    found = {}
    for key, value in file.content.items():
        match = ALLREDUCE_ROW.fullmatch(key)
        if not match:
            raise unknown_key(file, key, ["allreduce_size_8_consec_1", "allreduce_size_2_consec_0"])
        found[int(match[1]), match[2] == "1"] = _bandwidth(file, key, value)
    return found


def read_p2p(file: ProfileFile) -> dict[int, float]:
    """Bytes/s between neighbouring stages by pipeline degree. Raises InputError."""
    found = {}
    for key, value in file.content.items():
        match = P2P_ROW.fullmatch(key)
        if not match:
            raise unknown_key(file, key, ["pp_size_2"])
        found[int(match[1])] = _bandwidth(file, key, value)
    return found


def read_slowdown(file: ProfileFile) -> float:
    """How many times longer work takes beside communication, 1 to 2. Raises InputError."""
    for key in file.content:
        if key != "overlap_coe":
            raise unknown_key(file, key, ["overlap_coe"])
    if "overlap_coe" not in file.content:
        raise InputError("no 'overlap_coe'", file=file.path, allowed=["overlap_coe"])
    value = number(file, file.content["overlap_coe"], "overlap_coe")
    if not 1.0 <= value <= 2.0:
        raise InputError(
            f"overlap_coe {value:g} is a slowdown of overlapped work: between 1 (free) and 2 (no overlap)",
            file=file.path,
            pointer="/overlap_coe",
        )
    return value


def read_size_tables(file: ProfileFile) -> tuple[dict[int, SizeTable], dict[int, SizeTable]]:
    """(all-reduce, all-to-all) seconds by message size, by group size. Raises InputError."""
    rows: dict[str, dict[int, dict[float, float]]] = {"allreduce": {}, "all2all": {}}
    for key, value in file.content.items():
        match = SIZE_ROW.fullmatch(key)
        if not match:
            raise unknown_key(file, key, ["allreduce_size_8_1MB_time", "all2all_size_8_1MB_time"])
        seconds = number(file, value, key) * MILLI
        rows[match[1]].setdefault(int(match[2]), {})[int(match[3]) * MIB] = seconds
    return (
        {
            group: SizeTable.of(sizes, file.path, f"allreduce of {group}")
            for group, sizes in rows["allreduce"].items()
        },
        {
            group: SizeTable.of(sizes, file.path, f"all2all of {group}")
            for group, sizes in rows["all2all"].items()
        },
    )
