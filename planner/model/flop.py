"""Model FLOP of one sequence: what the mathematics needs, whatever the plan.

A multiply-add is 2 FLOP. Causal attention counts half of the score matrix, a window counts what it reads.
Forward matrix products of a token pass 2 FLOP per visited weight; backward is twice forward; recompute is
not model FLOP (it separates HFU from MFU). Source: Narayanan et al. (arXiv 2104.04473, appendix) without
its recompute factor, adapted to grouped and latent attention, gated and routed feed-forward, and halved
attention as in PaLM's MFU (arXiv 2204.02311, appendix B) with causality counted.
"""

from __future__ import annotations

from planner.model.parameters import (
    attention_parameters,
    expert_parameters,
    feed_forward_parameters,
    shared_expert_parameters,
)
from planner.model.spec import Attention, Block, FeedForward, LatentAttention, ModelSpec

TRAINING_FACTOR = 3.0


def mean_context(attention: Attention | LatentAttention, sequence: float, keys: float | None = None) -> float:
    """Keys an average query reads: s/2 under a causal mask, w - w^2/2s in a window w < s, else all.

    ``keys`` is the other sequence's length for cross-attention.
    """
    if keys is not None:
        return keys
    window = attention.window
    if not attention.causal:
        return sequence if window is None else min(sequence, 2.0 * window)
    if window is None:
        return sequence / 2.0
    w = min(float(window), sequence)
    return w - w * w / (2.0 * sequence)


def attention_score_flop(
    attention: Attention | LatentAttention, queries: float, keys: float | None = None
) -> float:
    """Scores and values of ``queries`` tokens over their context (``keys`` for cross-attention)."""
    context = mean_context(attention, queries, keys)
    if isinstance(attention, LatentAttention):
        width = attention.qk_nope_head_dim + attention.qk_rope_head_dim + attention.v_head_dim
    else:
        width = 2 * attention.head_dim
    return 2.0 * queries * context * attention.num_heads * width


def block_forward_flop(block: Block, hidden_size: int, sequence: float, keys: float | None = None) -> float:
    """Forward FLOP of one block on one sequence of ``sequence`` tokens."""
    weights = attention_parameters(block.attention, hidden_size)
    flop = attention_score_flop(block.attention, sequence)
    if block.cross_attention is not None and keys is not None:
        cross = block.cross_attention
        kv = 2 * cross.num_kv_heads * cross.head_dim * hidden_size
        weights += attention_parameters(cross, hidden_size) - kv
        flop += attention_score_flop(cross, sequence, keys) + 2.0 * kv * keys
    ff = block.feed_forward
    if isinstance(ff, FeedForward):
        weights += feed_forward_parameters(hidden_size, ff.ffn_size, ff.gated, ff.bias)
    else:
        weights += ff.experts_per_token * expert_parameters(ff, hidden_size)
        weights += shared_expert_parameters(ff, hidden_size)
    return flop + 2.0 * weights * sequence


def head_forward_flop(model: ModelSpec, sequence: float) -> float:
    """Forward FLOP of the output projection (and BERT's transform) on one sequence."""
    h, head = model.hidden_size, model.head
    if head.kind == "classifier":
        return 2.0 * h * head.num_classes
    width = head.projection_size or h
    per_token = width * model.vocab_size + (h * h if head.transform else 0)
    return 2.0 * per_token * sequence


def model_forward_flop(model: ModelSpec, sequence_length: int) -> float:
    """Forward FLOP of one sequence through the whole model."""
    scale = {stack.name: stack.sequence_scale for stack in model.stacks}
    total = 0.0
    for stack in model.stacks:
        sequence = sequence_length * stack.sequence_scale
        keys = sequence_length * scale[stack.cross_attends_to] if stack.cross_attends_to else None
        for run in stack.layout:
            for name in run.kinds:
                block = model.block_kinds[name]
                total += run.repeat * block_forward_flop(block, model.hidden_size, sequence, keys)
        if stack.embedding.kind == "patches":
            total += 2.0 * stack.embedding.patch_features * model.hidden_size * sequence
    last = model.stacks[-1]
    return total + head_forward_flop(model, sequence_length * last.sequence_scale)


def model_step_flop(model: ModelSpec, sequence_length: int, global_batch: int) -> float:
    """Model FLOP of one training step: 3 x forward x sequences; the numerator of MFU."""
    return TRAINING_FACTOR * model_forward_flop(model, sequence_length) * global_batch
