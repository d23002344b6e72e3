"""Collectives of tensor parallelism around one sub-layer: their seconds, and the moves themselves.

Sources: Shoeybi et al. (arXiv 1909.08053) for the all-reduces; Korthikanti et al. (2205.05198) for their
split into all-gather and reduce-scatter along the sequence; DTensor's ColwiseParallel, RowwiseParallel and
SequenceParallel styles for what PyTorch does instead of gathering twice.
"""

from __future__ import annotations

import numpy as np

from planner.cost.arrays import Number
from planner.cost.collectives import all_gather_seconds, all_reduce_seconds, exposed_seconds
from planner.cost.part import Move, Part, Setting

LOSS_REDUCTIONS = 3.0
LOSS_BYTES = 4.0


def tensor_parallel_part(
    s: Setting,
    whole_bytes: Number,
    hide_gather: Number = 0.0,
    hide_scatter: Number = 0.0,
    *,
    enters: bool = True,
    leaves: bool = True,
    is_last: bool = False,
) -> Part:
    """Exposed seconds and moves of a sub-layer whose input and output are ``whole_bytes`` when gathered.

    enters: its first product is split by columns, so its input is gathered; leaves: its last product is
    split by rows, so its output is summed (an embedding only leaves, a head only enters). Under a split
    sequence forward gathers and reduce-scatters; backward gathers the output gradient (exposed), gathers
    the input again under the input-gradient product (``hide_gather`` seconds) unless the stack kept it, and
    reduce-scatters under the weight-gradient product (``hide_scatter``). Otherwise one all-reduce forward
    where it leaves, one backward where it enters, hidden under the weight-gradient product. A stack that
    overlaps nothing hides none of it; one that cuts collectives and products in pieces hides the gathers and
    scatters of forward too, and the gather of the output gradient, all but their first piece. is_last: the
    block's last sub-layer, whose sum full recompute with an early stop does not repeat.
    """
    theft, group, stack = s.device.constants.overlap_theft, s.tp_group, s.stack
    if not stack.hides_tensor_collectives:
        hide_gather = hide_scatter = 0.0
    is_split = s.tp > 1
    is_sequence = np.where(is_split & (s.norm_split > 1), 1.0, 0.0)
    is_whole = np.where(is_split & (s.norm_split <= 1), 1.0, 0.0)
    one_pass = all_gather_seconds(group, whole_bytes)
    both = all_reduce_seconds(group, whole_bytes)
    is_list = stack.recomputed_product_period > 0
    stops = is_last and stack.stops_recompute_early

    gathered = is_sequence * one_pass
    if stack.hides_forward_collectives:
        # User buffers cut gather, product and scatter in tp pieces: the first piece has no product beside it.
        piece = np.maximum(one_pass / s.tp, exposed_seconds(one_pass, hide_gather, theft))
        gathered = is_sequence * piece
    summed = gathered + is_whole * both
    forward = (gathered if enters else 0.0) + (summed if leaves else 0.0)
    backward = gathered if leaves else 0.0 * gathered
    moved = []
    if enters:
        again = exposed_seconds(one_pass, hide_gather, theft) if stack.gathers_input_again else 0.0
        scatter = exposed_seconds(one_pass, hide_scatter, theft)
        backward = backward + is_sequence * (again + scatter)
        backward = backward + is_whole * exposed_seconds(both, hide_scatter, theft)
        gathers = is_sequence * (1.0 if stack.gathers_input_again else 0.0)
        moved += [
            Move("tp", "all_gather", is_sequence, whole_bytes, (is_list, True)),
            Move("tp", "all_gather", gathers, whole_bytes),
            Move("tp", "reduce_scatter", is_sequence, whole_bytes),
            Move("tp", "all_reduce", is_whole, whole_bytes),
        ]
    if leaves:
        moved += [
            Move("tp", "reduce_scatter", is_sequence, whole_bytes, (False, not stops)),
            Move("tp", "all_reduce", is_whole, whole_bytes, (False, not stops)),
            Move("tp", "all_gather", is_sequence, whole_bytes),
        ]
    launches = float(enters) * is_sequence + float(leaves) * (is_sequence + is_whole)
    return Part(
        forward_tp=forward,
        backward_tp=backward,
        selective_tp=gathered if enters and is_list else 0.0,
        spared_tp=summed if stops and leaves else 0.0,
        collectives=launches,
        moved=tuple(moved),
    )


def parallel_loss_part(s: Setting) -> Part:
    """The loss over logits split by vocabulary: maximum, sum and target all-reduced, fp32, per token.

    Megatron-LM's vocab_parallel_cross_entropy and DTensor's loss_parallel both reduce these three.
    """
    is_split = np.where(s.tp > 1, 1.0, 0.0)
    whole_bytes = LOSS_BYTES * s.tokens
    seconds = is_split * LOSS_REDUCTIONS * all_reduce_seconds(s.tp_group, whole_bytes)
    move = Move("tp", "all_reduce", is_split * LOSS_REDUCTIONS, whole_bytes)
    return Part(forward_tp=seconds, collectives=is_split * LOSS_REDUCTIONS, moved=(move,))
