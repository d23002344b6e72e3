"""A launcher's file as a plan: read, judged by the rules, completed from flags, priced.

What the file states counts; a flag that says otherwise is an error naming both. What neither states is asked
for by name, or stated as an assumption where the launcher has a documented default.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from planner.api import estimate_decision
from planner.catalog import load_device, load_model, load_profile, model_names
from planner.cost.model import CostModel
from planner.documents import DOCUMENT_SUFFIXES, read_document, read_text
from planner.errors import InputError, UnsupportedFeature
from planner.imported_decision import build_imported_decision
from planner.launchers.file_rules import judge
from planner.launchers.imported import Facts, Files, Imported, shape_facts
from planner.launchers.registry import importer
from planner.launchers.torchtitan_models import Flavor, flavor_of
from planner.model.spec import ModelSpec
from planner.plan_file.schema import Plan
from planner.request import MAX_GPUS, Request, Resolved, resolve
from planner.strategy.decision import Decision
from planner.targets import limits_of

MAX_FILES = 32
# Field of the file -> flag of the command line, in the order they are asked for.
FLAGS = {
    "tp": "--tp",
    "pp": "--pp",
    "cp": "--cp",
    "dp": "--dp",
    "ep": "--ep",
    "expert_tp": "--expert-tp",
    "virtual_stages": "--virtual-stages",
    "microbatch_size": "--micro-batch",
    "sharding": "--sharding",
    "recompute": "--recompute",
    "schedule": "--schedule",
    "sequence_parallel": "--sequence-parallel",
    "offload": "--offload",
    "global_batch": "--global-batch",
    "sequence_length": "--seq-len",
    "precision": "--precision",
    "optimizer": "--optimizer",
    "attention": "--attention",
    "world_size": "--gpus",
}


@dataclass(frozen=True)
class Answers:
    """Flags given beside the file; None when not given."""

    tp: int | None = None
    pp: int | None = None
    cp: int | None = None
    dp: int | None = None
    ep: int | None = None
    expert_tp: int | None = None
    virtual_stages: int | None = None
    microbatch_size: int | None = None
    sharding: str | None = None
    sharding_group: str | None = None
    recompute: str | None = None
    schedule: str | None = None
    sequence_parallel: bool | None = None
    offload: str | None = None


@dataclass(frozen=True)
class ImportedPlan:
    """A launcher file priced: the plan, its cost model and decision, and what was read."""

    plan: Plan
    model: CostModel
    resolved: Resolved
    decision: Decision
    imported: Imported


def load_files(path: str) -> Files:
    """A file, or the files of a folder by name: JSON and YAML parsed, everything else as text.

    Raises InputError for a missing or unreadable file.
    """
    place = Path(path)
    if not place.is_dir():
        return {place.name: _load(place, path)}
    names = sorted(entry for entry in place.iterdir() if entry.is_file())
    if len(names) > MAX_FILES:
        raise InputError(
            f"{len(names)} files in the folder", file=path, allowed=MAX_FILES, hint="give the file"
        )
    suffixes = (*DOCUMENT_SUFFIXES, ".py", ".sh", ".txt", ".args")
    return {entry.name: _load(entry, str(entry)) for entry in names if entry.suffix in suffixes}


def _load(place: Path, path: str) -> Any:
    return read_document(path) if place.suffix.lower() in DOCUMENT_SUFFIXES else read_text(place, path)


def read_launcher_file(launcher: str, path: str, facts: Facts, answers: Answers | None = None) -> Imported:
    """The file in the planner's words, judged by the rules, with ``answers`` where it is silent.

    Raises InputError for what cannot be read and for a flag that contradicts the file.
    """
    try:
        return read_loaded(launcher, load_files(path), facts, answers)
    except InputError as error:
        error.details.setdefault("file", path)
        raise


def read_loaded(launcher: str, files: Files, facts: Facts, answers: Answers | None = None) -> Imported:
    """``read_launcher_file`` on files that are loaded already."""
    found = importer(launcher)(files, facts)
    if (
        facts.world_size is not None
        and found.where.get("world_size")
        and found.world_size != facts.world_size
    ):
        raise InputError(
            f"{found.file} says {found.where['world_size']}, --gpus says {facts.world_size}",
            hint="drop --gpus, or change the file",
            rule="world-identity",
        )
    _compare_model(found, facts)
    _answer(found, answers or Answers())
    judge(found, facts)
    return found


def _answer(found: Imported, answers: Answers) -> None:
    """Put the flags in; a flag that contradicts the file is an error naming both."""
    for field in fields(answers):
        value = getattr(answers, field.name)
        if value is None or field.name == "sharding_group":
            continue
        stated = getattr(found, field.name)
        if field.name in found.where and stated != value:
            _contradiction(found, field.name, value)
        if field.name not in found.where:
            setattr(found, field.name, value)
            found.where[field.name] = f"{FLAGS[field.name]} {value}"


def _contradiction(found: Imported, name: str, value: Any) -> None:
    raise InputError(
        f"{found.file} says {found.where[name]}, {FLAGS[name]} says {value}",
        hint=f"drop {FLAGS[name]}, or change the file",
        field=name,
    )


def _compare_model(found: Imported, facts: Facts) -> None:
    """--model and the shape in the file must agree."""
    if facts.model is None:
        return
    wanted = shape_facts(facts.model)
    differ = [
        f"{what} {value} in {found.file}, {wanted[what]} in {facts.model.name}"
        for what, value in found.shape.items()
        if what in wanted and wanted[what] != value
    ]
    if isinstance(found.model_hint, Flavor) and flavor_of(facts.model) != found.model_hint:
        differ.append(f"{found.file} trains {found.model_hint.module} {found.model_hint.flavor}")
    if differ:
        raise InputError(
            f"{found.file} and --model {facts.model.name} are not the same model: {'; '.join(differ)}",
            hint="drop --model, or name the model of the file",
            rule="model",
        )


def facts_of(request: Request) -> Facts:
    """What the flags alone say of the machine and the model."""
    if request.gpus is not None and not 0 < request.gpus <= MAX_GPUS:
        raise InputError(f"--gpus must be between 1 and {MAX_GPUS}, not {request.gpus}", hint="use --gpus 8")
    model = request.model if isinstance(request.model, ModelSpec) else None
    if isinstance(request.model, str) and request.model:
        model = load_model(request.model)[0]
    kind = None
    if request.gpu is not None:
        kind = load_device(request.gpu).generation
    elif isinstance(request.cluster, str):
        kind = load_device(load_profile(request.cluster).node_groups[0].device).generation
    return Facts(request.gpus, model, kind)


def import_plan(launcher: str, path: str, request: Request, answers: Answers) -> ImportedPlan:
    """The file's decision priced on the request's machine.

    ``request.model`` may be empty when the file describes the model. Raises InputError for contradictions,
    for what is missing (naming the flag), and for a file its launcher would refuse or misread;
    UnsupportedFeature for settings that cannot be priced.
    """
    facts = facts_of(request)
    found = read_launcher_file(launcher, path, facts, answers)
    refuse_faults(found)
    request = _completed(found, request, facts)
    resolved = resolve(request, limits_of(launcher).stack)
    known = Facts(resolved.problem.world_size, resolved.problem.model, resolved.device.generation)
    judge(found, known)
    refuse_faults(found)
    decision = build_imported_decision(found, resolved.problem, answers.sharding_group)
    notes = [*resolved.assumptions, *found.assumptions]
    if found.not_read:
        notes.append(f"not read in {found.file}: {', '.join(found.not_read)}")
    drifts = [f"{fault.rule}: {fault.numbers}" for fault in found.faults]
    resolved = replace(resolved, assumptions=notes, warnings=[*resolved.warnings, *drifts])
    model = CostModel.of(resolved.problem, resolved.constants, limits_of(launcher).stack)
    plan = estimate_decision(model, resolved, decision)
    return ImportedPlan(plan, model, resolved, decision, found)


def refuse_faults(found: Imported) -> None:
    """Raises InputError naming every broken rule, UnsupportedFeature for what cannot be priced."""
    bad = [fault for fault in found.faults if fault.is_fatal]
    if bad:
        raise InputError(
            "; ".join(f"rule {fault.rule}: {fault.numbers}" for fault in bad),
            file=found.file,
            hint="; ".join(f"{fault.rule}: use {fault.nearest}" for fault in bad if fault.nearest),
            rules=[fault.rule for fault in bad],
        )
    if found.unpriced:
        raise UnsupportedFeature(
            f"settings that change the decision and cannot be priced: {'; '.join(found.unpriced)}",
            file=found.file,
            hint="take them out to price the rest",
            settings=found.unpriced,
        )


def _completed(found: Imported, request: Request, facts: Facts) -> Request:
    """The request with what the file states; a flag that says otherwise is an error."""
    changes: dict[str, Any] = {}
    for name, answer in (
        ("sequence_length", "seq_len"),
        ("global_batch", "global_batch"),
        ("precision", "precision"),
        ("optimizer", "optimizer"),
        ("attention", "attention"),
    ):
        stated, given = getattr(found, name), getattr(request, answer)
        if stated is not None and given not in (None, stated):
            if name in found.where:
                _contradiction(found, name, given)
            continue
        if stated is not None:
            changes[answer] = stated
    if request.precision is None and "precision" not in changes:
        found.assumptions.append(f"precision: {found.file} does not say; bf16 where the GPU has it")
    for answer, default in (("optimizer", "adamw"), ("attention", "flash")):
        if getattr(request, answer) is None and answer not in changes:
            changes[answer] = default
            found.assumptions.append(f"{answer} {default}: {found.file} does not say")
    if facts.model is None:
        changes["model"] = _model_of(found)
    if request.gpus is None and found.world_size is not None:
        changes["gpus"] = found.world_size
    if request.gpu is None and request.cluster is None:
        raise InputError(
            f"{found.file} does not say which GPUs it runs on",
            hint="add --gpu h100-sxm, or --cluster dgx-h100",
        )
    if changes.get("gpus", request.gpus) is None:
        raise InputError(f"{found.file} does not say how many GPUs it runs on", hint="add --gpus 64")
    batch = changes.get("global_batch", request.global_batch)
    if batch is None and found.microbatches is None:
        raise InputError(f"{found.file} does not state the global batch", hint="add --global-batch 512")
    return request.changed(**changes)


def _model_of(found: Imported) -> ModelSpec:
    """The model the file describes or names. Raises InputError asking for --model."""
    if found.model is not None:
        return found.model
    if isinstance(found.model_hint, Flavor):
        hint = found.model_hint
        own = hint.assets.lower()
        for name in sorted(model_names(), key=lambda name: name != own):  # of equal shapes its own name first
            model = load_model(name)[0]
            if flavor_of(model) == hint:
                found.assumptions.append(f"{hint.module} {hint.flavor} is {name}")
                return model
    raise InputError(
        f"{found.file} does not describe the model"
        + (f" in full (it states {', '.join(found.shape)})" if found.shape else ""),
        hint="add --model llama-3.1-8b, or a config.json",
    )
