"""The step: a decision replayed on its schedule, with memory per stage and seconds by cause.

``price`` is the one place where a decision becomes a prediction; the search, ``estimate`` and ``check``
all call it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

from planner.cost.collectives import all_reduce_seconds, group_costs, send_seconds
from planner.cost.compute import Device
from planner.cost.constants import Constants
from planner.cost.layer import cost_table
from planner.cost.memory import Item, row_key
from planner.cost.offload import fullest_node_bytes, on_host
from planner.cost.row import CandidateRow, candidate_row
from planner.cost.stack import STACKS, Stack
from planner.cost.stage import CAUSES, StageModel
from planner.cost.tail import Tail
from planner.errors import UnknownName
from planner.model.chain import LayerChain, layer_chain
from planner.model.flop import model_step_flop
from planner.schedule.orders import alive_states, operation_order, virtual_stage
from planner.schedule.timeline import Timeline, replay
from planner.strategy.candidates import Candidates, Problem
from planner.strategy.decision import OFFLOAD_OPTIMIZER, SCHEDULES, UNIT_BLOCK, Decision, rank_of_stage

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


@dataclass(frozen=True)
class CostModel:
    """A problem with its device, constants and stack: everything formulas read."""

    problem: Problem
    constants: Constants
    stack: Stack
    device: Device
    chain: LayerChain

    @staticmethod
    def of(
        problem: Problem, constants: Constants, stack: str = "megatron", chain: LayerChain | None = None
    ) -> CostModel:
        """The model of a problem on a stack; ``chain`` saves rebuilding a known layer chain.

        Raises UnsupportedFeature when the device lacks the workload's precision, UnknownName for an
        unknown stack.
        """
        if stack not in STACKS:
            raise UnknownName("training stack", stack, STACKS)
        cluster = problem.cluster
        scale = STACKS[stack].pass_scale
        device = Device.of(cluster.device, problem.workload, constants, cluster.host, scale)
        return CostModel(problem, constants, STACKS[stack], device, chain or layer_chain(problem.model))

    def stage_model(self, rows: dict[int, CandidateRow]) -> StageModel:
        """Prices ranks from candidate rows, one per sharding code; the plan's own sharding first."""
        return StageModel(rows, self.device, self.stack, self.problem.workload.moment_bytes_per_parameter)

    def placed(self, offload: int) -> CostModel:
        """The model that prices plans with this ``offload`` code; itself where it does already.

        Raises UnsupportedFeature for a stack whose optimizer cannot leave the GPU.
        """
        if self.stack.has_host_optimizer == (offload == OFFLOAD_OPTIMIZER):
            return self
        if offload == OFFLOAD_OPTIMIZER:
            return replace(self, stack=on_host(self.stack))
        return replace(self, stack=replace(self.stack, has_host_optimizer=False))

    @property
    def straggler_factor(self) -> float:
        """1 + c log2(nodes): the slowest of many nodes sets the pace of a synchronous step."""
        nodes = self.problem.cluster.num_nodes
        return 1.0 + self.constants.straggler_per_doubling * math.log2(max(1, nodes))


def decision_candidates(
    decision: Decision, shardings: list[int], units: list[int] | None = None
) -> Candidates:
    """The decision's mesh as candidates, one per sharding code; ``units`` None: whole blocks gathered."""
    d = decision.degrees
    one = Candidates.single(
        tp=d.tp,
        cp=d.cp,
        dp=d.dp,
        pp=d.pp,
        ep=d.ep,
        expert_tp=d.expert_tp,
        microbatch_size=decision.microbatch_size,
        virtual_stages=decision.virtual_stages,
        schedule=SCHEDULES.index(decision.schedule),
        sharding_group=decision.sharding_group,
        sequence_parallel=int(decision.sequence_parallel),
        offload=decision.offload,
    )
    pairs = zip(shardings, units or [UNIT_BLOCK] * len(shardings), strict=True)
    zero = one.sharding * 0
    return Candidates.concatenate(
        [one.replace(sharding=zero + code, gather_unit=zero + unit) for code, unit in pairs]
    )


def used_candidates(decision: Decision) -> Candidates:
    """The decision's mesh as candidates, one per (sharding, gather unit) in use."""
    codes, units = zip(*decision.strategies(), strict=True)
    return decision_candidates(decision, list(codes), list(units))


def decision_rows(model: CostModel, decision: Decision) -> dict[int, CandidateRow]:
    """Candidate rows of a decision, by row_key, the plan's own first."""
    return strategy_rows(model, decision, decision.strategies())


def strategy_rows(
    model: CostModel, decision: Decision, strategies: list[tuple[int, int]]
) -> dict[int, CandidateRow]:
    """Candidate rows of (sharding, gather unit) codes on a decision's mesh and schedule, by row_key."""
    codes, units = zip(*strategies, strict=True)
    candidates = decision_candidates(decision, list(codes), list(units))
    table = cost_table(model.problem, model.chain, candidates, model.device, model.stack)
    return {
        row_key(*pair): candidate_row(
            model.problem,
            table,
            model.stack,
            index,
            SCHEDULES.index(decision.schedule),
            decision.virtual_stages,
        )
        for index, pair in enumerate(strategies)
    }


def rank_items(model: CostModel, decision: Decision, rank: int) -> list[tuple[int, list[Item]]]:
    """(virtual stage, items) of one pipeline rank: each layer with mode, sharding, in-flight count."""
    d, chain = decision.degrees, model.chain
    states = alive_states(decision.schedule, rank, d.pp, decision.microbatches, decision.virtual_stages)
    position = {layer: block for block, layer in enumerate(chain.block_layers)}
    last = len(decision.chunks) - 1
    found = []
    for chunk, (first, end) in decision.blocks_of_rank(rank):
        counts: dict[tuple[int, int, int, int], int] = {}
        stage = virtual_stage(decision.schedule, rank, chunk, d.pp)
        low, high = chain.stage_range(first, end, is_first=stage == 0, is_last=stage == last)
        if high > low:
            for layer in range(low, high):
                block = position.get(layer)
                mode = decision.recompute[block] if block is not None else 0
                sharding = decision.sharding_of(block) if block is not None else decision.sharding
                unit = decision.unit_of(block) if block is not None else UNIT_BLOCK
                key = (chain.layers[layer], mode, sharding, unit)
                counts[key] = counts.get(key, 0) + 1
        alive = tuple(state[chunk] for state in states)
        items = [Item(kind, n, mode, code, alive, unit) for (kind, mode, code, unit), n in counts.items()]
        found.append((stage, items))
    return found


def sent_bytes(model: CostModel, row: CandidateRow) -> float:
    """Bytes of one microbatch that one rank sends over a stage boundary.

    Where every tp rank holds the same tensor, some stacks send a share from each and gather it again over the
    fast link (PTD-P, arXiv 2104.04473, section 4.1; DeepSpeed's partitioned activations).
    """
    is_whole = model.stack.scatters_sends and not row.sequence_parallel
    return row.boundary_bytes / row.degrees.tp if is_whole else row.boundary_bytes


def send_times(model: CostModel, row: CandidateRow, chunks: tuple[tuple[int, int], ...]) -> list[float]:
    """Seconds to send one microbatch from virtual stage c to c+1, for each c; 0 behind the last.

    Neighbouring virtual stages of one rank (where the V of zb-v turns) send nothing.
    """
    problem, pp = model.problem, row.degrees.pp
    if pp == 1:
        return [0.0] * len(chunks)
    times = []
    for stage in range(len(chunks) - 1):
        # A first or last chunk may hold no block: then the cut is the one beside the nearest block.
        cut = min(max(1, chunks[stage][1]), model.chain.num_blocks - 1)
        ranks = [rank_of_stage(row.schedule, c, pp) for c in (stage, stage + 1)]
        if ranks[0] == ranks[1]:
            times.append(0.0)
            continue
        # The wrap from the last rank to the first is one more hop.
        first = min(min(ranks), pp - 2) if abs(ranks[0] - ranks[1]) == 1 else pp - 2
        times.append(boundary_send_seconds(model, row, first, model.chain.cut_scale(problem.model, cut)))
    return [*times, 0.0]


def boundary_send_seconds(model: CostModel, row: CandidateRow, rank: int, scale: float) -> float:
    """Seconds to send one microbatch from a pipeline rank to the next; ``scale`` as in ``cut_scale``."""
    stride, num_bytes = row.degrees.stage_stride, sent_bytes(model, row) * scale
    return send_seconds(model.problem.cluster, model.constants, rank * stride, stride, num_bytes)


def blocks_sends(schedule: str) -> bool:
    """Whether a rank waits for its sends: Megatron-LM without virtual stages does."""
    return schedule in ("1f1b", "gpipe")


def tied_embedding_seconds(model: CostModel, row: CandidateRow) -> float:
    """All-reduce of the tied table's gradient between the first and the last stage, once per step."""
    spec, d = model.problem.model, row.degrees
    if not spec.head.tied or d.pp == 1 or row.schedule == "zb-v":
        return 0.0  # the V has both ends on one rank
    group = group_costs(model.problem.cluster, model.constants, d.stage_stride * (d.pp - 1), 2)
    elements = spec.vocab_size * spec.hidden_size / d.tp
    return float(all_reduce_seconds(group, elements * model.stack.gradient_reduce_bytes))


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

    forward, backward, weight = ([0.0] * len(decision.chunks) for _ in range(3))
    predictions = []
    for rank in range(pp):
        per_chunk = rank_items(model, decision, rank)
        items = [item for _, chunk in per_chunk for item in chunk]
        for stage, chunk in per_chunk:
            forward[stage], backward[stage] = stages.seconds(chunk)
            weight[stage] = stages.weight_seconds(chunk)
        f, b = stages.seconds(items)
        total = stages.synchronised(items)
        tail, held = stages.exposed(total, f, b), float(total.held_bytes)
        predictions.append(
            StagePrediction(rank, f, b, tail, stages.memory(items), stages.causes(items), held)
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
    order = operation_order(
        decision.schedule, decision.degrees.pp, decision.microbatches, decision.virtual_stages
    )
    before = [0.0, *sends[:-1]]
    if blocking:
        forward = [f + s for f, s in zip(forward, sends, strict=True)]
        backward = [b + s for b, s in zip(backward, before, strict=True)]
        return replay(order, forward, backward, keep_events=keep_events)
    return replay(
        order,
        forward,
        backward,
        sends,
        before,
        weight_seconds=weight,
        schedule=decision.schedule,
        keep_events=keep_events,
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
