"""Collectives of data parallelism and sharding: per microbatch of a layer, once per step of a rank.

Sources: ZeRO (Rajbhandari et al., arXiv 1910.02054); FSDP (Zhao et al., 2304.11277) for gathers before
forward and backward; PyTorch's FSDP2 (torch.distributed.fsdp, _fsdp_param_group.py) and its pipeline stages
(torch.distributed.pipelining, stage.py, backward_maybe_with_nosync) for what they gather and reduce when.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from planner.cost.arrays import Number
from planner.cost.collectives import (
    GroupCosts,
    all_gather_seconds,
    all_reduce_seconds,
    reduce_scatter_seconds,
)
from planner.cost.part import Move
from planner.cost.stack import Stack
from planner.strategy.decision import (
    SHARDING_GRADIENTS,
    SHARDING_NONE,
    SHARDING_OPTIMIZER,
    SHARDING_PARAMETERS,
)

SECONDS = {
    "all_gather": all_gather_seconds,
    "reduce_scatter": reduce_scatter_seconds,
    "all_reduce": all_reduce_seconds,
}


class DataGroups(Protocol):
    """The groups data moves run in: inner ones (the shards), and their replicas across islands."""

    @property
    def data(self) -> GroupCosts: ...
    @property
    def expert_data(self) -> GroupCosts: ...
    @property
    def data_outer(self) -> GroupCosts: ...
    @property
    def expert_data_outer(self) -> GroupCosts: ...


def moves_seconds(groups: DataGroups, moves: tuple[Move, ...]) -> Number:
    """Seconds of ``moves`` one after the other; nothing for empty tensors."""
    by_axis = {
        "dp": groups.data,
        "expert_dp": groups.expert_data,
        "dp_outer": groups.data_outer,
        "expert_dp_outer": groups.expert_data_outer,
    }
    total: Number = 0.0
    for move in moves:
        seconds = SECONDS[move.operation](by_axis[move.axis], move.whole_bytes)
        total = total + np.where(move.whole_bytes > 0, move.count * seconds, 0.0)
    return total


def layer_moves(
    stack: Stack, sharding: Number, has_pipeline: Number, dense: Number, expert: Number, *, is_head: bool
) -> tuple[tuple[Move, ...], tuple[Move, ...]]:
    """(forward, backward) moves of one layer and microbatch; ``sharding`` codes, elements on one rank.

    parameters: all-gather before forward and again before backward, reduce-scatter behind backward.
    gradients: the reduce-scatter, and the forward's all-gather where every backward frees the weights.
    Stacks that hold whole gradients under a pipeline reduce once per step instead.
    """
    is_parameters = np.where(sharding == SHARDING_PARAMETERS, 1.0, 0.0)
    is_gradients = np.where(sharding == SHARDING_GRADIENTS, 1.0, 0.0)
    is_held = np.where(has_pipeline & stack.holds_pipeline_gradients, 1.0, 0.0)
    gathers = is_parameters + is_gradients * (1.0 if stack.gathers_each_microbatch else 0.0)
    again = is_parameters * (1.0 if stack.regathers_head or not is_head else 0.0)
    reduces = (is_parameters + is_gradients) * (1.0 - is_held)
    forward, backward = [], []
    for axis, elements in (("dp", dense), ("expert_dp", expert)):
        forward.append(Move(axis, "all_gather", gathers, elements * stack.parameter_bytes))
        backward.append(Move(axis, "all_gather", again, elements * stack.parameter_bytes))
        backward.append(Move(axis, "reduce_scatter", reduces, elements * stack.gradient_reduce_bytes))
    return tuple(forward), tuple(backward)


def step_moves(
    stack: Stack, sharding: int, has_pipeline: bool, axis: str, elements: float, shard_size: float
) -> tuple[tuple[Move, ...], tuple[Move, ...]]:
    """(reductions, gathers) of ``elements`` once per step, on ``axis`` dp or expert_dp.

    none: all-reduce over the replicas (inside, then across islands of the inner share). optimizer:
    reduce-scatter and all-gather. gradients and parameters reduce inside the microbatches, gradients
    gathers here unless it does in every forward; hybrid sharding all-reduces each shard across islands.
    """
    reduce_bytes = elements * stack.gradient_reduce_bytes
    across = Move(f"{axis}_outer", "all_reduce", 1.0, reduce_bytes / shard_size)
    gather = Move(axis, "all_gather", 1.0, elements * stack.parameter_bytes)
    scatter = Move(axis, "reduce_scatter", 1.0, reduce_bytes)
    if sharding == SHARDING_NONE:
        return (Move(axis, "all_reduce", 1.0, reduce_bytes), across), ()
    if sharding == SHARDING_OPTIMIZER:
        return (scatter, across), (gather,)
    reductions = (scatter, across) if has_pipeline and stack.holds_pipeline_gradients else (across,)
    gathers = (gather,) if sharding == SHARDING_GRADIENTS and not stack.gathers_each_microbatch else ()
    return reductions, gathers
