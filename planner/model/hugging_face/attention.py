"""What several families share: grouped-query attention, windows per layer, and language-model assembly."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from planner.model.hugging_face.keys import unsupported
from planner.model.hugging_face.layout import Labelled, name_blocks
from planner.model.hugging_face.values import MAX_LAYERS, MAX_TOKENS, Config, describe
from planner.model.spec import Attention, Embedding, Head, ModelSpec, Stack

FULL = "full_attention"
SLIDING = "sliding_attention"


def divide_heads(config: Config, hidden: int, heads: int, *, key: str) -> int:
    """Hidden size over heads; InputError when it is not whole."""
    if hidden % heads:
        near = heads * max(1, round(hidden / heads))
        raise config.error(
            key,
            f"{key!r} ({hidden}) must be a multiple of the number of heads ({heads}): "
            f"{hidden} % {heads} = {hidden % heads}",
            hint=f'write "{key}": {near}, or give head_dim',
        )
    return hidden // heads


def query_heads(config: Config, *keys: str, example: int) -> int:
    """The number of query heads."""
    return config.count(*keys, example=example, most=1_000_000)


def key_value_heads(config: Config, heads: int, *, library_default: int | None) -> int:
    """num_key_value_heads, or ``heads`` when absent.

    ``library_default`` is the number transformers itself would take for an absent key when that is not
    ``heads``; the difference is then stated in a warning.
    """
    key = "num_key_value_heads"
    kv = config.optional_count(key, example=heads, most=1_000_000)
    if kv is None:
        if library_default is not None and library_default != heads:
            config.warn(
                f"{config.pointer(key)}: absent, taken as num_attention_heads = {heads}; "
                f"transformers would take {library_default}"
            )
        return heads
    if kv > heads or heads % kv:
        raise config.error(
            key,
            f"num_attention_heads ({heads}) must be a multiple of num_key_value_heads ({kv})",
            hint=f'write "{key}": {heads}',
        )
    return kv


def head_width(config: Config, hidden: int, heads: int, *, library_default: int | None) -> int:
    """head_dim, or hidden / heads when absent (stated when transformers would take another number)."""
    width = config.optional_count("head_dim", example=128, most=1_000_000)
    if width is not None:
        return width
    width = divide_heads(config, hidden, heads, key="hidden_size")
    if library_default is not None and library_default != width:
        config.warn(
            f"{config.pointer('head_dim')}: absent, taken as hidden_size / num_attention_heads = {width}; "
            f"transformers would take {library_default}"
        )
    return width


def grouped_attention(
    config: Config,
    hidden: int,
    *,
    qkv_bias: bool,
    out_bias: bool,
    qk_norm: bool = False,
    sinks: bool = False,
    default_kv_heads: int | None = None,
    default_head_dim: int | None = None,
) -> Attention:
    """Attention of the llama-like families, without a window."""
    heads = query_heads(config, "num_attention_heads", example=32)
    return Attention(
        num_heads=heads,
        num_kv_heads=key_value_heads(config, heads, library_default=default_kv_heads),
        head_dim=head_width(config, hidden, heads, library_default=default_head_dim),
        qkv_bias=qkv_bias,
        out_bias=out_bias,
        qk_norm=qk_norm,
        sinks=sinks,
    )


def windows_per_layer(config: Config, layers: int, slides: Callable[[int], bool]) -> list[int | None]:
    """The sliding window of each layer in tokens, None for whole-sequence attention.

    ``layer_types`` decides when present, else ``slides`` says which layers use ``sliding_window``.
    """
    listed = layer_types(config, layers)
    sliding = [kind == SLIDING for kind in listed] if listed else [slides(i) for i in range(layers)]
    window = config.optional_count("sliding_window", most=MAX_TOKENS, example=4096)
    if window is None:
        if listed and any(sliding):
            raise config.missing(["sliding_window"], 4096)
        return [None] * layers
    return [window if slide else None for slide in sliding]


def window_period(config: Config, default: int) -> int:
    """Every how many layers one sees the whole sequence: sliding_window_pattern, else ``default``."""
    keys = ("sliding_window_pattern", "_sliding_window_pattern")
    return config.optional_count(*keys, most=MAX_LAYERS, example=default) or default


def layer_types(config: Config, layers: int) -> list[str]:
    """The checked ``layer_types`` list, empty when absent."""
    listed = config.listed("layer_types")
    if listed is None:
        return []
    if len(listed) != layers:
        raise config.error(
            "layer_types",
            f"layer_types has {len(listed)} entries and the model {layers} layers",
            hint=f"give {layers} entries or remove the key",
        )
    for index, kind in enumerate(listed):
        if kind not in (FULL, SLIDING):
            raise unsupported(
                config,
                "layer_types",
                f"layer_types[{index}] = {describe(kind)} is not priced",
                f"values that work: {FULL}, {SLIDING}",
                item=index,
            )
    return listed


def window_label(window: int | None) -> str:
    """The word for a layer's attention in a block kind's name."""
    return "full" if window is None else "sliding"


def vocabulary(config: Config, example: int) -> int:
    """Rows of the vocabulary table."""
    return config.count("vocab_size", example=example, most=MAX_TOKENS)


def positions(config: Config, *keys: str, example: int) -> int:
    """The longest sequence in tokens."""
    return config.count(*(keys or ("max_position_embeddings",)), example=example, most=MAX_TOKENS)


def language_model(
    config: Config,
    blocks: Sequence[Labelled],
    *,
    hidden: int,
    max_length: int,
    tied: bool,
    vocab_example: int,
    embedding: Embedding | None = None,
    head: Head | None = None,
    final_norm: bool = True,
    stack_name: str = "decoder",
    mtp_layers: int = 0,
    notes: Sequence[str] = (),
) -> ModelSpec:
    """A one-stack language model from its labelled blocks."""
    kinds, layout = name_blocks(blocks)
    return ModelSpec(
        name=config.name,
        family=config.model_type,
        source=f"Hugging Face {config.file}",
        hidden_size=hidden,
        vocab_size=vocabulary(config, vocab_example),
        max_sequence_length=max_length,
        block_kinds=kinds,
        stacks=[
            Stack(
                name=stack_name,
                embedding=embedding or Embedding(kind="tokens"),
                layout=layout,
                final_norm=final_norm,
            )
        ],
        head=head or Head(kind="language_model", tied=tied),
        num_mtp_layers=mtp_layers,
        notes=list(notes),
    )
