"""Megatron-Core reads the exported flags: its TransformerConfig accepts them and agrees on the stages."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from acceptance import COUNTS, WORDS
from acceptance import SWITCHES as FLAG_SWITCHES

from planner.launchers.megatron import MEGATRON
from planner.launchers.megatron_read import read_flags
from planner.launchers.megatron_stages import stage_sizes
from planner.plan_file.schema import Plan

pytestmark = pytest.mark.heavy

SWITCHES = FLAG_SWITCHES | {"--multi-latent-attention": "multi_latent_attention"}


def settings(flags: dict[str, list[str]]) -> dict[str, Any]:
    """The flags as fields of TransformerConfig."""
    fields: dict[str, Any] = {field: int(flags[f][0]) for f, field in COUNTS.items() if f in flags}
    fields |= {field: flags[f][0] for f, field in WORDS.items() if f in flags}
    fields |= {field: True for f, field in SWITCHES.items() if f in flags}
    if "--recompute-modules" in flags:
        fields["recompute_modules"] = list(flags["--recompute-modules"])
    return fields | {"add_bias_linear": "--disable-bias-linear" not in flags}


def test_transformer_config_accepts_the_flags(plans: Callable[[str], Plan], case: str) -> None:
    pytest.importorskip("megatron.core")
    torch = pytest.importorskip("torch")
    config_module = pytest.importorskip("megatron.core.transformer.transformer_config")
    enums = pytest.importorskip("megatron.core.transformer.enums")
    plan = plans(case)
    flags = json.loads(MEGATRON.export(plan)["flags.json"])["flags"]
    read = read_flags([word for name, values in flags.items() for word in (name, *values)])
    fields = settings(flags) | {"pipeline_dtype": torch.bfloat16, "bf16": True}
    if read["virtual_stages"] > 1:
        fields["virtual_pipeline_model_parallel_size"] = read["virtual_stages"]
    is_latent = fields.get("multi_latent_attention", False)
    kind = config_module.MLATransformerConfig if is_latent else config_module.TransformerConfig
    config = kind(**fields)
    layout = config.pipeline_model_parallel_layout
    if layout is not None:
        decoder = enums.LayerType.decoder
        pp = plan.decision.degrees.pp
        counts = [layout.layout[k % pp][k // pp].count(decoder) for k in range(len(plan.decision.stages))]
        assert counts == stage_sizes(plan)
