"""Part: what one piece of a layer costs a rank for one microbatch, before pipeline and data parallelism."""

from __future__ import annotations

from dataclasses import dataclass, fields

from planner.cost.arrays import Number
from planner.cost.collectives import GroupCosts
from planner.cost.compute import Device


@dataclass(frozen=True)
class Setting:
    """Where a layer runs: per-candidate degrees and sizes (floats or arrays), and the rank groups.

    batch: sequences per microbatch; sequence: tokens of one whole sequence; tokens: batch x sequence / cp,
    what one rank of a tp group sees; tp, cp, ep, expert_tp degrees; norm_split: tp when the activations
    between the matrices are split over the sequence, else 1; the groups price collectives.
    """

    device: Device
    batch: Number
    sequence: float
    tp: Number
    cp: Number
    ep: Number
    expert_tp: Number
    norm_split: Number
    tp_group: GroupCosts
    cp_group: GroupCosts
    ep_group: GroupCosts
    expert_tp_group: GroupCosts
    is_flash: bool

    @property
    def tokens(self) -> Number:
        return self.batch * self.sequence / self.cp


@dataclass(frozen=True)
class Part:
    """Seconds, FLOP and bytes of one piece, forward and backward; sums with ``+``.

    *_compute: kernels; *_tp, *_cp, *_ep: exposed communication of that axis. selective_recompute: kernel
    seconds spent again in backward under selective recompute. saved_bytes: kept from forward to backward
    without recompute; selective_bytes: kept under selective. transient_bytes: largest short-lived need.
    kernels and collectives: launches in forward (backward is counted twice that). weight_compute: the part
    of backward_compute that is weight gradients, which no other stage waits for.
    """

    forward_compute: Number = 0.0
    backward_compute: Number = 0.0
    forward_tp: Number = 0.0
    backward_tp: Number = 0.0
    forward_cp: Number = 0.0
    backward_cp: Number = 0.0
    forward_ep: Number = 0.0
    backward_ep: Number = 0.0
    selective_recompute: Number = 0.0
    saved_bytes: Number = 0.0
    selective_bytes: Number = 0.0
    transient_bytes: Number = 0.0
    kernels: Number = 0.0
    collectives: Number = 0.0
    weight_compute: Number = 0.0

    def __add__(self, other: Part) -> Part:
        return Part(**{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(Part)})
