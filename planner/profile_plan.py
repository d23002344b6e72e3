"""Plans on measured profiles: search the tables, write schema version 1, read it back and price it again.

A plan file holds the profile it was priced on; sp of the tables is cp of the file (Ulysses).
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

from planner import __version__
from planner.cost.layered_table import (
    LayeredSetting,
    LayeredStageCost,
    chosen_indices,
    pipeline_timeline,
    stage_cost,
)
from planner.errors import InputError
from planner.model.flop import model_step_flop
from planner.plan_file.build import inputs_digest
from planner.plan_file.schema import (
    Alternative,
    ClusterInput,
    Inputs,
    Options,
    Plan,
    PredictionRecord,
    ProfileInput,
    SearchRecord,
    StagePredictionRecord,
)
from planner.profile_decision import decision_record, read_layered
from planner.profile_pins import ProfilePins, with_pins
from planner.profile_request import (
    ProfiledProblem,
    ProfileRequest,
    problem_of_inputs,
    resolve_profile,
    worst_misfit,
)
from planner.schedule.timeline import Timeline
from planner.search.layered import LayeredResult, improve_layered, search_layered
from planner.search.layered_start import choice_seconds
from planner.strategy.layered import LayeredDecision
from planner.units import format_bytes, format_seconds

# Predicted over measured peaks of the single-stage rows of the profile in tests/data (tests/profiles
# checks it).
MEMORY_ERROR = (-0.05, 0.065)
# Alternatives are first plans of their settings, nothing solved: worth whatever that misses.
FIRST_PLANS = 1.0
Split = tuple[tuple[int, int], ...]


def make_profile_plan(
    request: ProfileRequest, *, target: str = "any", top: int = 1, time_budget_seconds: float = math.inf
) -> Plan:
    """The best plan on measured files. Raises InputError, InfeasibleError, UnsupportedByTarget."""
    problem = resolve_profile(request)
    return make_problem_plan(
        problem, request.pins, target=target, top=top, time_budget_seconds=time_budget_seconds
    )


def make_problem_plan(
    problem: ProfiledProblem,
    pins: ProfilePins,
    *,
    target: str = "any",
    top: int = 1,
    time_budget_seconds: float = math.inf,
) -> Plan:
    """The best plan of a problem with ``pins``, and up to ``top`` - 1 of other pipeline degrees."""
    started = time.process_time()
    tabled = with_pins(problem.tabled, pins, problem.workload.global_batch)
    left_out = [
        {"step": "left out", "candidates": count, "reason": reason} for reason, count in tabled.left_out
    ]
    result = search_layered(
        tabled.settings, problem.limit_bytes, time_budget_seconds=time_budget_seconds, funnel=left_out
    )
    left = time_budget_seconds - (time.process_time() - started)
    others = other_depths(tabled.settings, problem.limit_bytes, result, top - 1, left)
    plan = _plan(problem, result, pins, target, top, others)
    if target != "any":
        from planner.targets import require_expressible

        require_expressible(plan, target)
    return plan


def other_depths(
    settings: Sequence[LayeredSetting],
    limit_bytes: float,
    best: LayeredResult,
    most: int,
    time_budget_seconds: float,
) -> list[tuple[LayeredSetting, LayeredDecision]]:
    """A plan of every other pipeline degree, fastest first, at most ``most``.

    Each is the best of its settings' first plans (two strategies a stage), not proved the best of its degree.
    """
    found = []
    for pp in sorted({s.pp for s in settings} - {best.setting.pp}) if most > 0 else ():
        same = [s for s in settings if s.pp == pp]

        def judge(index: int, end: int, stages: Split, chosen: tuple[int, ...]) -> tuple[float, float]:
            setting = same[index]  # noqa: B023 - called before the next round
            costs = [stage_cost(setting, i, span, chosen, end) for i, span in enumerate(stages)]
            return choice_seconds(setting, end, (stages, chosen)), max(
                0.0, max(c.total_bytes for c in costs) - limit_bytes
            )

        one = improve_layered(
            same,
            limit_bytes,
            judge,
            math.inf,
            worth=FIRST_PLANS,
            time_budget_seconds=time_budget_seconds,
        )
        if one.setting >= 0:
            setting = same[one.setting]
            decision = LayeredDecision(
                pp=pp,
                microbatches=setting.microbatches,
                stages=one.stages,
                choices=tuple(setting.strategies[s] for s in one.chosen),
                ends=setting.ends[one.end],
            )
            found.append((one.seconds, pp, setting, decision))
    found.sort(key=lambda entry: entry[:2])
    return [(setting, decision) for _, _, setting, decision in found[:most]]


def _plan(
    problem: ProfiledProblem,
    result: LayeredResult,
    pins: ProfilePins,
    target: str,
    top: int,
    others: list[tuple[LayeredSetting, LayeredDecision]],
) -> Plan:
    status: Any = result.status
    return Plan(
        planner_version=__version__,
        inputs=inputs_of(problem, pins, target, top),
        decision=decision_record(problem, result.decision),
        prediction=predict(problem, result.setting, result.decision),
        search=SearchRecord(
            status=status,
            space="measured profile: pp and microbatches of every divisor, uneven stages, 1F1B; per layer "
            "tp or sp, sharding of gradients or parameters, recompute none or full; embedding and head on "
            "their own",
            lower_bound_seconds=result.lower_bound_seconds,
            gap=result.gap,
            funnel=result.funnel,
        ),
        why=_why(problem, result),
        alternatives=[_alternative(problem, result, *other) for other in others],
        warnings=problem.warnings,
    )


def inputs_of(problem: ProfiledProblem, pins: ProfilePins, target: str, top: int) -> Inputs:
    """Everything needed to price the problem again, the measured files included, with its digest."""
    inputs = Inputs(
        model=problem.model,
        cluster=ClusterInput(profile=problem.cluster, device=problem.device, gpus=problem.profile.gpus),
        workload=problem.workload,
        options=Options(
            target=target,
            memory_limit_bytes=problem.limit_bytes,
            pins=pins.items(),
            top=top,
            assumptions=problem.assumptions,
        ),
        constants={},
        profile=ProfileInput(tool="galvatron", files=problem.profile.files),
        digest="",
    )
    return inputs.model_copy(update={"digest": inputs_digest(inputs)})


def _alternative(
    problem: ProfiledProblem, best: LayeredResult, setting: LayeredSetting, decision: LayeredDecision
) -> Alternative:
    prediction = predict(problem, setting, decision)
    share = prediction.step_seconds / best.step_seconds - 1.0
    error = worst_misfit(problem.profile)
    is_tied = share <= error
    tied = f", within the batch lines' worst row of {error:.1%}" if is_tied else ""
    return Alternative(
        decision=decision_record(problem, decision),
        prediction=prediction,
        why=f"{share:+.1%}{tied}: pp {decision.pp} with {decision.microbatches} microbatches",
        tied=is_tied,
    )


def find_setting(problem: ProfiledProblem, decision: LayeredDecision) -> LayeredSetting:
    """The table of a decision. Raises InputError when the profile does not cover it."""
    for setting in problem.tabled.settings:
        if (setting.pp, setting.microbatches) == (decision.pp, decision.microbatches):
            return setting
    raise InputError(
        f"the profile covers no plan with pp {decision.pp} and {decision.microbatches} microbatches",
        pointer="/decision",
        allowed=[(s.pp, s.microbatches) for s in problem.tabled.settings],
        hint="use a pair the profile covers",
    )


def stage_costs(setting: LayeredSetting, decision: LayeredDecision) -> list[LayeredStageCost]:
    """Every stage priced. Raises InputError for a strategy without costs."""
    chosen = chosen_indices(setting, decision.choices)
    if decision.ends not in setting.ends:
        raise InputError(
            f"the profile has no costs for embedding and head with {decision.ends.label()}",
            pointer="/decision/ends",
            allowed=[end.label() for end in setting.ends],
        )
    end = setting.ends.index(decision.ends)
    return [stage_cost(setting, i, layers, chosen, end) for i, layers in enumerate(decision.stages)]


def plan_timeline(plan: Plan) -> Timeline:
    """The replayed step of a plan on a profile, every operation kept.

    Raises InputError as ``find_setting`` and ``stage_costs`` do.
    """
    problem, decision = problem_of_inputs(plan.inputs), read_layered(plan.decision)
    setting = find_setting(problem, decision)
    costs = stage_costs(setting, decision)
    forward, backward = [c.forward_seconds for c in costs], [c.backward_seconds for c in costs]
    return pipeline_timeline(setting, forward, backward, keep_events=True)


def predict(problem: ProfiledProblem, setting: LayeredSetting, decision: LayeredDecision) -> PredictionRecord:
    """What the table says of a decision, as the file states it.

    The step's interval is the batch line's worst row; memory's is the measured peaks' (``MEMORY_ERROR``). A
    stage's compute holds its tensor, sequence and weight-gathering traffic: the table prices them together.
    """
    costs = stage_costs(setting, decision)
    forward, backward = [c.forward_seconds for c in costs], [c.backward_seconds for c in costs]
    timeline = pipeline_timeline(setting, forward, backward)
    finish = [end + c.sync_seconds for end, c in zip(timeline.finish, costs, strict=True)]
    step = max(finish)
    last = finish.index(step)
    busy = setting.microbatches * (forward[last] + backward[last])
    peak = max(c.total_bytes for c in costs)
    rate = problem.device.peak_flop_per_s(problem.workload.precision)
    flop = model_step_flop(problem.model, problem.workload.sequence_length, problem.workload.global_batch)
    gpus = problem.profile.gpus
    mfu = flop / step / gpus / rate if rate else 0.0
    tokens = problem.workload.tokens_per_step / step
    error = worst_misfit(problem.profile)
    return PredictionRecord(
        step_seconds=step,
        step_seconds_interval=(step * (1 - error), step * (1 + error)),
        tokens_per_second=tokens,
        tokens_per_second_per_gpu=tokens / gpus,
        mfu=mfu,
        hfu=mfu * _hardware_factor(problem, decision),
        breakdown_seconds={
            "compute": busy if setting.pp > 1 else timeline.finish[last],
            "bubble": timeline.finish[last] - busy if setting.pp > 1 else 0.0,
            "dp": costs[last].sync_seconds,
        },
        peak_memory_bytes=peak,
        peak_memory_interval=(peak / (1 + MEMORY_ERROR[1]), peak / (1 + MEMORY_ERROR[0])),
        memory_capacity_bytes=max(problem.device.memory_bytes, problem.limit_bytes),
        memory_limit_bytes=problem.limit_bytes,
        fullest_stage=max(range(len(costs)), key=lambda i: costs[i].total_bytes),
        slowest_stage=max(range(len(costs)), key=lambda i: forward[i] + backward[i]),
        stages=[
            StagePredictionRecord(
                index=i,
                forward_seconds=c.forward_seconds,
                backward_seconds=c.backward_seconds,
                memory_bytes={
                    "states": c.state_bytes,
                    "activations": c.activation_bytes,
                    "buffers": c.working_bytes,
                    "reserve": c.reserve_bytes,
                    "total": c.total_bytes,
                },
            )
            for i, c in enumerate(costs)
        ],
    )


def _hardware_factor(problem: ProfiledProblem, decision: LayeredDecision) -> float:
    """HFU over MFU: one more forward of every recomputed layer, of three passes' worth; ends aside."""
    again = sum(choice.recompute != 0 for choice in decision.choices) / len(decision.choices)
    return 1.0 + again / 3.0


def _why(problem: ProfiledProblem, result: LayeredResult) -> list[str]:
    """What binds, what the mix buys, and what the other pipeline degrees cannot beat."""
    costs = stage_costs(result.setting, result.decision)
    peak = max(c.total_bytes for c in costs)
    lines = [f"memory: {format_bytes(peak)} of {format_bytes(problem.limit_bytes)} on the fullest stage"]
    kinds = Counter(choice.label() for choice in result.decision.choices)
    lines += [f"{count} layers {label}" for label, count in kinds.most_common()]
    others: dict[int, tuple[float, int]] = {}
    for pp, m, seconds, is_best in result.seconds_by_setting:
        if not is_best and math.isfinite(seconds) and pp != result.decision.pp:
            others[pp] = min(others.get(pp, (math.inf, 0)), (seconds, m))
    for pp, (seconds, m) in sorted(others.items()):
        lines.append(
            f"pp {pp}: no plan below {format_seconds(max(seconds, result.step_seconds))} "
            f"(at {m} microbatches)"
        )
    return lines
