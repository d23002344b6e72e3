"""Part: what one piece of a layer costs a rank for one microbatch, before pipeline and data parallelism."""

from __future__ import annotations

from dataclasses import dataclass, fields

from planner.cost.arrays import Number
from planner.cost.collectives import GroupCosts
from planner.cost.compute import Device
from planner.cost.stack import Stack


@dataclass(frozen=True)
class Setting:
    """Where a layer runs: per-candidate degrees and sizes (floats or arrays), and the rank groups.

    device prices kernels, stack says what is kept and repeated;
    batch: sequences per microbatch; sequence: tokens of one whole sequence; tokens: batch x sequence / cp,
    what one rank of a tp group sees; tp, cp, ep, expert_tp degrees; norm_split: tp when the activations
    between the matrices are split over the sequence, else 1; the groups price collectives.
    """

    device: Device
    stack: Stack
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
    def element_bytes(self) -> float:
        """Bytes of an element of the tensors between kernels."""
        return self.device.element_bytes

    @property
    def tokens(self) -> Number:
        return self.batch * self.sequence / self.cp


@dataclass(frozen=True)
class Move:
    """``count`` collectives of one operation a rank takes part in, in one pass over one layer.

    axis: tp, cp, ep, dp or pp; operation: all_gather, reduce_scatter, all_reduce, all_to_all or send;
    whole_bytes: the gathered (whole) side of each. is_repeated: whether (selective, full) recompute does
    the forward's move again in backward.
    """

    axis: str
    operation: str
    count: Number
    whole_bytes: Number
    is_repeated: tuple[bool, bool] = (False, False)


@dataclass(frozen=True)
class Part:
    """Seconds and bytes of one piece, forward and backward; sums with ``+``.

    *_compute: kernels; *_tp, *_cp, *_ep: exposed communication of that axis. selective_recompute and
    selective_tp: kernel and tp seconds spent again in backward under selective recompute. spared_compute
    and spared_tp: seconds of forward that full recompute does not repeat. saved_bytes: kept from forward to
    backward without recompute; selective_bytes: kept under selective, selective_extra_bytes of them without
    need in backward. transient_bytes: largest short-lived need; backward_bytes: the same beside all saved
    tensors at backward's fullest operator, for stacks whose moments are walked. kernels and collectives:
    launches in forward (backward is counted twice that). moved: the collectives behind the *_tp, *_cp and
    *_ep seconds. weight_compute: the part of backward_compute that is weight gradients, which no other stage
    waits for.
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
    selective_tp: Number = 0.0
    spared_compute: Number = 0.0
    spared_tp: Number = 0.0
    saved_bytes: Number = 0.0
    selective_bytes: Number = 0.0
    selective_extra_bytes: Number = 0.0
    transient_bytes: Number = 0.0
    backward_bytes: Number = 0.0
    kernels: Number = 0.0
    collectives: Number = 0.0
    weight_compute: Number = 0.0
    moved: tuple[Move, ...] = ()

    def __add__(self, other: Part) -> Part:
        return Part(**{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(Part)})
