"""What a rank still does after its last backward: gradient reduction, optimizer, parameter gather.

The formulas take floats or arrays, so that the search bounds many candidates with the very terms that
price one plan.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from planner.cost.arrays import Number
from planner.cost.collectives import exposed_seconds
from planner.cost.compute import Device
from planner.cost.data_parallel import moves_seconds, step_moves
from planner.cost.groups import Groups
from planner.cost.offload import host_bytes, host_update_seconds
from planner.cost.stack import Stack
from planner.strategy.decision import SHARDING_OPTIMIZER


@dataclass(frozen=True)
class Tail:
    """What a rank still does after its last backward, seconds.

    reduce: gradient reduction left exposed; optimizer: norm and update; gather: parameter gather exposed.
    """

    reduce: Number
    optimizer: Number
    gather: Number

    @property
    def total(self) -> Number:
        return self.reduce + self.optimizer + self.gather


@dataclass(frozen=True)
class Sync:
    """Seconds of reduction and gather before hiding, HBM bytes of the update, elements; sums with ``+``.

    link_bytes, host_bytes, held_bytes: what an update on the host moves over its link, through its memory,
    and keeps there (see ``offload``).
    """

    reduce: Number = 0.0
    gather: Number = 0.0
    traffic: Number = 0.0
    elements: Number = 0.0
    link_bytes: Number = 0.0
    host_bytes: Number = 0.0
    held_bytes: Number = 0.0

    def __add__(self, other: Sync) -> Sync:
        return Sync(
            self.reduce + other.reduce,
            self.gather + other.gather,
            self.traffic + other.traffic,
            self.elements + other.elements,
            self.link_bytes + other.link_bytes,
            self.host_bytes + other.host_bytes,
            self.held_bytes + other.held_bytes,
        )


def sync(
    stack: Stack,
    sharding: int,
    has_pipeline: Number,
    groups: Groups,
    moment_bytes: float,
    axis: str,
    elements: Number,
) -> Sync:
    """Once-per-step synchronisation of ``elements`` of one rank on ``axis`` dp or expert_dp."""
    size = groups.shard_size if axis == "dp" else groups.expert_shard_size
    reductions, gathers = step_moves(stack, sharding, has_pipeline, axis, elements, size)
    kept = elements / (size if sharding >= SHARDING_OPTIMIZER else 1.0)
    return Sync(
        moves_seconds(groups, reductions),
        moves_seconds(groups, gathers),
        kept * update_bytes(stack, moment_bytes),
        elements,
        *(kept * one for one in host_bytes(stack, moment_bytes)),
    )


def update_bytes(stack: Stack, moment_bytes: float) -> float:
    """HBM traffic of one update per element: gradient for the norm and the step, states both ways.

    On the host: the gradient read twice (norm, copy) and the new weights written.
    """
    if stack.has_host_optimizer:
        return 2.0 * stack.gradient_bytes + stack.parameter_bytes
    update = 2.0 * stack.gradient_bytes + 2.0 * (stack.master_bytes + moment_bytes)
    return update + (stack.parameter_bytes if stack.keeps_master_apart else 0.0)


def exposed_tail(
    device: Device, stack: Stack, data_ranks: Number, total: Sync, forward: Number, backward: Number
) -> Tail:
    """The tail of one rank whose layers synchronise ``total``.

    ``forward`` and ``backward`` are the rank's seconds for one microbatch: the windows that hide the
    gather and the reduction. Each is at least one bucket long: the last bucket has nothing to hide
    behind (Li et al., PyTorch DDP, arXiv 2006.15704, section 3.2).
    """
    bucket = np.maximum(stack.bucket_parameters, stack.bucket_parameters_per_rank * data_ranks)
    buckets = np.maximum(1.0, total.elements / bucket)
    theft = device.constants.overlap_theft
    reduce, gather = total.reduce, total.gather
    if stack.hides_gradient_reduction:
        reduce = np.maximum(reduce / buckets, exposed_seconds(reduce, backward, theft))
    if stack.hides_parameter_gather:
        gather = np.maximum(gather / buckets, exposed_seconds(gather, forward, theft))
    optimizer = device.stream_seconds(total.traffic) * device.constants.optimizer_bytes_factor
    optimizer = optimizer + host_update_seconds(device, total.link_bytes, total.host_bytes)
    return Tail(reduce, optimizer, gather)
