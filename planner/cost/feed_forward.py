"""One feed-forward sub-layer: dense, or routed experts with dispatch and combine.

Legend: T tokens on the rank, h hidden size, f feed-forward width, t tensor degree, E experts, k experts
per token, e expert-parallel degree, x expert tensor degree. With sequence parallelism a rank routes T / t
tokens; after dispatch its E / e experts see T k x / t tokens on average (x = 1 or t), times the imbalance of
the busiest rank. Sources: Korthikanti et al. (arXiv 2205.05198); GShard (2006.16668) for dispatch and
combine; Megatron-Core MoE for expert tensor parallelism.
"""

from __future__ import annotations

import numpy as np

from planner.cost.arrays import Number, ceil_div
from planner.cost.collectives import all_gather_seconds, all_to_all_seconds
from planner.cost.compute import TILE
from planner.cost.part import Move, Part, Setting
from planner.cost.tensor_parallel import tensor_parallel_part
from planner.model.spec import FeedForward, MixtureOfExperts

# Grouped products launch one kernel an expert and product, under fp8 two casts more (Transformer Engine's
# GroupedLinear over cuBLAS on several streams).
EXPERT_PRODUCTS = 2.0
EXPERT_STREAMS = 4.0


def feed_forward_part(
    ff: FeedForward | MixtureOfExperts,
    hidden_size: int,
    setting: Setting,
    products_before: int = 0,
    *,
    enters: bool = True,
) -> Part:
    """Seconds and bytes of one feed-forward sub-layer for one microbatch on one rank.

    products_before: the matrix products of the block ahead of it, for stacks that repeat every n-th.
    enters: it gathers its own input; False in a dense parallel block, where attention gathered it.
    """
    if isinstance(ff, FeedForward):
        width = ff.ffn_size / setting.tp
        part, input_gradient, weight_gradient = _dense(
            setting, setting.tokens, hidden_size, width, ff.gated, products_before
        )
        gathered = setting.element_bytes * setting.tokens * hidden_size
        parallel = tensor_parallel_part(
            setting, gathered, input_gradient, weight_gradient, enters=enters, is_last=True
        )
        backward = _backward_bytes(setting, hidden_size, width, ff.gated)
        return part + parallel + Part(transient_bytes=gathered, backward_bytes=backward)
    return _experts(ff, hidden_size, setting)


def _backward_bytes(s: Setting, h: int, width: Number, gated: bool) -> Number:
    """Short-lived bytes beside all saved tensors at the fullest of two operators of autograd's backward.

    Either the gradient of the activated product becomes those of its factors (beside the output gradient,
    gathered and the rank's own, and the last product's weight gradient), or the last input gradient is made:
    all weight gradients and an input gradient per product are there, the tensors saved inside are gone.
    """
    inside, hidden = s.element_bytes * s.tokens * width, s.element_bytes * s.tokens * h
    own = np.where(s.norm_split > 1, hidden / s.norm_split, 0.0)
    weight = s.element_bytes * h * width
    factors = 2.0 if gated else 1.0
    freed = inside * ((factors + 1.0) + (1.0 if gated and not s.stack.fuses_gate else 0.0))
    split = factors * inside + hidden + weight
    ending = inside - freed + factors * hidden + (factors + 1.0) * weight
    return np.maximum(split, ending) + own


def _dense(
    s: Setting, tokens: Number, h: int, width: Number, gated: bool, products_before: int = 0
) -> tuple[Part, Number, Number]:
    """The two (three when gated) products and the activation between them."""
    device, stack = s.device, s.stack
    inner = (2.0 if gated else 1.0) * width
    input_gradient = device.matmul_seconds(tokens, h, inner)
    weight_gradient = device.weight_gradient_seconds(inner, h, tokens)
    into, out = device.matmul_seconds(tokens, inner, h), device.matmul_seconds(tokens, h, width)
    output_weights = device.weight_gradient_seconds(width, h, tokens)
    backward = input_gradient + weight_gradient + device.matmul_seconds(tokens, width, h) + output_weights
    activation = s.element_bytes * tokens * (inner + width)
    passes = device.pass_seconds(activation)
    # Activation and product with the gate as two kernels keep the activation's own output as well.
    saved = activation + (s.element_bytes * tokens * width if gated and not stack.fuses_gate else 0.0)
    listed = Part(selective_bytes=saved)
    if stack.recomputed_product_period:
        listed = _selective(s, tokens, h, width, into, gated, products_before)
        listed = listed + Part(selective_recompute=passes)
    part = Part(
        forward_compute=into + out + passes,
        backward_compute=backward + device.pass_seconds(activation + s.element_bytes * tokens * inner),
        spared_compute=out if stack.stops_recompute_early else 0.0,
        saved_bytes=saved,
        transient_bytes=saved,
        kernels=3.0,
        weight_compute=weight_gradient + output_weights,
    )
    return part + listed, input_gradient, weight_gradient


def _selective(
    s: Setting, tokens: Number, h: int, width: Number, into: Number, gated: bool, products_before: int
) -> Part:
    """Bytes kept and product seconds repeated under an operator list.

    The last product is never repeated: where its output is not kept, recompute has already stopped. Where
    it is kept, it is h wide on every tp rank, and its reduce-scattered share is kept beside it.
    """
    first = products_before + 1
    up = range(first, first + (2 if gated else 1))
    is_kept = [s.stack.is_product_kept(ordinal) for ordinal in up]
    extra = np.where(s.norm_split > 1, s.element_bytes * tokens * h / s.norm_split, 0.0)
    if s.stack.is_product_kept(up.stop):
        extra = extra + s.element_bytes * tokens * h
    return Part(
        selective_recompute=into * (1.0 - sum(is_kept) / len(is_kept)),
        selective_bytes=extra + s.element_bytes * tokens * width * sum(is_kept),
        selective_extra_bytes=extra,
    )


def _experts(moe: MixtureOfExperts, h: int, s: Setting) -> Part:
    """Router, dispatch, grouped products, combine, and the shared experts every token passes."""
    device = s.device
    routed = s.tokens / s.norm_split
    router = device.matmul_seconds(routed, moe.num_experts, h, is_half=True)
    rows = routed * moe.experts_per_token * s.expert_tp * device.constants.expert_imbalance
    local_experts = moe.num_experts / s.ep
    width = moe.expert_ffn_size / s.expert_tp
    products = _grouped_products(s, rows, local_experts, h, width, moe.gated)

    sent = s.element_bytes * routed * moe.experts_per_token * h
    dispatched = s.element_bytes * rows * h
    exchanges, gathers = np.where(s.ep > 1, 2.0, 0.0), np.where(s.expert_tp > 1, 1.0, 0.0)
    exchange = exchanges * all_to_all_seconds(s.ep_group, sent)
    expert_gather = 2.0 * gathers * all_gather_seconds(s.expert_tp_group, dispatched)
    moved = [Move("ep", "all_to_all", exchanges, sent, again) for again in ((False, True), (False, False))]
    for operation in ("all_gather", "reduce_scatter"):
        moved.append(Move("expert_tp", operation, gathers, dispatched, (False, True)))
        moved.append(Move("expert_tp", operation, gathers, dispatched))
    permute = device.pass_seconds(4.0 * s.element_bytes * rows * h)  # permute and unpermute, read and write
    total = products + Part(
        forward_compute=router + permute,
        backward_compute=2.0 * router + permute,
        forward_tp=expert_gather,
        backward_tp=expert_gather,
        forward_ep=exchange,
        backward_ep=exchange,
        saved_bytes=dispatched,
        selective_bytes=dispatched,
        transient_bytes=2.0 * dispatched,
        kernels=12.0 + EXPERT_PRODUCTS * local_experts * (3.0 if device.is_fp8 else 1.0),
        collectives=exchanges + 2.0 * gathers,
        moved=tuple(moved),
    )
    if not moe.shared_ffn_size:
        return total
    shared, input_gradient, weight_gradient = _dense(s, s.tokens, h, moe.shared_ffn_size / s.tp, moe.gated)
    gathered = s.element_bytes * s.tokens * h
    return total + shared + tensor_parallel_part(s, gathered, input_gradient, weight_gradient)


def _grouped_products(
    s: Setting, rows: Number, local_experts: Number, h: int, width: Number, gated: bool
) -> Part:
    """Grouped matrix products: one product per local expert over its share of ``rows``.

    Each expert's rows are padded to the tile, which is what makes many small experts slow.
    """
    device = s.device
    per_expert = rows / local_experts
    padded = ceil_div(per_expert, TILE) * TILE
    # One kernel covers a few tiles of several experts: pad by half the distance to the next tile.
    effective = local_experts * (per_expert + padded) / 2.0
    part, _, _ = _dense(s, effective, h, width, gated)
    # Each expert's product starts and ends by itself, on one of a few streams.
    starts = (local_experts - 1.0) / EXPERT_STREAMS * device.start_seconds()
    weights = s.element_bytes * (local_experts - 1.0) * h * width * (3.0 if gated else 2.0)
    reread = device.stream_seconds(weights)
    inner = (2.0 if gated else 1.0) * width
    product = s.element_bytes * rows * width
    saved = s.element_bytes * rows * inner + product
    return Part(
        forward_compute=np.maximum(part.forward_compute + EXPERT_PRODUCTS * starts, reread),
        backward_compute=np.maximum(part.backward_compute + 2.0 * EXPERT_PRODUCTS * starts, 2.0 * reread),
        selective_recompute=device.pass_seconds(s.element_bytes * rows * (inner + width)),
        saved_bytes=saved,
        selective_bytes=saved - product,
        transient_bytes=saved,
        kernels=part.kernels,
        weight_compute=part.weight_compute,
    )
