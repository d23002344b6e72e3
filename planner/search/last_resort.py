"""The optimizer on the host as a last resort: tried only when nothing fits with it on the GPUs.

So an ordinary plan pays nothing for it, and one that fits never gets it. The same search runs again on the
same formulas with an empty GPU share of the states; what the host can hold is judged on whole decisions.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from planner.cost.model import CostModel
from planner.cost.offload import host_bytes, usable_bytes
from planner.errors import InfeasibleError, SolverError
from planner.model.parameters import total_parameters
from planner.search.engine import SearchResult, search
from planner.search.tree import Pins
from planner.search.words import describe_space
from planner.strategy.decision import OFFLOAD_OPTIMIZER
from planner.strategy.limits import Limits
from planner.strategy.rules import HOST_OPTIMIZERS
from planner.units import GIB, format_bytes

ON_HOST = "optimizer"


def search_all(model: CostModel, limits: Limits, pins: Pins, **asked: Any) -> SearchResult:
    """``search`` on the GPUs alone; where nothing fits there, with the optimizer on the host.

    ``asked``: the keyword arguments of ``search``. A pinned ``offload`` tries that alone. Raises
    InfeasibleError for the GPUs, saying what the host would have needed where it was tried; SolverError where
    the host has no plan either and the solver did not say whether the GPUs alone have one.
    """
    if pins.offload == ON_HOST:
        return _on_host(model, limits, pins, asked)
    try:
        return search(model, limits, pins, **asked)
    except (InfeasibleError, SolverError) as error:
        if pins.offload is not None or not may_offload(model, limits):
            raise
        try:
            found = _on_host(model, limits, replace(pins, offload=ON_HOST), asked)
        except (InfeasibleError, SolverError) as second:
            if isinstance(error, SolverError) or "nearest_miss" not in error.details:
                raise error from None  # not for memory, or not known
            raise InfeasibleError(
                f"{error.message}. With the optimizer on the host too: {second.message}",
                hint=error.hint,
                **{**error.details, "on_host": {"message": second.message, **second.details}},
            ) from None
    found.space = f"{describe_space(limits, pins)}; optimizer on the host, for nothing fits without"
    return found


def may_offload(model: CostModel, limits: Limits) -> bool:
    """Whether the launcher, its stack and the optimizer allow the optimizer on the host."""
    is_adam = model.problem.workload.optimizer in HOST_OPTIMIZERS
    return bool(limits.offload_shardings) and model.stack.keeps_master_apart and is_adam


def _on_host(model: CostModel, limits: Limits, pins: Pins, asked: dict[str, Any]) -> SearchResult:
    placed = model.placed(OFFLOAD_OPTIMIZER)
    _require_host(placed)
    kept = tuple(name for name in limits.shardings if name in limits.offload_shardings)
    return search(placed, replace(limits, shardings=kept), pins, **asked)


def _require_host(model: CostModel) -> None:
    """Raises InfeasibleError when the states pass what the nodes hold, however they are spread."""
    cluster = model.problem.cluster
    moments = model.problem.workload.moment_bytes_per_parameter
    held = host_bytes(model.stack, moments)[2]
    need = total_parameters(model.problem.model) * held / cluster.num_nodes
    room = usable_bytes(cluster.host)
    if need > room:
        wanted = math.ceil(need / room * cluster.host.memory_bytes / GIB)
        raise InfeasibleError(
            f"the host of each of {cluster.num_nodes} nodes would hold {format_bytes(need)} of optimizer "
            f"states, and {format_bytes(room)} of its memory are usable",
            hint=f"use --host-memory-gib {wanted}, if the nodes have it",
            rule="host-memory",
            host_bytes=need,
            usable_host_bytes=room,
            host_memory_gib=wanted,
        )
