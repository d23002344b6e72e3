"""Seconds of a collective: alpha-beta per tier, composed over the tiers a group crosses.

Legend: V bytes of the whole (gathered) tensor, N ranks in the group, u_k child units the group touches in
tier k, alpha_k one hop's latency of tier k, b_k the bytes/s one group gets through a child unit's uplink
(shared with the other groups of its family), e_k the achieved share of the link.

Ring (Thakur, Rabenseifner and Gropp 2005; NCCL): every child unit's boundary is crossed by V (N-1)/N bytes
once per pass, so the slowest tier sets the rate: beta = max_k 1/(b_k e_k). One pass walks N-1 edges, of
which (u_k - 1) prod_{j>k} u_j lie in tier k. Tree all-reduce: 2 sum_k alpha_k ceil(log2 u_k). All-to-all:
n (N-n)/N of each rank's bytes leave a child unit of n members.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from planner.cluster.topology import Cluster, Crossing
from planner.cost.arrays import Array, IntArray, Number
from planner.cost.constants import Constants

# What any collective takes before its first hop: NCCL's own tuning constant (graph/tuning.cc, ring, Simple).
BASE_LATENCY_SECONDS = 8.4e-6


@dataclass(frozen=True)
class GroupCosts:
    """Coefficients of one group family, or arrays of them, one entry per candidate.

    size: ranks in the group. ring_seconds_per_byte and ring_latency: one pass. tree_latency: a whole
    all-reduce. switch_seconds_per_byte and switch_latency: in-network all-reduce (infinite rate when the
    switches cannot). exchange_*: all-to-all per byte a rank sends in total. wire_bytes_factor is 0 for
    groups of one.
    """

    size: Number
    ring_seconds_per_byte: Number
    ring_latency: Number
    tree_latency: Number
    switch_seconds_per_byte: Number
    switch_latency: Number
    exchange_seconds_per_byte: Number
    exchange_latency: Number

    def share(self) -> Number:
        """(N-1)/N: the part of a gathered tensor that must travel."""
        return (self.size - 1.0) / self.size


def group_costs(cluster: Cluster, constants: Constants, stride: int, size: int) -> GroupCosts:
    """Coefficients of the (stride, size) group family on ``cluster``; all zero for size 1."""
    crossings = cluster.crossings(stride, size)
    if not crossings:
        return GroupCosts(float(max(1, size)), 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
    rates = [c.bytes_per_s * constants.efficiency_of(c.link.technology) for c in crossings]
    ring_latency = sum(
        c.link.latency_seconds * (c.units - 1) * math.prod(o.units for o in crossings[index + 1 :])
        for index, c in enumerate(crossings)
    )
    ring_latency += BASE_LATENCY_SECONDS
    log_latency = BASE_LATENCY_SECONDS + sum(
        c.link.latency_seconds * math.ceil(math.log2(c.units)) for c in crossings
    )
    beta = 1.0 / min(rates)
    has_switch = all(c.link.in_network_reduction for c in crossings)
    switch = beta / constants.in_network_efficiency if has_switch else math.inf
    exchange = max(_exchange_factor(c, size) / rate for c, rate in zip(crossings, rates, strict=True))
    return GroupCosts(
        size=float(size),
        ring_seconds_per_byte=beta,
        ring_latency=ring_latency,
        tree_latency=2.0 * log_latency,
        switch_seconds_per_byte=switch,
        switch_latency=2.0 * log_latency,
        exchange_seconds_per_byte=exchange,
        exchange_latency=log_latency,
    )


def _exchange_factor(crossing: Crossing, size: int) -> float:
    inside = crossing.members
    return inside * (size - inside) / size


def group_costs_arrays(
    cluster: Cluster, constants: Constants, stride: IntArray, size: IntArray
) -> GroupCosts:
    """``group_costs`` for arrays of (stride, size): each distinct pair is looked up once."""
    pairs = stride * (1 << 32) + size
    distinct, inverse = np.unique(pairs, return_inverse=True)
    table = [
        group_costs(cluster, constants, int(pair >> 32), int(pair & 0xFFFFFFFF)) for pair in distinct.tolist()
    ]

    def column(name: str) -> Array:
        values = np.array([getattr(row, name) for row in table], dtype=np.float64)
        return values[inverse]

    return GroupCosts(*(column(name) for name in GroupCosts.__dataclass_fields__))


def all_gather_seconds(group: GroupCosts, whole_bytes: Number) -> Number:
    """Ring all-gather of ``whole_bytes`` (the gathered tensor): (N-1)/N V beta + ring latency."""
    return whole_bytes * group.share() * group.ring_seconds_per_byte + group.ring_latency


def reduce_scatter_seconds(group: GroupCosts, whole_bytes: Number) -> Number:
    """Ring reduce-scatter of ``whole_bytes`` (the unreduced tensor): the all-gather's mirror image."""
    return all_gather_seconds(group, whole_bytes)


def all_reduce_seconds(group: GroupCosts, whole_bytes: Number) -> Number:
    """The fastest of ring (2 passes), tree (2 V beta, logarithmic latency) and in-network reduction."""
    ring = 2.0 * all_gather_seconds(group, whole_bytes)
    tree = 2.0 * whole_bytes * group.ring_seconds_per_byte + group.tree_latency
    # Where switches cannot reduce the rate is infinite, and no number for no bytes: fmin skips that.
    with np.errstate(invalid="ignore"):
        switch = whole_bytes * group.switch_seconds_per_byte + group.switch_latency
    return np.fmin(np.minimum(ring, tree), switch)


def broadcast_seconds(group: GroupCosts, whole_bytes: Number) -> Number:
    """Ring broadcast of ``whole_bytes``: V beta + the latency of every hop; 0 for a group of one."""
    return np.where(group.size > 1.0, whole_bytes * group.ring_seconds_per_byte + group.ring_latency, 0.0)


def exposed_seconds(communication: Number, window: Number, theft: float) -> Number:
    """What a collective adds to the step when ``window`` seconds of compute run beside it.

    Beside compute only (1 - theft) of the window hides it; even a fully hidden collective takes its
    theft of the multiprocessors and HBM from the compute it runs beside.
    """
    return np.maximum(theft * communication, communication - window * (1.0 - theft))


def all_to_all_seconds(group: GroupCosts, rank_bytes: Number) -> Number:
    """All-to-all in which each rank holds ``rank_bytes`` in total, its own share included."""
    return rank_bytes * group.exchange_seconds_per_byte + group.exchange_latency


def send_seconds(
    cluster: Cluster, constants: Constants, first_rank: int, stride: int, num_bytes: float
) -> float:
    """One pipeline send of ``num_bytes`` per rank from ranks first_rank.. to the next ``stride`` ranks."""
    link, bytes_per_s = cluster.neighbour_link(first_rank, stride)
    return link.latency_seconds + num_bytes / (bytes_per_s * constants.efficiency_of(link.technology))
