"""Why a plan won, in words with numbers: what binds, what alternatives lose, what to be careful about."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from planner.calibration.error_bars import ErrorBars
from planner.cost.model import CostModel
from planner.cost.step import price
from planner.search.solution import Solution
from planner.strategy.decision import GROUP_ISLAND, OFFLOAD_NONE, RECOMPUTES, SHARDING_NONE, SHARDINGS
from planner.units import format_bytes, format_rate, format_seconds, format_share

# Highest model-FLOP utilisation of any 16-bit run in tests/published/measurements.csv, by architecture,
# counted as this project counts it (causal attention halved): rows mpt-105, dgx-001 and smx-018. MegaScale's
# rows, whose model differs from the stated one, are left out. A test recomputes them. Above it a prediction
# is more likely wrong than a record.
PUBLISHED_MFU = {"ampere": 0.627, "hopper": 0.556, "blackwell": 0.381}
BINDING_SHARE = 0.97
CAUSE_WORDS = {
    "kernels": "more kernel time, recomputation included",
    "bubble": "more pipeline bubble",
    "tp": "more exposed tensor-parallel traffic",
    "cp": "more exposed context-parallel traffic",
    "ep": "more exposed expert traffic",
    "pp": "more pipeline sends",
    "dp": "more exposed gradient and parameter traffic",
    "optimizer": "a longer optimizer update",
    "other": "more overhead",
}


def plan_reasons(model: CostModel, best: Solution, others: list[Solution], errors: ErrorBars) -> list[str]:
    """Two to five sentences: the binding limit, tp and its link, the bubble, recompute, the runner-up."""
    found = [_binding(model, best)]
    decision, prediction = best.decision, best.prediction
    d = decision.degrees
    if d.tp > 1:
        crossing = model.problem.cluster.crossings(1, d.tp)[-1]
        share = prediction.breakdown_seconds["tp"] / prediction.step_seconds
        found.append(
            f"tp {d.tp} runs over {crossing.link.name} "
            f"({format_rate(crossing.link.device_bytes_per_s)} per GPU); its exposed traffic is "
            f"{format_share(share)} of the step"
        )
    if decision.layer_tp:
        degrees = sorted(Counter(decision.layer_tp).items())
        words = ", ".join(f"{count} layers tp {tp}" for tp, count in degrees)
        found.append(f"{words}, embedding and head tp {d.tp}: no one degree is as fast within memory")
    if d.pp > 1:
        share = prediction.breakdown_seconds["bubble"] / prediction.step_seconds
        virtual = f" and {decision.virtual_stages} virtual stages" if decision.virtual_stages > 1 else ""
        found.append(
            f"pp {d.pp} with {decision.microbatches} microbatches{virtual} idles {format_share(share)} "
            f"of the step"
        )
    if decision.sharding != SHARDING_NONE and not decision.layer_tp:
        where = " inside each island" if decision.sharding_group == GROUP_ISLAND else ""
        found.append(f"{SHARDINGS[decision.sharding]} sharded over dp {d.dp} x cp {d.cp}{where}")
    if any(decision.layer_units):
        finer = sum(1 for unit in decision.layer_units if unit)
        found.append(
            f"{finer} of {len(decision.layer_units)} layers gather less than a block at once: less memory of "
            f"weights, one latency more a unit"
        )
    if decision.offload:
        found.append(_host_words(model, best))
    counts = [decision.recompute.count(mode) for mode in range(len(RECOMPUTES))]
    if counts[1] or counts[2]:
        extra = prediction.breakdown_seconds["recompute"] / prediction.step_seconds
        found.append(
            f"recompute buys the memory: {counts[2]} layers in full, {counts[1]} selective of "
            f"{len(decision.recompute)}, {format_share(extra)} of the step"
        )
    if others:
        found.append(f"next best {others[0].decision.label()}: {alternative_reason(best, others[0], errors)}")
    return found


def _host_words(model: CostModel, best: Solution) -> str:
    """What the optimizer on the host frees, holds and costs."""
    prediction, gpu_model = best.prediction, model.placed(OFFLOAD_NONE)
    on_gpu = price(gpu_model, replace(best.decision, offload=OFFLOAD_NONE))
    fullest = max(stage.memory_bytes["optimizer"] for stage in on_gpu.stages)
    spent = prediction.breakdown_seconds["optimizer"]
    return (
        f"the optimizer is on the host: {format_bytes(fullest)} leave the fullest GPU (it would need "
        f"{format_bytes(on_gpu.peak_memory_bytes)}), a node's host holds "
        f"{format_bytes(prediction.host_bytes)}; its update there takes {format_seconds(spent)}, "
        f"{format_share(spent / prediction.step_seconds)} of the step"
    )


def _binding(model: CostModel, best: Solution) -> str:
    peak, limit = best.prediction.peak_memory_bytes, model.problem.memory_limit_bytes
    stage = best.prediction.fullest_stage
    text = f"{format_bytes(peak)} of the limit {format_bytes(limit)} on stage {stage}"
    if peak >= limit * BINDING_SHARE:
        return f"memory binds: {text}; more of it would allow a faster plan or less recompute"
    return f"memory does not bind: {text}"


def alternative_reason(best: Solution, other: Solution, errors: ErrorBars) -> str:
    """What makes ``other`` slower: total difference, its largest causes, and whether that is within error."""
    difference = other.seconds - best.seconds
    share = difference / best.seconds
    theirs, ours = _causes(other), _causes(best)
    causes = sorted(((theirs[name] - ours[name], name) for name in ours), reverse=True)
    worse = [
        f"{CAUSE_WORDS[name]} (+{format_seconds(value)})"
        for value, name in causes[:2]
        if value > max(difference * 0.1, best.seconds * 5e-4)
    ]
    text = f"{share:+.1%}"
    if errors.is_tied(best.seconds, other.seconds):
        text += f", tied within the error of {errors.ranking_noise:.1%}"
    return f"{text}: {' and '.join(worse)}" if worse else text


def _causes(solution: Solution) -> dict[str, float]:
    """Seconds by cause; compute and recompute of the slowest stage count as one, for stages trade them."""
    causes = dict(solution.prediction.breakdown_seconds)
    causes["kernels"] = causes.pop("compute") + causes.pop("recompute")
    return causes


def plan_warnings(model: CostModel, best: Solution) -> list[str]:
    """What a careful reader should know: uncalibrated constants, an implausible MFU, idle precision."""
    device = model.problem.cluster.device
    found = []
    ceiling = PUBLISHED_MFU.get(device.generation)
    is_half = model.problem.workload.precision != "fp8"
    if ceiling is not None and is_half and best.prediction.mfu > ceiling:
        found.append(
            f"predicted MFU {format_share(best.prediction.mfu)} is above the highest of the published "
            f"{device.generation} runs ({format_share(ceiling)}): expect less"
        )
    if best.decision.offload:
        found.append(
            "the optimizer is on the host, the last resort: its seconds rest on published figures of other "
            "hosts, not on a fit; more GPUs, or ones with more memory, are faster"
        )
    if device.generation not in model.constants.basis:
        found.append(f"no measured run of {device.generation} stands behind the constants: literature priors")
    return found
