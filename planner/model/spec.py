"""ModelSpec: a model as facts. This is the file format of ``models/*.json``.

A model is one or more *stacks* (a decoder; or an encoder and a decoder) of *blocks*. Kinds of block are
named once in ``block_kinds`` and a stack's ``layout`` says in which order they come, run-length
encoded, so identical blocks stay folded from the file to the search. Everything is a count or a name;
nothing here knows a machine or a plan.

Shapes: ``hidden_size`` h, ``ffn_size`` f, ``num_heads`` a, ``num_kv_heads`` k, ``head_dim`` d,
``vocab_size`` V. Sizes are elements, never bytes.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Count = Annotated[int, Field(gt=0, le=10**9)]
CountOrZero = Annotated[int, Field(ge=0, le=10**9)]


class _Facts(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Attention(_Facts):
    """Multi-head, grouped-query or multi-query attention with fused or separate projections."""

    kind: Literal["gqa"] = "gqa"
    num_heads: Count = Field(description="query heads")
    num_kv_heads: Count = Field(description="key and value heads; equals num_heads without grouping")
    head_dim: Count = Field(description="elements per head; not always hidden_size / num_heads")
    qkv_bias: bool = False
    out_bias: bool = False
    qk_norm: bool = Field(default=False, description="a norm of head_dim weights on queries and on keys")
    sinks: bool = Field(default=False, description="one learned logit per head (GPT-OSS)")
    window: Count | None = Field(default=None, description="sliding window in tokens; null = whole sequence")
    causal: bool = True
    relative_bias_buckets: CountOrZero = Field(
        default=0,
        description="learned relative position buckets x heads held by this block (T5: first block)",
    )

    @model_validator(mode="after")
    def _groups_divide_heads(self) -> Attention:
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_heads must be a multiple of num_kv_heads: {self.num_heads} % "
                f"{self.num_kv_heads} = {self.num_heads % self.num_kv_heads}"
            )
        return self


class LatentAttention(_Facts):
    """Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, section 2.1)."""

    kind: Literal["mla"] = "mla"
    num_heads: Count
    q_lora_rank: Count | None = Field(default=None, description="null = queries projected directly")
    kv_lora_rank: Count
    qk_nope_head_dim: Count
    qk_rope_head_dim: Count
    v_head_dim: Count
    causal: Literal[True] = True
    window: None = None


class FeedForward(_Facts):
    """Dense feed-forward: gated has three matrices (gate, up, down), plain has two."""

    kind: Literal["dense"] = "dense"
    ffn_size: Count
    gated: bool
    bias: bool = False


class MixtureOfExperts(_Facts):
    """Routed experts plus optional shared experts, each expert a feed-forward of ``expert_ffn_size``."""

    kind: Literal["moe"] = "moe"
    num_experts: Count
    experts_per_token: Count
    expert_ffn_size: Count
    gated: bool
    bias: bool = False
    router_bias: bool = Field(
        default=False, description="a bias or a correction term of num_experts elements"
    )
    shared_ffn_size: CountOrZero = Field(default=0, description="total width of the shared experts; 0 = none")
    shared_gate: bool = Field(
        default=False, description="a sigmoid gate of hidden_size weights on the shared expert"
    )

    @model_validator(mode="after")
    def _enough_experts(self) -> MixtureOfExperts:
        if self.experts_per_token > self.num_experts:
            raise ValueError(
                f"experts_per_token ({self.experts_per_token}) must not exceed num_experts "
                f"({self.num_experts})"
            )
        return self


class Norm(_Facts):
    """A norm with a weight and, for layernorm, usually a bias."""

    kind: Literal["rmsnorm", "layernorm"]
    bias: bool = False


class Block(_Facts):
    """One transformer block: self-attention, optional cross-attention, feed-forward, norms."""

    attention: Attention | LatentAttention = Field(discriminator="kind")
    cross_attention: Attention | None = None
    feed_forward: FeedForward | MixtureOfExperts = Field(discriminator="kind")
    norm: Norm
    num_norms: Count = Field(
        default=2, description="norms of hidden_size in the block: 2 usual, 3 with cross-attention, 4 Gemma 2"
    )
    parallel: bool = Field(
        default=False,
        description="attention and feed-forward side by side on the block's input; num_norms 1: through one "
        "norm (PaLM, Command R), 2: each through its own (GPT-NeoX)",
    )
    dropout: bool = Field(
        default=False, description="dropout after attention scores, attention and feed-forward"
    )


class LayoutRun(_Facts):
    """``kinds`` in order, the whole tuple ``repeat`` times."""

    kinds: list[str] = Field(min_length=1)
    repeat: Count


class Embedding(_Facts):
    """What turns the input into hidden states.

    tokens: a vocabulary table; ``num_positions`` learned positions; ``num_types`` segment rows;
    ``norm`` after the sum. patches: a ``patch_features`` x hidden projection, ``num_extra_tokens``
    learned tokens (class token). none: the stack shares another stack's table (T5's decoder).
    """

    kind: Literal["tokens", "patches", "shared"]
    num_positions: CountOrZero = 0
    num_types: CountOrZero = 0
    norm: bool = False
    patch_features: CountOrZero = 0
    num_extra_tokens: CountOrZero = 0
    projection_size: CountOrZero = Field(
        default=0,
        description="embedding width when it differs from hidden_size (OPT-350M: 512); 0 = hidden_size",
    )


class Stack(_Facts):
    """An ordered run of blocks with its own embedding; attention inside reads this stack only."""

    name: str
    embedding: Embedding
    layout: list[LayoutRun] = Field(min_length=1)
    final_norm: bool = True
    sequence_scale: float = Field(
        default=1.0, gt=0, le=1024, description="this stack's sequence length over the workload's"
    )
    cross_attends_to: str | None = Field(default=None, description="stack whose output cross-attention reads")


class Head(_Facts):
    """What turns hidden states into a loss.

    language_model: a vocabulary projection on every token (tied = shares the embedding table).
    classifier: ``num_classes`` outputs on one token of a sequence.
    ``transform`` is BERT's dense + norm before the projection; ``bias`` a bias of the output width.
    """

    kind: Literal["language_model", "classifier"]
    tied: bool = False
    bias: bool = False
    transform: bool = False
    num_classes: CountOrZero = 0
    projection_size: CountOrZero = 0
    pooler: bool = Field(default=False, description="BERT's pooler: a dense h x h on one token")
    soft_cap: bool = Field(
        default=False, description="logit soft-capping (Gemma 2): one more pass over the logits"
    )


class PublishedParameters(_Facts):
    """What the model's authors print, and where; tests hold our count to it within 0.5 %."""

    total: float = Field(gt=0, le=1e15)
    active: float | None = Field(default=None, gt=0, le=1e15)
    source: str
    note: str = ""


class ModelSpec(_Facts):
    """A whole model. ``schema_version`` 1."""

    schema_version: Literal[1] = 1
    name: str
    aliases: list[str] = []
    family: str = Field(default="", description="Hugging Face model_type or the paper's family name")
    source: str = Field(description="where the numbers come from")
    hidden_size: Count
    vocab_size: CountOrZero = Field(default=0, description="rows of the vocabulary table; 0 for patch models")
    max_sequence_length: Count = Field(description="longest sequence the model is defined for, tokens")
    fixed_sequence_length: Count | None = Field(
        default=None, description="set when the input fixes the length (images): patches + extra tokens"
    )
    block_kinds: dict[str, Block] = Field(min_length=1)
    stacks: list[Stack] = Field(min_length=1)
    head: Head
    num_mtp_layers: CountOrZero = Field(
        default=0,
        description="multi-token-prediction layers beyond the stack (DeepSeek-V3); not trained by default",
    )
    published_parameters: PublishedParameters | None = None
    notes: list[str] = []

    @model_validator(mode="after")
    def _consistent(self) -> ModelSpec:
        names = [stack.name for stack in self.stacks]
        if len(set(names)) != len(names):
            raise ValueError(f"stack names must differ: {names}")
        for stack in self.stacks:
            for run in stack.layout:
                for kind in run.kinds:
                    if kind not in self.block_kinds:
                        raise ValueError(
                            f"stack {stack.name!r} uses block kind {kind!r}; block_kinds has "
                            f"{sorted(self.block_kinds)}"
                        )
                    has_cross = self.block_kinds[kind].cross_attention is not None
                    if has_cross and stack.cross_attends_to not in names:
                        raise ValueError(
                            f"block kind {kind!r} has cross_attention, so stack {stack.name!r} needs "
                            f"cross_attends_to to be one of {names}"
                        )
            if stack.embedding.kind == "tokens" and not self.vocab_size:
                raise ValueError("vocab_size must be positive for a token embedding")
        return self

    @property
    def num_layers(self) -> int:
        """Transformer blocks over all stacks."""
        return sum(run.repeat * len(run.kinds) for stack in self.stacks for run in stack.layout)

    @property
    def is_moe(self) -> bool:
        """Whether any block has routed experts."""
        return any(block.feed_forward.kind == "moe" for block in self.block_kinds.values())

    def block_sequence(self) -> list[tuple[int, str]]:
        """Every block in execution order as (stack index, block kind name)."""
        return [
            (index, kind)
            for index, stack in enumerate(self.stacks)
            for run in stack.layout
            for _ in range(run.repeat)
            for kind in run.kinds
        ]
