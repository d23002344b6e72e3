"""A plan with per-layer strategies for people: the usual screen, and one line a run of equal layers."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from planner.plan_file.schema import Plan
from planner.report.terminal import print_plan


def print_profile_plan(
    console: Console, plan: Plan, *, cpu_seconds: float | None, next_commands: list[str]
) -> None:
    """The plan's screen, then its layers."""
    print_plan(console, plan, cpu_seconds=cpu_seconds, next_commands=[])
    console.print()
    console.print("Layers", style="bold")
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    for name in ("stage", "layers", "tp", "sp", "dp", "sharding", "recompute"):
        table.add_column(name)
    for stage in plan.decision.stages:
        for run in stage.layer_strategies:
            first, last = run.layers
            span = str(first) if first == last else f"{first}-{last}"
            table.add_row(
                str(stage.index), span, str(run.tp), str(run.cp), str(run.dp), run.sharding, run.recompute
            )
    ends = plan.decision.ends
    if ends is not None:
        table.add_row("", "ends", str(ends.tp), str(ends.cp), str(ends.dp), ends.sharding, "none")
    console.print(table)
    if next_commands:
        console.print()
        console.print("Next", style="bold")
        for command in next_commands:
            console.print(f"$ {command}")
