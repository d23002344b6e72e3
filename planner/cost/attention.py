"""One attention sub-layer: projections, the attention kernel, its communication and saved tensors.

Legend: T tokens on the rank (batch x sequence / cp), h hidden size, q and v widths of all query / value
heads, t tensor degree, s sequence, a heads, D the split of the tensors between matrices (t under
sequence parallelism, else 1). Sources: Korthikanti et al. (arXiv 2205.05198) for saved tensors and the
collectives of tensor plus sequence parallelism; Dao (2307.08691) for the fused kernel (backward 2.5 x the
forward FLOP, output and fp32 log-sum-exp saved); DeepSeek-V2 (2405.04434) for latent attention; ring
attention (2310.01889) for context parallelism.
"""

from __future__ import annotations

import numpy as np

from planner.cost.arrays import Number
from planner.cost.collectives import all_gather_seconds, exposed_seconds
from planner.cost.part import Move, Part, Setting
from planner.cost.tensor_parallel import tensor_parallel_part
from planner.model.flop import mean_context
from planner.model.spec import Attention, LatentAttention

FLASH_BACKWARD_FLOP_FACTOR = 2.5
NUM_PRODUCTS = 4  # query, key, value and output projection
VALUE_PRODUCT = 3
# Bytes a score that dropout moves beside its stack's own: read and write.
DROPOUT_BYTES = 4.0


def local_kv_heads(num_kv_heads: int, tp: Number) -> Number:
    """Key/value heads on one tp rank: k / t, and never below one (heads are duplicated past that)."""
    return np.maximum(num_kv_heads / tp, 1.0)


def attention_part(
    attention: Attention | LatentAttention,
    hidden_size: int,
    setting: Setting,
    *,
    dropout: bool,
    keys: float | None = None,
    leaves: bool = True,
) -> Part:
    """Self-attention (or, with ``keys`` the other sequence's length, cross-attention) of one block.

    leaves: its output is summed over tp by itself; in a parallel block that is the feed-forward's part.
    """
    if isinstance(attention, LatentAttention):
        return _latent(attention, hidden_size, setting, dropout=dropout, leaves=leaves)
    return _grouped(attention, hidden_size, setting, dropout=dropout, keys=keys, leaves=leaves)


def _grouped(
    attention: Attention, h: int, s: Setting, *, dropout: bool, keys: Number | None, leaves: bool
) -> Part:
    device, tokens = s.device, s.tokens
    heads = attention.num_heads / s.tp
    q = heads * attention.head_dim
    kv = local_kv_heads(attention.num_kv_heads, s.tp) * attention.head_dim
    key_tokens = tokens if keys is None else s.batch * keys / s.cp
    if keys is None:
        into = [(tokens, q + 2 * kv, h)]
    else:
        into = [(tokens, q, h), (key_tokens, 2 * kv, h)]
    out = device.matmul_seconds(tokens, h, q)
    forward = out
    input_gradient = weight_gradient = 0.0 * tokens
    for m, n, k in into:
        forward = forward + device.matmul_seconds(m, n, k)
        input_gradient = input_gradient + device.matmul_seconds(m, k, n)
        weight_gradient = weight_gradient + device.weight_gradient_seconds(n, k, m)
    output_weights = device.weight_gradient_seconds(q, h, tokens)
    backward = input_gradient + weight_gradient + device.matmul_seconds(tokens, q, h) + output_weights

    positions = s.element_bytes * (tokens * q + key_tokens * kv) * 2.0  # rotary embedding or bias, in and out
    head_norm = 2.0 if attention.qk_norm else 1.0
    forward = forward + device.pass_seconds(positions * head_norm)
    backward = backward + device.pass_seconds(positions * head_norm)
    listed = _selective(s, forward, out, tokens, key_tokens, h, q, kv)
    context = mean_context(attention, s.sequence, keys)
    core = _core(s, heads, attention.head_dim, attention.head_dim, q, kv, context, key_tokens, dropout)
    saved = s.element_bytes * (tokens * q + 2.0 * key_tokens * kv)
    if attention.qk_norm:
        saved = saved + s.element_bytes * (tokens * q + key_tokens * kv)
    gathered = s.element_bytes * tokens * h
    parallel = tensor_parallel_part(s, gathered, input_gradient, weight_gradient, leaves=leaves)
    ring = _ring_part(s, kv, core.forward_compute, core.backward_compute)
    return (
        core
        + parallel
        + ring
        + Part(
            forward_compute=forward,
            backward_compute=backward,
            selective_recompute=listed.selective_recompute,
            saved_bytes=saved,
            selective_bytes=listed.selective_bytes if s.stack.recomputed_product_period else saved,
            selective_extra_bytes=listed.selective_extra_bytes,
            transient_bytes=gathered + 2.0 * saved,
            kernels=5.0,
            weight_compute=weight_gradient + output_weights,
        )
    )


def _selective(
    s: Setting,
    forward: Number,
    out: Number,
    tokens: Number,
    key_tokens: Number,
    h: int,
    q: Number,
    kv: Number,
) -> Part:
    """Bytes kept and seconds repeated under an operator list, of the query, key, value, output products.

    A kept product's output is the whole local result: the output projection's is h wide on every tp rank, a
    partial sum, and its reduce-scattered share is kept beside it. Backward itself needs only the values:
    queries and keys are saved rotated. Nothing on a stack whose selective recompute is the attention core.
    """
    if not s.stack.recomputed_product_period:
        return Part()
    outputs = ((tokens, q), (key_tokens, kv), (key_tokens, kv), (tokens, h))
    into = s.device.matmul_seconds(tokens, q + 2 * kv, h) if key_tokens is tokens else forward - out
    summed = np.where(s.norm_split > 1, s.element_bytes * tokens * h / s.norm_split, 0.0)
    kept, extra, spared = summed, summed, 0.0 * tokens
    for ordinal, (m, n) in enumerate(outputs, start=1):
        if s.stack.is_product_kept(ordinal):
            kept = kept + s.element_bytes * m * n
            extra = extra + (0.0 if ordinal == VALUE_PRODUCT else s.element_bytes * m * n)
            # The three projections of the input are priced as one product: each repeats its share.
            spared = spared + (out if ordinal == NUM_PRODUCTS else into * n / (q + 2 * kv))
    return Part(selective_recompute=forward - spared, selective_bytes=kept, selective_extra_bytes=extra)


def _core(
    s: Setting,
    heads: Number,
    qk_dim: int,
    v_dim: int,
    q: Number,
    kv: Number,
    context: Number,
    key_tokens: Number,
    dropout: bool,
) -> Part:
    """The attention kernel itself, fused (flash) or unfused (score matrix in HBM)."""
    device, tokens = s.device, s.tokens
    out = heads * v_dim
    if s.is_flash:
        flop = 2.0 * tokens * context * heads * (qk_dim + v_dim)
        traffic = s.element_bytes * (tokens * (q + out) + 2.0 * key_tokens * kv)
        kept = s.element_bytes * tokens * out + 4.0 * tokens * heads
        return Part(
            forward_compute=device.flash_seconds(flop, traffic, s.cp, backward=False),
            backward_compute=device.flash_seconds(
                FLASH_BACKWARD_FLOP_FACTOR * flop, 2.0 * traffic, s.cp, backward=True
            ),
            saved_bytes=kept,
            selective_bytes=kept,
            kernels=2.0,
        )
    # The unfused kernels compute the whole score matrix: no saving from the causal mask.
    keys = s.sequence if key_tokens is tokens else key_tokens * s.cp / s.batch
    products = s.batch * heads
    rows = s.sequence / s.cp
    forward = device.matmul_seconds(rows, keys, qk_dim, products, is_half=True)
    forward = forward + device.matmul_seconds(rows, v_dim, keys, products, is_half=True)
    scores = products * rows * keys
    extra = DROPOUT_BYTES if dropout else 0.0
    softmax = device.pass_seconds(scores * (s.stack.score_forward_bytes + extra))
    backward = 2.0 * forward + device.pass_seconds(scores * (s.stack.score_backward_bytes + extra))
    output = s.element_bytes * tokens * out
    probabilities = scores * (s.stack.score_saved_bytes + (1.0 + s.element_bytes if dropout else 0.0))
    return Part(
        forward_compute=forward + softmax,
        backward_compute=backward,
        selective_recompute=forward + softmax,
        saved_bytes=output + probabilities,
        selective_bytes=output,
        transient_bytes=scores * s.element_bytes,
        kernels=12.0,
    )


def _ring_part(s: Setting, kv: Number, core_forward: Number, core_backward: Number) -> Part:
    """Exposed ring exchange of keys and values over cp, hidden under the attention kernel.

    Forward passes K and V around once; backward passes K, V and their gradients.
    """
    whole_bytes = 2.0 * s.element_bytes * s.tokens * s.cp * kv
    one_way = all_gather_seconds(s.cp_group, whole_bytes)
    theft = s.device.constants.overlap_theft
    beside = (s.cp - 1.0) / s.cp  # the first piece is local: nothing is in flight beside the last kernel
    forward = exposed_seconds(one_way, core_forward * beside, theft)
    backward = exposed_seconds(2.0 * one_way, core_backward * beside, theft)
    is_split = s.cp > 1
    rings = np.where(is_split, 1.0, 0.0)
    return Part(
        forward_cp=np.where(is_split, forward, 0.0),
        backward_cp=np.where(is_split, backward, 0.0),
        collectives=s.cp - 1.0,
        moved=(
            Move("cp", "all_gather", rings, whole_bytes, (False, True)),
            Move("cp", "all_gather", 2.0 * rings, whole_bytes),
        ),
    )


def _latent(attention: LatentAttention, h: int, s: Setting, *, dropout: bool, leaves: bool) -> Part:
    """Multi-head latent attention: down projections on every tp rank, up projections split by heads."""
    device, tokens = s.device, s.tokens
    heads = attention.num_heads / s.tp
    qk = attention.qk_nope_head_dim + attention.qk_rope_head_dim
    latent = attention.kv_lora_rank
    down = latent + attention.qk_rope_head_dim
    up_kv = heads * (attention.qk_nope_head_dim + attention.v_head_dim)
    # The down projections see the sequence-split tokens; their outputs are gathered for the up projections.
    split = tokens / s.norm_split
    if attention.q_lora_rank is None:
        into = [(tokens, heads * qk, h), (split, down, h)]
        up = [(tokens, up_kv, latent)]
        q_latent = 0
    else:
        q_latent = attention.q_lora_rank
        into = [(split, q_latent, h), (split, down, h)]
        up = [(tokens, heads * qk, q_latent), (tokens, up_kv, latent)]
    forward = device.matmul_seconds(tokens, h, heads * attention.v_head_dim)
    up_forward = 0.0 * tokens
    input_gradient = weight_gradient = 0.0 * tokens
    for m, n, k in up:
        up_forward = up_forward + device.matmul_seconds(m, n, k)
    for m, n, k in into + up:
        forward = forward + device.matmul_seconds(m, n, k)
        input_gradient = input_gradient + device.matmul_seconds(m, k, n)
        weight_gradient = weight_gradient + device.weight_gradient_seconds(n, k, m)
    output_weights = device.weight_gradient_seconds(heads * attention.v_head_dim, h, tokens)
    backward = input_gradient + weight_gradient + output_weights
    backward = backward + device.matmul_seconds(tokens, heads * attention.v_head_dim, h)
    context = mean_context(attention, s.sequence)
    core = _core(
        s,
        heads,
        qk,
        attention.v_head_dim,
        heads * qk,
        heads * (qk + attention.v_head_dim) / 2.0,
        context,
        tokens,
        dropout,
    )
    latents = s.element_bytes * split * (q_latent + down) * 2.0  # before and after the latent norms
    projected = s.element_bytes * tokens * heads * (2.0 * qk + attention.v_head_dim)
    gathered = s.element_bytes * tokens * h
    kv_width = heads * (qk + attention.v_head_dim) / 2.0
    return (
        core
        + tensor_parallel_part(s, gathered, input_gradient, weight_gradient, leaves=leaves)
        + _ring_part(s, kv_width, core.forward_compute, core.backward_compute)
        + Part(
            forward_compute=forward,
            backward_compute=backward,
            selective_recompute=up_forward,
            saved_bytes=latents + projected,
            selective_bytes=latents,
            transient_bytes=gathered + 2.0 * projected,
            kernels=9.0,
            weight_compute=weight_gradient + output_weights,
        )
    )
