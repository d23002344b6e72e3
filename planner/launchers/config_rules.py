"""Rules shared by the launchers that are configured by a file beside a training script.

A rule for a plan file says what breaks and what would work; the search rules cut the same candidates early.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from planner.launchers.base import Break
from planner.launchers.base import Rule as PlanRule
from planner.model.spec import Attention
from planner.plan_file.schema import Plan
from planner.strategy.candidates import BoolArray, Candidates, Problem
from planner.strategy.rules import Rule

Value = int | str | bool


def only(
    name: str, statement: str, what: str, value: Callable[[Plan], Value], choices: tuple[Value, ...]
) -> PlanRule:
    """A rule that allows some values of one choice; the first of them is offered as the nearest."""

    def check(plan: Plan) -> Break | None:
        found = value(plan)
        return None if found in choices else Break(f"{what} {found}", f"{what} {choices[0]}")

    return PlanRule(name, statement, check)


def recomputes(plan: Plan) -> list[str]:
    """Recompute mode of every block, in model order."""
    return [
        run.recompute
        for stage in plan.decision.stages
        for run in stage.layer_strategies
        for _ in range(run.layers[0], run.layers[1] + 1)
    ]


def shardings(plan: Plan) -> list[str]:
    """Sharding of every block, in model order."""
    return [
        run.sharding
        for stage in plan.decision.stages
        for run in stage.layer_strategies
        for _ in range(run.layers[0], run.layers[1] + 1)
    ]


def _whole_model_recompute(plan: Plan) -> Break | None:
    modes = recomputes(plan)
    used = sorted(set(modes))
    if used in (["none"], ["full"]):
        return None
    counts = ", ".join(f"{modes.count(mode)} layers {mode}" for mode in used)
    return Break(counts, "recompute full" if "full" in used or "selective" in used else "recompute none")


def _experts_with_tp(plan: Plan) -> Break | None:
    tp = plan.decision.degrees.tp
    if tp == 1 or not plan.inputs.model.is_moe:
        return None
    return Break(f"{plan.inputs.model.name} has routed experts, tp {tp}", "tp 1")


def _split_attention(plan: Plan) -> Break | None:
    """Context parallelism needs a causal kernel over the whole sequence."""
    cp, length = plan.decision.degrees.cp, plan.inputs.workload.sequence_length
    if cp == 1:
        return None
    for name, block in plan.inputs.model.block_kinds.items():
        attention = block.attention
        found = []
        if attention.window is not None and attention.window < length:
            found.append(f"a window of {attention.window} tokens")
        if isinstance(attention, Attention) and attention.sinks:
            found.append("attention sinks")
        if not attention.causal or block.cross_attention is not None:
            found.append("attention that is not causal")
        if found:
            return Break(f"cp {cp} and block {name} has {', '.join(found)}", "cp 1")
    return None


def _no_split_sequence(c: Candidates, p: Problem) -> BoolArray:
    result: BoolArray = (c.tp == 1) | (c.sequence_parallel == 0)
    return result


def _split_sequence(c: Candidates, p: Problem) -> BoolArray:
    result: BoolArray = (c.tp == 1) | (c.sequence_parallel == 1)
    return result


def _whole_attention(c: Candidates, p: Problem) -> BoolArray:
    length = p.workload.sequence_length
    for block in p.model.block_kinds.values():
        a = block.attention
        is_short = a.window is not None and a.window < length
        has_sinks = isinstance(a, Attention) and a.sinks
        if is_short or has_sinks or not a.causal or block.cross_attention is not None:
            result: BoolArray = c.cp == 1
            return result
    return np.ones(len(c), dtype=bool)


NO_PIPELINE = only(
    "no-pipeline", "the whole model is on every rank: pp 1", "pp", lambda p: p.decision.degrees.pp, (1,)
)
NO_CONTEXT = only("no-context", "no ring over the sequence", "cp", lambda p: p.decision.degrees.cp, (1,))
NO_EXPERT_GROUPS = only(
    "no-expert-groups", "experts are not spread over ranks", "ep", lambda p: p.decision.degrees.ep, (1,)
)
ONE_CHUNK = only(
    "no-virtual-stages",
    "one stage a rank",
    "virtual stages",
    lambda p: p.decision.virtual_stages,
    (1,),
)
NO_INTERLEAVING = only(
    "schedule", "1F1B or GPipe", "schedule", lambda p: p.decision.schedule, ("1f1b", "gpipe")
)
NO_SEQUENCE_PARALLEL = only(
    "sequence-parallel",
    "tensor parallelism keeps whole activations between its layers",
    "sequence parallelism",
    lambda p: p.decision.sequence_parallel and p.decision.degrees.tp > 1,
    (False,),
)
HALF_PRECISION = only(
    "precision",
    "bf16 or fp16; fp8 needs a backend the plan does not name",
    "precision",
    lambda p: p.inputs.workload.precision,
    ("bf16", "fp16"),
)
ADAM = only(
    "optimizer",
    "adamw or adam, with the plan's state of two moments",
    "optimizer",
    lambda p: p.inputs.workload.optimizer,
    ("adamw", "adam"),
)
WHOLE_MODEL_RECOMPUTE = PlanRule(
    "recompute", "one switch for the whole model: none or full", _whole_model_recompute
)
EXPERTS_WITHOUT_TP = PlanRule("experts-with-tp", "routed experts are not split by tp", _experts_with_tp)
CAUSAL_SPLIT = PlanRule(
    "context-attention", "a split sequence needs causal attention without windows and sinks", _split_attention
)

NO_SEQUENCE_PARALLEL_SEARCH = Rule(
    "no-sequence-parallel",
    NO_SEQUENCE_PARALLEL.statement,
    "sequence_parallel",
    _no_split_sequence,
    lambda c, p: f"sequence parallelism with tp {int(c.tp[0])}",
)
SEQUENCE_PARALLEL_SEARCH = Rule(
    "sequence-parallel-with-tp",
    "tensor parallelism always splits the sequence between its layers",
    "sequence_parallel",
    _split_sequence,
    lambda c, p: f"tp {int(c.tp[0])} without sequence parallelism",
)
CAUSAL_SPLIT_SEARCH = Rule(
    "context-attention",
    CAUSAL_SPLIT.statement,
    "cp",
    _whole_attention,
    lambda c, p: f"cp {int(c.cp[0])} with windows, sinks or attention in both directions",
)
