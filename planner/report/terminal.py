"""Plans for people: one screen of at most 80 columns, plain when piped."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console
from rich.table import Table
from rich.text import Text

from planner.plan_file.read import read_decision
from planner.plan_file.schema import DecisionRecord, IdleRecord, Plan, PredictionRecord, RestrictionRecord
from planner.report.front_text import print_front
from planner.units import (
    SECONDS_PER_DAY,
    SECONDS_PER_HOUR,
    format_bytes,
    format_count,
    format_seconds,
    format_share,
    significant,
)

BAR_CELLS = 20
MAX_STAGE_ROWS = 10
STATUS_WORDS = {
    "proved": "proved optimal",
    "gap": "best found",
    "heuristic": "best found",
    "interrupted": "best so far, search stopped early",
    "estimate": "priced as given, no search",
}


def print_plan(console: Console, plan: Plan, *, cpu_seconds: float | None, next_commands: list[str]) -> None:
    """Verdict, decision, memory and time, why, runners-up, certificate, assumptions, next command."""
    _header(console, plan)
    _verdict(console, plan)
    _decision(console, plan.decision)
    _stages(console, plan)
    _breakdown(console, plan.prediction)
    _listed(console, "Why", plan.why)
    _runners_up(console, plan)
    if plan.front is not None:
        print_front(console, plan, plan.front)
    _certificate(console, plan, cpu_seconds)
    _listed(console, "Assumed", plan.inputs.options.assumptions)
    _listed(console, "Warnings", plan.warnings, style="yellow")
    _listed(console, "Next", next_commands, style="bold", bullet="$")


def fits(plan: Plan) -> bool:
    """Whether the predicted peak is within the memory limit."""
    return plan.prediction.peak_memory_bytes <= plan.prediction.memory_limit_bytes * (1 + 1e-9)


def stage_lines(decision: DecisionRecord) -> list[tuple[int, str, str]]:
    """Per pipeline rank: (rank, layers held, recompute in words)."""
    layers: dict[int, list[str]] = {}
    modes: dict[int, dict[str, int]] = {}
    for stage in decision.stages:
        first, last = stage.layers
        span = str(first) if first == last else f"{first}-{last}"
        layers.setdefault(stage.rank, []).append(span)
        counts = modes.setdefault(stage.rank, {})
        for run in stage.layer_strategies:
            counts[run.recompute] = counts.get(run.recompute, 0) + run.layers[1] - run.layers[0] + 1
    lines = []
    for rank in sorted(layers):
        spans = layers[rank]
        text = " ".join(spans) if len(spans) <= 3 else f"{spans[0]} {spans[1]} .. {spans[-1]}"
        words = ", ".join(f"{count} {mode}" for mode, count in sorted(modes[rank].items()))
        lines.append((rank, text, words))
    return lines


def _header(console: Console, plan: Plan) -> None:
    inputs, w = plan.inputs, plan.inputs.workload
    console.print(
        Text(
            f"{inputs.model.name} on {inputs.cluster.gpus} x {inputs.cluster.device.name}"
            f" ({inputs.cluster.profile.name})",
            style="bold",
        )
    )
    console.print(
        f"sequence {w.sequence_length}, global batch {w.global_batch}, {w.precision}, {w.optimizer}, "
        f"{w.attention} attention"
    )


def _verdict(console: Console, plan: Plan) -> None:
    p = plan.prediction
    low, high = p.step_seconds_interval
    word = "Fits" if fits(plan) else "Does not fit"
    text = (
        f"{word}: {format_bytes(p.peak_memory_bytes)} of {format_bytes(p.memory_capacity_bytes)} on the "
        f"fullest rank (stage {p.fullest_stage}); {format_seconds(p.step_seconds)} a step "
        f"({format_seconds(low)} to {format_seconds(high)}); {format_share(p.mfu)} MFU; "
        f"{format_count(p.tokens_per_second)} tokens/s"
    )
    if p.out_of_memory_probability is not None:
        text += f"; {risk_words(p.out_of_memory_probability)} risk of running out of memory"
    console.print()
    console.print(Text(text, style="bold green" if fits(plan) else "bold red"))
    tokens = plan.inputs.workload.tokens
    if tokens is not None:
        seconds = tokens / p.tokens_per_second
        hours = seconds / SECONDS_PER_HOUR * plan.inputs.cluster.gpus
        console.print(
            f"{format_count(tokens)} tokens: {significant(seconds / SECONDS_PER_DAY)} days, "
            f"{format_count(hours)} GPU-hours, without failures and restarts"
        )
    if plan.search.idle is not None:
        console.print(idle_words(plan.search.idle, p.step_seconds))
    if plan.search.restriction is not None:
        console.print(restriction_words(plan.search.restriction))


def idle_words(record: IdleRecord, seconds: float) -> str:
    """How many GPUs stay idle, and why, in one sentence."""
    used = record.gpus_available - record.idle_gpus
    if not record.idle_gpus:
        return f"All {used} GPUs are used: no smaller number is faster"
    text = f"Uses {used} of {record.gpus_available} GPUs, {record.idle_gpus} idle"
    if used == record.most_gpus:
        return f"{text}: more do not fill whole nodes"
    if record.most_gpus_seconds is None:
        return f"{text}: nothing fits the rules and the memory on {record.most_gpus}"
    return (
        f"{text}: {format_share(record.most_gpus_seconds / seconds - 1.0)} faster than the best plan on "
        f"{record.most_gpus} ({format_seconds(record.most_gpus_seconds)})"
    )


def restriction_words(record: RestrictionRecord) -> str:
    """What the restriction costs, in one sentence."""
    name = record.target
    if record.decision is None:
        found = "no faster plan of any launcher" if record.is_complete else "no faster plan found in time"
        return f"Keeping to {name} costs nothing: {found}"
    if record.launchers:
        who = f"{' and '.join(record.launchers)} can run that"
    else:
        who = "no launcher here can run that as it is"
    cost = format_share(record.slower) if record.slower >= 0.0005 else "less than 0.1 %"
    more = "" if record.is_complete else "at least "
    return (
        f"Keeping to {name} costs {more}{cost}: the fastest plan of any launcher takes "
        f"{format_seconds(record.step_seconds)} a step ({record.label}); {who}"
    )


def risk_words(probability: float) -> str:
    """A probability as a whole percentage, without false precision at the ends."""
    if probability < 0.005:
        return "under 1 %"
    return "over 99 %" if probability > 0.995 else f"{probability * 100:.0f} %"


def decision_words(d: DecisionRecord) -> list[str]:
    """The decision in two or three short lines."""
    degrees = d.degrees
    axes = [f"TP {degrees.tp}", f"PP {degrees.pp}", f"DP {degrees.dp}", f"CP {degrees.cp}"]
    if degrees.ep > 1 or degrees.expert_tp > 1:
        axes += [f"EP {degrees.ep}", f"expert TP {degrees.expert_tp}"]
    schedule = d.schedule if d.virtual_stages == 1 else f"{d.schedule} with {d.virtual_stages} virtual stages"
    where = " (inside an island)" if d.sharding_group == "island" else ""
    split = ", sequence parallel" if d.sequence_parallel else ""
    return [
        "  ".join(axes) + split,
        f"microbatch {d.microbatch_size} x {d.microbatches} per step, {schedule}",
        f"sharded: {d.sharding}{where}{_own_sharding(d)}; recompute: {d.recompute}",
        *_gathers(d),
        *["on the host: optimizer states, fp32 weights and the update"] * (d.offload == "optimizer"),
    ]


def _gathers(d: DecisionRecord) -> list[str]:
    """How many blocks gather their sharded weights in units finer than themselves, in words."""
    counts: dict[str, int] = {}
    for stage in d.stages:
        for run in stage.layer_strategies:
            counts[run.gather_unit] = counts.get(run.gather_unit, 0) + run.layers[1] - run.layers[0] + 1
    finer = [f"{count} layers by {name}" for name, count in sorted(counts.items()) if name != "block"]
    return [f"weights gathered: {', '.join(finer)}"] if finer else []


def _own_sharding(d: DecisionRecord) -> str:
    """How many blocks are sharded otherwise than the plan, in words."""
    counts: dict[str, int] = {}
    for stage in d.stages:
        for run in stage.layer_strategies:
            if run.sharding != d.sharding:
                counts[run.sharding] = counts.get(run.sharding, 0) + run.layers[1] - run.layers[0] + 1
    return "".join(f", {count} layers: {name}" for name, count in sorted(counts.items()))


def _decision(console: Console, d: DecisionRecord) -> None:
    _listed(console, "Decision", decision_words(d), bullet="")


def _stages(console: Console, plan: Plan) -> None:
    console.print()
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold")
    table.add_column("stage", justify="right")
    table.add_column("layers", max_width=18)
    table.add_column("recompute", max_width=18)
    table.add_column("memory", min_width=BAR_CELLS)
    table.add_column("GiB", justify="right")
    table.add_column("fwd+bwd", justify="right")
    capacity = plan.prediction.memory_capacity_bytes
    lines = stage_lines(plan.decision)
    shown = _shown_stages(plan, len(lines))
    for rank, layers, recompute in lines:
        if rank not in shown:
            continue
        stage = plan.prediction.stages[rank]
        total = stage.memory_bytes["total"]
        filled = round(min(1.0, total / capacity) * BAR_CELLS)
        bar = "#" * filled + "." * (BAR_CELLS - filled)
        seconds = format_seconds(stage.forward_seconds + stage.backward_seconds)
        table.add_row(str(rank), layers, recompute, bar, format_bytes(total).removesuffix(" GiB"), seconds)
    console.print(table)
    if len(shown) < len(lines):
        console.print(f"({len(lines) - len(shown)} stages between them not shown; --json has all)")


def _shown_stages(plan: Plan, count: int) -> set[int]:
    if count <= MAX_STAGE_ROWS:
        return set(range(count))
    ends = {0, 1, 2, count - 2, count - 1}
    return ends | {plan.prediction.fullest_stage, plan.prediction.slowest_stage}


def _breakdown(console: Console, p: PredictionRecord) -> None:
    console.print()
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold")
    table.add_column("time")
    table.add_column("seconds", justify="right")
    table.add_column("share", justify="right")
    table.add_column("")
    for name, value in p.breakdown_seconds.items():
        share = value / p.step_seconds
        if value > 0:
            table.add_row(
                name, format_seconds(value), format_share(share), "#" * round(share * 2 * BAR_CELLS)
            )
    console.print(table)


def _listed(
    console: Console, title: str, lines: Iterable[str], *, style: str = "", bullet: str = "-"
) -> None:
    lines = list(lines)
    if not lines:
        return
    console.print()
    console.print(Text(title, style="bold"))
    for line in lines:
        table = Table.grid(padding=(0, 1, 0, 0))
        table.add_row(Text(bullet), Text(line, style=style)) if bullet else table.add_row(Text(line))
        console.print(table)


def _runners_up(console: Console, plan: Plan) -> None:
    if not plan.alternatives:
        return
    console.print()
    console.print(Text("Runners-up", style="bold"))
    for number, other in enumerate(plan.alternatives, 1):
        table = Table.grid(padding=(0, 1, 0, 0))
        label, seconds = read_decision(other.decision).label(), other.prediction.step_seconds
        table.add_row(f"{number}.", f"{label}: {format_seconds(seconds)}, {other.why}")
        if other.differs:
            table.add_row("", f"differs: {', '.join(other.differs)}")
        console.print(table)


def _certificate(console: Console, plan: Plan, cpu_seconds: float | None) -> None:
    s = plan.search
    if s.status == "estimate":
        return
    refined = " of uniform sharding, then refined layer by layer" if s.status == "heuristic" else ""
    lines = [
        f"{STATUS_WORDS[s.status]}: no plan of its space{refined} is below "
        f"{format_seconds(s.lower_bound_seconds)} (gap {s.gap:.2%})"
    ]
    bound = s.solver.get("bound_seconds")
    if s.status == "heuristic" and bound is not None:
        lines.append(
            f"integer program: on its stages no sharding, gathers and recompute take less than "
            f"{format_seconds(bound)} (gap {s.solver.get('gap', 0.0):.2%})"
        )
    if s.funnel:
        first = max(int(step["candidates"]) for step in s.funnel)
        solved = next((int(step["candidates"]) for step in s.funnel if step["step"] == "solved"), 0)
        spent = f", {cpu_seconds:.2f} s of CPU" if cpu_seconds is not None else ""
        lines.append(f"{first:,} candidates, {solved:,} solved in full{spent}")
    _listed(console, "Search", lines)
