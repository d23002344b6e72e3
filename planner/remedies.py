"""When nothing fits: the cheapest changes that would, each tried by a search of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from planner.catalog import load_device
from planner.errors import InfeasibleError, PlannerError
from planner.plan_file.schema import Plan
from planner.request import Request
from planner.search.tree import Pins
from planner.units import format_bytes, format_seconds

MAX_REMEDIES = 2

# Plans one request with pins; raises PlannerError when there is no plan.
Planner = Callable[[Request, Pins], Plan]


@dataclass(frozen=True)
class Remedy:
    """A change that makes an infeasible request fit: in words, as flags, and the step time it gives."""

    change: str
    flags: str
    step_seconds: float
    peak_memory_bytes: float


def with_remedies(error: InfeasibleError, request: Request, pins: Pins, plan_of: Planner) -> InfeasibleError:
    """The same error with the cheapest changes that would fit, each tried by a search of its own."""
    found: list[Remedy] = []
    # Other changes are to fit on the GPUs alone: the host is the last resort of every one of them.
    alone = pins if pins.offload else replace(pins, offload="none")
    candidates = [*_host_remedy(error, request, pins), *_remedy_candidates(request, alone, pins)]
    for change, flags, changed, freed in candidates:
        if len(found) == MAX_REMEDIES:
            break
        try:
            plan = plan_of(changed, freed)
        except PlannerError:
            continue
        found.append(Remedy(change, flags, plan.prediction.step_seconds, plan.prediction.peak_memory_bytes))
    hints = [
        f"{r.change} ({r.flags}): fits in {format_bytes(r.peak_memory_bytes)}, "
        f"{format_seconds(r.step_seconds)} a step"
        for r in found
    ]
    details = {key: value for key, value in error.details.items()}
    details["would_fit"] = [r.__dict__ for r in found]
    hint = "would fit: " + "; ".join(hints) if hints else "none of the usual changes fits; use far more GPUs"
    return InfeasibleError(error.message, hint=hint, **details)


def _host_remedy(
    error: InfeasibleError, request: Request, pins: Pins
) -> list[tuple[str, str, Request, Pins]]:
    """More host memory, where the optimizer on the host lacked just that."""
    wanted = (error.details.get("on_host") or error.details).get("host_memory_gib")
    if wanted is None:
        return []
    changed = request.changed(host_memory_gib=float(wanted))
    return [(f"hosts with {wanted} GiB of memory", f"--host-memory-gib {wanted}", changed, pins)]


def _remedy_candidates(request: Request, pins: Pins, given: Pins) -> list[tuple[str, str, Request, Pins]]:
    """Changes in the order of what they cost the user: free pins, lighter optimizer, machine, workload."""
    options: list[tuple[str, str, Request, Pins]] = []
    for name, value in given.items().items():
        options.append(
            (f"free {name} {value}", f"without --{_flag(name)}", request, replace(pins, **{name: None}))
        )
    if len(given.items()) > 1:
        flags = " ".join(f"--{_flag(name)}" for name in given.items())
        options.append(("free every pinned choice", f"without {flags}", request, Pins(offload=given.offload)))
    if request.memory_limit_gib is not None:
        options.append(
            (
                "lift the memory cap",
                "without --memory-limit-gib",
                request.changed(memory_limit_gib=None),
                pins,
            )
        )
    if request.optimizer in ("adamw", "adam"):
        changed = request.changed(optimizer="adamw-8bit")
        options.append(("8-bit optimizer states", "--optimizer adamw-8bit", changed, pins))
    gpus = request.gpus
    if gpus is not None:
        for factor in (2, 4, 8, 16, 32):
            more = gpus * factor
            options.append((f"{more} GPUs", f"--gpus {more}", request.changed(gpus=more), pins))
    if request.gpu is not None:
        options += _larger_gpus(request, pins)
    if request.seq_len is not None and request.seq_len >= 2048:
        half = request.seq_len // 2
        options.append((f"sequence length {half}", f"--seq-len {half}", request.changed(seq_len=half), pins))
    return options


def _flag(name: str) -> str:
    """The option that pins a choice."""
    return "micro-batch" if name == "microbatch_size" else name.replace("_", "-")


def _larger_gpus(request: Request, pins: Pins) -> list[tuple[str, str, Request, Pins]]:
    current = load_device(str(request.gpu))
    options = []
    for name in ("a100-80g-sxm", "h100-sxm", "h200-sxm", "b200-sxm", "mi300x"):
        device = load_device(name)
        if device.memory_bytes > current.memory_bytes * 1.05:
            changed = request.changed(gpu=name)
            options.append(
                (f"{name} with {format_bytes(device.memory_bytes)}", f"--gpu {name}", changed, pins)
            )
    return options
