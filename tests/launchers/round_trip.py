"""plan -> export -> import: what comes back, compared with what went in, field by field."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

from planner.importing import Answers, import_plan
from planner.launchers.registry import launcher, not_carried
from planner.plan_file.read import read_decision
from planner.plan_file.schema import Plan
from planner.request import Request
from planner.strategy.decision import Decision

# Launchers whose files describe the model, or name one; the others are told it.
DESCRIBES_MODEL = ("megatron", "pytorch", "torchtitan")


def write(plan: Plan, target: str, folder: Path) -> None:
    """The exported files in ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in launcher(target).export(plan).items():
        (folder / name).write_text(text, encoding="utf-8")


def request_of(plan: Plan, *, with_model: bool) -> Request:
    """The plan's own machine; the workload is the file's, where it states one."""
    inputs = plan.inputs
    return Request(
        model=inputs.model if with_model else "",
        cluster=inputs.cluster.profile,
        device=inputs.cluster.device,
        optimizer=inputs.workload.optimizer,
        attention=inputs.workload.attention,
        tokens=inputs.workload.tokens,
        memory_limit_gib=None,
    )


def read_back(plan: Plan, target: str, place: Path) -> Plan:
    """What the exported files in a folder, or one of them, are when read again."""
    with_model = target not in DESCRIBES_MODEL
    return import_plan(target, str(place), request_of(plan, with_model=with_model), Answers()).plan


def differences(before: Decision, after: Decision, target: str) -> list[str]:
    """Fields that differ, but for those the launcher's file is documented not to carry."""
    free = not_carried(target)
    return [
        f"{field.name}: {_short(getattr(before, field.name))} -> {_short(getattr(after, field.name))}"
        for field in fields(Decision)
        if field.name not in free and _meaning(before, field.name) != _meaning(after, field.name)
    ]


def round_trip(plan: Plan, target: str, folder: Path) -> list[str]:
    """Differences of a decision that was exported and imported; for Megatron-LM from both of its files."""
    write(plan, target, folder)
    before = read_decision(plan.decision)
    places = [folder / "flags.json", folder / "train.sh"] if target == "megatron" else [folder]
    return [
        text
        for place in places
        for text in differences(before, read_decision(read_back(plan, target, place).decision), target)
    ]


def _meaning(decision: Decision, name: str) -> Any:
    """A field's value; layer shardings as one per layer, so that the short form is equal to the long one."""
    if name == "layer_sharding":
        return tuple(decision.sharding_of(block) for block in range(len(decision.recompute)))
    return getattr(decision, name)


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) < 60 else f"{text[:57]}..."
