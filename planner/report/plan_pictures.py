"""Pictures of one plan: where the step goes, memory by stage, the pipeline at both ends of the step."""

from __future__ import annotations

from collections.abc import Sequence

from planner.cost.step import price
from planner.plan_file.read import read_cost_model, read_decision
from planner.plan_file.schema import Plan, PredictionRecord
from planner.report import page, svg
from planner.schedule.timeline import Event
from planner.units import GIB, format_bytes, format_seconds, format_share, significant

WIDTH = 1100.0
LEFT = 64.0
CAUSES = ("compute", "recompute", "bubble", "tp", "cp", "ep", "pp", "dp", "optimizer", "other")
CAUSE_SLOT = {name: index % page.SLOTS for index, name in enumerate(CAUSES)}
MEMORY = ("parameters", "gradients", "optimizer", "activations", "buffers", "reserve")
LABEL_PIXELS = 46.0
ROW = 24.0
MAX_RANKS = 32
# Operations a rank shows at each end of the step beyond its warm-up.
STEADY_OPERATIONS = 8


def breakdown_bar(p: PredictionRecord) -> str:
    """The step as one bar of causes, with the 80 % interval of its length below."""
    longest = max(p.step_seconds, p.step_seconds_interval[1])
    x = svg.Scale(0.0, longest, 8.0, WIDTH - 8.0)
    parts, at = [], 0.0
    for name, value in p.breakdown_seconds.items():
        if value <= 0.0:
            continue
        width = x(at + value) - x(at)
        tip = f"{name}: {format_seconds(value)}, {format_share(value / p.step_seconds)}"
        parts.append(svg.rect(x(at), 4, width, 38, f"s{CAUSE_SLOT[name]}", tip))
        if width > LABEL_PIXELS:
            parts.append(svg.text(x(at) + width / 2, 27, name, css="on"))
        at += value
    low, high = p.step_seconds_interval
    parts.append(svg.line(x(low), 56, x(high), 56, "whisk"))
    parts.append(svg.line(x(p.step_seconds), 48, x(p.step_seconds), 64, "cap"))
    words = f"80 % interval: {format_seconds(low)} to {format_seconds(high)}"
    parts.append(svg.text(x(low), 80, words, css="strong", anchor="start"))
    return svg.svg(WIDTH, 88, parts, f"a step of {format_seconds(p.step_seconds)} by cause")


def breakdown_legend(p: PredictionRecord) -> str:
    """Every cause with its seconds and share."""
    return page.legend(
        (f"s{CAUSE_SLOT[name]}", f"{name} {format_seconds(v)} ({format_share(v / p.step_seconds)})")
        for name, v in p.breakdown_seconds.items()
        if v > 0.0
    )


def memory_bars(p: PredictionRecord) -> str:
    """One stacked bar a stage, the limit and the capacity as lines."""
    shown = _shown([s.index for s in p.stages])
    stages = [s for s in p.stages if s.index in shown]
    most = max(p.memory_capacity_bytes, *(s.memory_bytes["total"] for s in stages))
    x = svg.Scale(0.0, most / GIB * 1.06, LEFT, WIDTH - 70.0)
    bottom = 8.0 + ROW * len(stages)
    parts = []
    for tick in x.ticks()[:: max(1, len(x.ticks()) // 10)]:
        parts.append(svg.line(x(tick), 4, x(tick), bottom, "grid"))
        parts.append(svg.text(x(tick), bottom + 14, f"{tick:g}"))
    for row, stage in enumerate(stages):
        y, at = 8.0 + ROW * row, 0.0
        parts.append(svg.text(LEFT - 8, y + 14, f"stage {stage.index}", css="strong", anchor="end"))
        for slot, name in enumerate(MEMORY):
            value = stage.memory_bytes.get(name, 0.0)
            tip = f"stage {stage.index}, {name}: {format_bytes(value)}"
            parts.append(
                svg.rect(x(at / GIB), y, x((at + value) / GIB) - x(at / GIB), ROW - 6, f"s{slot}", tip)
            )
            at += value
        parts.append(svg.text(x(at / GIB) + 6, y + 14, significant(at / GIB), css="strong", anchor="start"))
    limit, capacity = p.memory_limit_bytes / GIB, p.memory_capacity_bytes / GIB
    parts.append(svg.line(x(limit), 2, x(limit), bottom, "limit"))
    parts.append(svg.line(x(capacity), 2, x(capacity), bottom, "cap"))
    words = f"GiB; dashed: limit {significant(limit)}, solid: capacity {significant(capacity)}"
    parts.append(svg.text((x.start + x.end) / 2, bottom + 32, words, css="axis"))
    return svg.svg(WIDTH, bottom + 40, parts, "peak memory of each stage by what holds it")


def memory_legend() -> str:
    return page.legend((f"s{slot}", name) for slot, name in enumerate(MEMORY))


def _shown(indices: Sequence[int]) -> set[int]:
    """All of a few ranks; of many, the first and the last."""
    if len(indices) <= MAX_RANKS:
        return set(indices)
    half = MAX_RANKS // 2
    return {*indices[:half], *indices[-half:]}


def hidden_stages(plan: Plan) -> int:
    """Stages the pictures leave out between the first and the last."""
    return max(0, plan.decision.degrees.pp - MAX_RANKS)


def timeline_pictures(plan: Plan) -> list[str]:
    """The pipeline replayed from the plan's own inputs: the whole step, or its two ends where it is long."""
    model, decision = read_cost_model(plan.inputs), read_decision(plan.decision)
    timeline = price(model, decision, keep_events=True).timeline
    pp = decision.degrees.pp
    shown = sorted(_shown(range(pp)))
    events = [event for event in timeline.events if event.rank in set(shown)]
    operations = 2 * decision.microbatches * decision.virtual_stages
    kept = 2 * pp * decision.virtual_stages + STEADY_OPERATIONS
    if operations <= 2 * kept:
        return [_timeline(events, shown, 0.0, timeline.makespan, "the whole pipeline")]
    window = timeline.makespan * kept / operations
    end = timeline.makespan
    return [
        _timeline(events, shown, 0.0, window, "the first operations"),
        _timeline(events, shown, end - window, end, "the last operations"),
    ]


def _timeline(events: list[Event], ranks: list[int], start: float, end: float, title: str) -> str:
    x = svg.Scale(start, end, LEFT, WIDTH - 12.0)
    height = 18.0 if len(ranks) > 8 else ROW
    row_of = {rank: row for row, rank in enumerate(ranks)}
    bottom = 6.0 + height * len(ranks)
    parts = []
    for rank, row in row_of.items():
        y = 6.0 + height * row
        parts.append(svg.rect(x.start, y, x.end - x.start, height - 4, "band"))
        parts.append(svg.text(LEFT - 8, y + height / 2 + 2, f"stage {rank}", css="strong", anchor="end"))
    for event in events:
        first, last = max(event.start, start), min(event.end, end)
        if last <= first:
            continue
        operation = event.operation
        kind, slot = ("backward", 1) if operation.is_backward else ("forward", 0)
        chunk = f", chunk {operation.chunk}" if operation.chunk else ""
        tip = f"stage {event.rank}: {kind} of microbatch {operation.microbatch}{chunk}, "
        tip += f"{format_seconds(event.end - event.start)}"
        y, width = 6.0 + height * row_of[event.rank], x(last) - x(first)
        parts.append(svg.rect(x(first), y, width - 0.6, height - 4, f"s{slot}", tip))
        if width > 16.0 and height == ROW:
            parts.append(svg.text(x(first) + width / 2, y + 14, str(operation.microbatch), css="on"))
    for tick in x.ticks()[:: max(1, len(x.ticks()) // 8)]:
        parts.append(svg.line(x(tick), bottom - 3, x(tick), bottom + 3, "cap"))
        parts.append(svg.text(x(tick), bottom + 16, format_seconds(tick)))
    picture = svg.svg(WIDTH, bottom + 24, parts, f"{title} of the step")
    return page.panel(title.capitalize(), f"{format_seconds(end - start)}", picture)
