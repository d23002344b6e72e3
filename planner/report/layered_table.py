"""Per-layer strategies for people: one line a run of equal layers."""

from __future__ import annotations

from rich.table import Table

from planner.plan_file.schema import DecisionRecord

COLUMNS = ("stage", "layers", "tp", "cp", "dp", "sharding", "recompute")


def tensor_words(decision: DecisionRecord) -> str:
    """The tensor degrees in use: 2, or 1/2/4 where layers differ."""
    used = {run.tp for stage in decision.stages for run in stage.layer_strategies}
    return "/".join(map(str, sorted(used or {decision.degrees.tp})))


def layer_rows(decision: DecisionRecord, *, is_ulysses: bool) -> tuple[tuple[str, ...], list[list[str]]]:
    """(headers, rows): every run of equal layers of a plan, then embedding and head where they differ.

    ``is_ulysses``: the plan's cp is context parallelism by all-to-all, called sp.
    """
    headers = tuple("sp" if name == "cp" and is_ulysses else name for name in COLUMNS)
    rows = []
    for stage in decision.stages:
        for run in stage.layer_strategies:
            first, last = run.layers
            span = str(first) if first == last else f"{first}-{last}"
            degrees = (str(run.tp), str(run.cp), str(run.dp))
            rows.append([str(stage.index), span, *degrees, run.sharding, run.recompute])
    ends = decision.ends
    if ends is not None:
        rows.append(["", "ends", str(ends.tp), str(ends.cp), str(ends.dp), ends.sharding, "none"])
    return headers, rows


def layers_table(decision: DecisionRecord, *, is_ulysses: bool) -> Table:
    """``layer_rows`` for the terminal."""
    headers, rows = layer_rows(decision, is_ulysses=is_ulysses)
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    for name in headers:
        table.add_column(name)
    for row in rows:
        table.add_row(*row)
    return table
