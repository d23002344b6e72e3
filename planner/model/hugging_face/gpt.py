"""gpt2, gpt_neo, opt, bloom, starcoder2: decoders with layernorms, plain feed-forward and biases."""

from __future__ import annotations

from typing import Any

from planner.model.hugging_face.attention import (
    divide_heads,
    grouped_attention,
    language_model,
    positions,
    query_heads,
    windows_per_layer,
)
from planner.model.hugging_face.keys import unsupported
from planner.model.hugging_face.values import MAX_LAYERS, MAX_SIZE, MAX_TOKENS, Config, describe
from planner.model.spec import Attention, Block, Embedding, FeedForward, Head, ModelSpec, Norm

LAYER_NORM = Norm(kind="layernorm", bias=True)

GPT2_HARMLESS = frozenset(
    {
        "n_ctx", "summary_activation", "summary_first_dropout", "summary_proj_to_labels", "summary_type",
        "summary_use_proj", "scale_attn_weights", "scale_attn_by_inverse_layer_idx",
        "reorder_and_upcast_attn",
    }
)  # fmt: skip
GPT_NEO_HARMLESS = GPT2_HARMLESS
OPT_HARMLESS = frozenset({"_remove_final_layer_norm"})
BLOOM_HARMLESS = frozenset(
    {
        "apply_residual_connection_post_layernorm", "attention_softmax_in_fp32", "bias_dropout_fusion",
        "masked_softmax_fusion", "offset_alibi", "skip_bias_add", "skip_bias_add_qkv", "slow_but_exact",
    }
)  # fmt: skip
STARCODER2_HARMLESS = frozenset(
    {
        "activation_function", "norm_epsilon", "attention_softmax_in_fp32", "scale_attention_softmax_in_fp32",
        "scale_attn_weights",
    }
)  # fmt: skip


def plain_heads(
    config: Config, hidden: int, heads: int, key: str, *, qkv_bias: bool, out_bias: bool
) -> Attention:
    """Attention with as many key and value heads as query heads."""
    width = divide_heads(config, hidden, heads, key=key)
    return Attention(
        num_heads=heads, num_kv_heads=heads, head_dim=width, qkv_bias=qkv_bias, out_bias=out_bias
    )


def read_gpt2(config: Config) -> ModelSpec:
    """GPT-2: learned positions, biases everywhere, tied head; n_inner null means 4 n_embd."""
    hidden = config.count("n_embd", "hidden_size", example=768)
    heads = query_heads(config, "n_head", "num_attention_heads", example=12)
    layers = config.layers("n_layer", "num_hidden_layers", example=12)
    length = positions(config, "n_positions", "max_position_embeddings", example=1024)
    block = Block(
        attention=plain_heads(config, hidden, heads, "n_embd", qkv_bias=True, out_bias=True),
        feed_forward=FeedForward(
            ffn_size=config.optional_count("n_inner", example=4 * hidden) or 4 * hidden,
            gated=False,
            bias=True,
        ),
        norm=LAYER_NORM,
        dropout=config.any_dropout(resid_pdrop=0.1, embd_pdrop=0.1, attn_pdrop=0.1),
    )
    return language_model(
        config,
        [(("block",), block)] * layers,
        hidden=hidden,
        max_length=length,
        tied=config.flag("tie_word_embeddings", True),
        vocab_example=50257,
        embedding=Embedding(kind="tokens", num_positions=length),
    )


def neo_attention_kinds(config: Config, layers: int) -> list[str]:
    """ "global" or "local" per layer, from attention_layers or attention_types [[pattern, repeat], ...]."""
    key = "attention_types" if config.has("attention_types") else "attention_layers"
    types = config.listed("attention_types")
    kinds = config.listed("attention_layers")
    if types is not None:
        kinds = expand_attention_types(config, types)
    if kinds is None:
        raise config.missing(["attention_types"], f'[[["global", "local"], {max(1, layers // 2)}]]')
    for kind in kinds:
        if kind not in ("global", "local"):
            raise unsupported(
                config,
                key,
                f"attention kind {describe(kind)} is not priced",
                "values that work: global, local",
            )
    if len(kinds) != layers:
        raise config.error(
            key,
            f"{key} describes {len(kinds)} layers and num_layers is {layers}",
            hint=f'write "attention_types": [[["global"], {layers}]] or another pattern of {layers} layers',
        )
    return kinds


def expand_attention_types(config: Config, types: list[Any]) -> list[str]:
    """[[["global", "local"], 16]] as 32 names."""
    kinds: list[str] = []
    for entry in types:
        shaped = isinstance(entry, list) and len(entry) == 2 and isinstance(entry[0], list)
        if not shaped:
            raise config.error(
                "attention_types",
                f"an entry of attention_types must be [pattern, repeat], not {describe(entry)}",
                hint='write "attention_types": [[["global", "local"], 16]]',
            )
        repeat = config.checked_count("attention_types", entry[1], least=1, most=MAX_LAYERS, example=16)
        kinds += entry[0] * repeat
        if len(kinds) > MAX_LAYERS:
            raise config.error("attention_types", f"attention_types describes more than {MAX_LAYERS} layers")
    return kinds


def read_gpt_neo(config: Config) -> ModelSpec:
    """GPT-Neo: global and local (windowed) layers, no bias on queries, keys and values."""
    hidden = config.count("hidden_size", example=2560)
    heads = query_heads(config, "num_heads", "num_attention_heads", example=20)
    layers = config.layers("num_layers", "num_hidden_layers", example=32)
    kinds = neo_attention_kinds(config, layers)
    window = config.count("window_size", example=256, most=MAX_TOKENS)
    length = positions(config, example=2048)
    attention = plain_heads(config, hidden, heads, "hidden_size", qkv_bias=False, out_bias=True)
    feed_forward = FeedForward(
        ffn_size=config.optional_count("intermediate_size", example=4 * hidden) or 4 * hidden,
        gated=False,
        bias=True,
    )
    dropout = config.any_dropout(resid_dropout=0.0, embed_dropout=0.0, attention_dropout=0.0)
    blocks = [
        (
            (kind,),
            Block(
                attention=attention.model_copy(update={"window": window if kind == "local" else None}),
                feed_forward=feed_forward,
                norm=LAYER_NORM,
                dropout=dropout,
            ),
        )
        for kind in kinds
    ]
    return language_model(
        config,
        blocks,
        hidden=hidden,
        max_length=length,
        tied=config.flag("tie_word_embeddings", True),
        vocab_example=50257,
        embedding=Embedding(kind="tokens", num_positions=length),
    )


def read_opt(config: Config) -> ModelSpec:
    """OPT: two extra position rows; a projection when word_embed_proj_dim differs from hidden_size;
    no final norm when the norm comes after (do_layer_norm_before false: OPT-350M)."""
    hidden = config.count("hidden_size", example=1024)
    heads = query_heads(config, "num_attention_heads", example=16)
    layers = config.layers("num_hidden_layers", example=24)
    length = positions(config, example=2048)
    bias = config.flag("enable_bias", True)
    if not config.flag("layer_norm_elementwise_affine", True):
        raise unsupported(
            config,
            "layer_norm_elementwise_affine",
            "norms without weights are not priced",
            'a value that works: "layer_norm_elementwise_affine": true',
        )
    block = Block(
        attention=plain_heads(config, hidden, heads, "hidden_size", qkv_bias=bias, out_bias=bias),
        feed_forward=FeedForward(ffn_size=config.count("ffn_dim", example=4096), gated=False, bias=bias),
        norm=LAYER_NORM,
        dropout=config.any_dropout(dropout=0.1, attention_dropout=0.0, activation_dropout=0.0),
    )
    width = config.optional_count("word_embed_proj_dim", example=hidden) or hidden
    projection = 0 if width == hidden else width
    norm_first = config.flag("do_layer_norm_before", True)
    tied = config.flag("tie_word_embeddings", True)
    return language_model(
        config,
        [(("block",), block)] * layers,
        hidden=hidden,
        max_length=length,
        tied=tied,
        vocab_example=50272,
        embedding=Embedding(kind="tokens", num_positions=length + 2, projection_size=projection),
        head=Head(kind="language_model", tied=tied, projection_size=projection),
        final_norm=norm_first and not config.flag("_remove_final_layer_norm", False),
    )


def read_bloom(config: Config) -> ModelSpec:
    """BLOOM: ALiBi instead of position rows, a norm after the embedding, feed-forward 4 h, biases."""
    hidden = config.count("hidden_size", "n_embed", example=14336)
    heads = query_heads(config, "n_head", "num_attention_heads", example=112)
    layers = config.layers("n_layer", "num_hidden_layers", example=70)
    length = config.optional_count("seq_length", most=MAX_TOKENS, example=2048)
    if length is None:
        length = 2048
        config.warn(f"{config.pointer('seq_length')}: absent, taken as 2048, the length BLOOM was trained at")
    block = Block(
        attention=plain_heads(config, hidden, heads, "hidden_size", qkv_bias=True, out_bias=True),
        feed_forward=FeedForward(
            ffn_size=config.optional_count("n_inner", most=4 * MAX_SIZE, example=4 * hidden) or 4 * hidden,
            gated=False,
            bias=True,
        ),
        norm=LAYER_NORM,
        dropout=config.any_dropout(hidden_dropout=0.0, attention_dropout=0.0),
    )
    return language_model(
        config,
        [(("block",), block)] * layers,
        hidden=hidden,
        max_length=length,
        tied=config.flag("tie_word_embeddings", True),
        vocab_example=250880,
        embedding=Embedding(kind="tokens", norm=True),
    )


def read_starcoder2(config: Config) -> ModelSpec:
    """StarCoder2 (arXiv 2402.19173): grouped keys and values, rotary positions, a window, biases, tied."""
    for key, only in (("norm_type", "layer_norm"), ("mlp_type", "default")):
        value = config.text(key, only)
        if value != only:
            raise unsupported(
                config,
                key,
                f"{key} {value!r} is not priced for starcoder2",
                f'a value that works: "{key}": "{only}"',
            )
    hidden = config.count("hidden_size", example=4608)
    layers = config.layers("num_hidden_layers", example=32)
    bias = config.flag("use_bias", True)
    attention = grouped_attention(config, hidden, qkv_bias=bias, out_bias=bias, default_kv_heads=2)
    # The class sets one window for all layers or none.
    windows = windows_per_layer(config, layers, lambda _: True)
    block = Block(
        attention=attention.model_copy(update={"window": windows[0]}),
        feed_forward=FeedForward(
            ffn_size=config.count("intermediate_size", example=18432), gated=False, bias=bias
        ),
        norm=LAYER_NORM,
        dropout=config.any_dropout(attention_dropout=0.0, residual_dropout=0.0, embedding_dropout=0.0),
    )
    return language_model(
        config,
        [(("block",), block)] * layers,
        hidden=hidden,
        max_length=positions(config, example=16384),
        tied=config.flag("tie_word_embeddings", True),
        vocab_example=49152,
    )
