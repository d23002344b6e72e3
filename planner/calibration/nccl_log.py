"""Text output of nccl-tests: all_reduce_perf, all_gather_perf, reduce_scatter_perf, alltoall, sendrecv.

A log holds, for each run: one ``# Rank`` line a GPU, one line a size and a closing ``# Avg bus bandwidth``
line. A size line has the columns size (B), count, type, redop, root, then time (us), algbw, busbw (GB/s)
and wrong values, out of place and in place; sizes and bandwidths are defined in nccl-tests'
doc/PERFORMANCE.md. Launchers' rank prefixes and NCCL's own INFO lines are passed over.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from planner.errors import InputError
from planner.units import MICRO

COLLECTIVES = ("all_reduce", "all_gather", "reduce_scatter", "alltoall", "sendrecv")
MIN_SIZES = 4
RATIO_TOLERANCE = 0.05
SIZE_FIELDS = 13
_PREFIX = re.compile(r"^\[\d+,\d+\]<std\w+>:\s?")
_RANK = re.compile(r"^#\s+Rank\s+(\d+)\s+(?:Group\s+(\d+)\s+)?Pid\s+\d+\s+on\s+(\S+)\s+device\s+\d+")
_NAME = re.compile(r"(all_reduce|all_gather|reduce_scatter|alltoall|sendrecv)")
_STARTING = re.compile(r"^#\s*Collective test starting:\s*(\w+?)(?:_perf\w*)?\s*$")


@dataclass
class NcclRun:
    """One collective on one group: bytes and seconds of every size, out of place.

    size_bytes as nccl-tests counts them (the whole tensor); hosts: one name a rank.
    """

    collective: str
    file: str
    hosts: list[str] = field(default_factory=list)
    size_bytes: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    @property
    def ranks(self) -> int:
        return len(self.hosts)

    @property
    def nodes(self) -> int:
        return len(set(self.hosts))

    @property
    def bus_factor(self) -> float:
        """Bytes over the bus for each byte of size (nccl-tests, doc/PERFORMANCE.md)."""
        n = self.ranks
        return {"all_reduce": 2.0 * (n - 1) / n, "sendrecv": 1.0}.get(self.collective, (n - 1) / n)


def read_nccl_log(path: str) -> list[NcclRun]:
    """The runs of a log. Raises InputError naming the line that is wrong or where the log breaks off."""
    try:
        lines = Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        raise InputError(f"cannot read the log: {error.strerror or error}", file=path) from error
    runs: list[NcclRun] = []
    current: NcclRun | None = None
    named = ""
    for number, raw in enumerate(lines, 1):
        line = _PREFIX.sub("", raw).rstrip()
        starting = _STARTING.match(line)
        rank = _RANK.match(line)
        if starting:
            named = starting[1]
        elif rank:
            if current is None:
                current = NcclRun("", path)
            if int(rank[2] or 0):
                raise InputError(
                    f"line {number}: rank {rank[1]} is in group {rank[2]}: several groups ran at once",
                    file=path,
                    hint="run nccl-tests without NCCL_TESTS_SPLIT",
                )
            current.hosts.append(rank[3])
        elif line.lstrip()[:1].isdigit() and _looks_like_size(line):
            if current is None:
                raise InputError(
                    f"line {number}: a size before any '# Rank' line, so the group is unknown",
                    file=path,
                    hint="keep the whole output of nccl-tests",
                )
            current.collective = current.collective or _collective(named, path, number)
            _read_size(current, line, number)
        elif line.startswith("# Avg bus bandwidth") and current is not None:
            runs.append(_complete(current, number))
            current, named = None, ""
    if current is not None:
        raise InputError(
            f"line {len(lines)}: the log ends before '# Avg bus bandwidth': the run did not finish",
            file=path,
            hint="run the test again and keep its whole output",
        )
    if not runs:
        raise InputError(
            "no nccl-tests result in the file",
            file=path,
            hint="give the text output of all_reduce_perf, all_gather_perf, ... -b 8 -e 1G -f 2",
        )
    return runs


def _looks_like_size(line: str) -> bool:
    """Whether a line is one of the table, and not a host name or a time stamp that starts with a digit."""
    fields = line.split()
    return fields[0].isdigit() and (len(fields) < 2 or fields[1].isdigit())


def _collective(named: str, path: str, number: int) -> str:
    """The collective, from the log's own line (newer versions) or from the file's name."""
    found = named or "".join(_NAME.findall(Path(path).name)[:1])
    if found not in COLLECTIVES:
        raise InputError(
            f"line {number}: the log does not say which collective ran"
            + (f" ({found} is not fitted)" if found else ""),
            file=path,
            allowed=list(COLLECTIVES),
            hint="name the file after the test, for example all_gather_perf.txt",
        )
    return found


def _read_size(run: NcclRun, line: str, number: int) -> None:
    """One line of the table. Raises InputError for missing cells, wrong results or a time of zero."""
    fields = line.split()
    if len(fields) != SIZE_FIELDS:
        raise InputError(
            f"line {number}: {len(fields)} cells where a size has {SIZE_FIELDS}: {line.strip()[:60]!r}",
            file=run.file,
            hint="the line is cut or two outputs are mixed: run the test again",
        )
    try:
        size, micros, algbw, busbw = (float(fields[i]) for i in (0, 5, 6, 7))
    except ValueError as error:
        raise InputError(f"line {number}: {error}", file=run.file) from None
    if fields[8] not in ("0", "N/A"):
        raise InputError(
            f"line {number}: {fields[8]} wrong values: the machine computes wrong results",
            file=run.file,
            hint="repair the machine before timing it",
        )
    if size == 0:
        return  # Sizes below one element a rank are printed as 0 bytes.
    if micros <= 0:
        raise InputError(f"line {number}: a time of {micros:g} us", file=run.file)
    expected = run.bus_factor * algbw
    if algbw >= 1.0 and abs(busbw - expected) > RATIO_TOLERANCE * busbw:
        raise InputError(
            f"line {number}: busbw {busbw:g} over algbw {algbw:g} is not that of {run.collective} on "
            f"{run.ranks} ranks ({run.bus_factor:.3g})",
            file=run.file,
            hint="the file's name gives another collective, or '# Rank' lines are missing",
        )
    run.size_bytes.append(size)
    run.seconds.append(micros * MICRO)


def _complete(run: NcclRun, number: int) -> NcclRun:
    if run.ranks < 2:
        raise InputError(f"line {number}: one rank exchanges nothing", file=run.file, hint="use -g 2 or more")
    if len(set(run.size_bytes)) < MIN_SIZES:
        raise InputError(
            f"line {number}: {len(set(run.size_bytes))} sizes; two unknowns and their residual need at least "
            f"{MIN_SIZES}",
            file=run.file,
            hint="run with -b 8 -e 1G -f 2",
        )
    return run
