"""A ModelSpec in the names of Galvatron's GalvatronModelArgs (core/runtime/args_schema.py)."""

from __future__ import annotations

import re
from typing import Any

from planner.launchers.megatron_model import (
    VOCABULARY_MULTIPLE,
    blocks_in_order,
    first_dense,
    first_moe,
    has_rotary_positions,
)
from planner.model.spec import Attention
from planner.plan_file.schema import Plan


def model_section(plan: Plan) -> dict[str, Any]:
    """runtime.model of train.yaml; the plan must have passed the model rules."""
    model = plan.inputs.model
    block = blocks_in_order(model)[0]
    attention, ff = block.attention, block.feed_forward
    dense, moe = first_dense(model), first_moe(model)
    section: dict[str, Any] = {
        "model_size": model_size(plan),
        "is_moe_model": moe is not None,
        "hidden_size": model.hidden_size,
        "num_layers": model.num_layers,
        "num_attention_heads": attention.num_heads,
        "ffn_hidden_size": dense.ffn_size if dense else moe.expert_ffn_size if moe else None,
        "vocab_size": model.vocab_size,
        "make_vocab_size_divisible_by": VOCABULARY_MULTIPLE,
        "normalization": "RMSNorm" if block.norm.kind == "rmsnorm" else "LayerNorm",
        "activation_func": f"torch.nn.functional.{'silu' if ff.gated else 'gelu'}",
        "gated_linear_unit": ff.gated,
        "position_embedding_type": "rope" if has_rotary_positions(model) else "learned_absolute",
        "add_bias_linear": ff.bias,
        "untie_embeddings_and_output_weights": not model.head.tied,
        "dropout_prob": 0.1 if block.dropout else 0.0,
        "attention_dropout": 0.1 if block.dropout else 0.0,
        "hidden_dropout": 0.1 if block.dropout else 0.0,
    }
    if isinstance(attention, Attention):
        section |= {
            "num_query_groups": attention.num_kv_heads,
            "kv_channels": attention.head_dim,
            "add_qkv_bias": attention.qkv_bias,
            "qk_layernorm": attention.qk_norm,
        }
    if moe is not None:
        section |= {
            "num_moe_experts": moe.num_experts,
            "moe_ffn_hidden_size": moe.expert_ffn_size,
            "moe_router_topk": moe.experts_per_token,
        }
    return section


def model_size(plan: Plan) -> str:
    """The model's name behind the word that makes Galvatron build the right blocks."""
    model = plan.inputs.model
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", model.name).strip("-") or "model"
    kind = "mixtral" if model.is_moe else "llama" if has_rotary_positions(model) else "gpt"
    return name if name.startswith(f"{kind}-") else f"{kind}-{name}"
