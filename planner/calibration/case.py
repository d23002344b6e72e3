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
            raise Unsupported(f"{name} is {text!r}, not a number") from None
        if not math.isfinite(value) or value < 0:
            raise Unsupported(f"{name} is {text}, not a non-negative number")
        return value

    def count(self, name: str, default: int | None = None) -> int:
        """A cell as a positive whole number; ``default`` when empty. Raises Unsupported without one."""
        value = self.number(name)
        if value is None:
            if default is None:
                raise Unsupported(f"{name} is not stated")
            return default
        if value < 1 or value != int(value):
            raise Unsupported(f"{name} is {value:g}, not a positive whole number")
        return int(value)

    def assume(self, text: str) -> None:
        """Record what an empty cell was taken to mean."""
        self.notes.append(text)


def read_cases(path: str | Path) -> list[Case]:
    """The rows of a CSV file. Raises InputError with the line for a table that cannot be read."""
    file = Path(path)
    try:
        text = file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(
            f"cannot read the table: {error.strerror or error}", file=str(path), hint="give a CSV file"
        ) from error
    except UnicodeDecodeError as error:
        raise InputError(f"not UTF-8 text: {error.reason}", file=str(path), hint="save as UTF-8") from error
    reader = csv.DictReader(text.splitlines())
    names = reader.fieldnames or []
    missing = [name for name in REQUIRED if name not in names]
    if missing:
        raise InputError(
            f"the table lacks the column{'s' if len(missing) > 1 else ''} {', '.join(missing)}",
            file=str(path),
            allowed=list(COLUMNS),
            hint="the first line must name the columns",
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
        first = lines.setdefault(row["id"] or "", reader.line_num)
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
