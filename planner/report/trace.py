"""The pipeline timeline as a Chrome / Perfetto trace (the JSON array format of the Trace Event Format).

One track a pipeline rank; every forward and backward of every microbatch is a complete event. Times are
microseconds from the start of the step, as the format wants them.
"""

from __future__ import annotations

import json
from typing import Any

from planner.cost.step import price
from planner.plan_file.read import read_cost_model, read_decision
from planner.plan_file.schema import Plan
from planner.schedule.orders import virtual_stage
from planner.schedule.timeline import Timeline
from planner.units import MICRO

KINDS = ("forward", "backward", "input gradient", "weight gradient")


def _timeline(plan: Plan) -> Timeline:
    """Every operation of a step, priced as the plan was: by formulas, or on the profile inside the file."""
    if plan.inputs.profile is not None:
        from planner.profile_plan import plan_timeline

        return plan_timeline(plan)
    model, decision = read_cost_model(plan.inputs), read_decision(plan.decision)
    return price(model, decision, keep_events=True).timeline


def trace_json(plan: Plan) -> str:
    """The trace of one step of ``plan``, replayed from the plan's own inputs."""
    schedule, pp = plan.decision.schedule, plan.decision.degrees.pp
    timeline = _timeline(plan)
    events: list[dict[str, Any]] = [
        {"ph": "M", "name": "process_name", "pid": 0, "args": {"name": f"{plan.inputs.model.name} pipeline"}}
    ]
    for rank in range(pp):
        events.append(
            {"ph": "M", "name": "thread_name", "pid": 0, "tid": rank, "args": {"name": f"stage {rank}"}}
        )
    for event in timeline.events:
        operation = event.operation
        kind = KINDS[operation.kind]
        events.append(
            {
                "ph": "X",
                "pid": 0,
                "tid": event.rank,
                "name": f"{kind} {operation.microbatch}",
                "cat": kind,
                "ts": event.start / MICRO,
                "dur": (event.end - event.start) / MICRO,
                "args": {
                    "microbatch": operation.microbatch,
                    "virtual_stage": virtual_stage(schedule, event.rank, operation.chunk, pp),
                },
            }
        )
    return json.dumps({"traceEvents": events, "displayTimeUnit": "ms"}) + "\n"
