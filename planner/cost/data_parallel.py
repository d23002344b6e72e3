"""Collectives of data parallelism and sharding: per microbatch of a layer, once per step of a rank.

Sources: ZeRO (Rajbhandari et al., arXiv 1910.02054); FSDP (Zhao et al., 2304.11277) for gathers before
forward and backward; PyTorch's FSDP2 (torch.distributed.fsdp, _fsdp_param_group.py) and its pipeline stages
(torch.distributed.pipelining, stage.py, backward_maybe_with_nosync) for what they gather and reduce when.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from planner.cost.arrays import Number
from planner.cost.collectives import (
    all_gather_seconds,
    all_reduce_seconds,
    broadcast_seconds,
    reduce_scatter_seconds,
)
from planner.cost.groups import Groups
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
    "broadcast": broadcast_seconds,
}


def moves_seconds(groups: Groups, moves: tuple[Move, ...]) -> Number:
    """Seconds of ``moves`` one after the other; nothing for empty tensors."""
    by_axis = {
        "dp": groups.data,
        "expert_dp": groups.expert_data,
        "dp_outer": groups.data_outer,
        "expert_dp_outer": groups.expert_data_outer,
        "tp": groups.tp,
    }
    total: Number = 0.0
    for move in moves:
        group = by_axis[move.axis]
        if isinstance(group.size, float) and group.size <= 1.0:
            continue  # one rank alone: nothing moves
        seconds = SECONDS[move.operation](group, move.whole_bytes)
        total = total + np.where(move.whole_bytes > 0, move.count * seconds, 0.0)
    return total


def layer_moves(
    stack: Stack, sharding: Number, has_pipeline: Number, dense: Number, expert: Number, *, stays: bool
) -> tuple[tuple[Move, ...], tuple[Move, ...]]:
    """(forward, backward) moves of one layer and microbatch; ``sharding`` codes, elements on one rank.

    parameters: all-gather before forward and again before backward, reduce-scatter behind backward.
    gradients: the reduce-scatter, and the forward's all-gather where every backward frees the weights.
    Stacks that hold whole gradients under a pipeline reduce once per step instead. stays: the unit that
    ends forward, whose weights some stacks keep for the backward that follows at once.
    """
    is_parameters = np.where(sharding == SHARDING_PARAMETERS, 1.0, 0.0)
    is_gradients = np.where(sharding == SHARDING_GRADIENTS, 1.0, 0.0)
    is_held = np.where(has_pipeline & stack.holds_pipeline_gradients, 1.0, 0.0)
    gathers = is_parameters + is_gradients * (1.0 if stack.gathers_each_microbatch else 0.0)
    again = is_parameters * (1.0 if stack.regathers_head or not stays else 0.0)
    reduces = (is_parameters + is_gradients) * (1.0 - is_held)
    forward, backward = [], []
    for axis, elements in (("dp", dense), ("expert_dp", expert)):
        if not np.any(elements):
            continue
        forward.append(Move(axis, "all_gather", gathers, elements * stack.parameter_bytes))
        backward.append(Move(axis, "all_gather", again, elements * stack.parameter_bytes))
        backward.append(Move(axis, "reduce_scatter", reduces, elements * stack.gradient_reduce_bytes))
    return tuple(forward), tuple(backward)


def step_moves(
    stack: Stack, sharding: int, has_pipeline: Number, axis: str, elements: Number, shard_size: Number
) -> tuple[tuple[Move, ...], tuple[Move, ...]]:
    """(reductions, gathers) of ``elements`` once per step, on ``axis`` dp or expert_dp.

    none: all-reduce over the replicas (inside, then across islands of the inner share). optimizer:
    reduce-scatter, then all-gather or one broadcast an owner. gradients and parameters reduce inside the
    microbatches, gradients gathers here unless it does in every forward; hybrid sharding all-reduces each
    shard across islands.
    """
    reduce_bytes = elements * stack.gradient_reduce_bytes
    across = Move(f"{axis}_outer", "all_reduce", 1.0, reduce_bytes / shard_size)
    gather = Move(axis, "all_gather", 1.0, elements * stack.parameter_bytes)
    if stack.broadcast_elements:
        pieces = np.maximum(1.0, np.minimum(shard_size, elements / stack.broadcast_elements))
        gather = Move(axis, "broadcast", pieces, elements * stack.parameter_bytes / pieces)
    scatter = Move(axis, "reduce_scatter", 1.0, reduce_bytes)
    if sharding == SHARDING_NONE:
        return (Move(axis, "all_reduce", 1.0, reduce_bytes), across), ()
    if sharding == SHARDING_OPTIMIZER:
        whole = replace(scatter, operation="all_reduce") if stack.reduces_whole_gradients else scatter
        return (whole, across), (gather,)
    is_held = np.where(has_pipeline, 1.0, 0.0)
    held = replace(scatter, count=is_held)
    reductions = (held, across) if stack.holds_pipeline_gradients and np.any(is_held) else (across,)
    gathers = (gather,) if sharding == SHARDING_GRADIENTS and not stack.gathers_each_microbatch else ()
    return reductions, gathers


def norm_move(
    stack: Stack,
    elements: Number,
    hidden_size: int,
    is_sequence: Number,
    has_pipeline: Number,
    *,
    is_step: bool,
) -> Move:
    """All-reduce over tp of the norm weights' gradients, partial sums where each rank norms its own tokens.

    elements: the layer's norm weights. Once per step in the reduction's width (``is_step``), or in every
    backward in the weights' own where the stack reduces them there (DTensor turns each partial gradient
    whole before FSDP2 sees it; a pipeline's waiting gradients stay partial until the end).
    """
    in_backward = np.where(stack.reduces_norms_in_backward & ~np.asarray(has_pipeline), 1.0, 0.0)
    times = 1.0 - in_backward if is_step else in_backward
    width = stack.gradient_reduce_bytes if is_step else stack.parameter_bytes
    return Move("tp", "all_reduce", is_sequence * times * elements / hidden_size, width * hidden_size)
