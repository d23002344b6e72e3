"""A graph's plan for people: the load, the stages, what is proved."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from planner.graph_plan import GraphPlanRecord
from planner.units import format_bytes

MAX_STAGES = 24
STATUS = {"proved": "proved least load", "gap": "best found"}


def print_graph_plan(console: Console, plan: GraphPlanRecord, next_commands: list[str]) -> None:
    """One screen: load and bound, a line a stage, the next command."""
    inputs = plan.inputs
    used = sum(stage.dp * stage.tp for stage in plan.stages)
    nodes = sum(len(stage.nodes) for stage in plan.stages)
    console.print(f"{inputs.name}: {nodes} nodes on {used} of {inputs.devices} devices", style="bold")
    console.print(
        f"{format_bytes(inputs.memory_bytes)} a device, {inputs.samples} samples a batch; seconds as the "
        "file counts them"
    )
    console.print()
    console.print(
        f"{plan.load_seconds:.6g} s a sample on the slowest of {len(plan.stages)} stages "
        f"({STATUS[plan.status]}, gap {plan.gap:.2%})"
    )
    console.print()
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    for name in ("stage", "nodes", "dp", "tp", "recomputed", "s a sample", "memory"):
        table.add_column(name, justify="right")
    for stage in plan.stages[:MAX_STAGES]:
        table.add_row(
            str(stage.index),
            str(len(stage.nodes)),
            str(stage.dp),
            str(stage.tp),
            str(len(stage.recomputed)),
            f"{stage.seconds_per_sample:.6g}",
            format_bytes(stage.memory_bytes),
        )
    console.print(table)
    if len(plan.stages) > MAX_STAGES:
        console.print(f"({len(plan.stages) - MAX_STAGES} more stages; --json has all, and every node)")
    if next_commands:
        console.print()
        console.print("Next", style="bold")
        for command in next_commands:
            console.print(f"$ {command}")
