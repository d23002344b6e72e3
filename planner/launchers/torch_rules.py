"""Rules shared by the launchers built on FSDP2 and torch.distributed.pipelining.

Each is stated twice over one predicate: for a plan file, with its numbers, and for the search's candidates.
"""

from __future__ import annotations

from planner.launchers.base import Break, interleaving_break, nearest_divisor
from planner.launchers.base import Rule as PlanRule
from planner.launchers.megatron_rules import PARALLEL_RULES
from planner.model.spec import Attention, ModelSpec
from planner.plan_file.schema import Plan
from planner.strategy.candidates import BoolArray, Candidates, Problem
from planner.strategy.decision import RANK_ORDER
from planner.strategy.rules import Rule

_SHARED = {rule.name: rule for rule in PARALLEL_RULES}


def shared(*names: str) -> tuple[PlanRule, ...]:
    """Rules that hold for every launcher, by name."""
    return tuple(_SHARED[name] for name in names)


def split_heads(model: ModelSpec) -> list[int]:
    """Head counts, queries' and keys', that tp must divide when no head is copied."""
    counts = set()
    for block in model.block_kinds.values():
        counts.add(block.attention.num_heads)
        if isinstance(block.attention, Attention):
            counts.add(block.attention.num_kv_heads)
    return sorted(counts)


def _heads(plan: Plan) -> Break | None:
    tp = plan.decision.degrees.tp
    counts = split_heads(plan.inputs.model)
    bad = [count for count in counts if count % tp]
    if not bad:
        return None
    return Break(f"{bad[0]} heads over tp {tp}", f"tp {nearest_divisor(counts[0], min(tp, counts[0]))}")


def _rank_order(plan: Plan) -> Break | None:
    order = plan.decision.rank_order
    return None if order == RANK_ORDER else Break(f"rank order {order}", RANK_ORDER)


def _offload(plan: Plan) -> Break | None:
    placed = plan.decision.offload
    return None if placed == "none" else Break(f"{placed} on the host", "offload none, on more GPUs")


NO_OFFLOAD = PlanRule(
    "offload",
    "the optimizer stays on the GPUs: no option of this launcher puts it alone on the host",
    _offload,
)
# PyTorch's names of the schedules (torch.distributed.pipelining). Zero bubble in a V has two stages a rank;
# its other form takes one or more, which torchtitan refuses below two.
SCHEDULE_NAMES = {
    "1f1b": "1F1B",
    "interleaved": "Interleaved1F1B",
    "gpipe": "GPipe",
    "zb-v": "ZBVZeroBubble",
    "zb-h1": "InterleavedZeroBubble",
}
SCHEDULE_OF = {name: schedule for schedule, name in SCHEDULE_NAMES.items()}


def _schedule(plan: Plan) -> Break | None:
    q, pp = plan.decision, plan.decision.degrees.pp
    if q.schedule in ("1f1b", "gpipe"):
        if q.schedule == "1f1b" and q.microbatches < pp:
            return Break(f"1f1b with {q.microbatches} microbatches over pp {pp}", f"{pp} microbatches")
        if q.virtual_stages == 1:
            return None
        return Break(f"{q.schedule} with {q.virtual_stages} virtual stages", "schedule interleaved")
    if q.schedule in ("zb-v", "zb-h1"):
        stages = 2 if q.schedule == "zb-v" else 1
        modes = {choice.recompute for stage in q.stages for choice in stage.layer_strategies}
        if pp == 1 or q.virtual_stages != stages:
            found = f"{q.schedule} with pp {pp} and {q.virtual_stages} virtual stages"
            return Break(found, f"{stages} virtual stages")
        if q.sharding not in ("none", "optimizer"):
            return Break(f"{q.schedule} with sharding {q.sharding}: gradients are lost", "sharding optimizer")
        if "selective" in modes:
            return Break(f"{q.schedule} with selective recompute: it backs up once", "recompute none or full")
        return None
    if q.schedule != "interleaved":
        return Break(f"schedule {q.schedule}", "schedule 1f1b")
    return interleaving_break(plan)


def _tied(plan: Plan) -> Break | None:
    pp = plan.decision.degrees.pp
    if pp == 1 or not plan.inputs.model.head.tied:
        return None
    return Break(f"the head shares the embedding's table and pp is {pp}", "pp 1")


def _tied_holds(c: Candidates, p: Problem) -> BoolArray:
    result: BoolArray = (c.pp == 1) | (not p.model.head.tied)
    return result


def _precision(plan: Plan) -> Break | None:
    precision = plan.inputs.workload.precision
    return None if precision == "bf16" else Break(f"precision {precision}", "bf16")


HEADS = PlanRule("heads-by-tp", "tp divides the query heads and the key/value heads", _heads)
RANKS = PlanRule("rank-order", "tp fastest, then cp, dp, pp", _rank_order)
SCHEDULES = PlanRule(
    "schedule",
    "1F1B (at least pp microbatches), GPipe or zero bubble with one stage a rank, zero bubble with two in a "
    "V, or interleaved with pp > 1 and microbatches a multiple of pp",
    _schedule,
)
TIED = PlanRule("tied-embedding", "a table shared by embedding and head stays on one rank", _tied)
TIED_SEARCH = Rule(
    "tied-embedding",
    TIED.statement,
    "pp",
    _tied_holds,
    lambda c, p: f"a shared table with pp {int(c.pp[0])}",
)
FILLED_SEARCH = Rule(
    "microbatches-by-stages",
    "torch.distributed.pipelining's 1F1B needs at least pp microbatches",
    "microbatch_size",
    lambda c, p: c.microbatches(p.workload.global_batch) >= c.pp,
    lambda c, p: f"{int(c.microbatches(p.workload.global_batch)[0])} microbatches over pp {int(c.pp[0])}",
)
PRECISION = PlanRule("precision", "bf16 products with fp32 weights, gradients and states", _precision)
