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
from planner.cost.attention import tensor_parallel_collectives, tensor_parallel_seconds
from planner.cost.collectives import all_gather_seconds, all_to_all_seconds
from planner.cost.compute import ELEMENT_BYTES, TILE
from planner.cost.part import Part, Setting
from planner.model.spec import FeedForward, MixtureOfExperts


def feed_forward_part(ff: FeedForward | MixtureOfExperts, hidden_size: int, setting: Setting) -> Part:
    """Seconds and bytes of one feed-forward sub-layer for one microbatch on one rank."""
    if isinstance(ff, FeedForward):
        part, input_gradient, weight_gradient = _dense(
            setting, setting.tokens, hidden_size, ff.ffn_size / setting.tp, ff.gated
        )
        gathered = ELEMENT_BYTES * setting.tokens * hidden_size
        forward, backward = tensor_parallel_seconds(setting, gathered, input_gradient, weight_gradient)
        return part + Part(
            forward_tp=forward,
            backward_tp=backward,
            transient_bytes=gathered,
            collectives=tensor_parallel_collectives(setting),
        )
    return _experts(ff, hidden_size, setting)


def _dense(s: Setting, tokens: Number, h: int, width: Number, gated: bool) -> tuple[Part, Number, Number]:
    """The two (three when gated) products and the activation between them."""
    device = s.device
    inner = (2.0 if gated else 1.0) * width
    input_gradient = device.matmul_seconds(tokens, h, inner)
    weight_gradient = device.matmul_seconds(inner, h, tokens)
    forward = device.matmul_seconds(tokens, inner, h) + device.matmul_seconds(tokens, h, width)
    output_weights = device.matmul_seconds(width, h, tokens)
    backward = input_gradient + weight_gradient + device.matmul_seconds(tokens, width, h) + output_weights
    activation = ELEMENT_BYTES * tokens * (inner + width)
    saved = activation
    part = Part(
        forward_compute=forward + device.pass_seconds(activation),
        backward_compute=backward + device.pass_seconds(activation + ELEMENT_BYTES * tokens * inner),
        saved_bytes=saved,
        selective_bytes=saved,
        transient_bytes=saved,
        kernels=3.0,
        weight_compute=weight_gradient + output_weights,
    )
    return part, input_gradient, weight_gradient


def _experts(moe: MixtureOfExperts, h: int, s: Setting) -> Part:
    """Router, dispatch, grouped products, combine, and the shared experts every token passes."""
    device = s.device
    routed = s.tokens / s.norm_split
    router = device.matmul_seconds(routed, moe.num_experts, h)
    rows = routed * moe.experts_per_token * s.expert_tp * device.constants.expert_imbalance
    local_experts = moe.num_experts / s.ep
    width = moe.expert_ffn_size / s.expert_tp
    products = _grouped_products(s, rows, local_experts, h, width, moe.gated)

    dispatch = all_to_all_seconds(s.ep_group, ELEMENT_BYTES * routed * moe.experts_per_token * h)
    exchange = np.where(s.ep > 1, 2.0 * dispatch, 0.0)
    gather = 2.0 * all_gather_seconds(s.expert_tp_group, ELEMENT_BYTES * rows * h)
    expert_gather = np.where(s.expert_tp > 1, gather, 0.0)
    permute = device.pass_seconds(4.0 * ELEMENT_BYTES * rows * h)  # permute and unpermute, read and write
    dispatched = ELEMENT_BYTES * rows * h
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
        kernels=12.0,
        collectives=np.where(s.ep > 1, 2.0, 0.0) + np.where(s.expert_tp > 1, 2.0, 0.0),
    )
    if not moe.shared_ffn_size:
        return total
    shared, input_gradient, weight_gradient = _dense(s, s.tokens, h, moe.shared_ffn_size / s.tp, moe.gated)
    gathered = ELEMENT_BYTES * s.tokens * h
    forward, backward = tensor_parallel_seconds(s, gathered, input_gradient, weight_gradient)
    return (
        total
        + shared
        + Part(forward_tp=forward, backward_tp=backward, collectives=tensor_parallel_collectives(s))
    )


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
    weights = ELEMENT_BYTES * (local_experts - 1.0) * h * width * (3.0 if gated else 2.0)
    reread = device.stream_seconds(weights)
    inner = (2.0 if gated else 1.0) * width
    product = ELEMENT_BYTES * rows * width
    saved = ELEMENT_BYTES * rows * inner + product
    return Part(
        forward_compute=np.maximum(part.forward_compute, reread),
        backward_compute=np.maximum(part.backward_compute, 2.0 * reread),
        selective_recompute=device.pass_seconds(ELEMENT_BYTES * rows * (inner + width)),
        saved_bytes=saved,
        selective_bytes=saved - product,
        transient_bytes=saved,
        kernels=part.kernels,
        weight_compute=part.weight_compute,
    )
