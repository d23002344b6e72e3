"""One measured run as a row of a CSV table, and what its empty cells are taken to mean.

Columns are those of the published measurements (see ``COLUMNS``); extra columns are kept and ignored.
Every rule that fills an empty cell is listed in the README and returned as a note with the case, so
nothing is assumed silently.
"""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass, field
from pathlib import Path

from planner.errors import InputError

COLUMNS = (
    "id",
    "source",
    "model_name",
    "params_b",
    "layers",
    "hidden",
    "ffn_hidden",
    "heads",
    "kv_heads",
    "vocab",
    "seq_len",
    "moe_experts",
    "moe_topk",
    "gpu_name",
    "gpu_mem_gb",
    "gpus",
    "gpus_per_node",
    "intra_node_link",
    "inter_node_link",
    "precision",
    "global_batch",
    "micro_batch",
    "dp",
    "tp",
    "sp",
    "pp",
    "vp",
    "cp",
    "ep",
    "zero_stage",
    "recompute",
    "attention",
    "measured_step_s",
    "measured_peak_mem_gb",
    "sim_by_source_step_s",
    "notes",
    "stack",
)
REQUIRED = ("id", "gpu_name", "gpus", "dp", "tp", "pp")
MAX_ROWS = 200_000
SEPARATORS = ((";", "semicolons"), ("\t", "tabs"))
# Figures that were measured: none is 0, and a row without one leaves the cell empty.
POSITIVE = ("measured_step_s", "measured_peak_mem_gb", "sim_by_source_step_s")


class Unsupported(Exception):
    """A row that cannot be priced; the message is the reason printed beside it."""


@dataclass
class Case:
    """A row with typed access and the notes on what was assumed for it."""

    cells: dict[str, str]
    notes: list[str] = field(default_factory=list)

    @property
    def id(self) -> str:
        return self.cells["id"]

    @property
    def source(self) -> str:
        """The letters of the id before the dash: the group errors are averaged over."""
        return self.id.split("-")[0] if "-" in self.id else self.cells.get("source", "") or "all"

    def text(self, name: str) -> str:
        """A cell as text, "" when empty."""
        return (self.cells.get(name) or "").strip()

    def number(self, name: str) -> float | None:
        """A cell as a finite number, None when empty. Raises Unsupported for anything else."""
        text = self.text(name)
        if not text:
            return None
        try:
            value = float(text)
        except ValueError:
            raise Unsupported(f"{name} is {text!r}; {_number_words(name)}") from None
        if not math.isfinite(value) or value < 0 or (value == 0 and name in POSITIVE):
            raise Unsupported(f"{name} is {text}; {_number_words(name)}")
        return value

    def count(self, name: str, default: int | None = None) -> int:
        """A cell as a positive whole number; ``default`` when empty. Raises Unsupported without one."""
        value = self.number(name)
        if value is None:
            if default is None:
                raise Unsupported(f"{name} is not stated")
            return default
        if value < 1 or value != int(value):
            raise Unsupported(f"{name} is {value:g}; write a whole number, 1 or more")
        return int(value)

    def assume(self, text: str) -> None:
        """Record what an empty cell was taken to mean."""
        self.notes.append(text)


def _number_words(name: str) -> str:
    """What a cell of numbers may hold."""
    least = "a number above 0" if name in POSITIVE else "0 or more"
    return f"write {least}, or leave it empty where it is not known"


def read_cases(path: str | Path) -> list[Case]:
    """The rows of a CSV file. Raises InputError with the line for a table that cannot be read."""
    file = Path(path)
    try:
        text = file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(
            f"cannot read the table: {error.strerror or error}",
            file=str(path),
            hint="give a CSV file, one measured run a line",
        ) from error
    except UnicodeDecodeError as error:
        raise InputError(
            f"not UTF-8 text: byte 0x{error.object[error.start]:02x} at offset {error.start}",
            file=str(path),
            hint="save the table as CSV in UTF-8",
        ) from error
    reader = csv.DictReader(text.splitlines())
    names = reader.fieldnames or []
    missing = [name for name in REQUIRED if name not in names]
    if missing:
        raise InputError(
            f"the table lacks the column{'s' if len(missing) > 1 else ''} {', '.join(missing)}",
            file=str(path),
            allowed=list(COLUMNS),
            hint=_columns_hint(text),
        )
    cases: list[Case] = []
    lines: dict[str, int] = {}
    for row in reader:
        if None in row:
            raise InputError(
                f"line {reader.line_num} has more cells than the {len(names)} columns",
                file=str(path),
                hint="quote cells that hold a comma",
            )
        if not (row["id"] or "").strip():
            raise InputError(
                f"line {reader.line_num}: the id is empty",
                file=str(path),
                hint="give every run an id of its own",
            )
        first = lines.setdefault(row["id"], reader.line_num)
        if first != reader.line_num:
            raise InputError(
                f"line {reader.line_num}: id {row['id']!r} is that of line {first} too",
                file=str(path),
                hint="give every run an id of its own",
            )
        cases.append(Case({name: value or "" for name, value in row.items()}))
        if len(cases) > MAX_ROWS:
            raise InputError(f"more than {MAX_ROWS} rows", file=str(path), hint="split the table")
    if not cases:
        raise InputError("the table has no rows", file=str(path), hint="one measured run a line")
    return cases


def _columns_hint(text: str) -> str:
    """What to do about a first line that does not name the columns."""
    first = text.split("\n", 1)[0]
    separator = next((name for mark, name in SEPARATORS if mark in first and "," not in first), "")
    if separator:
        return f"cells are separated by {separator} here: save the table with commas"
    start = "the file is empty; its" if not text.strip() else "the"
    return f"{start} first line must name the columns, at least {','.join(REQUIRED)}"
