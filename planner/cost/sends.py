"""Pipeline sends and the tied table's reduction: what crosses stage boundaries, and how long it takes."""

from __future__ import annotations

from planner.cost.collectives import all_reduce_seconds, group_costs, send_seconds
from planner.cost.model import CostModel
from planner.cost.row import CandidateRow
from planner.strategy.decision import rank_of_stage


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
