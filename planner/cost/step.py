"""The step: a decision replayed on its schedule, with memory per stage and seconds by cause.

``price`` is the one place where a decision becomes a prediction; the search, ``estimate`` and ``check``
all call it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from planner.cost.decision_rows import decision_rows, layout_changes, rank_items
from planner.cost.layout_change import NO_CHANGE
from planner.cost.model import CostModel
from planner.cost.offload import fullest_node_bytes
from planner.cost.row import CandidateRow
from planner.cost.sends import blocks_sends, send_times, tied_embedding_seconds
from planner.cost.stage import CAUSES
from planner.cost.tail import Sync, Tail
from planner.model.flop import model_step_flop
from planner.schedule.steady import timeline as schedule_timeline
from planner.schedule.timeline import Timeline
from planner.strategy.decision import Decision, rank_of_stage

ROUNDING = 1e-12
BREAKDOWN = ("compute", "recompute", "bubble", "tp", "cp", "ep", "pp", "dp", "optimizer", "other")


@dataclass(frozen=True)
class StagePrediction:
    """One pipeline rank: seconds of one microbatch (sends excluded), bytes by category, bytes on its host."""

    index: int
    forward_seconds: float
    backward_seconds: float
    tail: Tail
    memory_bytes: dict[str, float]
    causes: dict[str, float]
    host_bytes: float = 0.0


@dataclass(frozen=True)
class Prediction:
    """What a decision costs. ``breakdown_seconds`` sums to ``step_seconds``.

    host_bytes: what the fullest node's host holds.
    """

    step_seconds: float
    breakdown_seconds: dict[str, float]
    stages: tuple[StagePrediction, ...]
    peak_memory_bytes: float
    fullest_stage: int
    slowest_stage: int
    tokens_per_second: float
    mfu: float
    hfu: float
    timeline: Timeline = field(repr=False)
    host_bytes: float = 0.0


def price(
    model: CostModel,
    decision: Decision,
    *,
    rows: dict[int, CandidateRow] | None = None,
    keep_events: bool = False,
) -> Prediction:
    """Predict ``decision``: replay its schedule, add what stays exposed, sum memory per stage.

    ``rows``: ``decision_rows`` where the caller has them.
    """
    model = model.placed(decision.offload)
    rows = rows or decision_rows(model, decision)
    stages = model.stage_model(rows)
    row, pp = stages.row, decision.degrees.pp
    sends = send_times(model, row, decision.chunks)
    blocking = blocks_sends(decision.schedule)
    changes = layout_changes(model, decision, row)

    forward, backward, weight = ([0.0] * len(decision.chunks) for _ in range(3))
    predictions = []
    known: dict[tuple[tuple[int, ...], ...], tuple[tuple[float, float], dict[str, float], Sync]] = {}
    for rank in range(pp):
        per_chunk = rank_items(model, decision, rank)
        items = [item for _, chunk in per_chunk for item in chunk]
        for stage, chunk in per_chunk:
            forward[stage], backward[stage] = stages.seconds(chunk)
            weight[stage] = stages.weight_seconds(chunk)
        change = sum((changes[stage] for stage, _ in per_chunk), NO_CHANGE)
        for stage, _ in per_chunk:
            forward[stage] += changes[stage].forward_seconds
            backward[stage] += changes[stage].backward_seconds
        # Most ranks hold the same layers; only the microbatches they keep alive differ.
        layers = tuple((item.kind, item.count, item.mode, item.key) for item in items)
        if layers not in known:
            known[layers] = stages.seconds(items), stages.causes(items), stages.synchronised(items)
        (f, b), causes, total = known[layers]
        causes = {**causes, "tp": causes["tp"] + change.forward_seconds + change.backward_seconds}
        predictions.append(
            StagePrediction(
                rank,
                f + change.forward_seconds,
                b + change.backward_seconds,
                stages.exposed(total, f, b),
                stages.memory(items, change.gathered_bytes),
                causes,
                float(total.held_bytes),
            )
        )
    timeline = _replay(decision, forward, backward, weight, sends, blocking, keep_events)
    return _assemble(model, decision, row, tuple(predictions), timeline, sends, blocking)


def _replay(
    decision: Decision,
    forward: list[float],
    backward: list[float],
    weight: list[float],
    sends: list[float],
    blocking: bool,
    keep_events: bool,
) -> Timeline:
    shape = decision.schedule, decision.degrees.pp, decision.microbatches, decision.virtual_stages
    before = [0.0, *sends[:-1]]
    if blocking:
        forward = [f + s for f, s in zip(forward, sends, strict=True)]
        backward = [b + s for b, s in zip(backward, before, strict=True)]
        return schedule_timeline(*shape, forward, backward, keep_events=keep_events)
    return schedule_timeline(
        *shape, forward, backward, sends, before, weight_seconds=weight, keep_events=keep_events
    )


def _assemble(
    model: CostModel,
    decision: Decision,
    row: CandidateRow,
    stages: tuple[StagePrediction, ...],
    timeline: Timeline,
    sends: list[float],
    blocking: bool,
) -> Prediction:
    problem, workload = model.problem, model.problem.workload
    pp, m = decision.degrees.pp, decision.microbatches
    factor = model.straggler_factor
    overhead = model.constants.step_overhead_seconds
    tied = tied_embedding_seconds(model, row)
    drained = max(factor * end + s.tail.reduce for end, s in zip(timeline.finish, stages, strict=True))
    update = max(s.tail.optimizer + s.tail.gather for s in stages)
    step = drained + tied + update + overhead

    busiest = max(range(pp), key=lambda r: (timeline.busy[r], -r))
    causes = {name: m * stages[busiest].causes[name] for name in CAUSES}
    before = [0.0, *sends[:-1]]
    mine = [c for c in range(len(sends)) if rank_of_stage(decision.schedule, c, pp) == busiest]
    sending = m * sum(sends[c] + before[c] for c in mine) if blocking else 0.0
    tail = stages[busiest].tail
    breakdown = {
        "compute": causes["compute"],
        "recompute": causes["recompute"],
        "tp": causes["tp"],
        "cp": causes["cp"],
        "ep": causes["ep"],
        "pp": sending,
        "dp": causes["dp"] + tail.reduce + tail.gather + tied,
        "optimizer": tail.optimizer,
        "other": (factor - 1.0) * timeline.finish[busiest] + overhead,
    }
    # Never negative beyond rounding: the busiest rank cannot finish before it has done its work.
    idle = step - sum(breakdown.values())
    breakdown["bubble"] = idle if idle > ROUNDING * step else 0.0
    fullest = max(range(pp), key=lambda r: (stages[r].memory_bytes["total"], -r))
    tokens = workload.tokens_per_step / step
    flop = model_step_flop(problem.model, workload.sequence_length, workload.global_batch)
    peak = model.device.matmul_flop_per_s * problem.world_size
    recomputed = sum(s.causes["recompute"] for s in stages)
    computed = sum(s.causes["compute"] for s in stages)
    mfu = flop / (step * peak)
    return Prediction(
        step_seconds=step,
        breakdown_seconds={name: breakdown[name] for name in BREAKDOWN},
        stages=stages,
        peak_memory_bytes=stages[fullest].memory_bytes["total"],
        fullest_stage=fullest,
        slowest_stage=busiest,
        tokens_per_second=tokens,
        mfu=mfu,
        hfu=mfu * (1.0 + recomputed / computed) if computed else mfu,
        timeline=timeline,
        host_bytes=fullest_node_bytes(
            [s.host_bytes for s in stages],
            decision.degrees.stage_stride,
            min(problem.cluster.devices_per_node, problem.world_size),
        )
        if decision.offload
        else 0.0,
    )
