"""mixtral, qwen3_moe, gpt_oss: decoders with routed experts and grouped-query attention."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from planner.model.hugging_face.attention import (
    grouped_attention,
    language_model,
    positions,
    window_label,
    windows_per_layer,
)
from planner.model.hugging_face.llama import RMS, qwen_windows
from planner.model.hugging_face.values import MAX_LAYERS, Config, describe
from planner.model.spec import Attention, Block, FeedForward, MixtureOfExperts, ModelSpec

MIXTRAL_HARMLESS = frozenset({"router_jitter_noise"})
QWEN3_MOE_HARMLESS = frozenset({"norm_topk_prob", "max_window_layers"})
GPT_OSS_HARMLESS = frozenset(
    {"initial_context_length", "swiglu_limit", "rope_scaling_factor", "rope_ntk_alpha", "rope_ntk_beta"}
)

FeedForwards = Sequence[FeedForward | MixtureOfExperts]


def experts_per_token(config: Config, experts: int, *keys: str) -> int:
    """How many experts a token visits; at most ``experts``."""
    value = config.count(*keys, example=min(2, experts), most=MAX_LAYERS)
    if value > experts:
        raise config.error(
            keys[0],
            f"{keys[0]!r} ({value}) must not exceed the number of experts ({experts})",
            hint=f'write "{keys[0]}": {experts} or less',
        )
    return value


def build(
    config: Config,
    attention: Attention,
    windows: Sequence[int | None],
    feed_forwards: FeedForwards,
    *,
    hidden: int,
) -> ModelSpec:
    """One stack; a layer is known by its window and by dense or routed feed-forward."""
    dropout = config.any_dropout(attention_dropout=0.0)
    blocks = [
        (
            (window_label(window), feed_forward.kind),
            Block(
                attention=attention.model_copy(update={"window": window}),
                feed_forward=feed_forward,
                norm=RMS,
                dropout=dropout,
            ),
        )
        for window, feed_forward in zip(windows, feed_forwards, strict=True)
    ]
    return language_model(
        config,
        blocks,
        hidden=hidden,
        max_length=positions(config, example=32768),
        tied=config.flag("tie_word_embeddings", False),
        vocab_example=32000,
    )


def read_mixtral(config: Config) -> ModelSpec:
    """Mixtral: every layer routed, no biases."""
    hidden = config.count("hidden_size", example=4096)
    layers = config.layers("num_hidden_layers", example=32)
    attention = grouped_attention(config, hidden, qkv_bias=False, out_bias=False, default_kv_heads=8)
    experts = config.count("num_local_experts", example=8, most=1_000_000)
    moe = MixtureOfExperts(
        num_experts=experts,
        experts_per_token=experts_per_token(config, experts, "num_experts_per_tok"),
        expert_ffn_size=config.count("intermediate_size", example=14336),
        gated=True,
    )
    windows = windows_per_layer(config, layers, lambda _: True)
    return build(config, attention, windows, [moe] * layers, hidden=hidden)


def dense_layers(config: Config, layers: int) -> set[int]:
    """The indices in mlp_only_layers."""
    listed = config.listed("mlp_only_layers") or []
    for index, value in enumerate(listed):
        valid = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < layers
        if not valid:
            raise config.error(
                "mlp_only_layers",
                f"mlp_only_layers[{index}] must be a layer from 0 to {layers - 1}, not {describe(value)}",
                hint='write "mlp_only_layers": []',
                item=index,
            )
    return set(listed)


def read_qwen3_moe(config: Config) -> ModelSpec:
    """Qwen3 MoE: layer i is routed when (i + 1) is a multiple of decoder_sparse_step and i is not in
    mlp_only_layers; other layers are dense with intermediate_size."""
    hidden = config.count("hidden_size", example=2048)
    layers = config.layers("num_hidden_layers", example=48)
    bias = config.flag("attention_bias", False)
    attention = grouped_attention(
        config, hidden, qkv_bias=bias, out_bias=bias, qk_norm=True, default_kv_heads=4
    )
    experts = config.count("num_experts", "num_local_experts", example=128, most=1_000_000)
    moe = MixtureOfExperts(
        num_experts=experts,
        experts_per_token=experts_per_token(config, experts, "num_experts_per_tok"),
        expert_ffn_size=config.count("moe_intermediate_size", example=768),
        gated=True,
    )
    step = config.optional_count("decoder_sparse_step", most=MAX_LAYERS, example=1) or 1
    without = dense_layers(config, layers)
    routed = [index not in without and (index + 1) % step == 0 for index in range(layers)]
    width: Any = config.optional_count("intermediate_size", example=6144)
    if width is None and not all(routed):
        raise config.missing(["intermediate_size"], 6144)
    feed_forwards: FeedForwards = [
        moe if is_routed else FeedForward(ffn_size=width, gated=True) for is_routed in routed
    ]
    return build(config, attention, qwen_moe_windows(config, layers), feed_forwards, hidden=hidden)


def qwen_moe_windows(config: Config, layers: int) -> list[int | None]:
    """Qwen3 MoE slides on every layer when use_sliding_window and no max_window_layers is given."""
    if config.flag("use_sliding_window", False) and not config.has("max_window_layers"):
        if not config.has("sliding_window"):
            raise config.missing(["sliding_window"], 4096)
        return windows_per_layer(config, layers, lambda _: True)
    return qwen_windows(config, layers)


def read_gpt_oss(config: Config) -> ModelSpec:
    """GPT-OSS: biases everywhere, a sink per head, sliding and full layers in turn, all routed."""
    hidden = config.count("hidden_size", example=2880)
    layers = config.layers("num_hidden_layers", example=36)
    bias = config.flag("attention_bias", True)
    attention = grouped_attention(
        config, hidden, qkv_bias=bias, out_bias=bias, sinks=True, default_kv_heads=8, default_head_dim=64
    )
    experts = config.count("num_local_experts", "num_experts", example=128, most=1_000_000)
    moe = MixtureOfExperts(
        num_experts=experts,
        experts_per_token=experts_per_token(config, experts, "num_experts_per_tok", "experts_per_token"),
        expert_ffn_size=config.count("intermediate_size", example=2880),
        gated=True,
        bias=True,
        router_bias=True,
    )
    windows = windows_per_layer(config, layers, lambda index: index % 2 == 0)
    return build(config, attention, windows, [moe] * layers, hidden=hidden)
