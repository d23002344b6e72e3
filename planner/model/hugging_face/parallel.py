"""gpt_neox, falcon, cohere, cohere2: attention and feed-forward side by side on one input.

Shapes are those of transformers' classes; parameter counts are held to them in tests/model.
"""

from __future__ import annotations

from collections.abc import Sequence

from planner.model.hugging_face.attention import (
    grouped_attention,
    language_model,
    positions,
    query_heads,
    window_label,
    window_period,
    windows_per_layer,
)
from planner.model.hugging_face.gpt import LAYER_NORM, plain_heads
from planner.model.hugging_face.keys import unsupported
from planner.model.hugging_face.values import MAX_SIZE, Config
from planner.model.spec import Attention, Block, FeedForward, ModelSpec, Norm

GPT_NEOX_HARMLESS = frozenset(
    {"rotary_pct", "rotary_emb_base", "attention_probs_dropout_prob", "hidden_dropout_prob"}
)
"""The class reads attention_dropout and hidden_dropout; other spellings have no effect."""
FALCON_HARMLESS = frozenset({"apply_residual_connection_post_layernorm", "rotary"})
COHERE_HARMLESS = frozenset({"logit_scale", "model_max_length"})
"""The logit scale is a constant factor of the output projection."""
COHERE2_HARMLESS = COHERE_HARMLESS | {
    "rotary_pct", "position_embedding_type", "layer_switch", "order_of_interleaved_layers",
    "use_embedding_sharing", "use_gated_activation", "use_parallel_block", "use_parallel_embedding",
}  # fmt: skip
"""Kept from the original release; transformers' class reads none of them."""

WEIGHT_ONLY = Norm(kind="layernorm", bias=False)


def read_gpt_neox(config: Config) -> ModelSpec:
    """GPT-NeoX (arXiv 2204.06745), Pythia: biases, an untied head, two norms that read the block's input.

    use_parallel_residual false puts the feed-forward behind attention.
    """
    hidden = config.count("hidden_size", example=6144)
    heads = query_heads(config, "num_attention_heads", example=64)
    layers = config.layers("num_hidden_layers", example=44)
    bias = config.flag("attention_bias", True)
    block = Block(
        attention=plain_heads(config, hidden, heads, "hidden_size", qkv_bias=bias, out_bias=bias),
        feed_forward=FeedForward(
            ffn_size=config.count("intermediate_size", example=4 * hidden), gated=False, bias=True
        ),
        norm=LAYER_NORM,
        parallel=config.flag("use_parallel_residual", True),
        dropout=config.any_dropout(attention_dropout=0.0, hidden_dropout=0.0),
    )
    return language_model(
        config,
        [(("block",), block)] * layers,
        hidden=hidden,
        max_length=positions(config, example=2048),
        tied=config.flag("tie_word_embeddings", False),
        vocab_example=50432,
    )


def falcon_key_value_heads(config: Config, heads: int, *, is_new: bool) -> int:
    """One with multi_query, num_kv_heads in the new architecture, else as many as query heads."""
    multi_query = config.flag("multi_query", True)
    grouped = config.optional_count("num_kv_heads", "n_head_kv", example=8, most=1_000_000) or heads
    if not is_new:
        return 1 if multi_query else heads
    if heads % grouped:
        raise config.error(
            "num_kv_heads",
            f"num_attention_heads ({heads}) must be a multiple of num_kv_heads ({grouped})",
            hint=f'write "num_kv_heads": {heads}',
        )
    return grouped


def falcon_norms(config: Config, *, is_new: bool, is_parallel: bool) -> int:
    """Norms a block: one for both parts, or one each (num_ln_in_parallel_attn; 2 in the new architecture)."""
    stated = config.optional_count("num_ln_in_parallel_attn", most=2, example=2)
    if not is_parallel:
        return 2
    if stated == 2 and not is_new:
        raise unsupported(
            config,
            "num_ln_in_parallel_attn",
            "num_ln_in_parallel_attn = 2 without new_decoder_architecture: the class reads no second norm",
            'a value that works: "num_ln_in_parallel_attn": 1',
        )
    return stated or (2 if is_new else 1)


def read_falcon(config: Config) -> ModelSpec:
    """Falcon (arXiv 2311.16867): multi-query (7B) or grouped keys and values (40B, 180B, 11B), no gate."""
    if config.flag("alibi", False):
        raise unsupported(
            config,
            "alibi",
            "ALiBi is not told apart from rotary positions for falcon, so launcher files would be wrong",
            'a value that works: "alibi": false',
        )
    hidden = config.count("hidden_size", "n_embed", example=4544)
    heads = query_heads(config, "num_attention_heads", "n_head", example=71)
    layers = config.layers("num_hidden_layers", "n_layer", example=32)
    is_new = config.flag("new_decoder_architecture", False)
    is_parallel = config.flag("parallel_attn", True) or is_new
    bias = config.flag("bias", False)
    attention = plain_heads(config, hidden, heads, "hidden_size", qkv_bias=bias, out_bias=bias)
    kv = falcon_key_value_heads(config, heads, is_new=is_new)
    wide = config.optional_count("ffn_hidden_size", most=4 * MAX_SIZE, example=4 * hidden)
    config.take_defaults({"max_position_embeddings": 2048})
    block = Block(
        attention=attention.model_copy(update={"num_kv_heads": kv}),
        feed_forward=FeedForward(ffn_size=wide or 4 * hidden, gated=False, bias=bias),
        norm=LAYER_NORM,
        num_norms=falcon_norms(config, is_new=is_new, is_parallel=is_parallel),
        parallel=is_parallel,
        dropout=config.any_dropout(attention_dropout=0.0, hidden_dropout=0.0),
    )
    return language_model(
        config,
        [(("block",), block)] * layers,
        hidden=hidden,
        max_length=positions(config, example=2048),
        tied=config.flag("tie_word_embeddings", True),
        vocab_example=65024,
    )


def read_cohere(config: Config) -> ModelSpec:
    """Command R: one norm without a bias, a gated feed-forward, a tied table."""
    if config.flag("use_qk_norm", False):
        raise unsupported(
            config,
            "use_qk_norm",
            "use_qk_norm = true holds other norm weights for every head; the model format has one set of "
            "head_dim weights for all heads",
            'a value that works: "use_qk_norm": false',
        )
    layers = config.layers("num_hidden_layers", example=40)
    return build_cohere(config, [None] * layers)


def read_cohere2(config: Config) -> ModelSpec:
    """Command R7B: Command R with a window on all but every fourth layer."""
    layers = config.layers("num_hidden_layers", example=32)
    period = window_period(config, 4)
    return build_cohere(config, windows_per_layer(config, layers, lambda index: (index + 1) % period > 0))


def build_cohere(config: Config, windows: Sequence[int | None]) -> ModelSpec:
    """One stack of parallel gated blocks that differ only in their window."""
    hidden = config.count("hidden_size", example=8192)
    bias = config.flag("attention_bias", False)
    attention: Attention = grouped_attention(config, hidden, qkv_bias=bias, out_bias=bias)
    feed_forward = FeedForward(ffn_size=config.count("intermediate_size", example=22528), gated=True)
    dropout = config.any_dropout(attention_dropout=0.0)
    blocks = [
        (
            (window_label(window),),
            Block(
                attention=attention.model_copy(update={"window": window}),
                feed_forward=feed_forward,
                norm=WEIGHT_ONLY,
                num_norms=1,
                parallel=True,
                dropout=dropout,
            ),
        )
        for window in windows
    ]
    return language_model(
        config,
        blocks,
        hidden=hidden,
        max_length=positions(config, example=8192),
        tied=config.flag("tie_word_embeddings", True),
        vocab_example=256000,
    )
