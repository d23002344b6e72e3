"""Per-layer strategies for people: one line a run of equal layers."""

from __future__ import annotations

from rich.table import Table

from planner.plan_file.schema import DecisionRecord

COLUMNS = ("stage", "layers", "tp", "cp", "dp", "sharding", "recompute")


def tensor_words(decision: DecisionRecord) -> str:
    """The tensor degrees in use: 2, or 1/2/4 where layers differ."""
    used = {run.tp for stage in decision.stages for run in stage.layer_strategies}
    return "/".join(map(str, sorted(used or {decision.degrees.tp})))


def layers_table(decision: DecisionRecord, *, is_ulysses: bool) -> Table:
    """Every run of equal layers of a plan with strategies of their own, and embedding and head.

    ``is_ulysses``: the plan's cp is context parallelism by all-to-all, called sp.
    """
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    for name in COLUMNS:
        table.add_column("sp" if name == "cp" and is_ulysses else name)
    for stage in decision.stages:
        for run in stage.layer_strategies:
            first, last = run.layers
            span = str(first) if first == last else f"{first}-{last}"
            degrees = (str(run.tp), str(run.cp), str(run.dp))
            table.add_row(str(stage.index), span, *degrees, run.sharding, run.recompute)
    ends = decision.ends
    if ends is not None:
        table.add_row("", "ends", str(ends.tp), str(ends.cp), str(ends.dp), ends.sharding, "none")
    return table
