"""A ModelSpec as the flags of Megatron-LM's pretrain_gpt.py.

Flag names: Megatron-LM core 0.16.1 and 0.20.0 dev, training/arguments.py and
transformer/transformer_config.py. Which models the GPT entry cannot run is in ``megatron_model_rules``.
"""

from __future__ import annotations

from itertools import groupby

from planner.launchers.megatron_stages import Flags
from planner.model.spec import Attention, Block, FeedForward, LatentAttention, MixtureOfExperts, ModelSpec
from planner.plan_file.schema import Plan

VOCABULARY_MULTIPLE = 128
DROPOUT = "0.1"
# GPT-OSS's clamped gate, from its published model code; other gated models are SwiGLU here.
GPT_OSS_GATE: Flags = {
    "--quick-geglu": [],
    "--glu-linear-offset": ["1.0"],
    "--activation-func-clamp-value": ["7.0"],
}


def blocks_in_order(model: ModelSpec) -> list[Block]:
    """Every block of the model in execution order."""
    return [model.block_kinds[kind] for _, kind in model.block_sequence()]


def first_moe(model: ModelSpec) -> MixtureOfExperts | None:
    """The model's first feed-forward with routed experts."""
    found = (b.feed_forward for b in blocks_in_order(model))
    return next((ff for ff in found if isinstance(ff, MixtureOfExperts)), None)


def first_dense(model: ModelSpec) -> FeedForward | None:
    """The model's first dense feed-forward."""
    found = (b.feed_forward for b in blocks_in_order(model))
    return next((ff for ff in found if isinstance(ff, FeedForward)), None)


def has_rotary_positions(model: ModelSpec) -> bool:
    """Whether positions are rotary: no learned position table."""
    return model.stacks[0].embedding.num_positions == 0


def windows_in_use(plan: Plan) -> list[int | None]:
    """Sliding window of every block in order, tokens; None where it covers the whole sequence."""
    length = plan.inputs.workload.sequence_length
    windows = [block.attention.window for block in blocks_in_order(plan.inputs.model)]
    return [window if window is not None and window < length else None for window in windows]


def model_flags(plan: Plan) -> Flags:
    """Flags for the model's shape. The plan must have passed the model rules."""
    model = plan.inputs.model
    block = blocks_in_order(model)[0]
    dense, moe = first_dense(model), first_moe(model)
    flags: Flags = {
        "--num-layers": [str(model.num_layers)],
        "--hidden-size": [str(model.hidden_size)],
        "--ffn-hidden-size": [str(dense.ffn_size if dense else moe.expert_ffn_size if moe else 0)],
        "--num-attention-heads": [str(block.attention.num_heads)],
    }
    flags.update(_attention(block.attention))
    flags.update(_positions(plan))
    flags.update(_block(model, block))
    flags.update(_windows(plan))
    if moe is not None:
        flags.update(_experts(model, moe))
    flags["--vocab-size"] = [str(model.vocab_size)]
    flags["--make-vocab-size-divisible-by"] = [str(VOCABULARY_MULTIPLE)]
    if not model.head.tied:
        flags["--untie-embeddings-and-output-weights"] = []
    flags["--attention-backend"] = [attention_backend(plan)]
    return flags


def attention_backend(plan: Plan) -> str:
    """flash, fused or unfused.

    FlashAttention 2 has no kernel for latent attention's two head widths nor for learned sinks; cuDNN's
    fused attention has.
    """
    if plan.inputs.workload.attention == "unfused":
        return "unfused"
    attention = blocks_in_order(plan.inputs.model)[0].attention
    needs_fused = isinstance(attention, LatentAttention) or attention.sinks
    return "fused" if needs_fused else "flash"


def _attention(attention: Attention | LatentAttention) -> Flags:
    if isinstance(attention, LatentAttention):
        flags: Flags = {"--multi-latent-attention": []}
        if attention.q_lora_rank is not None:
            flags["--q-lora-rank"] = [str(attention.q_lora_rank)]
        return flags | {
            "--kv-lora-rank": [str(attention.kv_lora_rank)],
            "--qk-head-dim": [str(attention.qk_nope_head_dim)],
            "--qk-pos-emb-head-dim": [str(attention.qk_rope_head_dim)],
            "--v-head-dim": [str(attention.v_head_dim)],
            "--kv-channels": [str(attention.v_head_dim)],
            "--qk-layernorm": [],  # the norms on the latents
        }
    flags = {"--kv-channels": [str(attention.head_dim)]}
    if attention.num_kv_heads != attention.num_heads:
        flags["--group-query-attention"] = []
        flags["--num-query-groups"] = [str(attention.num_kv_heads)]
    if attention.qk_norm:
        flags["--qk-layernorm"] = []
    if attention.sinks:
        flags["--softmax-type"] = ["learnable"]
    return flags


def _positions(plan: Plan) -> Flags:
    model, length = plan.inputs.model, plan.inputs.workload.sequence_length
    if has_rotary_positions(model):
        most = max(model.max_sequence_length, length)
        kind = "rope"
    else:
        most, kind = model.stacks[0].embedding.num_positions, "learned_absolute"
    return {
        "--seq-length": [str(length)],
        "--max-position-embeddings": [str(most)],
        "--position-embedding-type": [kind],
    }


def _block(model: ModelSpec, block: Block) -> Flags:
    ff = block.feed_forward
    flags: Flags = {"--normalization": ["RMSNorm" if block.norm.kind == "rmsnorm" else "LayerNorm"]}
    if ff.gated:
        flags.update(GPT_OSS_GATE if model.family == "gpt_oss" else {"--swiglu": []})
    if not ff.bias:
        flags["--disable-bias-linear"] = []
        if isinstance(block.attention, Attention) and block.attention.qkv_bias:
            flags["--add-qkv-bias"] = []
    dropout = DROPOUT if block.dropout else "0.0"
    return flags | {"--attention-dropout": [dropout], "--hidden-dropout": [dropout]}


def _windows(plan: Plan) -> Flags:
    """Sliding windows; a window of W tokens counts the token itself: W - 1 to the left."""
    windows = windows_in_use(plan)
    widths = {window for window in windows if window is not None}
    if not widths:
        return {}
    flags: Flags = {"--window-size": [f"({widths.pop() - 1},0)"]}
    if None in windows:
        flags["--window-attn-skip-freq"] = [pattern([window is not None for window in windows])]
    return flags


def _experts(model: ModelSpec, moe: MixtureOfExperts) -> Flags:
    flags: Flags = {
        "--num-experts": [str(moe.num_experts)],
        "--moe-router-topk": [str(moe.experts_per_token)],
        "--moe-ffn-hidden-size": [str(moe.expert_ffn_size)],
    }
    is_moe = [isinstance(block.feed_forward, MixtureOfExperts) for block in blocks_in_order(model)]
    if not all(is_moe):
        flags["--moe-layer-freq"] = [pattern(is_moe)]
    if moe.shared_ffn_size:
        flags["--moe-shared-expert-intermediate-size"] = [str(moe.shared_ffn_size)]
    if moe.shared_gate:
        flags["--moe-shared-expert-gate"] = []
    if moe.router_bias and not moe.bias:
        # The correction term of loss-free balancing, which Megatron-LM ties to sigmoid scores.
        flags["--moe-router-score-function"] = ["sigmoid"]
        flags["--moe-router-enable-expert-bias"] = []
    if moe.bias:
        flags["--no-bias-dropout-fusion"] = []  # refused together with biased experts
    return flags | {"--moe-grouped-gemm": [], "--moe-token-dispatcher-type": ["alltoall"]}


def pattern(values: list[bool]) -> str:
    """One switch per layer as Megatron-LM's list expression, run-length encoded or as a repeated period."""
    count = len(values)
    for period in range(2, count // 2 + 1):
        if count % period == 0 and period <= 8 and values == values[:period] * (count // period):
            return f"({_runs(values[:period])})*{count // period}"
    return f"({_runs(values)})"


def _runs(values: list[bool]) -> str:
    return "+".join(f"[{int(value)}]*{len(list(run))}" for value, run in groupby(values))
