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
        values = [str(row[name]) for name in varied]
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
    return f"{text} mb{row['microbatch_size']}{where}"


def comparison_csv(rows: list[dict[str, Any]]) -> str:
    """All fields of all points, one header line."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    stream = io.StringIO()
    writer = csv.DictWriter(stream, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()
