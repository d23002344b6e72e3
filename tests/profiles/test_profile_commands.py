"""Commands on plans priced on a measured profile: pins, explain, why-not, trace, runners-up."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import pytest

from planner.checking import check_plan
from planner.errors import InputError
from planner.explanation import explain_plan, forced_plan
from planner.plan_file.schema import Plan
from planner.profile_pins import ProfilePins
from planner.profile_plan import make_profile_plan
from planner.profile_request import ProfileRequest
from planner.report.trace import trace_json

DATA = str(Path(__file__).parents[1] / "data" / "galvatron_profiles")


@cache
def planned(pins=ProfilePins(), limit=24.0, top=1):  # noqa: B008 - frozen
    return make_profile_plan(ProfileRequest((DATA,), 64, 8, limit, pins=pins), top=top)


def runs(plan):
    return [run for stage in plan.decision.stages for run in stage.layer_strategies]


@pytest.mark.parametrize(
    ("pins", "holds"),
    [
        (ProfilePins(pp=2), lambda plan, run: plan.decision.degrees.pp == 2),
        (ProfilePins(tp=2), lambda plan, run: run.tp == 2),
        (ProfilePins(cp=2), lambda plan, run: run.cp == 2),
        (ProfilePins(dp=4), lambda plan, run: run.dp == 4),
        (ProfilePins(sharding="parameters"), lambda plan, run: run.sharding == "parameters" or run.dp == 1),
        (ProfilePins(recompute="full"), lambda plan, run: run.recompute == "full"),
        (
            ProfilePins(microbatch_size=2),
            lambda plan, run: 64 // plan.decision.microbatches // run.dp == 2,
        ),
        (ProfilePins(pp=2, tp=2, recompute="none"), lambda plan, run: (run.tp, run.recompute) == (2, "none")),
    ],
    ids=lambda value: str(value.items()) if isinstance(value, ProfilePins) else "",
)
def test_a_pin_holds_for_every_layer_and_never_makes_a_plan_faster(pins, holds):
    plan, free = planned(pins), planned()
    assert all(holds(plan, run) for run in runs(plan))
    assert plan.prediction.step_seconds >= free.prediction.step_seconds * (1 - 1e-9)
    assert plan.inputs.options.pins == pins.items()
    again = Plan.model_validate_json(plan.to_json())
    assert all(finding.holds for finding in check_plan(again))


@pytest.mark.parametrize(
    ("pins", "words"),
    [
        (ProfilePins(tp=3), ["--tp 3", "1, 2, 4, 8"]),
        (ProfilePins(pp=3), ["--pp 3", "1, 2, 4, 8"]),
        (ProfilePins(recompute="selective"), ["--recompute selective", "full, none"]),
        (ProfilePins(sharding="optimizer"), ["--sharding optimizer", "gradients"]),
        (ProfilePins(microbatch_size=7), ["--micro-batch 7"]),
        (ProfilePins(tp=8, dp=4), ["--dp 4", "beside --tp 8"]),
    ],
    ids=lambda value: str(value.items()) if isinstance(value, ProfilePins) else "",
)
def test_a_pin_the_profile_does_not_cover_names_what_it_does(pins, words):
    with pytest.raises(InputError) as error:
        planned(pins)
    for word in words:
        assert word in str(error.value)
    assert error.value.hint


def test_runners_up_differ_in_pipeline_degree_and_fit():
    plan = planned(top=4)
    depths = [plan.decision.degrees.pp, *(other.decision.degrees.pp for other in plan.alternatives)]
    assert sorted(depths) == [1, 2, 4, 8]
    steps = [other.prediction.step_seconds for other in plan.alternatives]
    assert steps == sorted(steps)
    assert steps[0] >= plan.prediction.step_seconds
    for other in plan.alternatives:
        assert other.prediction.peak_memory_bytes <= plan.prediction.memory_limit_bytes
        best = planned(ProfilePins(pp=other.decision.degrees.pp)).prediction.step_seconds
        assert best <= other.prediction.step_seconds <= best * 1.03
    assert len(planned(top=2).alternatives) == 1
    assert planned().alternatives == []


def test_explain_adds_up_to_the_stages():
    plan = planned(ProfilePins(pp=2))
    found = explain_plan(plan)
    layers = [kind for kind in found.kinds if kind.name.startswith("layer")]
    assert sum(kind.count for kind in layers) == plan.inputs.model.num_layers
    forward = sum(kind.count * sum(kind.forward_seconds.values()) for kind in found.kinds)
    stages = sum(stage.forward_seconds for stage in plan.prediction.stages)
    assert forward <= stages * (1 + 1e-9)  # the stages have layout changes too
    assert forward == pytest.approx(stages, rel=0.02)
    assert [m["total"] for m in found.stage_memory] == [
        s.memory_bytes["total"] for s in plan.prediction.stages
    ]


def test_why_not_searches_the_same_profile_with_one_choice_forced():
    plan = planned()
    forced = forced_plan(plan, ("tp", "4"))
    assert forced.plan is not None
    assert all(run.tp == 4 for run in runs(forced.plan))
    assert forced.plan.prediction.step_seconds == planned(ProfilePins(tp=4)).prediction.step_seconds
    with pytest.raises(InputError, match="not a choice of plans on a profile"):
        forced_plan(plan, ("schedule", "gpipe"))
    with pytest.raises(InputError, match="not a whole number"):
        forced_plan(plan, ("tp", "two"))


def test_the_trace_ends_with_the_step():
    plan = planned(ProfilePins(pp=4))
    events = [e for e in json.loads(trace_json(plan))["traceEvents"] if e["ph"] == "X"]
    assert len(events) == 2 * 4 * plan.decision.microbatches
    last = max(e["ts"] + e["dur"] for e in events) / 1e6
    dp = plan.prediction.breakdown_seconds["dp"]
    assert last <= plan.prediction.step_seconds <= last + dp + 1e-9
