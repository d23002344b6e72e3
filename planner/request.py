"""From what a user asked to a problem: names and numbers in, facts and stated assumptions out."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

from pydantic import ValidationError

from planner.calibration.error_bars import ErrorBars
from planner.calibration.shipped import load_calibration, shipped
from planner.catalog import load_device, load_model, load_profile
from planner.cluster.default_profile import default_profile, node_size
from planner.cluster.spec import ClusterProfile, DeviceSpec, Quantity
from planner.cluster.topology import Cluster, resolve_cluster
from planner.cost.constants import Constants
from planner.cost.stack import STACKS
from planner.errors import InputError
from planner.model.spec import ModelSpec
from planner.strategy.candidates import Problem
from planner.units import GIB, format_bytes
from planner.workload import Workload

DEFAULT_SEQUENCE_LENGTH = 4096
DEFAULT_TOKENS_PER_STEP = 4e6
# Share of the device memory kept free by default, however sure the prediction is: what fragmentation needs.
MEMORY_MARGIN = 0.05
# Highest P(out of memory) a plan may have by default: one run in five. Training jobs that fail for memory do
# so in their first steps, so a lost start is weighed against memory that would stand idle in every run.
OOM_RISK = 0.2
MAX_GPUS = 1 << 20
DEFAULT_STACK = "megatron"


@dataclass(frozen=True)
class Request:
    """What to plan. ``model``, ``cluster`` and ``gpu`` are names or paths; None means a stated default.

    ``calibration`` is a file of fitted constants instead of the shipped ones.
    ``network_gbit`` is per GPU, ``host_memory_gib`` per node; ``memory_limit_gib`` caps what a plan may use
    per GPU, ``oom_risk`` its P(out of memory). ``device``, ``constants``, ``errors`` and ``origins`` bring a
    plan file's own instead of the catalog's and the calibration's.
    """

    model: str | ModelSpec
    cluster: str | ClusterProfile | None = None
    gpu: str | None = None
    gpus: int | None = None
    gpus_per_node: int | None = None
    network_gbit: float | None = None
    seq_len: int | None = None
    global_batch: int | None = None
    precision: str | None = None
    optimizer: str | None = "adamw"
    attention: str | None = "flash"
    memory_limit_gib: float | None = None
    oom_risk: float | None = None
    tokens: float | None = None
    calibration: str | None = None
    device: DeviceSpec | None = None
    constants: Constants | None = None
    errors: ErrorBars | None = None
    origins: dict[str, str] | None = None
    host_memory_gib: float | None = None

    def changed(self, **values: Any) -> Request:
        """A copy with some answers replaced."""
        return replace(self, **values)


@dataclass(frozen=True)
class Resolved:
    """The problem, the documents behind it, and what was assumed or warned about."""

    problem: Problem
    profile: ClusterProfile
    device: DeviceSpec
    constants: Constants
    errors: ErrorBars
    origins: dict[str, str]
    oom_risk: float | None = None
    assumptions: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class ClusterChoice:
    """A machine as chosen: the cluster, its documents, and the assumptions made for it."""

    cluster: Cluster
    profile: ClusterProfile
    device: DeviceSpec
    assumptions: list[str]


def resolve(request: Request, stack: str = DEFAULT_STACK) -> Resolved:
    """The problem a request describes, with the constants fitted for a training ``stack``.

    Raises InputError with a value that would work.
    """
    fitted_as = STACKS[stack].fitted_as
    warnings: list[str] = []
    if isinstance(request.model, ModelSpec):
        model = request.model
    else:
        model, warnings = load_model(request.model)
    choice = _with_host(choose_cluster(request), request.host_memory_gib)
    notes = list(choice.assumptions)
    workload = _workload(request, model, choice, notes)
    _check_positions(model, workload, warnings)
    fitted = load_calibration(request.calibration) if request.calibration else shipped()
    generation = choice.device.generation
    site = fitted.only_site(generation) if request.calibration else ""
    errors = request.errors or fitted.errors_of(generation, fitted_as, site)
    profile, cluster = choice.profile, choice.cluster
    if fitted.links and request.constants is None:
        profile = fitted.with_links(profile)
        cluster = resolve_cluster(profile, choice.device, cluster.num_devices)
    limit, risk = _memory_limit(request, choice.device, errors, notes)
    return Resolved(
        problem=Problem(model, cluster, workload, limit),
        profile=profile,
        device=choice.device,
        constants=request.constants or fitted.constants_for(choice.device, fitted_as, site),
        errors=errors,
        origins=fitted.origins(generation, fitted_as, site) if request.origins is None else request.origins,
        oom_risk=risk,
        assumptions=notes,
        warnings=warnings,
    )


def choose_cluster(request: Request) -> ClusterChoice:
    """The machine of a request: a profile by name or file, or a default one for ``gpu`` x ``gpus``."""
    _positive_count("--gpus", request.gpus)
    _positive_count("--gpus-per-node", request.gpus_per_node)
    if request.network_gbit is not None and not _is_positive(request.network_gbit):
        raise InputError(
            f"--network must be a positive number of Gb/s per GPU, not {request.network_gbit}",
            hint="use --network 400",
        )
    if request.cluster is not None:
        return _from_profile(request)
    if request.gpu is None or request.gpus is None:
        missing = "--gpus" if request.gpu is not None else "--cluster or --gpu"
        raise InputError(
            f"the machine is not complete: {missing} is missing",
            hint="use --gpu h100-sxm --gpus 64, or --cluster dgx-h100 --gpus 64",
        )
    device = load_device(request.gpu)
    profile, notes = default_profile(device, request.gpus, request.gpus_per_node, request.network_gbit)
    return ClusterChoice(resolve_cluster(profile, device), profile, device, notes)


def _with_host(choice: ClusterChoice, memory_gib: float | None) -> ClusterChoice:
    """The machine with the host memory asked for, GiB a node. Raises InputError for one that is none."""
    if memory_gib is None:
        return choice
    if not _is_positive(memory_gib):
        raise InputError(
            f"--host-memory-gib must be a positive number of GiB a node, not {memory_gib}",
            hint="use --host-memory-gib 512",
        )
    stated = Quantity(value=memory_gib, basis="assumed", source="--host-memory-gib")
    groups = [g.model_copy(update={"host_memory_gib": stated}) for g in choice.profile.node_groups]
    profile = choice.profile.model_copy(update={"node_groups": groups})
    cluster = resolve_cluster(profile, choice.device, choice.cluster.num_devices)
    return replace(choice, profile=profile, cluster=cluster)


def available_gpus(request: Request) -> tuple[int, int]:
    """(GPUs of the machine, GPUs in one of its nodes), before any rule about whole nodes.

    Raises InputError when the machine is not complete.
    """
    if request.cluster is None:
        if request.gpu is None or request.gpus is None:
            choose_cluster(request)
        _positive_count("--gpus", request.gpus)
        _positive_count("--gpus-per-node", request.gpus_per_node)
        gpus = int(request.gpus or 0)
        return gpus, node_size(load_device(str(request.gpu)), gpus, request.gpus_per_node)
    profile = (
        request.cluster if isinstance(request.cluster, ClusterProfile) else load_profile(request.cluster)
    )
    group = profile.node_groups[0]
    _positive_count("--gpus", request.gpus)
    return request.gpus or group.num_nodes * group.devices_per_node, group.devices_per_node


def _from_profile(request: Request) -> ClusterChoice:
    clashes = [
        flag
        for flag, value in (
            ("--gpu", request.gpu),
            ("--gpus-per-node", request.gpus_per_node),
            ("--network", request.network_gbit),
        )
        if value is not None
    ]
    if clashes:
        raise InputError(
            f"--cluster already fixes the machine; {', '.join(clashes)} cannot be given with it",
            hint="drop it, or use --gpu NAME --gpus N --network GBIT without --cluster",
        )
    cluster = request.cluster
    profile = cluster if isinstance(cluster, ClusterProfile) else load_profile(str(cluster))
    device = request.device or load_device(profile.node_groups[0].device)
    chosen = resolve_cluster(profile, device, request.gpus)
    notes = []
    if request.gpus is None:
        notes.append(f"all {chosen.num_devices} GPUs of {profile.name} (set --gpus for fewer)")
    return ClusterChoice(chosen, profile, device, notes)


def _workload(request: Request, model: ModelSpec, choice: ClusterChoice, notes: list[str]) -> Workload:
    precision = request.precision
    if precision is None:
        able = choice.device.peak_tflop_per_s
        precision = "bf16" if "bf16" in able else "fp16"
        if precision == "fp16":
            notes.append(f"precision fp16: {choice.device.name} has no bf16 matrix units")
    fixed = model.fixed_sequence_length
    sequence = request.seq_len
    if fixed is not None:
        if sequence not in (None, fixed):
            raise InputError(
                f"{model.name} reads inputs of {fixed} tokens (images fix the length), not {sequence}",
                allowed=[fixed],
                hint=f"drop --seq-len or use --seq-len {fixed}",
            )
        sequence = fixed
    elif sequence is None:
        sequence = min(model.max_sequence_length, DEFAULT_SEQUENCE_LENGTH)
        notes.append(f"sequence length {sequence} (set --seq-len)")
    batch = request.global_batch
    if batch is None:
        gpus = choice.cluster.num_devices
        batch = max(gpus, 2 ** round(math.log2(DEFAULT_TOKENS_PER_STEP / max(1, sequence))))
        notes.append(f"global batch {batch} sequences (set --global-batch)")
    values = {
        "sequence_length": sequence,
        "global_batch": batch,
        "precision": precision,
        "optimizer": request.optimizer,
        "attention": request.attention,
        "tokens": request.tokens,
    }
    try:
        return Workload.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        flag = WORKLOAD_FLAGS.get(str(first["loc"][0]), str(first["loc"][0]))
        raise InputError(
            f"{flag} {first['input']!r}: {first['msg'].lower()}",
            hint=WORKLOAD_HINTS.get(flag, ""),
        ) from error


WORKLOAD_FLAGS = {
    "sequence_length": "--seq-len",
    "global_batch": "--global-batch",
    "precision": "--precision",
    "optimizer": "--optimizer",
    "attention": "--attention",
    "tokens": "--tokens",
}
WORKLOAD_HINTS = {
    "--seq-len": "use --seq-len 4096",
    "--global-batch": "use --global-batch 512",
    "--precision": "use --precision bf16",
    "--optimizer": "use --optimizer adamw",
    "--attention": "use --attention flash",
    "--tokens": "use --tokens 1e12",
}


def _check_positions(model: ModelSpec, workload: Workload, warnings: list[str]) -> None:
    """Learned positions cannot be exceeded; other schemes are warned about past their trained length."""
    for stack in model.stacks:
        length = workload.sequence_length * stack.sequence_scale
        rows = stack.embedding.num_positions
        if rows and model.fixed_sequence_length is None and length > rows:
            raise InputError(
                f"{model.name} has {rows} learned positions; --seq-len {workload.sequence_length} needs "
                f"{length:g}",
                allowed=int(rows / stack.sequence_scale),
                hint=f"use --seq-len {int(rows / stack.sequence_scale)} or less",
            )
    if workload.sequence_length > model.max_sequence_length:
        warnings.append(
            f"sequence length {workload.sequence_length} is beyond the {model.max_sequence_length} that "
            f"{model.name} is defined for"
        )


def _memory_limit(
    request: Request, device: DeviceSpec, errors: ErrorBars, notes: list[str]
) -> tuple[float, float | None]:
    """(bytes a plan may use per device, the P(out of memory) this was made for or None).

    The cap asked for; else the peak at the highest risk allowed, and no more than the capacity less the
    margin. A cap and a risk both given: the lower of the two.
    """
    capacity = device.memory_bytes
    risk = OOM_RISK if request.oom_risk is None else request.oom_risk
    if not 0.0 < risk < 1.0:
        raise InputError(
            f"--oom-risk must lie between 0 and 1, not {risk:g}", hint=f"use --oom-risk {OOM_RISK:g}"
        )
    most = errors.peak_bytes_at_risk(capacity, risk)
    if request.memory_limit_gib is None:
        margin = capacity * (1.0 - MEMORY_MARGIN)
        limit = min(most, margin)
        why = (
            f"risk of running out of memory at most {risk:.0%}"
            if most < margin
            else f"{MEMORY_MARGIN:.0%} kept free"
        )
        notes.append(
            f"memory limit {format_bytes(limit)} of {format_bytes(capacity)}: {why} "
            f"(set --oom-risk or --memory-limit-gib)"
        )
        return limit, risk
    if not _is_positive(request.memory_limit_gib):
        raise InputError(
            f"--memory-limit-gib must be a positive number, not {request.memory_limit_gib}",
            hint=f"use --memory-limit-gib {capacity / GIB * 0.95:.0f}",
        )
    limit = request.memory_limit_gib * GIB
    if limit > capacity:
        raise InputError(
            f"--memory-limit-gib {request.memory_limit_gib:g} is more than {device.name} has "
            f"({format_bytes(capacity)})",
            allowed=capacity / GIB,
            hint=f"use --memory-limit-gib {math.floor(capacity / GIB)} or less",
        )
    return (limit, None) if request.oom_risk is None else (min(limit, most), risk)


def _is_positive(value: float) -> bool:
    return math.isfinite(value) and value > 0


def _positive_count(flag: str, value: int | None) -> None:
    if value is not None and not 0 < value <= MAX_GPUS:
        raise InputError(f"{flag} must be between 1 and {MAX_GPUS}, not {value}", hint=f"use {flag} 8")
