"""From ``--profile`` and flags to the tables of a search: files in, settings and stated assumptions out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from planner.catalog import load_device, load_model
from planner.cluster.default_profile import LATENCY_US
from planner.cluster.spec import ClusterProfile, DeviceSpec
from planner.errors import InputError, UnknownName
from planner.model.spec import ModelSpec
from planner.plan_file.schema import ProfileInput
from planner.profile_pins import ProfilePins, with_pins
from planner.profiles.files import ProfileFile, read_files, recognise
from planner.profiles.galvatron import GalvatronProfile, read_galvatron
from planner.profiles.galvatron_costs import (
    CONTEXT_BYTES,
    Tabled,
    layered_settings,
    least_step_flop_rate,
    profiled_model,
)
from planner.units import GIB, GIGA, TERA, format_bytes
from planner.workload import Workload

NO_PINS = ProfilePins()


@dataclass(frozen=True)
class ProfileRequest:
    """What to plan on measured files; None means what the files say."""

    files: tuple[str, ...]
    global_batch: int | None = None
    gpus: int | None = None
    memory_limit_gib: float | None = None
    model: str | None = None
    gpu: str | None = None
    seq_len: int | None = None
    precision: str | None = None
    tokens: float | None = None
    pins: ProfilePins = NO_PINS


@dataclass(frozen=True)
class ProfiledProblem:
    """The tables, the facts behind them, and what was assumed."""

    profile: GalvatronProfile
    model: ModelSpec
    workload: Workload
    tabled: Tabled
    limit_bytes: float
    cluster: ClusterProfile
    device: DeviceSpec
    assumptions: list[str]
    warnings: list[str]


def resolve_profile(request: ProfileRequest) -> ProfiledProblem:
    """The problem a request describes. Raises InputError with a value that would work."""
    files = read_files(request.files)
    graphs = [file for file in files if file.kind == "piper"]
    if graphs:
        raise InputError(
            "a Piper graph is planned alone: it has no layers of a known model",
            file=graphs[0].path,
            hint=f"use --profile {graphs[0].path} without other files",
        )
    return problem_of(files, request)


def problem_of(files: Sequence[ProfileFile], request: ProfileRequest) -> ProfiledProblem:
    """The problem of files already read."""
    profile = read_galvatron(files, request.gpus, request.seq_len)
    model = _model(profile, request.model)
    if request.precision is not None and request.precision != profile.precision:
        raise InputError(
            f"--precision {request.precision}: the profile was measured in {profile.precision}",
            allowed=[profile.precision],
            hint=f"use --precision {profile.precision}",
        )
    workload = _workload(profile, request)
    tabled = layered_settings(profile, profiled_model(profile, model), workload.global_batch)
    tabled = with_pins(tabled, request.pins, workload.global_batch)
    device, warnings = _device(profile, model, request)
    limit = _limit(request, device)
    notes = [
        *profile.notes,
        "backward is twice the measured forward; embedding, head and loss run on the last stage",
        f"batch lines through the measured batches: worst row {worst_misfit(profile):.1%} off",
        f"{format_bytes(CONTEXT_BYTES)} a GPU for the CUDA context and NCCL; "
        "gradients are reduced once a step",
        "the optimizer's own pass is not in the profile and not in the step",
    ]
    return ProfiledProblem(
        profile, model, workload, tabled, limit, _cluster(profile, device), device, notes, warnings
    )


def problem_of_inputs(inputs: Any) -> ProfiledProblem:
    """The problem a plan file's own inputs describe: the profile inside it, nothing from disk but names.

    Raises InputError for a profile that was changed into nonsense.
    """
    stored: ProfileInput = inputs.profile
    files = [recognise(name, content) for name, content in stored.files.items()]
    request = ProfileRequest(
        files=tuple(stored.files),
        global_batch=inputs.workload.global_batch,
        gpus=inputs.cluster.gpus,
        seq_len=inputs.workload.sequence_length,
    )
    profile = read_galvatron(files, request.gpus, request.seq_len)
    tabled = layered_settings(profile, profiled_model(profile, inputs.model), inputs.workload.global_batch)
    return ProfiledProblem(
        profile,
        inputs.model,
        inputs.workload,
        tabled,
        inputs.options.memory_limit_bytes,
        inputs.cluster.profile,
        inputs.cluster.device,
        inputs.options.assumptions,
        [],
    )


def worst_misfit(profile: GalvatronProfile) -> float:
    """The largest relative error of a layer's batch line over its measured batches."""
    return max(table.worst for table in profile.layer_seconds)


def _model(profile: GalvatronProfile, name: str | None) -> ModelSpec:
    try:
        return load_model(name or profile.model)[0]
    except UnknownName as error:
        if name:
            raise
        raise InputError(
            f"the profile calls its model {profile.model!r}, which no shipped model is called: "
            f"number of layers and hidden size are not in the files",
            hint="add --model NAME, a model file or a config.json",
            nearest=error.details.get("nearest"),
        ) from None


def _workload(profile: GalvatronProfile, request: ProfileRequest) -> Workload:
    if request.global_batch is None:
        raise InputError(
            "--global-batch is missing: a profile does not state it", hint="use --global-batch 64"
        )
    try:
        return Workload.model_validate(
            {
                "sequence_length": profile.sequence_length,
                "global_batch": request.global_batch,
                "precision": profile.precision,
                "tokens": request.tokens,
            }
        )
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(
            f"{first['loc'][0]}: {first['msg'].lower()}", hint="use --global-batch 64"
        ) from error


def _limit(request: ProfileRequest, device: DeviceSpec) -> float:
    gib = request.memory_limit_gib
    if gib is None:
        if request.gpu is None:
            raise InputError(
                "--memory-limit-gib is missing: a profile names no GPU",
                hint="use --memory-limit-gib 36, or --gpu",
            )
        return device.memory_bytes
    if not (math.isfinite(gib) and gib > 0):
        raise InputError(
            f"--memory-limit-gib must be a positive number, not {gib}", hint="use --memory-limit-gib 36"
        )
    if request.gpu is not None and gib * GIB > device.memory_bytes:
        raise InputError(
            f"--memory-limit-gib {gib:g} is more than {device.name} has "
            f"({format_bytes(device.memory_bytes)})",
            hint=f"use --memory-limit-gib {math.floor(device.memory_bytes / GIB)}",
        )
    return gib * GIB


def _device(
    profile: GalvatronProfile, model: ModelSpec, request: ProfileRequest
) -> tuple[DeviceSpec, list[str]]:
    """The named GPU, or a record of what the profile shows of its own."""
    if request.gpu is not None:
        return load_device(request.gpu), []
    rate = least_step_flop_rate(profile, model) / TERA

    def unstated(unit: float = 1.0) -> dict[str, Any]:
        return {
            "value": unit,
            "basis": "assumed",
            "source": "none",
            "note": "not in the profile; prices nothing",
        }

    limit = request.memory_limit_gib
    memory = (
        {**unstated(), "value": limit, "note": "the limit asked for"} if limit and limit > 0 else unstated()
    )
    device = DeviceSpec.model_validate(
        {
            "name": "profiled-gpu",
            "vendor": "not stated",
            "generation": "not stated",
            "memory_gib": memory,
            "memory_bandwidth_gb_per_s": unstated(),
            "peak_tflop_per_s": {
                "fp32" if profile.precision == "fp32" else profile.precision: {
                    "value": rate,
                    "basis": "derived",
                    "source": "the profile's computation file",
                    "note": "forward FLOP of a layer over its measured seconds a sample at large batch",
                }
            },
            "num_multiprocessors": unstated(),
            "host_link_gb_per_s": unstated(),
        }
    )
    warning = (
        f"the profile names no GPU: MFU is relative to the {rate:.0f} TFLOP/s its layers reach; "
        f"--gpu NAME gives the datasheet's"
    )
    return device, [warning]


def _cluster(profile: GalvatronProfile, device: DeviceSpec) -> ClusterProfile:
    """The machine's shape, with the measured bus bandwidths where they exist."""

    def tier(name: str, devices: int | None, rate: float, technology: str, links: int) -> dict[str, Any]:
        return {
            "name": name,
            "technology": technology,
            "devices": devices,
            "bandwidth_gb_per_s": {"value": rate / GIGA, "basis": "measured", "source": "all-reduce rows"},
            "links": links,
            "latency_us": {
                "value": LATENCY_US[technology],
                "basis": "assumed",
                "source": "none",
                "note": "prices nothing",
            },
        }  # fmt: skip

    per_node, bus = profile.gpus_per_node, profile.bus_bytes_per_s
    inside = bus.get((per_node, True)) or max(bus.values())
    tiers = [tier("inside a node", per_node, inside, "pcie", 1)]
    if profile.nodes > 1:
        across = bus.get((profile.gpus, True)) or min(bus.values())
        tiers.append(tier("between nodes", None, across * per_node, "infiniband", per_node))
    return ClusterProfile.model_validate(
        {
            "name": f"{profile.nodes}x{per_node}-profiled",
            "description": "the machine a measured profile was taken on",
            "node_groups": [
                {
                    "device": device.name,
                    "devices_per_node": per_node,
                    "num_nodes": profile.nodes,
                    "tiers": tiers,
                }
            ],
        }
    )
