"""Which models Megatron-LM's GPT entry (pretrain_gpt.py) can run, as rules with reasons.

The entry builds one causal decoder of equal blocks from flags: pre-norm, attention then feed-forward, a
token table and a plain projection. Everything a flag cannot say is refused rather than left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from planner.launchers.base import Break, Rule
from planner.launchers.megatron_model import windows_in_use
from planner.model.spec import Attention, Block, LatentAttention, MixtureOfExperts
from planner.plan_file.schema import Plan
from planner.strategy.candidates import BoolArray, Candidates, Problem
from planner.strategy.rules import Rule as SearchRule

DECODER = "a causal decoder with a token table and a language-model head"
# Activations or positions that a family has by definition and pretrain_gpt.py has no flag for.
OTHER_ACTIVATIONS = {
    "opt": "ReLU",
    "gemma": "gated GELU",
    "gemma2": "gated GELU",
    "gemma3_text": "gated GELU",
}
ALIBI_FAMILIES = ("bloom", "mpt")


def _blocks(plan: Plan) -> Iterator[tuple[str, Block]]:
    model = plan.inputs.model
    used = {kind for _, kind in model.block_sequence()}
    return ((name, block) for name, block in model.block_kinds.items() if name in used)


def _decoder(plan: Plan) -> Break | None:
    model = plan.inputs.model
    embedding, head = model.stacks[0].embedding.kind, model.head.kind
    if len(model.stacks) > 1:
        names = ", ".join(stack.name for stack in model.stacks)
        return Break(f"{model.name} has {len(model.stacks)} stacks: {names}", DECODER)
    if embedding != "tokens" or head != "language_model":
        return Break(f"{model.name} has an embedding of {embedding} and a {head} head", DECODER)
    for name, block in _blocks(plan):
        if not block.attention.causal or block.cross_attention is not None:
            kind = "cross-attention" if block.cross_attention else "attention in both directions"
            return Break(f"block {name} has {kind}", DECODER)
    return None


def _order(plan: Plan) -> Break | None:
    for name, block in _blocks(plan):
        if block.num_norms != 2 or block.parallel:
            kind = "parallel attention and feed-forward" if block.parallel else f"{block.num_norms} norms"
            return Break(f"block {name} has {kind}", "two norms, attention before feed-forward")
    if not plan.inputs.model.stacks[0].final_norm:
        return Break("no norm after the last block", "a final norm")
    return None


def _ends(plan: Plan) -> Break | None:
    model = plan.inputs.model
    embedding, head = model.stacks[0].embedding, model.head
    extra = [
        name
        for name, present in (
            ("a norm after the embedding", embedding.norm),
            ("segment embeddings", embedding.num_types > 0),
            (f"an embedding {embedding.projection_size} wide", embedding.projection_size > 0),
            ("a dense layer before the projection", head.transform),
            ("a bias on the projection", head.bias),
            ("a pooler", head.pooler),
            ("capped logits", head.soft_cap),
        )
        if present
    ]
    return Break(", ".join(extra), "a token table and a plain projection") if extra else None


def _positions(plan: Plan) -> Break | None:
    model, length = plan.inputs.model, plan.inputs.workload.sequence_length
    table = model.stacks[0].embedding.num_positions
    if model.family in ALIBI_FAMILIES:
        return Break(f"{model.family} adds ALiBi biases", "rotary or learned positions")
    if any(
        isinstance(b.attention, Attention) and b.attention.relative_bias_buckets for _, b in _blocks(plan)
    ):
        return Break("relative position biases", "rotary or learned positions")
    if table and length > table:
        return Break(f"sequence length {length}, position table {table}", f"sequence length {table}")
    return None


def _activation(plan: Plan) -> Break | None:
    family = plan.inputs.model.family
    if family not in OTHER_ACTIVATIONS:
        return None
    return Break(f"{family} uses {OTHER_ACTIVATIONS[family]}", "GELU or SwiGLU")


def _equal(plan: Plan) -> Break | None:
    """Every block alike, but for the window and for dense against experts."""
    kinds = list(_blocks(plan))
    checks: list[tuple[str, list[tuple[str, Any]]]] = [
        ("attention", [(n, b.attention.model_copy(update={"window": None})) for n, b in kinds]),
        ("norms and dropout", [(n, (b.norm, b.dropout)) for n, b in kinds]),
        ("gate and bias", [(n, (b.feed_forward.gated, b.feed_forward.bias)) for n, b in kinds]),
        ("dense width", [(n, b.feed_forward) for n, b in kinds if b.feed_forward.kind == "dense"]),
        ("experts", [(n, b.feed_forward) for n, b in kinds if b.feed_forward.kind == "moe"]),
    ]
    for what, values in checks:
        for name, value in values[1:]:
            if value != values[0][1]:
                return Break(f"blocks {values[0][0]} and {name} differ in {what}", "blocks of one shape")
    widths = {window for window in windows_in_use(plan) if window is not None}
    if len(widths) > 1:
        return Break(f"windows of {sorted(widths)} tokens", "one window width")
    return None


def _biases(plan: Plan) -> Break | None:
    """--disable-bias-linear and --add-qkv-bias reach three cases: all, none, queries-keys-values only."""
    for name, block in _blocks(plan):
        ff, attention = block.feed_forward, block.attention
        qkv, out = False, False
        if isinstance(attention, Attention):
            qkv, out = attention.qkv_bias, attention.out_bias
        if isinstance(ff, MixtureOfExperts) and ff.bias:
            if ff.shared_ffn_size:
                return Break(f"block {name} has biases and shared experts", "no biases")
            if not ff.router_bias:
                return Break(f"block {name} has expert biases but no router bias", "both or neither")
            if plan.decision.degrees.expert_tp > 1:
                etp = plan.decision.degrees.expert_tp
                return Break(f"expert biases with expert_tp {etp}", "expert_tp 1")
        all_of_them = ff.bias and out and (qkv or isinstance(attention, LatentAttention))
        none_but_qkv = not ff.bias and not out
        if not all_of_them and not none_but_qkv:
            return Break(
                f"block {name}: bias on queries, keys and values {qkv}, attention output {out}, "
                f"feed-forward {ff.bias}",
                "all three, none, or queries, keys and values only",
            )
        if block.norm.bias != (block.norm.kind == "layernorm"):
            return Break(
                f"block {name}: {block.norm.kind} with bias {block.norm.bias}",
                "layernorm with bias or rmsnorm without",
            )
    return None


def _ring(plan: Plan) -> Break | None:
    cp = plan.decision.degrees.cp
    if cp == 1:
        return None
    if any(window is not None for window in windows_in_use(plan)):
        return Break(f"sliding windows with cp {cp}", "cp 1")
    if any(isinstance(b.attention, Attention) and b.attention.sinks for _, b in _blocks(plan)):
        return Break(f"attention sinks with cp {cp}", "cp 1")
    return None


def _ring_holds(c: Candidates, p: Problem) -> BoolArray:
    length = p.workload.sequence_length
    attentions = [b.attention for b in p.model.block_kinds.values() if isinstance(b.attention, Attention)]
    is_special = any(a.sinks or (a.window is not None and a.window < length) for a in attentions)
    result: BoolArray = (c.cp == 1) | (not is_special)
    return result


RING = "the p2p ring has no sliding windows and no sinks"
RING_SEARCH = SearchRule(
    "ring-attention", RING, "cp", _ring_holds, lambda c, p: f"windows or sinks with cp {int(c.cp[0])}"
)
MODEL_RULES: tuple[Rule, ...] = (
    Rule("model-kind", "pretrain_gpt.py trains " + DECODER, _decoder),
    Rule("block-order", "blocks are pre-norm: norm, attention, norm, feed-forward", _order),
    Rule("model-ends", "a token table first, one plain projection last", _ends),
    Rule("positions", "positions are rotary, or learned with a table as long as the sequence", _positions),
    Rule("activation", "flags exist for GELU, SwiGLU and GPT-OSS's gate", _activation),
    Rule("equal-blocks", "one shape of attention, dense layer and experts for all blocks", _equal),
    Rule("biases", "biases on all linear layers, on none, or on queries, keys and values only", _biases),
    Rule("ring-attention", RING, _ring),
)
