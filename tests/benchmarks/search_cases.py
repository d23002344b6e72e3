"""Models made for the search benchmarks: sizes and shapes that no published model has."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def _model(name: str, hidden: int, kinds: dict[str, Any], layout: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "schema_version": 1,
        "name": name,
        "aliases": [],
        "family": "synthetic",
        "source": "made for the search benchmarks",
        "hidden_size": hidden,
        "vocab_size": 131072,
        "max_sequence_length": 131072,
        "block_kinds": kinds,
        "stacks": [{"name": "decoder", "embedding": {"kind": "tokens"}, "layout": layout}],
        "head": {"kind": "language_model", "tied": False},
    }


def _attention(heads: int, kv_heads: int) -> dict[str, Any]:
    return {"kind": "gqa", "num_heads": heads, "num_kv_heads": kv_heads, "head_dim": 128}


def mixture_2t() -> dict[str, Any]:
    """2.0e12 parameters: 96 blocks of 256 experts, 8 in use."""
    experts = {
        "kind": "moe",
        "num_experts": 256,
        "experts_per_token": 8,
        "expert_ffn_size": 3328,
        "shared_ffn_size": 3328,
        "gated": True,
    }
    block = {"attention": _attention(64, 8), "feed_forward": experts, "norm": {"kind": "rmsnorm"}}
    return _model("moe-2t", 8192, {"block": block}, [{"kinds": ["block"], "repeat": 96}])


def irregular(layers: int) -> dict[str, Any]:
    """A dense model no two of whose blocks are alike: every block has a feed-forward width of its own."""
    kinds = {
        f"block{i}": {
            "attention": _attention(32, 8),
            "feed_forward": {"kind": "dense", "ffn_size": 8192 + 64 * i, "gated": True},
            "norm": {"kind": "rmsnorm"},
        }
        for i in range(layers)
    }
    return _model(f"irregular-{layers}", 4096, kinds, [{"kinds": list(kinds), "repeat": 1}])


def deep(layers: int) -> dict[str, Any]:
    """A dense model of equal blocks, hidden size 4096."""
    block = {
        "attention": _attention(32, 8),
        "feed_forward": {"kind": "dense", "ffn_size": 14336, "gated": True},
        "norm": {"kind": "rmsnorm"},
    }
    return _model(f"deep-{layers}", 4096, {"block": block}, [{"kinds": ["block"], "repeat": layers}])


def write(model: dict[str, Any], folder: Path) -> str:
    """The model as a file in ``folder``; its path."""
    path = folder / f"{model['name']}.json"
    path.write_text(json.dumps(model))
    return str(path)
