"""Explanations of plans on measured profiles: the table's numbers behind a plan, and forced choices."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from planner.cost.layered_table import LayeredSetting, chosen_indices
from planner.errors import InfeasibleError, InputError
from planner.explanation import PIN_ALIASES, TEXT_PINS, Explanation, Forced, KindTerms
from planner.plan_file.schema import Plan
from planner.profile_decision import read_layered
from planner.profile_pins import ProfilePins
from planner.profile_plan import find_setting, make_problem_plan, stage_costs
from planner.profile_request import ProfiledProblem, problem_of_inputs
from planner.strategy.decision import RECOMPUTES
from planner.strategy.layered import LayerChoice


def explain_profile_plan(plan: Plan) -> Explanation:
    """Every strategy in use as the table has it, and the stages.

    A layer's seconds hold its tensor and sequence traffic: the profile measures them together. dp is the
    gradients' synchronisation left exposed, once a step.
    """
    problem, decision = problem_of_inputs(plan.inputs), read_layered(plan.decision)
    setting = find_setting(problem, decision)
    chosen = chosen_indices(setting, decision.choices)
    counts = Counter((setting.layers[layer], strategy) for layer, strategy in enumerate(chosen))
    kinds = [
        _layer_terms(problem, setting, kind, strategy, count)
        for (kind, strategy), count in sorted(counts.items())
    ]
    kinds += _end_terms(setting, decision.ends)
    costs = stage_costs(setting, decision)
    memory = [stage.memory_bytes for stage in plan.prediction.stages[: len(costs)]]
    return Explanation(kinds=kinds, stage_memory=memory, links=[], terms=[], constants=[])


def _layer_terms(
    problem: ProfiledProblem, setting: LayeredSetting, kind: int, strategy: int, count: int
) -> KindTerms:
    c, choice = setting.costs, setting.strategies[strategy]
    return KindTerms(
        name=f"layer type {kind}, {choice.label()}",
        count=count,
        forward_seconds={"compute": float(c.forward_seconds[kind, strategy])},
        backward_seconds={
            "compute": float(c.backward_seconds[kind, strategy]),
            "dp": float(c.sync_seconds[kind, strategy]),
        },
        saved_bytes={RECOMPUTES[choice.recompute]: float(c.activation_bytes[kind, strategy])},
        parameters_per_rank=problem.profile.layer_memory[kind].parameters / choice.tp,
    )


def _end_terms(setting: LayeredSetting, choice: LayerChoice) -> list[KindTerms]:
    end, found = setting.ends.index(choice), []
    for name, costs in (("embedding", setting.first), ("head and loss", setting.last)):
        found.append(
            KindTerms(
                name=f"{name}, {choice.label()}",
                count=1,
                forward_seconds={"compute": float(costs.forward_seconds[end])},
                backward_seconds={
                    "compute": float(costs.backward_seconds[end]),
                    "dp": float(costs.sync_seconds[end]),
                },
                saved_bytes={"none": float(costs.activation_bytes[end])},
                parameters_per_rank=0.0,
            )
        )
    return found


def forced_profile_plan(plan: Plan, pin: tuple[str, str]) -> Forced:
    """The best plan on the same profile with one choice forced.

    Raises InputError for a choice the profile's space does not have.
    """
    name, text = PIN_ALIASES.get(pin[0], pin[0]), pin[1]
    if name not in ProfilePins.__dataclass_fields__:
        allowed = sorted(ProfilePins.__dataclass_fields__)
        raise InputError(
            f"--why-not {name}: not a choice of plans on a profile",
            allowed=allowed,
            hint=f"one of {', '.join(allowed)}",
        )
    value: int | str = text
    if name not in TEXT_PINS:
        if not text.isdigit():
            raise InputError(f"--why-not {name}={text}: not a whole number", hint=f"{name}=2")
        value = int(text)
    stated = {key: given for key, given in plan.inputs.options.pins.items() if key != name}
    pins = replace(ProfilePins(**stated), **{name: value})  # type: ignore[arg-type]
    problem = problem_of_inputs(plan.inputs)
    try:
        found = make_problem_plan(problem, pins, target=plan.inputs.options.target, top=1)
    except InfeasibleError as error:
        return Forced(name, text, None, error.message)
    return Forced(name, text, found)
