"""Differences between plans for people, at most 80 columns."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from planner.plan_file.difference import Change, Difference
from planner.units import format_bytes, format_seconds, significant

MOST_ROWS = 40
# Fields whose numbers are bytes; "stages" of a prediction are their totals.
BYTES = ("bytes", "memory_interval", "stages")
# Changes beyond this factor are told as one.
MOST_SHARE = 10.0


def print_difference(console: Console, difference: Difference) -> None:
    """Decision, inputs and prediction changes; "the plans agree" when there are none."""
    if difference.is_same:
        console.print("the plans agree")
        return
    for title, changes in (
        ("Decision", difference.decision),
        ("Inputs", difference.inputs),
        ("Prediction", difference.prediction),
    ):
        if changes:
            console.print(Text(title, style="bold"))
            console.print(_table(changes[:MOST_ROWS]))
            if len(changes) > MOST_ROWS:
                console.print(f"({len(changes) - MOST_ROWS} more; --json has all)")


def _table(changes: list[Change]) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, show_header=False)
    table.add_column(overflow="fold", min_width=27)
    table.add_column(overflow="fold", max_width=20)
    table.add_column(overflow="fold", max_width=20)
    table.add_column(justify="right", no_wrap=True)
    for change in changes:
        table.add_row(
            change.field, _words(change, change.before), _words(change, change.after), _share(change)
        )
    return table


def _words(change: Change, value: Any) -> str:
    if isinstance(value, float) and "seconds" in change.field:
        return format_seconds(value)
    if isinstance(value, float) and any(word in change.field for word in BYTES):
        return format_bytes(value)
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list) and value and all(isinstance(one, float) for one in value):
        return (" to " if "interval" in change.field else ", ").join(_words(change, one) for one in value)
    if isinstance(value, dict):
        return ", ".join(f"{name} {inner}" for name, inner in value.items())
    text = "-" if value is None else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _share(change: Change) -> str:
    """Relative change of a number."""
    before, after = change.before, change.after
    numbers = (int, float)
    if "stage" in change.field or not (isinstance(before, numbers) and isinstance(after, numbers) and before):
        return ""
    ratio = after / before
    return f"x {significant(ratio)}" if ratio > MOST_SHARE else f"{ratio - 1.0:+.1%}"
