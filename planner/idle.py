"""Planning with idle GPUs allowed: the fastest plan on any sensible number of the GPUs there are.

Degrees must divide, so 56 GPUs may be slower than 48, and 60 GPUs in nodes of 8 are 56 at most. Counts are
tried from the largest down. No plan on n GPUs beats the model's FLOP at n times what the best kernel
reaches, so the first count whose FLOP alone take longer than the best plan ends it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from planner.api import asked_inputs, make_plan, plan_of_result
from planner.cost.model import CostModel
from planner.errors import InputError
from planner.model.flop import model_step_flop
from planner.pin_rules import check_pins
from planner.plan_file.schema import IdleRecord, Plan
from planner.request import Request, available_gpus, resolve
from planner.search.better import faster_solution
from planner.search.engine import SearchResult
from planner.search.reporter import Reporter
from planner.search.solution import Solution
from planner.search.tree import Funnel, Pins
from planner.search.words import describe_space
from planner.strategy.limits import Limits
from planner.targets import limits_of, require_able, require_expressible

# Up to here every number of whole nodes is tried; beyond, those of five significant binary digits.
MANY_NODES = 64


def sensible_counts(gpus: int, per_node: int) -> list[int]:
    """Numbers of GPUs worth planning for, the largest first: whole nodes, and any part of a single one.

    A larger machine offers all that a smaller one does, but for those beyond MANY_NODES nodes, where only the
    largest and numbers of nodes with five significant binary digits are among them.
    """
    nodes = gpus // per_node
    kept = {nodes} | {
        k for k in range(1, nodes + 1) if k <= MANY_NODES or k % (1 << (k.bit_length() - 5)) == 0
    }
    return sorted({k * per_node for k in kept if k} | set(range(1, min(gpus, per_node) + 1)), reverse=True)


@dataclass(frozen=True)
class Counted:
    """The fastest number of GPUs, the best seconds on all of them (None: no plan), and the numbers tried.

    ``stopped``: its plan so far, when Ctrl-C ended the counting.
    """

    best: int
    seconds_of_most: float | None
    tried: list[int]
    stopped: Solution | None = None


def make_plan_allowing_idle(
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
) -> Plan:
    """The best plan on any sensible number of the request's GPUs; ``search.idle`` says what stays idle.

    The global batch is the same for every number. Ctrl-C returns the best plan so far. Raises what
    ``make_plan`` raises for the largest number when no number gives a plan.
    """
    started, pins = time.process_time(), pins or Pins()
    available, per_node = available_gpus(request)
    counts = sensible_counts(available, per_node)
    stack = limits_of(target).stack
    most = resolve(request.changed(gpus=counts[0]), stack)
    batch = most.problem.workload.global_batch
    model = CostModel.of(most.problem, most.constants, stack)
    require_able(asked_inputs(model, most, pins, target, top), target)
    of_batch = request.changed(global_batch=batch)
    limits = replace(limits_of(target), is_exact=exact)
    found = _best_count(of_batch, pins, limits, counts, time_budget_seconds, reporter)
    final = request.changed(gpus=found.best)
    if resolve(final, stack).problem.workload.global_batch != batch:
        final = final.changed(global_batch=batch)
    if found.stopped is not None:
        plan = _plan_so_far(final, pins, limits, top, found.stopped)
    else:
        left = time_budget_seconds - (time.process_time() - started)
        plan = make_plan(
            final,
            pins,
            target=target,
            top=top,
            time_budget_seconds=max(left, 0.0),
            reporter=reporter,
            suggest=suggest,
            exact=exact,
            head_rooms=head_rooms,
        )
    record = IdleRecord(
        gpus_available=available,
        idle_gpus=available - found.best,
        most_gpus=counts[0],
        most_gpus_seconds=found.seconds_of_most,
        counts=found.tried,
    )
    return plan.model_copy(update={"search": plan.search.model_copy(update={"idle": record})})


def _best_count(
    request: Request,
    pins: Pins,
    limits: Limits,
    counts: list[int],
    time_budget_seconds: float,
    reporter: Reporter | None,
) -> Counted:
    """The number of GPUs with the fastest plan, the largest where none has one; pins must divide it."""
    deadline = time.process_time() + time_budget_seconds
    plans: dict[int, Solution] = {}
    tried: list[int] = []
    is_stopped = False
    for count in counts:
        resolved = resolve(request.changed(gpus=count), limits.stack)
        try:
            check_pins(resolved, pins, limits)
        except InputError:
            continue
        model = CostModel.of(resolved.problem, resolved.constants, limits.stack)
        known = min((plan.seconds for plan in plans.values()), default=math.inf)
        if _fewest_seconds(model) >= known:
            break
        tried.append(count)
        left = max(deadline - time.process_time(), 0.0)
        try:
            found = faster_solution(model, limits, pins, known, time_budget_seconds=left, reporter=reporter)
        except KeyboardInterrupt:
            if not plans:
                raise
            is_stopped = True
            break
        if found.solution is not None:
            plans[count] = found.solution
        if not found.is_complete:
            is_stopped = time.process_time() < deadline
            break
    best = min(plans, key=lambda count: (plans[count].seconds, count), default=counts[0])
    most = plans.get(counts[0])
    stopped = plans.get(best) if is_stopped else None
    return Counted(best, most.seconds if most else None, tried, stopped)


def _plan_so_far(request: Request, pins: Pins, limits: Limits, top: int, best: Solution) -> Plan:
    """The plan known when Ctrl-C ended the counting, under the bound that needs no search."""
    resolved = resolve(request, limits.stack)
    model = CostModel.of(resolved.problem, resolved.constants, limits.stack)
    result = SearchResult(
        best=best,
        alternatives=[],
        lower_bound_seconds=min(_fewest_seconds(model), best.seconds),
        status="interrupted",
        space=describe_space(limits, pins),
        funnel=Funnel(),
        cpu_seconds=0.0,
    )
    plan = plan_of_result(model, resolved, result, asked_inputs(model, resolved, pins, limits.target, top))
    require_expressible(plan, limits.target)
    return plan


def _fewest_seconds(model: CostModel) -> float:
    """Seconds no plan can beat: the step's model FLOP over all GPUs at the best kernel's share of the peak.

    Every kernel takes at least FLOP / (peak x its largest share), see ``cost.compute``; no plan computes less
    than the model FLOP.
    """
    c, w = model.constants, model.problem.workload
    share = max(c.matmul_efficiency, c.flash_forward_efficiency, c.flash_backward_efficiency)
    flop = model_step_flop(model.problem.model, w.sequence_length, w.global_batch)
    return flop / (model.device.matmul_flop_per_s * share * model.problem.world_size)
