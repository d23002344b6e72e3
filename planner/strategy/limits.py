"""Limits: what a launcher can express, as data the search obeys.

The search never imports a launcher; the command line hands it one of these values. ``ANY`` is the whole
space of this planner.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from planner.strategy.rules import Rule


@dataclass(frozen=True)
class Limits:
    """Allowed choices.

    shardings and schedules: names. sharding_groups: global, island. recompute_granularity: "layer" (each
    layer its own), "stage" (one mode for all, or full on the first N layers of every virtual stage, one N)
    or "uniform" (one mode for all). has_layer_sharding: layers may shard their parameters beside a plan whose
    sharding is one of layer_sharding_bases. stack: the training stack its plans are priced on, by name.
    parameter_sharding_with_pipeline: sharded gradients or parameters together with pp > 1. rules: further
    hard rules of this launcher, judged on whole candidates (all columns but schedule and virtual stages).
    max_*: largest degree. kv_heads_by_tp: tp must divide the key/value heads (no copies of them).
    recomputes: names of the modes a layer may have, in order of growing recompute. is_exact: heuristic rules
    of the decision tree cut nothing. offload_shardings: names of the shardings beside which the optimizer may
    be on the host; () when it never may. gather_units: what of a block's sharded weights may be gathered at
    once, layer by layer.
    """

    target: str
    shardings: tuple[str, ...] = ("none", "optimizer", "gradients", "parameters")
    sharding_groups: tuple[str, ...] = ("global", "island")
    schedules: tuple[str, ...] = ("1f1b", "interleaved", "gpipe", "zb-h1", "zb-v")
    recompute_granularity: Literal["layer", "stage", "uniform"] = "layer"
    has_layer_sharding: bool = True
    layer_sharding_bases: tuple[str, ...] = ("none", "optimizer", "gradients")
    parameter_sharding_with_pipeline: bool = True
    max_cp: int = 1 << 30
    max_ep: int = 1 << 30
    rules: tuple[Rule, ...] = ()
    max_pp: int = 1 << 30
    kv_heads_by_tp: bool = False
    recomputes: tuple[str, ...] = ("none", "selective", "full")
    stack: str = "megatron"
    is_exact: bool = False
    offload_shardings: tuple[str, ...] = ()
    gather_units: tuple[str, ...] = ("block",)


ANY = Limits(
    "any",
    offload_shardings=("none", "optimizer", "gradients", "parameters"),
    gather_units=("block", "part", "matrix"),
)
