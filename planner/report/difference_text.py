"""Differences between plans for people, at most 80 columns."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from planner.plan_file.difference import Change, Difference
from planner.units import format_bytes, format_seconds

MOST_ROWS = 40


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
    table.add_column(overflow="fold")
    table.add_column(overflow="fold", max_width=26)
    table.add_column(overflow="fold", max_width=26)
    table.add_column(justify="right")
    for change in changes:
        table.add_row(
            change.field, _words(change, change.before), _words(change, change.after), _share(change)
        )
    return table


def _words(change: Change, value: Any) -> str:
    if isinstance(value, float) and "seconds" in change.field:
        return format_seconds(value)
    if isinstance(value, float) and "bytes" in change.field:
        return format_bytes(value)
    if isinstance(value, float):
        return f"{value:.4g}"
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _share(change: Change) -> str:
    """Relative change of a number."""
    before, after = change.before, change.after
    if isinstance(before, (int, float)) and isinstance(after, (int, float)) and before:
        return f"{after / before - 1.0:+.1%}"
    return ""
