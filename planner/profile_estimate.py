"""The price of given degrees on measured profiles: one strategy for all layers, even stages, no search."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from planner import __version__
from planner.cost.layered_table import LayeredSetting
from planner.errors import InputError
from planner.plan_file.schema import Plan, SearchRecord
from planner.profile_decision import decision_record
from planner.profile_pins import ProfilePins, with_pins
from planner.profile_plan import inputs_of, predict
from planner.profile_request import ProfileRequest, resolve_profile
from planner.search.layout import balanced_chunks
from planner.strategy.layered import LayeredDecision
from planner.units import format_bytes

NO_PINS = ProfilePins()
DEFAULTS = ProfilePins(pp=1, tp=1, cp=1, microbatch_size=1, recompute="none")
"""What a choice that is not given is; dp follows from the GPUs."""
DEFAULT_SHARDING = ProfilePins(sharding="gradients")
"""The same, where more than one rank holds a layer's weights."""


def make_profile_estimate(request: ProfileRequest, *, target: str = "any") -> Plan:
    """The price of ``request.pins``, as a plan of status "estimate"; choices not given are ``DEFAULTS`` and
    ``DEFAULT_SHARDING``.

    All layers, embedding and head share one strategy; stages are even. A decision above the memory limit is
    priced with a warning. Raises InputError naming what the profile covers, UnsupportedByTarget.
    """
    given: dict[str, Any] = {**DEFAULTS.items(), **request.pins.items()}
    choices = ProfilePins(**given)
    problem = resolve_profile(replace(request, pins=NO_PINS))
    batch = problem.workload.global_batch
    tabled = with_pins(problem.tabled, choices, batch)
    if choices.sharding is None and any(c.sharding_ranks > 1 for s in tabled.settings for c in s.strategies):
        tabled = with_pins(tabled, DEFAULT_SHARDING, batch)
        choices = replace(choices, sharding=DEFAULT_SHARDING.sharding)
    setting = _only(tabled.settings)
    layers = len(setting.layers)
    if setting.pp > layers:
        raise InputError(
            f"--pp {setting.pp}: the model has {layers} layers, and a stage holds one at least",
            hint=f"use --pp {layers} or less",
        )
    decision = LayeredDecision(
        pp=setting.pp,
        microbatches=setting.microbatches,
        stages=balanced_chunks(layers, setting.pp),
        choices=(setting.strategies[0],) * layers,
        ends=setting.ends[0],
    )
    prediction = predict(problem, setting, decision)
    warnings = list(problem.warnings)
    peak, limit = prediction.peak_memory_bytes, problem.limit_bytes
    if peak > limit:
        warnings.append(
            f"does not fit: stage {prediction.fullest_stage} needs {format_bytes(peak)}, "
            f"{format_bytes(peak - limit)} above the limit of {format_bytes(limit)}"
        )
    plan = Plan(
        planner_version=__version__,
        inputs=inputs_of(problem, choices, target, top=1),
        decision=decision_record(problem, decision),
        prediction=prediction,
        search=SearchRecord.of_given(prediction.step_seconds),
        why=[f"memory: {format_bytes(peak)} of {format_bytes(limit)} on the fullest stage"],
        warnings=warnings,
    )
    if target != "any":
        from planner.targets import require_expressible

        require_expressible(plan, target)
    return plan


def _only(settings: list[LayeredSetting]) -> LayeredSetting:
    """The one table left by choices that leave nothing open. Raises InputError where there are several."""
    if len(settings) != 1 or len(settings[0].strategies) != 1 or len(settings[0].ends) != 1:
        found = [
            f"pp {s.pp}, {s.microbatches} microbatches, {choice.label()}, ends {end.label()}"
            for s in settings
            for choice in s.strategies
            for end in s.ends
        ]
        raise InputError(
            f"the choices leave {len(found)} decisions open: {'; '.join(found[:4])}",
            hint="give --dp and --sharding, or let planner plan --profile choose",
        )
    return settings[0]
