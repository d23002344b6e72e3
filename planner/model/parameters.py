"""Parameter counts from shapes.

Every count is elements (not bytes) of one whole, unsharded object. The formulas are the shapes written
out: a linear layer of n inputs and m outputs holds n m weights and m biases; a norm holds h weights and,
with a bias, h more. Source: the layer definitions of the respective papers, checked against published
counts in tests/published.

h hidden size, a heads, k key/value heads, d head dimension, f feed-forward width, E experts.
"""

from __future__ import annotations

from planner.model.spec import (
    Attention,
    Block,
    FeedForward,
    LatentAttention,
    MixtureOfExperts,
    ModelSpec,
    Norm,
    Stack,
)


def norm_parameters(norm: Norm, width: int) -> int:
    """Weights and biases of one norm over ``width`` elements."""
    return width * (2 if norm.bias else 1)


def attention_parameters(attention: Attention | LatentAttention, hidden_size: int) -> int:
    """Weights and biases of one attention layer, norms on heads included.

    gqa: h a d + 2 h k d + a d h. mla: the down and up projections of DeepSeek-V2 (arXiv 2405.04434,
    equations 9 to 19) with their two latent norms.
    """
    h = hidden_size
    if isinstance(attention, LatentAttention):
        a = attention.num_heads
        qk = attention.qk_nope_head_dim + attention.qk_rope_head_dim
        if attention.q_lora_rank is None:
            queries = h * a * qk
        else:
            queries = h * attention.q_lora_rank + attention.q_lora_rank + attention.q_lora_rank * a * qk
        latent = attention.kv_lora_rank
        down = h * (latent + attention.qk_rope_head_dim) + latent
        up = latent * a * (attention.qk_nope_head_dim + attention.v_head_dim)
        return queries + down + up + a * attention.v_head_dim * h
    q = attention.num_heads * attention.head_dim
    kv = attention.num_kv_heads * attention.head_dim
    weights = h * q + 2 * h * kv + q * h
    biases = (q + 2 * kv if attention.qkv_bias else 0) + (h if attention.out_bias else 0)
    extras = 2 * attention.head_dim if attention.qk_norm else 0
    extras += attention.num_heads if attention.sinks else 0
    extras += attention.relative_bias_buckets * attention.num_heads
    return weights + biases + extras


def feed_forward_parameters(hidden_size: int, ffn_size: int, gated: bool, bias: bool) -> int:
    """(3 if gated else 2) h f weights and the biases of each matrix's output."""
    matrices = 3 if gated else 2
    biases = ((matrices - 1) * ffn_size + hidden_size) if bias else 0
    return matrices * hidden_size * ffn_size + biases


def expert_parameters(moe: MixtureOfExperts, hidden_size: int) -> int:
    """Parameters of one routed expert."""
    return feed_forward_parameters(hidden_size, moe.expert_ffn_size, moe.gated, moe.bias)


def shared_expert_parameters(moe: MixtureOfExperts, hidden_size: int) -> int:
    """Router, its bias, and the shared experts: what every token passes."""
    router = hidden_size * moe.num_experts + (moe.num_experts if moe.router_bias else 0)
    if not moe.shared_ffn_size:
        return router
    shared = feed_forward_parameters(hidden_size, moe.shared_ffn_size, moe.gated, moe.bias)
    return router + shared + (hidden_size if moe.shared_gate else 0)


def block_parameters(block: Block, hidden_size: int, *, active: bool = False) -> int:
    """Parameters of one block; ``active`` counts only the experts one token visits."""
    total = attention_parameters(block.attention, hidden_size)
    if block.cross_attention is not None:
        total += attention_parameters(block.cross_attention, hidden_size)
    total += block.num_norms * norm_parameters(block.norm, hidden_size)
    ff = block.feed_forward
    if isinstance(ff, FeedForward):
        return total + feed_forward_parameters(hidden_size, ff.ffn_size, ff.gated, ff.bias)
    experts = ff.experts_per_token if active else ff.num_experts
    return total + experts * expert_parameters(ff, hidden_size) + shared_expert_parameters(ff, hidden_size)


def stack_norm(model: ModelSpec, stack: Stack) -> Norm:
    """The norm used outside the blocks of a stack: that of its first block."""
    return model.block_kinds[stack.layout[0].kinds[0]].norm


def embedding_parameters(model: ModelSpec, stack: Stack) -> int:
    """Vocabulary, position, segment or patch tables of one stack, its projection and norm."""
    h = model.hidden_size
    e = stack.embedding
    total = (e.num_positions + e.num_extra_tokens) * h
    width = e.projection_size or h
    if e.kind == "tokens":
        total += model.vocab_size * width + e.num_types * h
        if e.projection_size:
            total += e.projection_size * h
    elif e.kind == "patches":
        total += e.patch_features * h + h
    if e.norm:
        total += norm_parameters(stack_norm(model, stack), h)
    return total


def head_parameters(model: ModelSpec) -> int:
    """The output projection (0 when tied), BERT's transform and pooler, and biases."""
    h, head = model.hidden_size, model.head
    norm = stack_norm(model, model.stacks[-1])
    total = (h * h + h + norm_parameters(norm, h)) if head.transform else 0
    total += (h * h + h) if head.pooler else 0
    outputs = head.num_classes if head.kind == "classifier" else model.vocab_size
    width = head.projection_size or h
    if head.projection_size:
        total += h * head.projection_size
    if not head.tied:
        total += width * outputs
    return total + (outputs if head.bias else 0)


def final_norm_parameters(model: ModelSpec, stack: Stack) -> int:
    """The norm behind a stack's last block, 0 when there is none."""
    return norm_parameters(stack_norm(model, stack), model.hidden_size) if stack.final_norm else 0


def total_parameters(model: ModelSpec, *, active: bool = False) -> int:
    """All parameters; ``active`` counts what one token visits (all of a dense model)."""
    total = head_parameters(model)
    for stack in model.stacks:
        total += embedding_parameters(model, stack) + final_norm_parameters(model, stack)
        for run in stack.layout:
            for kind in run.kinds:
                block = model.block_kinds[kind]
                total += run.repeat * block_parameters(block, model.hidden_size, active=active)
    return total
