"""The model of a measured run, from its shape columns or a built-in model's name."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

from planner.calibration.case import Case, Unsupported
from planner.catalog import load_model
from planner.documents import validate
from planner.errors import InputError
from planner.model.chain import LayerChain, layer_chain
from planner.model.spec import ModelSpec

# Families whose feed-forward is gated with RMS norms and rotary positions; all others are taken as plain
# GPT blocks (two matrices, layer norms, learned positions).
GATED = re.compile(r"llama|qwen|mistral|mixtral|internlm|deepseek|7b-internevo|gemma|glm", re.IGNORECASE)
SQUARED_RELU = re.compile(r"nemotron", re.IGNORECASE)
# Shapes that NVIDIA's NeMo recipes give for two models whose pages print only the name.
NAMED_SHAPES: dict[str, dict[str, int]] = {
    "gpt3-5b": {"layers": 24, "hidden": 4096, "ffn_hidden": 16384, "heads": 32},
    "gpt3-20b": {"layers": 44, "hidden": 6144, "ffn_hidden": 24576, "heads": 48},
}
DEFAULT_VOCABULARY = 51200
# Sailor's OPT (its fork's megatron/model/opt_model.py) drops nothing out.
SAILOR = re.compile(r"eth-easl/sailor\b")


def case_model(case: Case, sequence_length: int) -> tuple[ModelSpec, LayerChain]:
    """The run's model and its chain: the same objects for runs of the same shapes.

    Raises Unsupported when neither shapes nor a known name are given.
    """
    name = case.text("model_name") or "model"
    if case.number("moe_experts"):
        return _sparse_model(case, name)
    shape = _shape(case, name)
    is_gated = bool(GATED.search(name))
    if shape["hidden"] % shape["heads"]:
        raise Unsupported(f"hidden {shape['hidden']} is not a multiple of {shape['heads']} heads")
    return _dense_model(
        re.sub(r"[^a-z0-9.-]+", "-", name.lower()).strip("-") or "model",
        sequence_length,
        tuple(shape.items()),
        is_gated=is_gated,
        is_parallel="parallel transformer block" in case.text("notes"),
        has_dropout=not is_gated
        and case.text("stack").startswith("megatron")
        and not SAILOR.match(case.text("source")),
        is_tied=not is_gated and not SQUARED_RELU.search(name),
    )


@lru_cache(maxsize=1024)
def _dense_model(
    name: str,
    sequence_length: int,
    shape_items: tuple[tuple[str, int], ...],
    *,
    is_gated: bool,
    is_parallel: bool,
    has_dropout: bool,
    is_tied: bool,
) -> tuple[ModelSpec, LayerChain]:
    shape = dict(shape_items)
    block: dict[str, Any] = {
        "attention": {
            "kind": "gqa",
            "num_heads": shape["heads"],
            "num_kv_heads": shape["kv_heads"],
            "head_dim": shape["hidden"] // shape["heads"],
            "qkv_bias": not is_gated,
            "out_bias": not is_gated,
        },
        "feed_forward": {
            "kind": "dense",
            "ffn_size": shape["ffn_hidden"],
            "gated": is_gated,
            "bias": not is_gated,
        },
        "norm": {"kind": "rmsnorm" if is_gated else "layernorm", "bias": not is_gated},
        "parallel": is_parallel,
        # MegaScale's block (arXiv 2402.15627, section 3.1): attention and MLP of one norm's output.
        "num_norms": 1 if is_parallel else 2,
        "dropout": has_dropout,
    }
    document = {
        "name": name,
        "source": "measured runs",
        "hidden_size": shape["hidden"],
        "vocab_size": shape["vocab"],
        "max_sequence_length": sequence_length,
        "block_kinds": {"block": block},
        "stacks": [
            {
                "name": "decoder",
                "embedding": {"kind": "tokens", "num_positions": 0 if is_gated else sequence_length},
                "layout": [{"kinds": ["block"], "repeat": shape["layers"]}],
            }
        ],
        "head": {"kind": "language_model", "tied": is_tied},
    }
    spec = validate(ModelSpec, document, "")
    return spec, layer_chain(spec)


def _shape(case: Case, name: str) -> dict[str, int]:
    known = NAMED_SHAPES.get(name.lower(), {})
    if known:
        case.assume(f"shapes of {name} from its public recipe")
    hidden = case.count("hidden", known.get("hidden"))
    layers = known.get("layers")
    if case.number("layers") is None and layers is None:
        billions = case.number("params_b")
        if billions is None:
            raise Unsupported("neither layers nor params_b is stated")
        vocabulary = case.count("vocab", DEFAULT_VOCABULARY)
        layers = max(1, round((billions * 1e9 - vocabulary * hidden) / (12.0 * hidden * hidden)))
        case.assume(f"{layers} layers from {billions:g}B parameters at 12 h^2 a layer")
    heads = known.get("heads")
    if case.number("heads") is None and heads is None:
        heads = _usual_heads(hidden, case.count("tp"))
        case.assume(f"{heads} heads: the divisor of hidden that tp divides, nearest to 128 a head")
    count_heads = case.count("heads", heads)
    if case.number("vocab") is None:
        case.assume(f"vocabulary {DEFAULT_VOCABULARY}")
    return {
        "layers": case.count("layers", layers),
        "hidden": hidden,
        "ffn_hidden": case.count("ffn_hidden", known.get("ffn_hidden", 4 * hidden)),
        "heads": count_heads,
        "kv_heads": case.count("kv_heads", count_heads),
        "vocab": case.count("vocab", DEFAULT_VOCABULARY),
    }


def _usual_heads(hidden: int, tp: int) -> int:
    """Heads that divide the hidden size and are a multiple of tp, with a head size nearest to 128."""
    options = [heads for heads in range(tp, hidden // 16 + 1, tp) if hidden % heads == 0]
    if not options:
        raise Unsupported(f"no head count divides hidden {hidden} and is a multiple of tp {tp}")
    return min(options, key=lambda heads: abs(hidden // heads - 128))


@lru_cache(maxsize=256)
def _built_in_model(name: str) -> ModelSpec:
    spec, _ = load_model(name)
    return spec


@lru_cache(maxsize=256)
def _cut_model(name: str, layers: int) -> tuple[ModelSpec, LayerChain]:
    """A built-in model with its first layers only. Raises Unsupported where they end inside a run."""
    spec = _built_in_model(name)
    if layers != spec.num_layers:
        stack = spec.stacks[0]
        left, runs = layers, []
        for run in stack.layout:
            take = min(run.repeat, left // len(run.kinds))
            if take:
                runs.append(run.model_copy(update={"repeat": take}))
                left -= take * len(run.kinds)
        if left:
            raise Unsupported(f"{layers} layers do not cut the layout of {spec.name}")
        spec = spec.model_copy(update={"stacks": [stack.model_copy(update={"layout": runs})]})
    return spec, layer_chain(spec)


def _sparse_model(case: Case, name: str) -> tuple[ModelSpec, LayerChain]:
    """Experts: a built-in model of the same name, cut to the stated number of layers."""
    base = re.sub(r"deepseek-?v", "deepseek-v", re.sub(r"[-_ ]l\d+.*$", "", name.lower()))
    try:
        whole = _built_in_model(base)
    except InputError as error:
        raise Unsupported(f"mixture of experts {name!r} is not a built-in model: {error.message}") from None
    layers = case.count("layers", whole.num_layers)
    found = _cut_model(base, layers)
    if layers != whole.num_layers:
        case.assume(f"{whole.name} cut to {layers} layers")
    return found
