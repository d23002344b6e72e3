"""deepseek_v2, deepseek_v3: multi-head latent attention, shared and routed experts."""

from __future__ import annotations

from planner.model.hugging_face.attention import language_model, positions, query_heads
from planner.model.hugging_face.experts import experts_per_token
from planner.model.hugging_face.keys import unsupported
from planner.model.hugging_face.llama import RMS
from planner.model.hugging_face.values import MAX_LAYERS, Config
from planner.model.spec import Block, FeedForward, LatentAttention, MixtureOfExperts, ModelSpec

DEEPSEEK_HARMLESS = frozenset(
    {
        "num_key_value_heads", "head_dim", "qk_head_dim", "ep_size", "n_group", "topk_group",
        "norm_topk_prob", "routed_scaling_factor", "scoring_func", "seq_aux", "aux_loss_alpha", "topk_method",
    }
)  # fmt: skip
"""num_key_value_heads has no meaning under latent attention; groups only restrict the choice of experts."""


def read_deepseek_v2(config: Config) -> ModelSpec:
    """DeepSeek-V2 (arXiv 2405.04434): softmax router without a correction term."""
    return build(config, correction=False)


def read_deepseek_v3(config: Config) -> ModelSpec:
    """DeepSeek-V3 (arXiv 2412.19437): one correction term per expert on the router (topk noaux_tc)."""
    return build(config, correction=config.text("topk_method", "noaux_tc") == "noaux_tc")


def latent_attention(config: Config) -> LatentAttention:
    """The latent attention sizes; q_lora_rank null means queries are projected directly."""
    if config.flag("attention_bias", False):
        raise unsupported(
            config,
            "attention_bias",
            "attention_bias = true with latent attention is not priced",
            'a value that works: "attention_bias": false',
        )
    return LatentAttention(
        num_heads=query_heads(config, "num_attention_heads", example=128),
        q_lora_rank=config.optional_count("q_lora_rank", example=1536),
        kv_lora_rank=config.count("kv_lora_rank", example=512),
        qk_nope_head_dim=config.count("qk_nope_head_dim", example=128),
        qk_rope_head_dim=config.count("qk_rope_head_dim", example=64),
        v_head_dim=config.count("v_head_dim", example=128),
    )


def routed_experts(config: Config, *, correction: bool) -> MixtureOfExperts | None:
    """The routed and shared experts, None when n_routed_experts is null."""
    experts = config.optional_count("n_routed_experts", example=256, most=1_000_000)
    shared = config.optional_count("n_shared_experts", least=0, most=MAX_LAYERS, example=1) or 0
    if experts is None:
        config.get("moe_intermediate_size")
        config.get("num_experts_per_tok")
        return None
    width = config.count("moe_intermediate_size", example=2048)
    return MixtureOfExperts(
        num_experts=experts,
        experts_per_token=experts_per_token(config, experts, "num_experts_per_tok"),
        expert_ffn_size=width,
        gated=True,
        router_bias=correction,
        shared_ffn_size=width * shared,
    )


def build(config: Config, *, correction: bool) -> ModelSpec:
    """Layer i is routed from first_k_dense_replace on when i is a multiple of moe_layer_freq."""
    hidden = config.count("hidden_size", example=7168)
    layers = config.layers("num_hidden_layers", example=61)
    attention = latent_attention(config)
    moe = routed_experts(config, correction=correction)
    first = config.optional_count("first_k_dense_replace", least=0, most=MAX_LAYERS, example=3) or 0
    every = config.optional_count("moe_layer_freq", most=MAX_LAYERS, example=1) or 1
    dense = FeedForward(
        ffn_size=config.count("intermediate_size", example=18432),
        gated=True,
        bias=config.flag("mlp_bias", False),
    )
    dropout = config.any_dropout(attention_dropout=0.0)
    blocks = []
    for index in range(layers):
        routed = moe is not None and index >= first and index % every == 0
        feed_forward = moe if routed and moe is not None else dense
        blocks.append(
            (
                (feed_forward.kind,),
                Block(attention=attention, feed_forward=feed_forward, norm=RMS, dropout=dropout),
            )
        )
    mtp = config.optional_count("num_nextn_predict_layers", least=0, most=MAX_LAYERS, example=1) or 0
    return language_model(
        config,
        blocks,
        hidden=hidden,
        max_length=positions(config, example=163840),
        tied=config.flag("tie_word_embeddings", False),
        vocab_example=129280,
        mtp_layers=mtp,
        notes=["The multi-token-prediction layers are not among the blocks."] if mtp else [],
    )
