"""Per-layer decisions of plans on a profile, as plan files state them; sp of the tables is cp of the file."""

from __future__ import annotations

from collections import Counter
from itertools import groupby

from planner.errors import InputError
from planner.plan_file.schema import (
    DecisionRecord,
    DegreesRecord,
    EndsRecord,
    LayerStrategyRecord,
    StageRecord,
)
from planner.profile_request import ProfiledProblem
from planner.strategy.decision import RANK_ORDER, RECOMPUTES, SHARDINGS
from planner.strategy.layered import LayerChoice, LayeredDecision


def decision_record(problem: ProfiledProblem, decision: LayeredDecision) -> DecisionRecord:
    """The decision as the file states it; plan-wide fields are those of most layers."""
    most = Counter(decision.choices).most_common(1)[0][0]
    ranks = problem.profile.gpus // decision.pp
    batch = problem.workload.global_batch
    modes = {choice.recompute for choice in decision.choices}
    stages = []
    for index, (first, end) in enumerate(decision.stages):
        stages.append(
            StageRecord(
                index=index,
                rank=index,
                layers=(first, end - 1),
                devices=(index * ranks, (index + 1) * ranks - 1),
                has_embedding=index == 0,
                has_head=index == decision.pp - 1,
                layer_strategies=_runs(decision, first, end),
            )
        )
    ends = decision.ends
    return DecisionRecord.model_validate(
        dict(
            degrees=DegreesRecord(dp=most.dp, tp=most.tp, pp=decision.pp, cp=most.sp, ep=1),
            sequence_parallel=most.tp > 1,
            sharding=SHARDINGS[most.sharding],
            recompute=RECOMPUTES[modes.pop()] if len(modes) == 1 else "mixed",
            schedule="1f1b",
            virtual_stages=1,
            microbatch_size=batch // (decision.microbatches * most.dp),
            microbatches=decision.microbatches,
            global_batch=batch,
            stages=stages,
            rank_order=RANK_ORDER,
            ends=EndsRecord.model_validate(
                {"tp": ends.tp, "cp": ends.sp, "dp": ends.dp, "sharding": SHARDINGS[ends.sharding]}
            ),
        )
    )


def _runs(decision: LayeredDecision, first: int, end: int) -> list[LayerStrategyRecord]:
    runs, at = [], first
    for choice, same in groupby(decision.choices[first:end]):
        count = len(list(same))
        runs.append(
            LayerStrategyRecord.model_validate(
                dict(
                    layers=(at, at + count - 1),
                    tp=choice.tp,
                    cp=choice.sp,
                    ep=1,
                    dp=choice.dp,
                    sharding=SHARDINGS[choice.sharding],
                    recompute=RECOMPUTES[choice.recompute],
                    sequence_parallel=choice.tp > 1,
                )
            )
        )
        at += count
    return runs


def read_layered(record: DecisionRecord) -> LayeredDecision:
    """The decision a record states. Raises InputError for a record without the ends' strategy."""
    if record.ends is None:
        raise InputError("a plan on a profile states its ends", pointer="/decision/ends")
    choices = tuple(
        LayerChoice(run.tp, run.cp, run.dp, SHARDINGS.index(run.sharding), RECOMPUTES.index(run.recompute))
        for stage in record.stages
        for run in stage.layer_strategies
        for _ in range(run.layers[0], run.layers[1] + 1)
    )
    ends = record.ends
    return LayeredDecision(
        pp=record.degrees.pp,
        microbatches=record.microbatches,
        stages=tuple((stage.layers[0], stage.layers[1] + 1) for stage in record.stages),
        choices=choices,
        ends=LayerChoice(ends.tp, ends.cp, ends.dp, SHARDINGS.index(ends.sharding)),
    )
