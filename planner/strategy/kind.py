"""The kind of a plan: what makes two plans two answers, and not one answer with another last digit.

Two plans are of one kind when they agree in tensor, pipeline and expert degree, in whether the sequence is
split over ranks and experts over tensor ranks, in the family of their schedule, and in whether parameters are
sharded. How data and context ranks share what is left, microbatch size, virtual stages, islands, the
recompute modes and the split of the layers follow from that and from memory.
"""

from __future__ import annotations

from typing import NamedTuple

from planner.strategy.decision import (
    GATHER_UNITS,
    GROUP_ISLAND,
    OFFLOADS,
    SHARDING_PARAMETERS,
    SHARDINGS,
    Decision,
)

SCHEDULE_FAMILIES = {
    "1f1b": "1f1b",
    "gpipe": "gpipe",
    "interleaved": "interleaved",
    "zb-h1": "zero bubble",
    "zb-h2": "zero bubble",
    "zb-v": "zero bubble",
}


class Kind(NamedTuple):
    """What plans of one kind share. ``schedule`` is a family of SCHEDULE_FAMILIES."""

    tp: int
    pp: int
    ep: int
    has_expert_tp: bool
    has_cp: bool
    schedule: str
    shards_parameters: bool


def kind_of(*, tp: int, pp: int, cp: int, ep: int, expert_tp: int, schedule: str, sharding: int) -> Kind:
    """The kind of a candidate: its degrees, schedule name and sharding code."""
    family = SCHEDULE_FAMILIES[schedule]
    return Kind(tp, pp, ep, expert_tp > 1, cp > 1, family, sharding == SHARDING_PARAMETERS)


def decision_kind(decision: Decision) -> Kind:
    """The kind of a decision."""
    d = decision.degrees
    return kind_of(
        tp=d.tp,
        pp=d.pp,
        cp=d.cp,
        ep=d.ep,
        expert_tp=d.expert_tp,
        schedule=decision.schedule,
        sharding=decision.sharding,
    )


def differences(other: Decision, plan: Decision) -> list[str]:
    """What ``other`` does instead of what ``plan`` does, in words; dp follows from the other degrees."""
    theirs, ours = _facts(other), _facts(plan)
    return [f"{name} {theirs[name]} for {ours[name]}" for name in theirs if theirs[name] != ours[name]]


def _gathers(decision: Decision) -> str:
    """What of sharded weights is gathered at once, in a word; whole blocks where nothing else is said."""
    units = sorted(set(decision.layer_units)) or [0]
    return GATHER_UNITS[units[0]] if len(units) == 1 else "mixed"


def _facts(decision: Decision) -> dict[str, str]:
    d = decision.degrees
    where = " by island" if decision.sharding and decision.sharding_group == GROUP_ISLAND else ""
    return {
        "tp": str(d.tp),
        "pp": str(d.pp),
        "cp": str(d.cp),
        "ep": str(d.ep),
        "expert tp": str(d.expert_tp),
        "schedule": decision.schedule,
        "virtual stages": str(decision.virtual_stages),
        "microbatch": str(decision.microbatch_size),
        "sharding": SHARDINGS[decision.sharding] + where,
        "recompute": decision.recompute_summary(),
        "offload": OFFLOADS[decision.offload],
        "gathers": _gathers(decision),
        "sequence parallel": "on" if decision.sequence_parallel or d.tp == 1 else "off",
    }
