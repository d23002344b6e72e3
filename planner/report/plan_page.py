"""Plans as one page: verdict, decision, where time and memory go, the pipeline, what else was found."""

from __future__ import annotations

from planner.plan_file.schema import DecisionRecord, Plan
from planner.report import page
from planner.report import plan_pictures as pictures
from planner.report.front_text import front_notes, front_rows, split_rows
from planner.report.terminal import STATUS_WORDS, decision_words, fits, risk_words, stage_lines
from planner.units import format_bytes, format_count, format_seconds, format_share

MANY_STAGES = 64


def plan_page(plans: list[tuple[str, Plan]]) -> str:
    """The page of ``planner report``: (file name, plan) pairs; several are compared first."""
    names = ", ".join(dict.fromkeys(plan.inputs.model.name for _, plan in plans))
    body = []
    if len(plans) > 1:
        body += [page.heading(f"{len(plans)} plans", names), _comparison(plans)]
    for name, plan in plans:
        body += _plan(name, plan)
    return page.document(f"planner: {names}", body)


def short_plan(d: DecisionRecord) -> str:
    """TP2 PP4 DP8 and what is not 1."""
    g = d.degrees
    text = f"TP{g.tp} PP{g.pp} DP{g.dp}"
    for value, short in ((g.cp, "CP"), (g.ep, "EP"), (d.virtual_stages, "VP")):
        if value > 1:
            text += f" {short}{value}"
    return f"{text} mb{d.microbatch_size}, {d.sharding}, recompute {d.recompute}"


def _comparison(plans: list[tuple[str, Plan]]) -> str:
    first = plans[0][1].prediction.step_seconds
    rows = []
    for name, plan in plans:
        p = plan.prediction
        rows.append(
            [
                name,
                f"{plan.inputs.cluster.gpus} x {plan.inputs.cluster.device.name}",
                short_plan(plan.decision),
                format_seconds(p.step_seconds),
                f"{p.step_seconds / first - 1.0:+.1%}",
                format_count(p.tokens_per_second),
                format_share(p.mfu),
                format_bytes(p.peak_memory_bytes),
            ]
        )
    headers = ("file", "machine", "plan", "step", "to the first", "tokens/s", "MFU", "peak memory")
    return page.table(headers, rows, text_columns=(1, 2))


def _plan(name: str, plan: Plan) -> list[str]:
    inputs, p, w = plan.inputs, plan.prediction, plan.inputs.workload
    body = [
        page.heading(
            f"{inputs.model.name} on {inputs.cluster.gpus} x {inputs.cluster.device.name}",
            f"{name}: sequence {w.sequence_length}, global batch {w.global_batch}, {w.precision}, "
            f"{w.optimizer}, {w.attention} attention",
        ),
        page.cards(_cards(plan)),
        page.section("Decision"),
        page.listed(decision_words(plan.decision)),
        page.section("Where the step goes", "On the busiest rank; communication only where it is exposed."),
        page.panel("", "", pictures.breakdown_bar(p) + pictures.breakdown_legend(p)),
        page.section("Memory by stage", "Each pipeline rank at its fullest moment."),
        page.panel("", "", pictures.memory_bars(p) + pictures.memory_legend()),
    ]
    hidden = pictures.hidden_stages(plan)
    note = f"; {hidden} stages between the first and the last are not drawn" if hidden else ""
    body += [
        page.section("Pipeline", f"Numbers are microbatches; light is idle{note}."),
        page.legend([("s0", "forward"), ("s1", "backward, recomputation included")]),
        page.panels(pictures.timeline_pictures(plan), css="stack"),
        page.section("Stages"),
        _stages(plan),
    ]
    if plan.why:
        body += [page.section("Why"), page.listed(plan.why)]
    body += _alternatives(plan)
    body += _front(plan)
    body += _search(plan)
    for title, lines in (("Assumed", inputs.options.assumptions), ("Warnings", plan.warnings)):
        if lines:
            body += [page.section(title), page.listed(lines)]
    return body


def _cards(plan: Plan) -> list[tuple[str, str, str]]:
    p = plan.prediction
    low, high = p.step_seconds_interval
    peak = f"peak of {format_bytes(p.memory_capacity_bytes)}, limit {format_bytes(p.memory_limit_bytes)}"
    found = [
        (format_seconds(p.step_seconds), f"a step; {format_seconds(low)} to {format_seconds(high)}", ""),
        (format_count(p.tokens_per_second), "tokens/s", ""),
        (format_share(p.mfu), "MFU", ""),
        (format_bytes(p.peak_memory_bytes), peak, "good" if fits(plan) else "bad"),
    ]
    if p.out_of_memory_probability is not None:
        found.append((risk_words(p.out_of_memory_probability), "risk of running out of memory", ""))
    return found


def _stages(plan: Plan) -> str:
    rows = []
    for rank, layers, recompute in stage_lines(plan.decision):
        stage = plan.prediction.stages[rank]
        rows.append(
            [
                str(rank),
                layers,
                recompute,
                format_seconds(stage.forward_seconds),
                format_seconds(stage.backward_seconds),
                format_bytes(stage.memory_bytes["total"]),
            ]
        )
    headers = ("stage", "layers", "recompute", "forward", "backward", "memory")
    found = page.table(headers, rows, text_columns=(1, 2))
    return page.folded(f"{len(rows)} stages", found) if len(rows) > MANY_STAGES else found


def _alternatives(plan: Plan) -> list[str]:
    if not plan.alternatives:
        return []
    rows = [
        [
            short_plan(other.decision),
            format_seconds(other.prediction.step_seconds),
            format_bytes(other.prediction.peak_memory_bytes),
            "tied" if other.tied else "slower",
            ", ".join(other.differs),
            other.why,
        ]
        for other in plan.alternatives
    ]
    lead = "Tied: the predicted difference is below the noise between plans of one model on one machine."
    headers = ("plan", "step", "memory", "verdict", "differs", "why it is not the plan")
    return [page.section("Runners-up", lead), page.table(headers, rows, text_columns=(3, 4, 5))]


def _front(plan: Plan) -> list[str]:
    if plan.front is None:
        return []
    first, limit = plan.prediction.step_seconds, plan.prediction.memory_limit_bytes
    headers = ("free", "limit, GiB", "step", "slower", "peak, GiB", "plan")
    rows = [list(row) for row in front_rows(plan.front, first)]
    found = [
        page.section("Memory left free", "; ".join(front_notes(plan.front)) + "."),
        page.table(headers, rows, text_columns=(5,)),
    ]
    splits = [list(row) for row in split_rows(plan.front, limit, first)]
    if splits:
        headers = ("balanced", "step", "slower", "peak, GiB", "fits", "layers a stage; recompute")
        lead = "The plan's mesh, from stages of equal time to stages of equal memory."
        found += [page.section("Balance", lead), page.table(headers, splits, text_columns=(4, 5))]
    return found


def _search(plan: Plan) -> list[str]:
    s = plan.search
    if s.status == "estimate":
        return []
    lead = (
        f"{STATUS_WORDS[s.status]}: nothing in the searched space is below "
        f"{format_seconds(s.lower_bound_seconds)} (gap {s.gap:.2%}). Space: {s.space}."
    )
    rows = [
        [
            str(step["step"]),
            f"{step['candidates']:,}",
            f"{step.get('cut', 0):,}",
            str(step.get("kind", "")),
            str(step["reason"]),
        ]
        for step in s.funnel
    ]
    table = page.table(("step", "left", "cut", "kind", "reason"), rows, text_columns=(3, 4))
    return [page.section("Search", lead), page.folded("the funnel, rule by rule", table)]
