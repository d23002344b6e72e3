"""From decisions and predictions to plan records."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import asdict
from itertools import groupby

from planner.calibration.error_bars import ErrorBars
from planner.calibration.shipped import shipped
from planner.cluster.spec import ClusterProfile, DeviceSpec
from planner.cost.model import CostModel
from planner.cost.offload import usable_bytes
from planner.cost.step import Prediction
from planner.plan_file.schema import (
    ClusterInput,
    DecisionRecord,
    DegreesRecord,
    EndsRecord,
    ErrorsRecord,
    Inputs,
    LayerStrategyRecord,
    Options,
    PredictionRecord,
    StagePredictionRecord,
    StageRecord,
)
from planner.strategy.decision import (
    GATHER_UNITS,
    OFFLOADS,
    RANK_ORDER,
    RECOMPUTES,
    SHARDING_GROUPS,
    SHARDINGS,
    Decision,
    rank_of_stage,
)


def build_inputs(
    model: CostModel,
    profile: ClusterProfile,
    device: DeviceSpec,
    options: Options,
    errors: ErrorBars | None = None,
    origins: dict[str, str] | None = None,
) -> Inputs:
    """Everything needed to repeat the run, with its digest.

    ``errors`` and ``origins`` are the calibration's; the shipped one's where they are not given.
    """
    problem = model.problem
    generation, stack = problem.cluster.device.generation, model.stack.name
    errors = errors or shipped().errors_of(generation, stack)
    constants = asdict(model.constants)
    constants["link_efficiency"] = dict(model.constants.link_efficiency)
    cluster = ClusterInput(profile=profile, device=device, gpus=problem.world_size)
    draft = Inputs(
        model=problem.model,
        cluster=cluster,
        workload=problem.workload,
        options=options,
        constants=constants,
        constant_origins=shipped().origins(generation, stack) if origins is None else origins,
        errors=ErrorsRecord(**asdict(errors)),
        digest="",
    )
    return draft.model_copy(update={"digest": inputs_digest(draft)})


def inputs_digest(inputs: Inputs) -> str:
    """SHA-256 over the canonical JSON of the inputs without their digest.

    The training stack counts only when it is not the default: files written before it was stated keep theirs.
    """
    data = inputs.model_dump(mode="json", exclude={"digest"})
    if inputs.options.stack == Options.model_fields["stack"].default:
        del data["options"]["stack"]
    # Fields that files of earlier versions lack do not change their digest.
    for name in ("constant_origins", "errors"):
        if not data[name]:
            del data[name]
    if data["options"]["oom_risk"] is None:
        del data["options"]["oom_risk"]
    text = json.dumps(data, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def build_decision(decision: Decision) -> DecisionRecord:
    """The decision as the file states it: stages with their layers, ranks and layer strategies."""
    d = decision.degrees
    stages = []
    last = len(decision.chunks) - 1
    for index, (first, end) in enumerate(decision.chunks):
        rank = rank_of_stage(decision.schedule, index, d.pp)
        stages.append(
            StageRecord(
                index=index,
                rank=rank,
                layers=(first, end - 1),
                devices=(rank * d.stage_stride, (rank + 1) * d.stage_stride - 1),
                has_embedding=index == 0,
                has_head=index == last,
                layer_strategies=_strategies(decision, first, end),
            )
        )
    own = (d.tp, decision.sharding)
    blocks = range(len(decision.recompute))
    most = own
    if decision.layer_tp:
        most = Counter((decision.tp_of(b), decision.sharding_of(b)) for b in blocks).most_common(1)[0][0]
    record = dict(
        degrees=DegreesRecord(**asdict(decision.degrees_of(most[0]))),
        sequence_parallel=decision.sequence_parallel,
        sharding=SHARDINGS[most[1]],
        sharding_group=SHARDING_GROUPS[decision.sharding_group],
        recompute=decision.recompute_summary(),
        schedule=decision.schedule,
        virtual_stages=decision.virtual_stages,
        microbatch_size=decision.microbatch_size_of(most[0]),
        microbatches=decision.microbatches,
        global_batch=decision.global_batch,
        stages=stages,
        rank_order=RANK_ORDER,
        offload=OFFLOADS[decision.offload],
    )
    if decision.layer_tp:
        record["ends"] = EndsRecord.model_validate(
            {"tp": d.tp, "cp": d.cp, "dp": d.dp, "sharding": SHARDINGS[decision.sharding]}
        )
    return DecisionRecord.model_validate(record)


def _strategies(decision: Decision, first: int, end: int) -> list[LayerStrategyRecord]:
    found = []
    choices = [
        (decision.recompute[b], decision.sharding_of(b), decision.tp_of(b), decision.unit_of(b))
        for b in range(first, end)
    ]
    at = first
    for (mode, sharding, tp, unit), run in groupby(choices):
        count = len(list(run))
        d = decision.degrees_of(tp)
        found.append(
            LayerStrategyRecord.model_validate(
                dict(
                    layers=(at, at + count - 1),
                    tp=d.tp,
                    cp=d.cp,
                    ep=d.ep,
                    dp=d.dp,
                    sharding=SHARDINGS[sharding],
                    recompute=RECOMPUTES[mode],
                    gather_unit=GATHER_UNITS[unit],
                    sequence_parallel=decision.sequence_parallel and (tp > 1 or not decision.layer_tp),
                )
            )
        )
        at += count
    return found


def build_prediction(
    model: CostModel, prediction: Prediction, errors: ErrorBars | None = None
) -> PredictionRecord:
    """The prediction as the file states it, with its intervals, its risk and the device's capacity.

    ``errors`` are the calibration's, by how close this GPU and stack are to measured ground; the shipped
    one's where they are not given.
    """
    seconds, peak = prediction.step_seconds, prediction.peak_memory_bytes
    problem = model.problem
    capacity = problem.cluster.device.memory_bytes
    errors = errors or shipped().errors_of(problem.cluster.device.generation, model.stack.name)
    stages = [
        StagePredictionRecord(
            index=s.index,
            forward_seconds=s.forward_seconds,
            backward_seconds=s.backward_seconds,
            memory_bytes=s.memory_bytes,
        )
        for s in prediction.stages
    ]
    return PredictionRecord(
        step_seconds=seconds,
        step_seconds_interval=errors.time_interval(seconds),
        tokens_per_second=prediction.tokens_per_second,
        tokens_per_second_per_gpu=prediction.tokens_per_second / problem.world_size,
        mfu=prediction.mfu,
        hfu=prediction.hfu,
        breakdown_seconds=prediction.breakdown_seconds,
        peak_memory_bytes=peak,
        peak_memory_interval=errors.memory_interval(peak),
        memory_capacity_bytes=capacity,
        memory_limit_bytes=problem.memory_limit_bytes,
        out_of_memory_probability=errors.out_of_memory_probability(peak, capacity),
        fullest_stage=prediction.fullest_stage,
        slowest_stage=prediction.slowest_stage,
        stages=stages,
        host_memory_bytes=prediction.host_bytes or None,
        host_memory_usable_bytes=usable_bytes(problem.cluster.host) if prediction.host_bytes else None,
    )
