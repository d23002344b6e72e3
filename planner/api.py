"""What the public functions do: request in, plan out. The command line only parses and prints around this."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from planner import __version__
from planner.cost.decision_rows import used_candidates
from planner.cost.model import CostModel
from planner.cost.offload import usable_bytes
from planner.cost.step import price
from planner.errors import InfeasibleError, InputError
from planner.fronts import front_record
from planner.pin_rules import check_names, check_pins
from planner.plan_file.build import build_decision, build_inputs, build_prediction
from planner.plan_file.read import read_cost_model, read_decision, read_errors, read_plan
from planner.plan_file.schema import Alternative, Inputs, Options, Plan, SearchRecord
from planner.reasons import alternative_reason, plan_reasons, plan_warnings
from planner.remedies import with_remedies
from planner.request import Request, Resolved, resolve
from planner.search.engine import SearchResult
from planner.search.layer_search import search_every_layer
from planner.search.layout import balanced_chunks
from planner.search.reporter import Reporter
from planner.search.solution import Solution
from planner.search.tree import Pins
from planner.strategy.candidates import Candidates
from planner.strategy.decision import (
    OFFLOADS,
    RECOMPUTES,
    SCHEDULES,
    SHARDING_GROUPS,
    SHARDINGS,
    Decision,
    Degrees,
)
from planner.strategy.kind import differences
from planner.strategy.limits import ANY
from planner.strategy.rules import require_valid
from planner.targets import limits_of, require_able, require_expressible, restriction_record
from planner.units import format_bytes


def make_plan(
    request: Request,
    pins: Pins | None = None,
    *,
    target: str = "any",
    top: int = 4,
    time_budget_seconds: float = math.inf,
    reporter: Reporter | None = None,
    suggest: bool = True,
    exact: bool = False,
    head_rooms: Sequence[float] = (),
    certify: bool = True,
) -> Plan:
    """The best plan for a request.

    ``head_rooms``: shares of the memory limit to leave free; the plan then carries the fastest plan of each,
    the one of least memory, and the splits of its own mesh (``front``).
    A target's plan says what keeping to that launcher costs (``search.restriction``). ``suggest`` False
    leaves that comparison out, and the changes that would fit when nothing does. ``exact``: heuristic rules
    leave nothing out. ``certify`` False: a bound that leaves a gap is not looked at again, so the plan may be
    a little slower than the best. Raises InputError for a request or pin that breaks a rule, InfeasibleError
    with the nearest miss and the cheapest changes that would fit when nothing does.
    """
    started = time.process_time()
    pins = pins or Pins()
    limits = replace(limits_of(target), is_exact=exact)
    resolved = resolve(request, limits.stack)
    check_pins(resolved, pins, limits)
    model = CostModel.of(resolved.problem, resolved.constants, limits.stack)
    inputs = asked_inputs(model, resolved, pins, target, top)
    require_able(inputs, target)
    try:
        result = search_every_layer(
            model,
            limits,
            pins,
            top=top,
            time_budget_seconds=time_budget_seconds,
            reporter=reporter,
            certify=certify,
        )
    except InfeasibleError as error:
        if suggest and error.details.get("nearest_miss"):

            def again(changed: Request, freed: Pins) -> Plan:
                return make_plan(changed, freed, target=target, top=1, suggest=False, certify=False)

            raise with_remedies(error, request, pins, again) from None
        raise
    if result.best.decision.offload:
        inputs = asked_inputs(model, resolved, pins, target, top, result.best.decision)
    plan = plan_of_result(model, resolved, result, inputs)
    require_expressible(plan, target)
    deadline = started + time_budget_seconds
    if head_rooms:
        left = deadline - time.process_time()
        asked = (model, limits, pins, result, head_rooms, resolved.errors)
        front = front_record(*asked, time_budget_seconds=left, reporter=reporter)
        plan = plan.model_copy(update={"front": front})
    if target == "any" or not suggest or result.status == "interrupted":
        return plan
    left = deadline - time.process_time()
    restriction = restriction_record(model, plan, pins, result.best, time_budget_seconds=left)
    return plan.model_copy(update={"search": plan.search.model_copy(update={"restriction": restriction})})


def asked_inputs(
    model: CostModel,
    resolved: Resolved,
    pins: Pins,
    target: str,
    top: int,
    decision: Decision | None = None,
) -> Inputs:
    """What a plan file says it was asked; before a search all but what a ``decision`` assumes."""
    options = Options(
        target=target,
        stack=model.stack.name,
        memory_limit_bytes=resolved.problem.memory_limit_bytes,
        oom_risk=resolved.oom_risk,
        pins=pins.items(),
        top=top,
        assumptions=host_assumptions(resolved, decision) if decision else resolved.assumptions,
    )
    return _inputs(model, resolved, options)


def plan_of_result(model: CostModel, resolved: Resolved, result: SearchResult, inputs: Inputs) -> Plan:
    """What a search found as a plan file's record."""
    best = result.best
    return Plan(
        planner_version=__version__,
        inputs=inputs,
        decision=build_decision(best.decision),
        prediction=build_prediction(model, best.prediction, resolved.errors),
        search=SearchRecord.model_validate(
            {
                "status": result.status,
                "space": result.space,
                "lower_bound_seconds": result.lower_bound_seconds,
                "gap": result.gap,
                "funnel": result.funnel.steps,
                "solver": result.solver,
            }
        ),
        why=plan_reasons(model, best, result.alternatives, resolved.errors),
        alternatives=[
            Alternative(
                decision=build_decision(other.decision),
                prediction=build_prediction(model, other.prediction, resolved.errors),
                why=alternative_reason(best, other, resolved.errors),
                tied=resolved.errors.is_tied(best.seconds, other.seconds),
                differs=differences(other.decision, best.decision),
            )
            for other in result.alternatives
        ],
        warnings=[*resolved.warnings, *plan_warnings(model, best)],
    )


def host_assumptions(resolved: Resolved, decision: Decision) -> list[str]:
    """What was assumed for a plan: of the host only where the decision uses it."""
    assumed = resolved.problem.cluster.host.assumed if decision.offload else ()
    known = resolved.assumptions
    return [*known, *(words for words in assumed if words not in known)]


def _inputs(model: CostModel, resolved: Resolved, options: Options) -> Inputs:
    return build_inputs(model, resolved.profile, resolved.device, options, resolved.errors, resolved.origins)


@dataclass(frozen=True)
class Choice:
    """A decision as flags give it, for ``estimate``; dp None is derived from the number of GPUs."""

    tp: int = 1
    pp: int = 1
    cp: int = 1
    ep: int = 1
    dp: int | None = None
    expert_tp: int = 1
    virtual_stages: int = 1
    microbatch_size: int = 1
    sharding: str = "optimizer"
    sharding_group: str = "global"
    recompute: str = "none"
    schedule: str | None = None
    sequence_parallel: bool | None = None
    offload: str = "none"


def choice_decision(resolved: Resolved, choice: Choice) -> Decision:
    """The decision of a choice, stages balanced. Raises InputError for the first broken rule."""
    problem = resolved.problem
    for name in ("tp", "pp", "cp", "ep", "expert_tp", "virtual_stages", "microbatch_size"):
        value = getattr(choice, name)
        if value < 1:
            flag = "micro-batch" if name == "microbatch_size" else name.replace("_", "-")
            raise InputError(f"--{flag} must be at least 1, not {value}", hint=f"use --{flag} 1")
    used = choice.tp * choice.pp * choice.cp
    if choice.dp is None and problem.world_size % used:
        rest = problem.world_size
        degrees = [d for d in range(1, rest + 1) if rest % d == 0]
        raise InputError(
            f"rule world-identity: tp * cp * pp * dp equals the number of GPUs; tp {choice.tp} x "
            f"cp {choice.cp} x pp {choice.pp} = {used} does not divide {rest}",
            allowed=degrees,
            hint=f"let the degrees multiply to a divisor of {rest}: {degrees[:16]}",
            rule="world-identity",
        )
    dp = choice.dp if choice.dp is not None else problem.world_size // used
    schedule = choice.schedule or ("interleaved" if choice.virtual_stages > 1 else "1f1b")
    named = Pins(
        sharding=choice.sharding, schedule=schedule, recompute=choice.recompute, offload=choice.offload
    )
    check_names(named, ANY)
    if choice.sharding_group not in SHARDING_GROUPS:
        raise InputError(
            f"--sharding-group {choice.sharding_group!r} is not a choice; choices: "
            f"{', '.join(SHARDING_GROUPS)}",
            allowed=list(SHARDING_GROUPS),
            hint="use --sharding-group global",
        )
    wants_split = choice.sequence_parallel is not False
    candidate = Candidates.single(
        tp=choice.tp,
        cp=choice.cp,
        dp=max(1, dp),
        pp=choice.pp,
        ep=choice.ep,
        expert_tp=choice.expert_tp,
        microbatch_size=choice.microbatch_size,
        virtual_stages=choice.virtual_stages,
        schedule=SCHEDULES.index(schedule),
        sharding=SHARDINGS.index(choice.sharding) if max(1, dp) * choice.cp > 1 else 0,
        sharding_group=SHARDING_GROUPS.index(choice.sharding_group),
        sequence_parallel=int(wants_split),
        offload=OFFLOADS.index(choice.offload),
    )
    if choice.sequence_parallel is None:
        from planner.strategy.rules import broken_rules

        if any(rule.name == "sequence-by-tp" for rule in broken_rules(candidate, problem)):
            candidate = candidate.replace(sequence_parallel=candidate.sequence_parallel * 0)
    require_valid(candidate, problem)
    blocks = problem.model.num_layers
    return Decision(
        degrees=Degrees(dp, choice.tp, choice.pp, choice.cp, choice.ep, choice.expert_tp),
        sequence_parallel=bool(candidate.sequence_parallel[0]) and choice.tp > 1,
        sharding=int(candidate.sharding[0]),
        sharding_group=int(candidate.sharding_group[0]),
        schedule=schedule,
        virtual_stages=choice.virtual_stages,
        microbatch_size=choice.microbatch_size,
        microbatches=int(candidate.microbatches(problem.workload.global_batch)[0]),
        chunks=balanced_chunks(blocks, choice.pp * choice.virtual_stages),
        recompute=(RECOMPUTES.index(choice.recompute),) * blocks,
        offload=OFFLOADS.index(choice.offload),
    )


def make_estimate(request: Request, choice: Choice, target: str = "any") -> Plan:
    """The price of a given choice of degrees, as a plan file of status "estimate"; no search.

    With a ``target`` on that launcher's training stack, and refused (UnsupportedByTarget) when the launcher
    cannot run it. A decision that passes the memory limit is priced all the same, with a warning that says by
    how much.
    """
    limits = limits_of(target)
    resolved = resolve(request, limits.stack)
    model = CostModel.of(resolved.problem, resolved.constants, limits.stack)
    plan = estimate_decision(model, resolved, choice_decision(resolved, choice), target)
    require_expressible(plan, target)
    return plan


def reprice(path: str) -> Plan:
    """A plan file's decision priced again from the file's own inputs, as an estimate.

    Raises InputError when the file is not a plan or its decision breaks a hard rule.
    """
    saved = read_plan(path)
    model = read_cost_model(saved.inputs)
    decision = read_decision(saved.decision)
    require_valid(used_candidates(decision), model.problem)
    inputs = saved.inputs
    resolved = Resolved(
        problem=model.problem,
        profile=inputs.cluster.profile,
        device=inputs.cluster.device,
        constants=model.constants,
        errors=read_errors(inputs),
        origins=inputs.constant_origins,
        oom_risk=inputs.options.oom_risk,
        assumptions=inputs.options.assumptions,
    )
    return estimate_decision(model, resolved, decision)


def estimate_decision(model: CostModel, resolved: Resolved, decision: Decision, target: str = "any") -> Plan:
    """A decision priced as a plan of status "estimate"."""
    prediction = price(model, decision)
    solution = Solution(decision, prediction, prediction.step_seconds)
    limit, peak = resolved.problem.memory_limit_bytes, prediction.peak_memory_bytes
    warnings = [*resolved.warnings, *plan_warnings(model, solution)]
    if peak > limit:
        warnings.append(
            f"does not fit: stage {prediction.fullest_stage} needs {format_bytes(peak)}, "
            f"{format_bytes(peak - limit)} above the limit of {format_bytes(limit)}"
        )
    held, room = prediction.host_bytes, usable_bytes(resolved.problem.cluster.host)
    if held > room:
        warnings.append(
            f"does not fit the host: its fullest node would hold {format_bytes(held)}, usable are "
            f"{format_bytes(room)} (--host-memory-gib)"
        )
    options = Options(
        target=target,
        stack=model.stack.name,
        memory_limit_bytes=limit,
        oom_risk=resolved.oom_risk,
        assumptions=host_assumptions(resolved, decision),
    )
    return Plan(
        planner_version=__version__,
        inputs=_inputs(model, resolved, options),
        decision=build_decision(decision),
        prediction=build_prediction(model, prediction, resolved.errors),
        search=SearchRecord.of_given(prediction.step_seconds),
        why=plan_reasons(model, solution, [], resolved.errors),
        warnings=warnings,
    )
