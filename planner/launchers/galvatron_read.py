"""Read a galvatron_config JSON back: what Galvatron derives from it, worked out the way it does.

Galvatron itself ignores unknown keys, does not look at cp, ep or vtp sizes before groups are built, and
reports a wrong pp_division with an empty message; all are refused here with their numbers. Facts:
galvatron/core/runtime/hybrid_parallel_config.py, galvatron/utils/config_utils.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypedDict

from planner.errors import InputError, nearest_names

REQUIRED = ("pp_deg", "tp_sizes_enc", "tp_consecutive_flags", "dp_types_enc", "global_bsz", "chunks")
LISTS = ("cp_sizes_enc", "use_sp", "checkpoint", "ep_sizes_enc", "tp_of_ep_sizes_enc")
OPTIONAL = (*LISTS, "pp_division", "pipeline_type", "default_dp_type", "vtp", "vsp", "vcp")
KNOWN = (*REQUIRED, *OPTIONAL, "vocab_sdp", "embed_sdp", "world_size")
SHARDINGS = {"ddp": "none", "zero2": "gradients", "zero3": "parameters"}
SCHEDULES = {"pipedream_flush": "1f1b", "gpipe": "gpipe"}


class GalvatronDerived(TypedDict):
    """What Galvatron makes of the JSON on ``world_size`` ranks; lists have one entry a layer.

    dp: data ranks of a layer, world / (pp tp cp). microbatch_size: sequences of a data rank in one of
    ``microbatches`` chunks. vocab_sharding: sharding of embedding and head. is_ulysses: whether a layer's tp
    width splits the sequence in place of the weights.
    """

    world_size: int
    pp: int
    tp: list[int]
    cp: list[int]
    dp: list[int]
    ep: list[int]
    expert_tp: list[int]
    is_ulysses: list[bool]
    sharding: list[str]
    vocab_sharding: str
    recompute: list[str]
    stage_layers: list[int]
    schedule: str
    microbatches: int
    microbatch_size: int
    global_batch: int


def read_galvatron(config: Mapping[str, Any], world_size: int) -> GalvatronDerived:
    """What the JSON trains. Raises InputError for what Galvatron refuses, and for what it passes over."""
    _known(config)
    tp = _list(config, "tp_sizes_enc", None, 1)
    count = len(tp)
    pp = _int(config, "pp_deg", None)
    if world_size % pp:
        raise InputError(f"pp_deg {pp} does not divide {world_size} ranks", pointer="/pp_deg")
    ranks = world_size // pp
    cp = _list(config, "cp_sizes_enc", count, 1)
    ep = _list(config, "ep_sizes_enc", count, 1)
    expert_tp = _list(config, "tp_of_ep_sizes_enc", count, 1)
    _divide(ranks, tp, cp, "tp_sizes_enc", "tp x cp")
    _divide(ranks, ep, expert_tp, "ep_sizes_enc", "ep x tp of experts")
    vocab_tp, vocab_cp = _int(config, "vtp", 1), _int(config, "vcp", 1)
    if ranks % (vocab_tp * vocab_cp):
        raise InputError(f"vtp {vocab_tp} x vcp {vocab_cp} over {ranks} ranks of a stage", pointer="/vtp")
    _flags(config, "tp_consecutive_flags", count)
    batch, chunks = _int(config, "global_bsz", None), _int(config, "chunks", None)
    dp = [ranks // (t * c) for t, c in zip(tp, cp, strict=True)]
    most = ranks // min(*tp, vocab_tp) // min(*cp, vocab_cp)
    if batch % most or (batch // most) % chunks:
        unit = most * chunks
        raise InputError(
            f"global_bsz {batch} over {most} data ranks x {chunks} chunks leaves a remainder",
            pointer="/global_bsz",
            hint=f"use {max(unit, batch // unit * unit)}",
        )
    base = _choice(config, "default_dp_type", "ddp", SHARDINGS)
    types = _flags(config, "dp_types_enc", count)
    name = "vocab_sdp" if "vocab_sdp" in config else "embed_sdp"
    is_whole = _int(config, name, 0, 0) == 1
    return GalvatronDerived(
        world_size=world_size,
        pp=pp,
        tp=tp,
        cp=cp,
        dp=dp,
        ep=ep,
        expert_tp=expert_tp,
        is_ulysses=[flag == 1 for flag in _flags(config, "use_sp", count)],
        sharding=["parameters" if flag else base for flag in types],
        vocab_sharding="parameters" if is_whole else base,
        recompute=["full" if flag else "none" for flag in _flags(config, "checkpoint", count)],
        stage_layers=_stages(config, count, pp),
        schedule=_choice(config, "pipeline_type", "gpipe", SCHEDULES),
        microbatches=chunks,
        microbatch_size=batch // dp[0] // chunks,
        global_batch=batch,
    )


def _known(config: Mapping[str, Any]) -> None:
    for key in config:
        if key not in KNOWN:
            near = nearest_names(key, KNOWN)
            raise InputError(
                f"unknown key {key!r}: Galvatron ignores it",
                pointer=f"/{key}",
                allowed=near,
                hint=f"nearest: {', '.join(near)}" if near else "",
            )
    for key in REQUIRED:
        if key not in config:
            raise InputError(f"{key} is missing", pointer=f"/{key}")


def _list(config: Mapping[str, Any], key: str, count: int | None, default: int) -> list[int]:
    """A comma-separated list of ``count`` positive numbers; ``default`` for each when the key is absent."""
    if key not in config and count is not None:
        return [default] * count
    words = str(config[key]).split(",")
    if not all(word.strip().isdigit() for word in words):
        raise InputError(f"must be whole numbers and commas, not {config[key]!r}", pointer=f"/{key}")
    values = [int(word) for word in words]
    if count is not None and len(values) != count:
        raise InputError(f"{len(values)} entries, tp_sizes_enc has {count}", pointer=f"/{key}")
    if default > 0 and min(values) < 1:
        raise InputError(f"layer {values.index(min(values))} has {min(values)}", pointer=f"/{key}")
    return values


def _flags(config: Mapping[str, Any], key: str, count: int) -> list[int]:
    values = _list(config, key, count, 0)
    if set(values) - {0, 1}:
        raise InputError(f"entries must be 0 or 1, not {max(values)}", pointer=f"/{key}", allowed=[0, 1])
    return values


def _divide(ranks: int, one: list[int], two: list[int], key: str, what: str) -> None:
    for layer, (a, b) in enumerate(zip(one, two, strict=True)):
        if ranks % (a * b):
            raise InputError(
                f"layer {layer}: {what} = {a} x {b} does not divide the {ranks} ranks of a stage",
                pointer=f"/{key}",
            )


def _stages(config: Mapping[str, Any], layers: int, pp: int) -> list[int]:
    if "pp_division" not in config:
        each = layers // pp
        return [each] * (pp - 1) + [layers - each * (pp - 1)]
    sizes = _list(config, "pp_division", None, 1)
    if len(sizes) != pp or sum(sizes) != layers:
        raise InputError(
            f"{len(sizes)} stages of {sum(sizes)} layers together, pp_deg is {pp} and the model has {layers}",
            pointer="/pp_division",
        )
    return sizes


def _int(config: Mapping[str, Any], key: str, default: int | None, least: int = 1) -> int:
    value = config.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InputError(f"must be a whole number of at least {least}, not {value!r}", pointer=f"/{key}")
    return value


def _choice(config: Mapping[str, Any], key: str, default: str, names: Mapping[str, str]) -> str:
    value = config.get(key, default)
    if value not in names:
        raise InputError(f"{value!r}", pointer=f"/{key}", allowed=list(names))
    return names[str(value)]
