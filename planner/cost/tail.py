"""What a rank still does after its last backward: gradient reduction, optimizer, parameter gather.

The formulas take floats or arrays, so that the search bounds many candidates with the very terms that
price one plan.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from planner.cost.arrays import Number
from planner.cost.collectives import GroupCosts, all_gather_seconds, all_reduce_seconds, exposed_seconds
from planner.cost.compute import Device
from planner.cost.stack import Stack
from planner.strategy.decision import SHARDING_GRADIENTS, SHARDING_NONE, SHARDING_OPTIMIZER


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
    """Seconds of reduction and gather before hiding, HBM bytes of the update, elements; sums with ``+``."""

    reduce: Number = 0.0
    gather: Number = 0.0
    traffic: Number = 0.0
    elements: Number = 0.0

    def __add__(self, other: Sync) -> Sync:
        return Sync(
            self.reduce + other.reduce,
            self.gather + other.gather,
            self.traffic + other.traffic,
            self.elements + other.elements,
        )


def sync(
    stack: Stack,
    sharding: int,
    elements: Number,
    inner: GroupCosts,
    outer: GroupCosts,
    shard_size: Number,
    moment_bytes: float,
) -> Sync:
    """Once-per-step synchronisation of ``elements`` > 0 of one rank under a sharding code.

    none: all-reduce over all replicas (inner, then outer of the inner's share). optimizer: reduce-scatter
    and all-gather. gradients and parameters reduce inside the microbatches; hybrid sharding adds an
    all-reduce of each shard across the islands (ZeRO, arXiv 1910.02054; PyTorch HSDP).
    """
    reduce_bytes = elements * stack.gradient_reduce_bytes
    weight_bytes = elements * stack.parameter_bytes
    has_outer = outer.size > 1
    across: Number = 0.0
    if np.any(has_outer):
        across = np.where(has_outer, all_reduce_seconds(outer, reduce_bytes / inner.size), 0.0)
    kept = elements / (shard_size if sharding >= SHARDING_OPTIMIZER else 1.0)
    traffic = kept * update_bytes(stack, moment_bytes)
    if sharding == SHARDING_NONE:
        return Sync(all_reduce_seconds(inner, reduce_bytes) + across, 0.0, traffic, elements)
    gather = all_gather_seconds(inner, weight_bytes)
    if sharding == SHARDING_OPTIMIZER:
        return Sync(all_gather_seconds(inner, reduce_bytes) + across, gather, traffic, elements)
    if sharding == SHARDING_GRADIENTS:
        return Sync(across, gather, traffic, elements)
    return Sync(across, 0.0, traffic, elements)


def update_bytes(stack: Stack, moment_bytes: float) -> float:
    """HBM traffic of one update per element: gradient for the norm and the step, states both ways."""
    return 2.0 * stack.gradient_bytes + 2.0 * (stack.master_bytes + moment_bytes) + stack.parameter_bytes


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
    return Tail(reduce, optimizer, gather)
