"""t5: an encoder and a decoder that share one vocabulary table."""

from __future__ import annotations

from planner.model.hugging_face.attention import positions, query_heads, vocabulary
from planner.model.hugging_face.keys import unsupported
from planner.model.hugging_face.values import Config
from planner.model.spec import (
    Attention,
    Block,
    Embedding,
    FeedForward,
    Head,
    LayoutRun,
    ModelSpec,
    Norm,
    Stack,
)

T5_HARMLESS = frozenset({"relative_attention_max_distance", "dense_act_fn", "scalable_attention"})
TRAINED_LENGTH = 512


def is_gated(config: Config) -> bool:
    """Whether the feed-forward has a gate: feed_forward_proj "gated-<act>", else "<act>"."""
    projection = config.text("feed_forward_proj", "relu")
    parts = projection.split("-")
    if len(parts) > 2 or (len(parts) == 2 and parts[0] != "gated"):
        raise config.error(
            "feed_forward_proj",
            f"feed_forward_proj must be an activation or gated-<activation>, not {projection!r}",
            hint='write "feed_forward_proj": "gated-gelu" or "relu"',
        )
    gated = parts[0] == "gated"
    if config.has("is_gated_act") and config.flag("is_gated_act", gated) != gated:
        raise config.error(
            "is_gated_act",
            f"is_gated_act disagrees with feed_forward_proj {projection!r}",
            hint="remove is_gated_act",
        )
    config.get("is_gated_act")
    return gated


def longest_sequence(config: Config) -> int:
    """n_positions; T5 v1.1 files leave it out, and relative positions set no limit."""
    if config.has("n_positions"):
        return positions(config, "n_positions", example=TRAINED_LENGTH)
    config.get("n_positions")
    config.warn(
        f"{config.pointer('n_positions')}: absent, taken as {TRAINED_LENGTH}, the length T5 was trained at"
    )
    return TRAINED_LENGTH


def layout(stack: str, layers: int) -> list[LayoutRun]:
    """The first block of a stack holds the relative position table, so it is a kind of its own."""
    runs = [LayoutRun(kinds=[f"{stack}_first"], repeat=1)]
    return [*runs, LayoutRun(kinds=[stack], repeat=layers - 1)] if layers > 1 else runs


def read_t5(config: Config) -> ModelSpec:
    """T5 and T5 v1.1: no biases, d_kv is free of d_model / heads, num_decoder_layers null = num_layers."""
    if not config.flag("is_encoder_decoder", True):
        raise unsupported(
            config,
            "is_encoder_decoder",
            "a T5 encoder alone is not priced",
            'a value that works: "is_encoder_decoder": true',
        )
    hidden = config.count("d_model", "hidden_size", example=1024)
    heads = query_heads(config, "num_heads", "num_attention_heads", example=16)
    encoder_layers = config.layers("num_layers", "num_hidden_layers", example=24)
    decoder_layers = config.optional_count("num_decoder_layers", most=10_000, example=24) or encoder_layers
    buckets = config.optional_count("relative_attention_num_buckets", example=32) or 32
    attention = Attention(
        num_heads=heads, num_kv_heads=heads, head_dim=config.count("d_kv", example=64), causal=False
    )
    feed_forward = FeedForward(ffn_size=config.count("d_ff", example=4096), gated=is_gated(config))
    dropout = config.any_dropout(dropout_rate=0.1)

    def block(*, decoder: bool, first: bool) -> Block:
        change = {"causal": decoder, "relative_bias_buckets": buckets if first else 0}
        return Block(
            attention=attention.model_copy(update=change),
            cross_attention=attention if decoder else None,
            feed_forward=feed_forward,
            norm=Norm(kind="rmsnorm"),
            num_norms=3 if decoder else 2,
            dropout=dropout,
        )

    kinds = {
        "encoder_first": block(decoder=False, first=True),
        "decoder_first": block(decoder=True, first=True),
    }
    if encoder_layers > 1:
        kinds["encoder"] = block(decoder=False, first=False)
    if decoder_layers > 1:
        kinds["decoder"] = block(decoder=True, first=False)
    return ModelSpec(
        name=config.name,
        family=config.model_type,
        source=f"Hugging Face {config.file}",
        hidden_size=hidden,
        vocab_size=vocabulary(config, 32128),
        max_sequence_length=longest_sequence(config),
        block_kinds=kinds,
        stacks=[
            Stack(
                name="encoder", embedding=Embedding(kind="tokens"), layout=layout("encoder", encoder_layers)
            ),
            Stack(
                name="decoder",
                embedding=Embedding(kind="shared"),
                layout=layout("decoder", decoder_layers),
                cross_attends_to="encoder",
            ),
        ],
        head=Head(kind="language_model", tied=config.flag("tie_word_embeddings", True)),
    )
