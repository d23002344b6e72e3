"""The models torchtitan ships, and which of them a ModelSpec is.

Shapes: torchtitan 0.3.0 and main of August 2026, torchtitan/models/*/__init__.py; the same in both. A plan's
model is matched by shape, so that a name cannot promise what the numbers do not.
"""

from __future__ import annotations

from dataclasses import dataclass

from planner.model.spec import Attention, Block, LatentAttention, MixtureOfExperts, ModelSpec

Shape = tuple[int, ...]
# Longest sequence of the rotary tables, tokens.
LONGEST = {"llama3": 131072, "qwen3": 40960, "deepseek_v3": 16384}


@dataclass(frozen=True)
class Flavor:
    """A shipped model: ``module`` and ``flavor`` of its registry, the configuration function it starts from.

    shape: layers, hidden size, heads, key/value heads, head width, vocabulary, dense width, experts,
    experts per token, expert width, shared width, dense layers in front. has_tied: one table for both ends.
    """

    module: str
    flavor: str
    base: str
    assets: str
    shape: Shape
    has_tied: bool = False


def _llama(flavor: str, assets: str, *shape: int, has_tied: bool = False) -> Flavor:
    return Flavor("llama3", flavor, "llama3_8b", assets, (*shape, 0, 0, 0, 0, 0), has_tied)


def _qwen(flavor: str, *shape: int, has_tied: bool = False) -> Flavor:
    base = "qwen3_14b" if len(shape) == 7 else "qwen3_30b_a3b"
    moe = (0, 0, 0, 0, 0) if len(shape) == 7 else ()
    return Flavor("qwen3", flavor, base, f"Qwen3-{flavor}", (*shape, *moe), has_tied)


FLAVORS: tuple[Flavor, ...] = (
    _llama("1B", "Llama-3.2-1B", 16, 2048, 32, 8, 64, 128256, 8192, has_tied=True),
    _llama("3B", "Llama-3.2-3B", 28, 3072, 24, 8, 128, 128256, 8192, has_tied=True),
    _llama("8B", "Llama-3.1-8B", 32, 4096, 32, 8, 128, 128256, 14336),
    _llama("70B", "Llama-3.1-70B", 80, 8192, 64, 8, 128, 128256, 28672),
    _llama("405B", "Llama-3.1-405B", 126, 16384, 128, 8, 128, 128256, 53248),
    _qwen("0.6B", 28, 1024, 16, 8, 128, 151936, 3072, has_tied=True),
    _qwen("1.7B", 28, 2048, 16, 8, 128, 151936, 6144, has_tied=True),
    _qwen("4B", 36, 2560, 32, 8, 128, 151936, 9728, has_tied=True),
    _qwen("8B", 36, 4096, 32, 8, 128, 151936, 12288),
    _qwen("14B", 40, 5120, 40, 8, 128, 151936, 17408),
    _qwen("32B", 64, 5120, 64, 8, 128, 151936, 25600),
    _qwen("30B-A3B", 48, 2048, 32, 4, 128, 151936, 0, 128, 8, 768, 0, 0),
    _qwen("235B-A22B", 94, 4096, 64, 4, 128, 151936, 0, 128, 8, 1536, 0, 0),
    Flavor(
        "deepseek_v3",
        "236B",
        "deepseek_v3_16b",
        "DeepSeek-V2",
        (60, 5120, 128, 128, 192, 102400, 12288, 160, 6, 1536, 3072, 1),
    ),
    Flavor(
        "deepseek_v3",
        "671B",
        "deepseek_v3_16b",
        "DeepSeek-V3.1-Base",
        (61, 7168, 128, 128, 192, 129280, 18432, 256, 8, 2048, 2048, 3),
    ),
)


def flavor_of(model: ModelSpec) -> Flavor | None:
    """The shipped model of the same shape, or None."""
    shape = shape_of(model)
    if shape is None:
        return None
    for flavor in FLAVORS:
        same_kind = (flavor.module == "qwen3") == _has_head_norms(model)
        if flavor.shape == shape and flavor.has_tied == model.head.tied and same_kind:
            return flavor
    return None


def shape_of(model: ModelSpec) -> Shape | None:
    """The shape as ``Flavor.shape``; None for a model no shipped one can be (stacks, biases, windows)."""
    blocks = [model.block_kinds[kind] for _, kind in model.block_sequence()]
    if len(model.stacks) > 1 or not all(map(_is_plain, blocks)):
        return None
    embedding, head = model.stacks[0].embedding, model.head
    odd_ends = embedding.num_positions or embedding.norm or embedding.kind != "tokens"
    if odd_ends or head.kind != "language_model" or head.bias or head.transform or head.soft_cap:
        return None
    experts = [b.feed_forward for b in blocks if isinstance(b.feed_forward, MixtureOfExperts)]
    dense = [b.feed_forward.ffn_size for b in blocks if b.feed_forward.kind == "dense"]
    if len(set(dense)) > 1 or len(set(map(str, experts))) > 1:
        return None
    attention = blocks[0].attention
    if isinstance(attention, LatentAttention):
        kv, width = attention.num_heads, attention.qk_nope_head_dim + attention.qk_rope_head_dim
    else:
        kv, width = attention.num_kv_heads, attention.head_dim
    moe = (0, 0, 0, 0, 0)
    if experts:
        one = experts[0]
        moe = (
            one.num_experts,
            one.experts_per_token,
            one.expert_ffn_size,
            one.shared_ffn_size,
            len(dense),
        )
    ends = (model.num_layers, model.hidden_size, attention.num_heads, kv, width, model.vocab_size)
    return (*ends, dense[0] if dense else 0, *moe)


def _is_plain(block: Block) -> bool:
    attention, ff = block.attention, block.feed_forward
    plain = block.norm.kind == "rmsnorm" and block.num_norms == 2 and not block.parallel and not block.dropout
    if isinstance(attention, Attention):
        odd = (attention.qkv_bias, attention.out_bias, attention.sinks, attention.window is not None)
        plain = plain and not any(odd) and attention.causal
    return plain and ff.gated and not ff.bias and block.cross_attention is None


def _has_head_norms(model: ModelSpec) -> bool:
    attention = next(iter(model.block_kinds.values())).attention
    return isinstance(attention, Attention) and attention.qk_norm
