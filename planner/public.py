"""The public functions of ``import planner``: plain arguments in, Plan records out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from planner import catalog
from planner.api import Choice, make_estimate, make_plan
from planner.cluster.spec import ClusterProfile
from planner.comparison import Comparison, HowToPlan, compare_requests
from planner.errors import InputError
from planner.idle import make_plan_allowing_idle
from planner.model.spec import ModelSpec
from planner.plan_file.schema import Plan
from planner.request import Request
from planner.search.tree import Pins

REQUEST_FIELDS = tuple(Request.__dataclass_fields__)
PIN_FIELDS = tuple(Pins.__dataclass_fields__)
CHOICE_FIELDS = tuple(Choice.__dataclass_fields__)


def load_model(name_or_path: str) -> ModelSpec:
    """A model by built-in name, our JSON file or a Hugging Face config.json. Raises InputError."""
    return catalog.load_model(name_or_path)[0]


def load_cluster(name_or_path: str) -> ClusterProfile:
    """A hardware profile by name or file. Raises InputError."""
    return catalog.load_profile(name_or_path)


def plan(
    model: str | ModelSpec,
    *,
    target: str = "any",
    top: int = 4,
    time_budget_seconds: float = float("inf"),
    head_rooms: Sequence[float] = (),
    allow_idle: bool = False,
    **answers: Any,
) -> Plan:
    """The best plan. ``answers``: the fields of Request (cluster, gpu, gpus, seq_len, ...) and of Pins.

    ``head_rooms``: shares of the memory limit to leave free; ``front`` then holds the fastest plan of each.
    ``allow_idle``: on fewer GPUs where that is faster.
    Raises InputError for bad input, InfeasibleError when nothing fits.
    """
    request, pins = _split(answers, REQUEST_FIELDS, PIN_FIELDS)
    return (make_plan_allowing_idle if allow_idle else make_plan)(
        Request(model, **request),
        Pins(**pins),
        target=target,
        top=top,
        time_budget_seconds=time_budget_seconds,
        head_rooms=head_rooms,
    )


def estimate(model: str | ModelSpec, *, target: str = "any", **answers: Any) -> Plan:
    """The price of given degrees, no search. ``answers``: the fields of Request and of Choice.

    ``target``: priced as this launcher runs it; raises UnsupportedByTarget when it cannot.
    """
    request, choice = _split(answers, REQUEST_FIELDS, CHOICE_FIELDS)
    return make_estimate(Request(model, **request), Choice(**choice), target)


def compare(
    model: str | ModelSpec, *, vary: dict[str, list[Any]], target: str = "any", **answers: Any
) -> Comparison:
    """Re-plan at every combination of the values in ``vary``: a what-if table.

    What may vary: the fields of Request, and ``head_room_percent`` of the memory limit left free.
    """
    request, pins = _split(answers, REQUEST_FIELDS, PIN_FIELDS)
    return compare_requests(Request(model, **request), vary, HowToPlan(Pins(**pins), target))


def _split(
    answers: dict[str, Any], first: tuple[str, ...], second: tuple[str, ...]
) -> tuple[dict[str, Any], dict[str, Any]]:
    unknown = sorted(set(answers) - set(first) - set(second))
    if unknown:
        raise InputError(
            f"unknown argument {unknown[0]!r}",
            allowed=sorted({*first, *second}),
            hint="see help(planner.plan)",
        )
    return (
        {name: value for name, value in answers.items() if name in first},
        {name: value for name, value in answers.items() if name in second},
    )
