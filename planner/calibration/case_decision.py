"""The decision of a measured run, empty cells filled by stated rules.

Rules: an unprinted sharding is what the stack uses; an unprinted recompute is the least that fits memory;
an unprinted microbatch size is the fastest that fits; sequence parallelism is on with tp on stacks that
have it unless the row says 0; stages are balanced unless the notes name their layers.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise

from planner.calibration.case import Case, Unsupported
from planner.cost.decision_rows import decision_candidates
from planner.cost.stack import STACKS
from planner.search.layout import balanced_chunks
from planner.strategy.candidates import Problem
from planner.strategy.decision import (
    GROUP_GLOBAL,
    GROUP_ISLAND,
    RECOMPUTE_NONE,
    RECOMPUTES,
    SHARDINGS,
    Decision,
    Degrees,
)
from planner.strategy.rules import broken_rules

STACK_SHARDING = {
    "megatron": "optimizer",
    "megatron-deepspeed": "none",
    "pytorch-fsdp": "parameters",
    "torchtitan": "parameters",
    "internevo": "optimizer",
    "mist": "none",
}
ZERO_STAGES = {"0": "none", "1": "optimizer", "2": "gradients", "3": "parameters", "fsdp": "parameters"}
HYBRID = re.compile(r"sharded over (\d+) ranks")
IGNORED_RULES = ("island-sharding", "sharding-needs-replicas", "layers-by-stages")


def case_decisions(case: Case, problem: Problem) -> list[list[Decision]]:
    """What a run may have been: by microbatch size, from the least recompute to the most.

    Raises Unsupported when the row breaks a hard rule with every size.
    """
    found: list[list[Decision]] = []
    reason = Unsupported("no microbatch size divides the batch")
    for size in _microbatch_sizes(case):
        try:
            modes = list(_recompute_modes(case))
            decision = _decision(case, problem, size)
        except Unsupported as error:
            reason = error
            continue
        blocks = len(decision.recompute)
        found.append([replace(decision, recompute=(mode,) * blocks) for mode in modes])
    if not found:
        raise reason
    return found


def _microbatch_sizes(case: Case) -> list[int]:
    stated = case.number("micro_batch")
    if stated is not None:
        return [case.count("micro_batch")]
    batch, dp = case.count("global_batch"), case.count("dp")
    if batch % dp:
        raise Unsupported(f"global batch {batch} is not a multiple of dp {dp}")
    case.assume("microbatch size not printed: the fastest that fits of 1, 2, 4, 8")
    return [size for size in (1, 2, 4, 8) if batch // dp % size == 0]


def _recompute_modes(case: Case) -> Iterator[int]:
    stated = case.text("recompute").lower()
    if stated:
        if stated not in RECOMPUTES:
            raise Unsupported(f"recompute {stated!r} is none of {', '.join(RECOMPUTES)}")
        yield RECOMPUTES.index(stated)
        return
    case.assume("recompute not printed: the least that fits memory")
    yield from range(len(RECOMPUTES))


# Zero Bubble's automatic schedules, by the activations they may hold: those of 1F1B, or twice as many.
NOTED_SCHEDULES = {"schedule ZB-1p": "zb-h1", "schedule ZB-2p": "zb-h2"}


def _decision(case: Case, problem: Problem, size: int) -> Decision:
    """The run at a microbatch size, nothing recomputed."""
    dp, tp, pp = case.count("dp"), case.count("tp"), case.count("pp")
    cp, ep = case.count("cp", 1), case.count("ep", 1)
    vp = _virtual_stages(case, problem, pp)
    batch = problem.workload.global_batch
    if batch % (dp * size):
        raise Unsupported(f"global batch {batch} is not a multiple of dp {dp} x microbatch {size}")
    m = batch // (dp * size)
    degrees = Degrees(dp, tp, pp, cp, ep)
    if degrees.world_size != problem.world_size:
        rest, left = divmod(problem.world_size, tp * pp * cp)
        fit = f"; dp {rest} fills them" if rest and not left else ""
        words = f"dp {dp} x tp {tp} x pp {pp} x cp {cp} = {degrees.world_size} ranks"
        raise Unsupported(f"{words}, but {problem.world_size} GPUs ran{fit}")
    is_interleaved = vp > 1 and pp > 1
    schedule = next((name for text, name in NOTED_SCHEDULES.items() if text in case.text("notes")), "1f1b")
    if schedule != "1f1b":
        case.assume(f"schedule from the notes: priced as {schedule}")
    if is_interleaved and m % pp:
        raise Unsupported(f"{m} microbatches are not a multiple of pp {pp} under interleaving")
    sharding = _sharding(case, dp * cp)
    decision = Decision(
        degrees=degrees,
        sequence_parallel=tp > 1 and _has_sequence_parallel(case),
        sharding=SHARDINGS.index(sharding),
        sharding_group=_sharding_group(case, problem, sharding, degrees),
        schedule="interleaved" if is_interleaved else schedule,
        virtual_stages=vp if is_interleaved else 1,
        microbatch_size=size,
        microbatches=m,
        chunks=_chunks(case, problem, pp * (vp if is_interleaved else 1)),
        recompute=(RECOMPUTE_NONE,) * problem.model.num_layers,
    )
    candidates = decision_candidates(decision, [decision.sharding])
    broken = [rule for rule in broken_rules(candidates, problem) if rule.name not in IGNORED_RULES]
    if any(rule.name == "sequence-by-tp" for rule in broken):
        decision = replace(decision, sequence_parallel=False)
        broken = [rule for rule in broken if rule.name != "sequence-by-tp"]
    if broken:
        raise Unsupported(f"rule {broken[0].name}: {broken[0].explain(candidates, problem)}")
    return decision


def _virtual_stages(case: Case, problem: Problem, pp: int) -> int:
    """Virtual stages of a row; "one transformer layer per chunk" in the notes fixes them."""
    if "one transformer layer per chunk" in case.text("notes"):
        case.assume("virtual stages from the notes: one layer per chunk")
        return max(1, -(-problem.model.num_layers // pp))
    return case.count("vp", 1)


def _family(case: Case) -> str:
    """The stack whose habits a row's stack has: its own name, or that of the one it is a setting of."""
    name = case.text("stack")
    return STACKS[name].fitted_as if name in STACKS else name


def _sharding(case: Case, data_ranks: int) -> str:
    stated = case.text("zero_stage").lower()
    if stated and stated not in ZERO_STAGES:
        raise Unsupported(f"zero_stage {stated!r} is none of {', '.join(ZERO_STAGES)}")
    if data_ranks == 1:
        return "none"
    if stated:
        return ZERO_STAGES[stated]
    sharding = STACK_SHARDING.get(_family(case), "optimizer")
    case.assume(f"sharding not printed: {sharding}, as {case.text('stack') or 'the stack'} does by default")
    return sharding


def _sharding_group(case: Case, problem: Problem, sharding: str, degrees: Degrees) -> int:
    """Hybrid sharding where the notes say over how many ranks and that is what one island holds."""
    found = HYBRID.search(case.text("notes"))
    inside = problem.cluster.devices_per_node // degrees.tp
    if sharding == "none" or not found or int(found[1]) != inside or degrees.dp <= inside:
        return GROUP_GLOBAL
    case.assume(f"sharding group from the notes: {inside} ranks of a node")
    return GROUP_ISLAND


def _has_sequence_parallel(case: Case) -> bool:
    stated = case.text("sp")
    if stated:
        return stated not in ("0", "false", "False")
    is_on = _family(case) in ("megatron", "torchtitan")
    case.assume(f"sequence parallelism not printed: {'on' if is_on else 'off'}")
    return is_on


def _chunks(case: Case, problem: Problem, stages: int) -> tuple[tuple[int, int], ...]:
    layers = problem.model.num_layers
    ends_fewer = int("first and last stage hold one layer fewer" in case.text("notes") and stages > 1)
    if stages == layers + 2 * ends_fewer:
        # One layer a chunk, and the first and the last chunk hold the embedding and the head alone.
        return ((0, 0), *((block, block + 1) for block in range(layers)), (layers, layers))[:stages]
    if stages > layers:
        raise Unsupported(f"{stages} virtual stages for {layers} layers")
    sizes = _named_sizes(case, layers, stages)
    if sizes:
        ends = [sum(sizes[: i + 1]) for i in range(stages)]
        return tuple(zip([0, *ends[:-1]], ends, strict=True))
    if stages > problem.model.num_layers - 2:
        return balanced_chunks(layers, stages)
    return balanced_chunks(layers, stages, ends_fewer, ends_fewer)


def _named_sizes(case: Case, layers: int, stages: int) -> list[int]:
    """Blocks of each stage where the notes name them, [] where they do not (or for another split).

    Three forms: blocks themselves; slots of which the first and last hold embedding and head; boundaries
    over DeepSpeed's pipeline slots, of which as many stand before the blocks as behind them.
    """
    notes = case.text("notes")
    sizes: list[int] = []
    if found := re.search(r"uneven stages \[([\d, ]+)\]", notes):
        sizes = _numbers(found[1])
    elif found := re.search(r"layers per stage incl\. embedding/head slots \[([\d, ]+)\]", notes):
        sizes = _numbers(found[1])
        sizes[0] -= 1
        sizes[-1] -= 1
    elif found := re.search(r"layer boundaries \[([\d, ]+)\] over (\d+) pipeline slots", notes):
        before = (int(found[2]) - layers) // 2
        cuts = [min(max(cut - before, 0), layers) for cut in _numbers(found[1])]
        sizes = [end - first for first, end in pairwise(cuts)]
    if len(sizes) != stages or sum(sizes) != layers or min(sizes) <= 0:
        return []
    case.assume(f"blocks per stage from the notes: {', '.join(map(str, sizes))}")
    return sizes


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]
