"""The front between speed and memory, for people: two tables of at most 80 columns."""

from __future__ import annotations

import math

from rich.console import Console
from rich.table import Table
from rich.text import Text

from planner.plan_file.read import read_decision
from planner.plan_file.schema import DecisionRecord, FrontPointRecord, FrontRecord, Plan, SplitRecord
from planner.units import GIB, format_bytes, format_seconds, significant

MAX_STAGES = 8
# A limit people type: to 1 MiB.
DECIMALS = 3


def print_front(console: Console, plan: Plan, front: FrontRecord) -> None:
    """The fastest plan at each head-room, then the stage splits of the plan's own mesh."""
    limit = plan.prediction.memory_limit_bytes
    console.print()
    console.print(
        Text(f"Fastest plan by memory left free of the limit ({format_bytes(limit)})", style="bold")
    )
    table = _table(("free", "right"), ("limit GiB", "right"), ("step", "right"), ("slower", "right"),
                   ("GiB", "right"), ("plan", "left"))  # fmt: skip
    first = plan.prediction.step_seconds
    for row in front_rows(front, first):
        table.add_row(*row)
    console.print(table)
    for line in front_notes(front):
        console.print(line)
    if not front.splits:
        return
    console.print()
    console.print(Text("Balance of this mesh, from time to memory", style="bold"))
    table = _table(("balanced", "left"), ("step", "right"), ("slower", "right"), ("GiB", "right"),
                   ("fits", "left"), ("layers a stage; recompute", "left"))  # fmt: skip
    for cells in split_rows(front, limit, first):
        table.add_row(*cells)
    console.print(table)


def front_rows(front: FrontRecord, first_seconds: float) -> list[tuple[str, ...]]:
    """(free, limit that takes it, step, slower, peak, plan) of each point; equal plans are named once."""
    rows: list[tuple[str, ...]] = []
    before: DecisionRecord | None = None
    for point in front.points:
        same = point.decision == before
        rows.append(
            (
                free_words(point),
                taking_limit(point),
                format_seconds(point.prediction.step_seconds),
                _slower(point.prediction.step_seconds, first_seconds),
                significant(point.prediction.peak_memory_bytes / GIB),
                "the same" if same else read_decision(point.decision).label(),
            )
        )
        before = point.decision
    return rows


def front_notes(front: FrontRecord) -> list[str]:
    """What the table cannot say: head-rooms without a plan, what is not proved, how to take a plan."""
    notes = [f"nothing fits with {share * 100:g} % free" for share in front.unfit]
    if not front.is_complete:
        notes.append("stopped early: the front ends here")
    unproved = [p for p in front.points if p.gap > 1e-6 and p.head_room is not None]
    if unproved:
        worst = max(unproved, key=lambda p: p.gap)
        notes.append(f"certificates: every plan with head-room is within {worst.gap:.2%} of its bound")
    bound = front.least_memory_bound_bytes
    if bound is not None:
        end = front.points[-1].prediction.peak_memory_bytes
        gap = "" if bound >= end * 0.998 else f"; {format_bytes(end)} is the least found"
        notes.append(f"no plan of the space fits below {format_bytes(bound)}{gap}")
    notes.append("to take one, plan with its limit: --memory-limit-gib")
    return notes


def free_words(point: FrontPointRecord) -> str:
    """10 %, or least for the end of the front."""
    return "least" if point.head_room is None else f"{point.head_room * 100:g} %"


def taking_limit(point: FrontPointRecord) -> str:
    """The shortest --memory-limit-gib under which this plan is the best: from its peak to its own limit.

    Where no number of DECIMALS lies between the two, the next above: what fits there is no slower.
    """
    low, high = point.prediction.peak_memory_bytes / GIB, point.prediction.memory_limit_bytes / GIB
    for digits in range(1, DECIMALS + 1):
        value = math.ceil(low * 10**digits) / 10**digits
        if low <= value <= high:
            break
    return f"{value:.{digits}f}"


def split_rows(front: FrontRecord, limit_bytes: float, first_seconds: float) -> list[tuple[str, ...]]:
    """(balance, step, slower, peak, fits, layers and recompute) of each split."""
    return [
        (
            split.balance if split.balance != "between" else "",
            format_seconds(split.prediction.step_seconds),
            _slower(split.prediction.step_seconds, first_seconds),
            significant(split.prediction.peak_memory_bytes / GIB),
            "yes" if split.prediction.peak_memory_bytes <= limit_bytes * (1 + 1e-9) else "no",
            _stages(split),
        )
        for split in front.splits
    ]


def _stages(split: SplitRecord) -> str:
    """Layers by stage, runs of equal stages folded, and how many layers are recomputed."""
    sizes = [stage.layers[1] - stage.layers[0] + 1 for stage in split.decision.stages]
    runs: list[list[int]] = []
    for size in sizes:
        if runs and runs[-1][0] == size:
            runs[-1][1] += 1
        else:
            runs.append([size, 1])
    words = [f"{count} x {size}" if count > 2 else " ".join([str(size)] * count) for size, count in runs]
    shown = words if len(words) <= MAX_STAGES else [*words[: MAX_STAGES - 1], "..", words[-1]]
    modes: dict[str, int] = {}
    for stage in split.decision.stages:
        for run in stage.layer_strategies:
            modes[run.recompute] = modes.get(run.recompute, 0) + run.layers[1] - run.layers[0] + 1
    return f"{' '.join(shown)}; {', '.join(f'{count} {mode}' for mode, count in sorted(modes.items()))}"


def _slower(seconds: float, first_seconds: float) -> str:
    change = seconds / first_seconds - 1.0
    if abs(change) < 5e-5:
        return ""
    return f"{change:+.1%}" if change < 10.0 else f"x {significant(1.0 + change)}"


def _table(*columns: tuple[str, str]) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold")
    for name, side in columns:
        wraps = name in ("plan", "layers a stage; recompute")
        table.add_column(name, justify="right" if side == "right" else "left", no_wrap=not wraps)
    return table
