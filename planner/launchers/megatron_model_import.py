"""A ModelSpec from pretrain_gpt.py's flags: the inverse of ``megatron_model``.

Defaults are Megatron-LM's (core 0.16.1 and 0.20 dev, training/arguments.py, transformer_config.py):
LayerNorm, biases, learned positions, dropout 0.1, a feed-forward of 4 x hidden (8/3 with --swiglu, in
steps of 64).
"""

from __future__ import annotations

import re

from planner.errors import InputError
from planner.launchers.megatron_words import CommandLine
from planner.model.spec import (
    Attention,
    Block,
    Embedding,
    FeedForward,
    Head,
    LatentAttention,
    LayoutRun,
    MixtureOfExperts,
    ModelSpec,
    Norm,
    Stack,
)

_MODEL_FLAGS_TEXT = (
    "--num-layers --hidden-size --ffn-hidden-size --num-attention-heads --group-query-attention "
    "--num-query-groups --kv-channels --seq-length --max-position-embeddings --position-embedding-type "
    "--use-rotary-position-embeddings --normalization --swiglu --quick-geglu --disable-bias-linear "
    "--add-qkv-bias --qk-layernorm --softmax-type --attention-dropout --hidden-dropout --window-size "
    "--window-attn-skip-freq --num-experts --moe-router-topk --moe-ffn-hidden-size --moe-layer-freq "
    "--moe-shared-expert-intermediate-size --moe-shared-expert-gate --moe-router-enable-expert-bias "
    "--multi-latent-attention --q-lora-rank --kv-lora-rank --qk-head-dim --qk-pos-emb-head-dim "
    "--v-head-dim --vocab-size --padded-vocab-size --make-vocab-size-divisible-by "
    "--untie-embeddings-and-output-weights --squared-relu"
)
MODEL_FLAGS = tuple(_MODEL_FLAGS_TEXT.split())
# Sizes of the flags by the words of ``imported.shape_facts``.
SHAPE = {
    "--num-layers": "layers",
    "--hidden-size": "hidden size",
    "--num-attention-heads": "attention heads",
    "--num-query-groups": "key/value heads",
    "--ffn-hidden-size": "feed-forward width",
    "--vocab-size": "vocabulary",
    "--num-experts": "experts",
    "--moe-router-topk": "experts per token",
    "--moe-ffn-hidden-size": "expert width",
}
LONGEST = 1 << 20


def stated_shape(line: CommandLine) -> dict[str, int]:
    """The sizes the flags state. The dense width of a model of experts alone is not one of them."""
    found = {}
    for flag, word in SHAPE.items():
        value = line.number(flag)
        if value is not None:
            found[word] = value
    if "experts" in found and not line.has("--moe-layer-freq"):
        found.pop("feed-forward width", None)
    if line.has("--multi-latent-attention"):
        found.pop("key/value heads", None)
    return found


def read_model(line: CommandLine) -> ModelSpec | None:
    """The model the flags describe, None when they leave out layers, width, heads or vocabulary.

    Raises InputError for values that do not form a model.
    """
    layers, hidden = line.number("--num-layers"), line.number("--hidden-size")
    heads, vocabulary = line.number("--num-attention-heads"), line.number("--vocab-size")
    vocabulary = vocabulary or line.number("--padded-vocab-size")
    if layers is None or hidden is None or heads is None or vocabulary is None:
        return None
    is_moe = switches(line.text("--moe-layer-freq", "1") or "1", layers) if line.has("--num-experts") else []
    windows = _windows(line, layers)
    kinds: dict[str, Block] = {}
    order = []
    for layer in range(layers):
        has_experts = bool(is_moe) and is_moe[layer]
        name = ("moe" if has_experts else "dense") + (f"-window-{windows[layer]}" if windows[layer] else "")
        if name not in kinds:
            kinds[name] = _block(line, hidden, heads, has_experts, windows[layer])
        order.append(name)
    position = line.text("--position-embedding-type", "learned_absolute")
    has_table = position == "learned_absolute" and not line.has("--use-rotary-position-embeddings")
    longest = line.number("--max-position-embeddings")
    return ModelSpec(
        name=f"model of {line.file}",
        family="gpt_oss" if line.has("--quick-geglu") else "",
        source=line.file,
        hidden_size=hidden,
        vocab_size=vocabulary,
        max_sequence_length=longest or line.number("--seq-length") or LONGEST,
        block_kinds=kinds,
        stacks=[
            Stack(
                name="decoder",
                embedding=Embedding(kind="tokens", num_positions=(longest or 0) if has_table else 0),
                layout=_runs(order),
            )
        ],
        head=Head(kind="language_model", tied=not line.has("--untie-embeddings-and-output-weights")),
    )


def switches(text: str, layers: int) -> list[bool]:
    """One switch per layer from a frequency N (every Nth from the first) or an expression of lists.

    ``([0]*1+[1]*2)*3``, ``[1,0,1]``. Raises InputError when the length is not ``layers``.
    """
    if text.isdigit():
        return [layer % int(text) == 0 for layer in range(layers)]
    found = _list_expression(text.replace(" ", ""))
    if len(found) != layers:
        raise InputError(f"the pattern {text!r} has {len(found)} entries for {layers} layers")
    return [bool(value) for value in found]


def _list_expression(text: str) -> list[int]:
    """Value of sums and multiples of lists of 0 and 1. Raises InputError for anything else."""
    group = re.compile(r"\(?\[([01,]*)\]\)?(?:\*(\d+))?")
    outer = re.fullmatch(r"\(([^()]*)\)\*(\d+)", text)
    if outer is not None:
        return _list_expression(outer[1]) * int(outer[2])
    if text.startswith("(") and text.endswith(")"):
        text = text[1:-1]
    found: list[int] = []
    for part in text.split("+"):
        match = group.fullmatch(part)
        if match is None or int(match[2] or 1) > LONGEST:
            raise InputError(f"the pattern {text!r} is not a sum of lists such as [0]*1+[1]*31")
        found += [int(value) for value in match[1].split(",") if value] * int(match[2] or 1)
    return found


def _windows(line: CommandLine, layers: int) -> list[int | None]:
    """Window of every layer; W - 1 tokens to the left are a window of W."""
    text = " ".join(line.texts("--window-size")) if line.has("--window-size") else ""
    match = re.search(r"(\d+)\s*,\s*0", text)
    if match is None:
        return [None] * layers
    width = int(match[1]) + 1
    skip = line.text("--window-attn-skip-freq")
    if skip is None:
        return [width] * layers
    if skip.isdigit():  # every Nth layer sees everything
        return [None if (layer + 1) % int(skip) == 0 else width for layer in range(layers)]
    return [width if is_on else None for is_on in switches(skip, layers)]


def _block(line: CommandLine, hidden: int, heads: int, has_experts: bool, window: int | None) -> Block:
    has_bias = not line.has("--disable-bias-linear")
    is_gated = line.has("--swiglu") or line.has("--quick-geglu")
    is_rms = line.text("--normalization", "LayerNorm") == "RMSNorm"
    dropout = max(_share(line, name) for name in ("--attention-dropout", "--hidden-dropout"))
    ffn = line.number("--ffn-hidden-size") or (int(hidden * 4 * 2 / 3) // 64 * 64 if is_gated else 4 * hidden)
    feed_forward = (
        _experts(line, ffn, is_gated, has_bias)
        if has_experts
        else FeedForward(ffn_size=ffn, gated=is_gated, bias=has_bias)
    )
    return Block(
        attention=_attention(line, hidden, heads, has_bias, window),
        feed_forward=feed_forward,
        norm=Norm(kind="rmsnorm" if is_rms else "layernorm", bias=not is_rms),
        dropout=dropout > 0,
    )


def _share(line: CommandLine, name: str) -> float:
    """A dropout probability, 0.1 when not given."""
    text = line.text(name, "0.1") or ""
    try:
        return float(text)
    except ValueError:
        raise InputError(f"{name} must be a number, not {text!r}", file=line.file) from None


def _attention(
    line: CommandLine, hidden: int, heads: int, has_bias: bool, window: int | None
) -> Attention | LatentAttention:
    if line.has("--multi-latent-attention"):
        return LatentAttention(
            num_heads=heads,
            q_lora_rank=line.number("--q-lora-rank"),
            kv_lora_rank=line.number("--kv-lora-rank", 32) or 32,
            qk_nope_head_dim=line.number("--qk-head-dim", 128) or 128,
            qk_rope_head_dim=line.number("--qk-pos-emb-head-dim", 64) or 64,
            v_head_dim=line.number("--v-head-dim", 128) or 128,
        )
    groups = (line.number("--num-query-groups", 1) or 1) if line.has("--group-query-attention") else heads
    return Attention(
        num_heads=heads,
        num_kv_heads=groups,
        head_dim=line.number("--kv-channels") or hidden // heads,
        qkv_bias=has_bias or line.has("--add-qkv-bias"),
        out_bias=has_bias,
        qk_norm=line.has("--qk-layernorm"),
        sinks=line.text("--softmax-type") == "learnable",
        window=window,
    )


def _experts(line: CommandLine, ffn: int, is_gated: bool, has_bias: bool) -> MixtureOfExperts:
    return MixtureOfExperts(
        num_experts=line.number("--num-experts") or 1,
        experts_per_token=line.number("--moe-router-topk", 2) or 2,
        expert_ffn_size=line.number("--moe-ffn-hidden-size") or ffn,
        gated=is_gated,
        bias=has_bias,
        router_bias=has_bias or line.has("--moe-router-enable-expert-bias"),
        shared_ffn_size=line.number("--moe-shared-expert-intermediate-size", 0, 0) or 0,
        shared_gate=line.has("--moe-shared-expert-gate"),
    )


def _runs(order: list[str]) -> list[LayoutRun]:
    runs: list[LayoutRun] = []
    for name in order:
        if runs and runs[-1].kinds == [name]:
            runs[-1] = LayoutRun(kinds=[name], repeat=runs[-1].repeat + 1)
        else:
            runs.append(LayoutRun(kinds=[name], repeat=1))
    return runs
