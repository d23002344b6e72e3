"""bert and vit: encoders that see the whole sequence."""

from __future__ import annotations

from typing import Any

from planner.model.hugging_face.attention import language_model, positions, query_heads
from planner.model.hugging_face.gpt import LAYER_NORM, plain_heads
from planner.model.hugging_face.keys import unsupported
from planner.model.hugging_face.layout import name_blocks
from planner.model.hugging_face.values import Config, describe
from planner.model.spec import Block, Embedding, FeedForward, Head, ModelSpec, Stack

BERT_HARMLESS = frozenset(
    {
        "pooler_fc_size", "pooler_num_attention_heads", "pooler_num_fc_layers", "pooler_size_per_head",
        "pooler_type",
    }
)  # fmt: skip
"""Left over from the original release; no code reads them."""

VIT_HARMLESS = frozenset({"encoder_stride", "pooler_output_size", "pooler_act", "tie_word_embeddings"})
"""Masked-image decoding and the pooler; the classifier reads the class token directly."""

IMAGENET_CLASSES = 1000


def encoder_block(config: Config, hidden: int, heads: int, *, qkv_bias: bool, rate: float) -> Block:
    """A block with attention in both directions and biases; ``rate`` is the family's default dropout."""
    attention = plain_heads(config, hidden, heads, "hidden_size", qkv_bias=qkv_bias, out_bias=True)
    return Block(
        attention=attention.model_copy(update={"causal": False}),
        feed_forward=FeedForward(
            ffn_size=config.count("intermediate_size", example=4 * hidden), gated=False, bias=True
        ),
        norm=LAYER_NORM,
        dropout=config.any_dropout(hidden_dropout_prob=rate, attention_probs_dropout_prob=rate),
    )


def read_bert(config: Config) -> ModelSpec:
    """BERT as pre-trained: norm after, masked-word head with transform and bias, pooler."""
    kind = config.text("position_embedding_type", "absolute")
    if kind != "absolute":
        raise unsupported(
            config,
            "position_embedding_type",
            f"position_embedding_type {kind!r} is not priced",
            'a value that works: "position_embedding_type": "absolute"',
        )
    hidden = config.count("hidden_size", example=1024)
    heads = query_heads(config, "num_attention_heads", example=16)
    layers = config.layers("num_hidden_layers", example=24)
    length = positions(config, example=512)
    types = config.optional_count("type_vocab_size", least=0, example=2)
    tied = config.flag("tie_word_embeddings", True)
    return language_model(
        config,
        [(("block",), encoder_block(config, hidden, heads, qkv_bias=True, rate=0.1))] * layers,
        hidden=hidden,
        max_length=length,
        tied=tied,
        vocab_example=30522,
        embedding=Embedding(
            kind="tokens", num_positions=length, num_types=2 if types is None else types, norm=True
        ),
        head=Head(kind="language_model", tied=tied, bias=True, transform=True, pooler=True),
        final_norm=False,
        stack_name="encoder",
        notes=[
            "Priced as in pre-training: masked-word head and pooler; the 2-way sentence head is left out."
        ],
    )


def square(config: Config, key: str, example: int) -> tuple[int, int]:
    """A size in pixels given as one number or as [height, width]."""
    value: Any = config.get(key)
    if value is None:
        raise config.missing([key], example)
    pair = value if isinstance(value, list) else [value, value]
    if len(pair) != 2:
        raise config.error(
            key,
            f"{key!r} must be a number or [height, width], not {describe(value)}",
            hint=f"write {example}",
        )
    height, width = (
        config.checked_count(key, side, least=1, most=1_000_000, example=example) for side in pair
    )
    return height, width


def number_of_classes(config: Config) -> int:
    """Classes from id2label or num_labels; ImageNet-1k's 1000, stated, when the file has neither."""
    labels = config.get("id2label")
    if isinstance(labels, dict) and labels:
        return len(labels)
    classes = config.optional_count("num_labels", example=IMAGENET_CLASSES)
    if classes is not None:
        return classes
    config.warn(
        f"{config.pointer('id2label')}: absent, a classifier of {IMAGENET_CLASSES} classes (ImageNet-1k) "
        "is priced"
    )
    return IMAGENET_CLASSES


def read_vit(config: Config) -> ModelSpec:
    """ViT (arXiv 2010.11929): patches and one class token; the image size fixes the sequence length."""
    hidden = config.count("hidden_size", example=1280)
    heads = query_heads(config, "num_attention_heads", example=16)
    layers = config.layers("num_hidden_layers", example=32)
    channels = config.optional_count("num_channels", most=10_000, example=3) or 3
    image, patch = square(config, "image_size", 224), square(config, "patch_size", 14)
    if image[0] < patch[0] or image[1] < patch[1]:
        raise config.error(
            "patch_size",
            f"patch_size {patch} must not exceed image_size {image}",
            hint=f'write "patch_size": {min(image)} or less',
        )
    tokens = (image[0] // patch[0]) * (image[1] // patch[1]) + 1
    block = encoder_block(config, hidden, heads, qkv_bias=config.flag("qkv_bias", True), rate=0.0)
    kinds, layout = name_blocks([(("block",), block)] * layers)
    embedding = Embedding(
        kind="patches",
        num_positions=tokens,
        patch_features=patch[0] * patch[1] * channels,
        num_extra_tokens=1,
    )
    return ModelSpec(
        name=config.name,
        family=config.model_type,
        source=f"Hugging Face {config.file}",
        hidden_size=hidden,
        max_sequence_length=tokens,
        fixed_sequence_length=tokens,
        block_kinds=kinds,
        stacks=[Stack(name="encoder", embedding=embedding, layout=layout)],
        head=Head(kind="classifier", bias=True, num_classes=number_of_classes(config)),
    )
