"""What-if tables for people and spreadsheets."""

from __future__ import annotations

import csv
import io
from typing import Any

from rich.table import Table

from planner.units import GIB, format_count, format_seconds, format_share, significant

SHORT_NAMES = {
    "network_gbit": "Gb/s",
    "seq_len": "seq",
    "global_batch": "batch",
    "memory_limit_gib": "limit",
    "head_room_percent": "free %",
}


def comparison_table(varied: list[str], rows: list[dict[str, Any]]) -> Table:
    """One line a point: what varied, the step, throughput per GPU, MFU, memory, the mesh."""
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold")
    for name in varied:
        table.add_column(SHORT_NAMES.get(name, name), overflow="fold")
    has_days = any("days" in row for row in rows)
    columns = ["step", "tokens/s", "per GPU", "MFU", "GiB", *(["days"] if has_days else []), "plan"]
    for name in columns:
        table.add_column(name, justify="left" if name == "plan" else "right", overflow="fold")
    for row in rows:
        values = [_value(row[name]) for name in varied]
        if not row["fits"]:
            table.add_row(*values, row["verdict"], *([""] * (len(columns) - 1)))
            continue
        cells = [
            format_seconds(row["step_seconds"]),
            format_count(row["tokens_per_second"]),
            format_count(row["tokens_per_second_per_gpu"]),
            format_share(row["mfu"]),
            significant(row["peak_memory_bytes"] / GIB),
        ]
        if has_days:
            cells.append(significant(row["days"]) if "days" in row else "")
        table.add_row(*values, *cells, plan_words(row))
    return table


def plan_words(row: dict[str, Any]) -> str:
    """TP2 PP4 DP8 and what is not 1, from a flat record."""
    text = f"TP{row['tp']} PP{row['pp']} DP{row['dp']}"
    for key, short in (("cp", "CP"), ("ep", "EP"), ("virtual_stages", "VP")):
        if row[key] > 1:
            text += f" {short}{row[key]}"
    where = "" if row["offload"] == "none" else ", optimizer on the host"
    idle = f", {row['idle_gpus']} idle" if row.get("idle_gpus") else ""
    return f"{text} mb{row['microbatch_size']}{where}{idle}"


def comparison_notes(varied: list[str], rows: list[dict[str, Any]]) -> list[str]:
    """What the table has no room for: why a point has no plan, what its plan warns of; equal ones once."""
    notes: dict[str, list[str]] = {}
    for row in rows:
        values = [f"{SHORT_NAMES.get(name, name)} {_value(row[name])}" for name in varied]
        point = ", ".join(values) or "this point"
        for text in row["warnings"] if row["fits"] else [row["reason"]]:
            notes.setdefault(text, []).append(point)
    return [f"{_named(points, len(rows))}: {text}" for text, points in notes.items()]


def _value(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _named(points: list[str], most: int) -> str:
    if len(points) == most and most > 1:
        return "every point"
    return points[0] if len(points) == 1 else f"{points[0]} and {len(points) - 1} more"


def comparison_csv(rows: list[dict[str, Any]]) -> str:
    """All fields of all points, one header line."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    stream = io.StringIO()
    writer = csv.DictWriter(stream, names, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({**row, "warnings": "; ".join(row.get("warnings", []))})
    return stream.getvalue()
