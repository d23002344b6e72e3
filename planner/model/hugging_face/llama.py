"""llama, mistral, phi3, qwen2, qwen2_5_vl, qwen3, gemma2, gemma3: rotary positions, gated feed-forward."""

from __future__ import annotations

from collections.abc import Sequence

from planner.model.hugging_face.attention import (
    grouped_attention,
    language_model,
    positions,
    window_label,
    window_period,
    windows_per_layer,
)
from planner.model.hugging_face.keys import unsupported
from planner.model.hugging_face.values import MAX_LAYERS, Config
from planner.model.spec import Attention, Block, FeedForward, Head, ModelSpec, Norm

RMS = Norm(kind="rmsnorm")

LLAMA_HARMLESS = frozenset({"max_sequence_length", "rope_dim"})
MISTRAL_HARMLESS: frozenset[str] = frozenset()
PHI3_HARMLESS = frozenset({"original_max_position_embeddings", "attention_bias"})
"""The class has no biases whatever attention_bias says."""
QWEN_HARMLESS = frozenset({"use_mrope", "max_window_layers"})
GEMMA_HARMLESS = frozenset({"query_pre_attn_scalar", "attn_logit_softcapping", "sliding_window_size"})
"""The score cap lies inside the attention kernel; sliding_window_size repeats sliding_window."""
GEMMA3_DEFAULTS = {
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "vocab_size": 262_208,
    "max_position_embeddings": 131_072,
}
"""What released files of the larger models leave out (transformers, Gemma3TextConfig)."""
QWEN2_5_VL_HARMLESS = QWEN_HARMLESS | {
    "image_token_id", "video_token_id", "vision_token_id", "vision_start_token_id", "vision_end_token_id",
}  # fmt: skip


def build(
    config: Config,
    attention: Attention,
    windows: Sequence[int | None],
    *,
    hidden: int,
    mlp_bias: bool = False,
    tied_default: bool = False,
    num_norms: int = 2,
    soft_cap: bool = False,
    dropouts: dict[str, float] | None = None,
) -> ModelSpec:
    """One stack of dense gated blocks that differ only in their window.

    ``dropouts``: further keys that set one, and their defaults.
    """
    feed_forward = FeedForward(
        ffn_size=config.count("intermediate_size", example=14336), gated=True, bias=mlp_bias
    )
    dropout = config.any_dropout(**{"attention_dropout": 0.0, **(dropouts or {})})
    blocks = [
        (
            (window_label(window),),
            Block(
                attention=attention.model_copy(update={"window": window}),
                feed_forward=feed_forward,
                norm=RMS,
                num_norms=num_norms,
                dropout=dropout,
            ),
        )
        for window in windows
    ]
    tied = config.flag("tie_word_embeddings", tied_default)
    return language_model(
        config,
        blocks,
        hidden=hidden,
        max_length=positions(config, example=8192),
        tied=tied,
        vocab_example=128256,
        head=Head(kind="language_model", tied=tied, soft_cap=soft_cap),
    )


def read_llama(config: Config) -> ModelSpec:
    """Llama 1 to 3: no window; attention_bias covers all four projections, mlp_bias all three."""
    hidden = config.count("hidden_size", example=4096)
    layers = config.layers("num_hidden_layers", example=32)
    bias = config.flag("attention_bias", False)
    attention = grouped_attention(config, hidden, qkv_bias=bias, out_bias=bias)
    return build(config, attention, [None] * layers, hidden=hidden, mlp_bias=config.flag("mlp_bias", False))


def read_mistral(config: Config) -> ModelSpec:
    """Mistral: every layer uses ``sliding_window``; null means none."""
    hidden = config.count("hidden_size", example=4096)
    layers = config.layers("num_hidden_layers", example=32)
    attention = grouped_attention(config, hidden, qkv_bias=False, out_bias=False, default_kv_heads=8)
    if "sliding_window" not in config.data:
        config.warn(
            f"{config.pointer('sliding_window')}: absent, taken as no window; transformers would take 4096"
        )
    return build(config, attention, windows_per_layer(config, layers, lambda _: True), hidden=hidden)


def read_phi3(config: Config) -> ModelSpec:
    """Phi-3: one matrix for queries, keys and values, one for gate and up, no biases: llama's shapes."""
    hidden = config.count("hidden_size", example=3072)
    layers = config.layers("num_hidden_layers", example=32)
    attention = grouped_attention(config, hidden, qkv_bias=False, out_bias=False)
    windows = windows_per_layer(config, layers, lambda _: True)
    return build(config, attention, windows, hidden=hidden, dropouts={"resid_pdrop": 0.0, "embd_pdrop": 0.0})


def qwen_windows(config: Config, layers: int) -> list[int | None]:
    """Qwen's windows: none unless use_sliding_window; then the layers from max_window_layers on."""
    slides = config.flag("use_sliding_window", False)
    first = config.optional_count("max_window_layers", least=0, most=MAX_LAYERS, example=layers)
    if slides and first is None and not config.has("layer_types"):
        raise config.missing(["max_window_layers"], layers)
    if slides and not config.has("sliding_window"):
        raise config.missing(["sliding_window"], 4096)
    windows = windows_per_layer(config, layers, lambda index: first is not None and index >= first)
    return windows if slides else [None] * layers


def read_qwen2(config: Config) -> ModelSpec:
    """Qwen2 and Qwen2.5: biases on queries, keys and values only."""
    hidden = config.count("hidden_size", example=3584)
    layers = config.layers("num_hidden_layers", example=28)
    attention = grouped_attention(config, hidden, qkv_bias=True, out_bias=False, default_kv_heads=32)
    return build(config, attention, qwen_windows(config, layers), hidden=hidden)


def read_qwen3(config: Config) -> ModelSpec:
    """Qwen3: norms on query and key heads; attention_bias covers all four projections."""
    hidden = config.count("hidden_size", example=4096)
    layers = config.layers("num_hidden_layers", example=36)
    bias = config.flag("attention_bias", False)
    attention = grouped_attention(
        config, hidden, qkv_bias=bias, out_bias=bias, qk_norm=True, default_kv_heads=32, default_head_dim=128
    )
    return build(config, attention, qwen_windows(config, layers), hidden=hidden)


def read_gemma2(config: Config) -> ModelSpec:
    """Gemma 2: four norms a block, sliding and full layers in turn, tied head with a logit cap."""
    hidden = config.count("hidden_size", example=4608)
    layers = config.layers("num_hidden_layers", example=46)
    bias = config.flag("attention_bias", False)
    attention = grouped_attention(
        config, hidden, qkv_bias=bias, out_bias=bias, default_kv_heads=4, default_head_dim=256
    )
    return build(
        config,
        attention,
        windows_per_layer(config, layers, lambda index: index % 2 == 0),
        hidden=hidden,
        tied_default=True,
        num_norms=4,
        soft_cap=config.get("final_logit_softcapping") is not None,
    )


def read_gemma3(config: Config) -> ModelSpec:
    """Gemma 3's text tower: Gemma 2's four norms, norms on heads, every sixth layer full, no logit cap.

    Checked against transformers' Gemma3ForCausalLM.
    """
    if config.flag("use_bidirectional_attention", False):
        raise unsupported(
            config,
            "use_bidirectional_attention",
            "attention in both directions is not priced for gemma3_text",
            'a value that works: "use_bidirectional_attention": false',
        )
    config.take_defaults(GEMMA3_DEFAULTS)
    hidden = config.count("hidden_size", example=5376)
    layers = config.layers("num_hidden_layers", example=62)
    bias = config.flag("attention_bias", False)
    attention = grouped_attention(config, hidden, qkv_bias=bias, out_bias=bias, qk_norm=True)
    period = window_period(config, 6)
    return build(
        config,
        attention,
        windows_per_layer(config, layers, lambda index: (index + 1) % period > 0),
        hidden=hidden,
        tied_default=True,
        num_norms=4,
        soft_cap=config.get("final_logit_softcapping") is not None,
    )


def read_qwen2_5_vl(config: Config) -> ModelSpec:
    """Qwen2.5-VL's language model, which is Qwen2; files before version 5 write its keys at the top."""
    if config.get("vision_config") is not None:
        config.warn(
            f"{config.pointer('vision_config')}: only the text part is read; the vision part is not priced"
        )
    return read_qwen2(config)
