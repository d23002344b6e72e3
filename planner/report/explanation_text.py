"""Explanations for people: tables of terms, at most 80 columns."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from planner.explanation import Explanation, Forced, RankCollectives
from planner.plan_file.schema import Plan
from planner.report.front_text import print_front
from planner.report.terminal import decision_words
from planner.units import GIB, format_bytes, format_count, format_rate, format_seconds, significant

MAX_STAGES = 12
# Headings that leave the table of bytes narrow enough for 60 columns.
SHORT = {"parameters": "param.", "gradients": "grad.", "optimizer": "optim.", "activations": "activ."}


def print_explanation(console: Console, plan: Plan, explanation: Explanation) -> None:
    """Where the bytes go, where the seconds go, which links, which funnel, which formulas and constants."""
    for line in decision_words(plan.decision):
        console.print(line)
    _memory(console, explanation)
    _layers(console, explanation)
    _links(console, explanation)
    if plan.front is not None:
        print_front(console, plan, plan.front)
    _funnel(console, plan)
    if explanation.terms:  # a measured profile has none: its numbers are the files'
        _terms(console, explanation)
        _constants(console, explanation)


AXES = {"dp_outer": "dp, across islands", "expert_dp": "experts' dp"}


def print_collectives(console: Console, plan: Plan, listed: list[RankCollectives]) -> None:
    """What every rank sends in one optimizer step; stages that send the same are one row."""
    for line in decision_words(plan.decision):
        console.print(line)
    _title(console, "Collectives of a rank in one step; bytes of the whole (gathered) tensors")
    grid = _grid("stages", "axis", "operation", "count", "bytes")
    for first, last, one in _equal_runs(listed):
        stages = str(first) if first == last else f"{first}-{last}"
        for row in one.collectives:
            count, size = format_count(row.count), format_bytes(row.whole_bytes)
            grid.add_row(stages, AXES.get(row.axis, row.axis), row.operation, count, size)
            stages = ""
    console.print(grid)


def _equal_runs(listed: list[RankCollectives]) -> list[tuple[int, int, RankCollectives]]:
    """(first stage, last stage, collectives) of neighbouring stages that send the same."""
    runs: list[tuple[int, int, RankCollectives]] = []
    for one in listed:
        if runs and runs[-1][2].collectives == one.collectives:
            runs[-1] = (runs[-1][0], one.stage, runs[-1][2])
        else:
            runs.append((one.stage, one.stage, one))
    return runs


def _title(console: Console, text: str) -> None:
    console.print()
    console.print(Text(text, style="bold"))


def _grid(*columns: str) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold")
    for index, name in enumerate(columns):
        table.add_column(name, justify="left" if index == 0 else "right", overflow="fold")
    return table


def _memory(console: Console, explanation: Explanation) -> None:
    _title(console, "Memory per rank, GiB, at the fullest moment of each stage")
    names = list(explanation.stage_memory[0])
    table = _grid("stage", *(SHORT.get(name, name) for name in names))
    stages = list(enumerate(explanation.stage_memory))
    shown = stages if len(stages) <= MAX_STAGES else [*stages[: MAX_STAGES // 2], *stages[-MAX_STAGES // 2 :]]
    for index, memory in shown:
        table.add_row(str(index), *(significant(memory[name] / GIB) for name in names))
    console.print(table)
    if len(shown) < len(stages):
        console.print(f"({len(stages) - len(shown)} stages between them not shown; --json has all)")


def _layers(console: Console, explanation: Explanation) -> None:
    _title(console, "One microbatch through one layer on one rank")
    for kind in explanation.kinds:
        console.print(
            f"{kind.name} x {kind.count}: {format_count(kind.parameters_per_rank)} parameters per rank"
        )
        for name, seconds in (("forward", kind.forward_seconds), ("backward", kind.backward_seconds)):
            parts = ", ".join(f"{cause} {format_seconds(value)}" for cause, value in seconds.items() if value)
            console.print(f"  {name}: {parts}")
        saved = ", ".join(f"{mode} {format_bytes(value)}" for mode, value in kind.saved_bytes.items())
        console.print(f"  kept for backward by recompute: {saved}")


def _links(console: Console, explanation: Explanation) -> None:
    if not explanation.links:
        return
    _title(console, "Links the groups cross")
    table = _grid("axis", "ranks", "stride", "tier", "units", "groups on a link", "a group gets")
    for link in explanation.links:
        table.add_row(
            link["axis"],
            str(link["ranks"]),
            str(link["stride"]),
            link["tier"],
            str(link["units"]),
            str(link["groups_sharing_a_link"]),
            format_rate(link["bytes_per_s"]),
        )
    console.print(table)


def _funnel(console: Console, plan: Plan) -> None:
    if not plan.search.funnel:
        return
    _title(console, "Search funnel")
    table = _grid("step", "left", "cut", "kind")
    table.add_column("reason", overflow="fold")
    for step in plan.search.funnel:
        table.add_row(
            str(step["step"]),
            f"{step['candidates']:,}",
            f"{step.get('cut', 0):,}",
            str(step.get("kind", "")),
            str(step["reason"]),
        )
    console.print(table)
    console.print(f"space: {plan.search.space}")


def _terms(console: Console, explanation: Explanation) -> None:
    for unit, title, words in (
        ("seconds", "Terms of the step, and their formulas", format_seconds),
        ("bytes", "Terms of the peak, and their formulas", format_bytes),
    ):
        _title(console, title)
        table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold")
        table.add_column("term")
        table.add_column("value", justify="right")
        for name in ("formulas", "constants and printed figures"):
            table.add_column(name, overflow="fold")
        for term in explanation.terms:
            if term["unit"] == unit and term["value"]:
                reads = [*(c["name"] for c in term["constants"]), *(f["name"] for f in term["facts"])]
                names = "; ".join(f["name"] for f in term["formulas"])
                table.add_row(term["name"], words(term["value"]), names, ", ".join(reads) or "none")
        console.print(table)


def _constants(console: Console, explanation: Explanation) -> None:
    _title(console, "Constants and printed figures, and where they come from")
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold")
    for name in ("name", "value", "origin"):
        table.add_column(name, overflow="fold", justify="right" if name == "value" else "left")
    seen = set()
    read = [row for term in explanation.terms for row in (*term["constants"], *term["facts"])]
    for row in read:
        if row["name"] not in seen:
            seen.add(row["name"])
            origin, basis = row["origin"], row["basis"]
            words = origin if origin.startswith(basis) else f"{basis}: {origin}"
            table.add_row(row["name"], f"{row['value']:.4g}", words)
    console.print(table)


def print_forced(console: Console, plan: Plan, forced: Forced) -> None:
    """The plan with a forced choice beside the plan as it is: step, memory, and seconds by cause."""
    _title(console, f"With {forced.name}={forced.value} instead")
    if forced.plan is None:
        console.print(f"no plan: {forced.reason}")
        return
    if forced.plan.decision == plan.decision:
        console.print(f"the plan as it is: it has {forced.name}={forced.value}")
        return
    for line in decision_words(forced.plan.decision):
        console.print(line)
    ours, theirs = plan.prediction, forced.plan.prediction
    table = _grid("", "this plan", f"{forced.name}={forced.value}", "difference")
    change = theirs.step_seconds / ours.step_seconds - 1.0
    table.add_row(
        "step", format_seconds(ours.step_seconds), format_seconds(theirs.step_seconds), f"{change:+.1%}"
    )
    table.add_row(
        "peak memory",
        format_bytes(ours.peak_memory_bytes),
        format_bytes(theirs.peak_memory_bytes),
        f"{theirs.peak_memory_bytes / ours.peak_memory_bytes - 1.0:+.1%}",
    )
    for cause, value in ours.breakdown_seconds.items():
        other = theirs.breakdown_seconds[cause]
        if value or other:
            sign = "+" if other >= value else "-"
            delta = f"{sign}{format_seconds(abs(other - value))}"
            table.add_row(cause, format_seconds(value), format_seconds(other), delta)
    console.print(table)
