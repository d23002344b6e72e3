"""Hetu-Galvatron: the per-layer JSON, with train.yaml beside it in a folder, as a decision.

Facts: Hetu-Galvatron of June 2026 as ``galvatron_read`` has them. A layer's tensor degree may be its own; cp
and expert degrees that differ by layer are read and judged, but not priced.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from planner.errors import InputError, nearest_names
from planner.launchers.galvatron_read import KNOWN, REQUIRED, SCHEDULES, SHARDINGS
from planner.launchers.imported import MOST_RANKS, Facts, Files, Imported, one_file, whole
from planner.launchers.run_scripts import machine_size

NOT_CARRIED: tuple[str, ...] = ()
FLAGS = ("tp_consecutive_flags", "dp_types_enc", "use_sp", "checkpoint")
SIZES = ("tp_sizes_enc", "cp_sizes_enc", "ep_sizes_enc", "tp_of_ep_sizes_enc")


def read_galvatron_files(files: Files, facts: Facts) -> Imported:
    """What the JSON trains, with every broken rule. Raises InputError for what cannot be read."""
    names = tuple(sorted(name for name in files if name.startswith("galvatron_config")))
    name = one_file(files, "galvatron", names, (".json",))
    config = files[name]
    if not isinstance(config, Mapping):
        raise InputError("a Galvatron configuration is a JSON object", file=name)
    found = Imported("galvatron", name)
    for key in config:
        if key not in KNOWN:
            near = nearest_names(key, KNOWN, 1)
            found.fault("unknown-key", f"{key} is ignored by Galvatron", near[0] if near else "")
    for key in REQUIRED:
        if key not in config:
            found.fault(
                "missing-key", f"{key} is missing: Galvatron stops with a KeyError", f"{key} in the file"
            )
    if "tp_sizes_enc" not in config:
        raise InputError("tp_sizes_enc is missing: the number of layers is not known", file=name)
    found.world_size = _world(files) or facts.world_size
    if _world(files) is not None:
        found.where["world_size"] = f"{found.world_size} GPUs in run.sh"
    lists = _lists(config, found)
    found.shape["layers"] = len(lists["tp_sizes_enc"])
    found.states(
        "pp", whole(config.get("pp_deg", 1), "/pp_deg", most=MOST_RANKS), f"pp_deg {config.get('pp_deg', 1)}"
    )
    _degrees(lists, found)
    _stages(config, found)
    _sharding(config, lists, found)
    _batch(config, found)
    _train(files, found)
    found.schedule = SCHEDULES.get(str(config.get("pipeline_type", "gpipe")))
    if found.schedule is None:
        found.fault("schedule", f"pipeline_type {config.get('pipeline_type')!r}", "pipedream_flush or gpipe")
    else:
        found.where["schedule"] = f"pipeline_type {config.get('pipeline_type', 'gpipe')}"
    found.virtual_stages = 1
    modes = tuple("full" if flag else "none" for flag in lists["checkpoint"])
    found.states("recompute", modes[0] if len(set(modes)) == 1 else modes, "checkpoint")
    return found


def _lists(config: Mapping[str, Any], found: Imported) -> dict[str, list[int]]:
    """Every per-layer list; an absent one has its default in each place, a wrong length is a fault."""
    count = len(str(config["tp_sizes_enc"]).split(","))
    lists = {}
    for key in (*SIZES, *FLAGS):
        default = 1 if key in (*SIZES, "tp_consecutive_flags") else 0
        if key not in config:
            lists[key] = [default] * count
            continue
        words = [word.strip() for word in str(config[key]).split(",")]
        if not all(word.isdigit() for word in words):
            raise InputError(
                f"{config[key]!r} is not whole numbers and commas", file=found.file, pointer=f"/{key}"
            )
        values = [int(word) for word in words]
        if len(values) != count:
            found.fault(
                "list-length", f"{key} has {len(values)} entries for {count} layers", f"{count} entries"
            )
            values = (values * count)[:count]
        if key in FLAGS and set(values) - {0, 1}:
            found.fault("list-values", f"{key} has {max(values)}", "0 or 1")
        if key in SIZES and min(values) < 1:
            found.fault(
                "list-values", f"{key} has {min(values)} at layer {values.index(min(values))}", "1 or more"
            )
            values = [max(1, value) for value in values]
        lists[key] = values
    return lists


def _degrees(lists: dict[str, list[int]], found: Imported) -> None:
    names = dict(zip(("tp", "cp", "ep", "expert_tp"), SIZES, strict=True))
    for name, key in names.items():
        values = lists[key]
        if len(set(values)) > 1 and name != "tp":
            counts = ", ".join(f"{values.count(v)} layers {v}" for v in sorted(set(values)))
            found.unpriced.append(f"{key}: {counts} (a decision has one {name})")
        found.states(name, values[0], f"{key} {values[0]}")
    if any(lists["use_sp"]):
        found.unpriced.append("use_sp: Ulysses in place of tensor parallelism")
    if not all(lists["tp_consecutive_flags"]):
        found.unpriced.append("tp_consecutive_flags 0: strided tensor groups")
    tensor = tuple(lists[SIZES[0]])
    found.layer_tp = tensor if len(set(tensor)) > 1 else ()
    found.sequence_parallel = max(tensor) > 1
    world, pp = found.world_size, found.pp or 1
    if world is None:
        return
    if world % pp:
        found.fault("world-identity", f"pp_deg {pp} for {world} GPUs", f"a divisor of {world}")
        return
    ranks = world // pp
    pairs = zip(*(lists[key] for key in SIZES), strict=True)
    for layer, (tp, cp, ep, inner) in enumerate(pairs):
        if ranks % (tp * cp) or tp & (tp - 1):
            found.fault(
                "world-identity",
                f"layer {layer}: tp {tp} x cp {cp} in a stage of {ranks} ranks",
                f"powers of two that divide {ranks}",
            )
            return
        if ranks % (ep * inner):
            found.fault(
                "expert-ranks", f"layer {layer}: ep {ep} x {inner} in {ranks} ranks", f"a divisor of {ranks}"
            )
            return


def _stages(config: Mapping[str, Any], found: Imported) -> None:
    layers, pp = found.shape["layers"], found.pp or 1
    if "pp_division" not in config:
        each = layers // pp
        found.stage_layers = (*[each] * (pp - 1), layers - each * (pp - 1))
        if pp > 1:
            found.assumptions.append(f"pp_division is not given: {each} layers a stage, the rest on the last")
        return
    words = str(config["pp_division"]).split(",")
    if not all(word.strip().isdigit() for word in words):
        raise InputError(
            f"{config['pp_division']!r} is not whole numbers", file=found.file, pointer="/pp_division"
        )
    sizes = tuple(int(word) for word in words)
    if len(sizes) != pp or sum(sizes) != layers:
        found.fault(
            "stages-cover-layers",
            f"pp_division has {len(sizes)} stages of {sum(sizes)} layers; pp_deg is {pp}, there "
            f"are {layers} layers",
            f"{pp} numbers that sum to {layers}",
        )
        return
    found.stage_layers = sizes


def _sharding(config: Mapping[str, Any], lists: dict[str, list[int]], found: Imported) -> None:
    base = str(config.get("default_dp_type", "ddp"))
    if base not in SHARDINGS:
        found.fault("sharding", f"default_dp_type {base!r}", ", ".join(SHARDINGS))
        return
    shardings = tuple("parameters" if flag else SHARDINGS[base] for flag in lists["dp_types_enc"])
    key = "vocab_sdp" if "vocab_sdp" in config else "embed_sdp"
    if key == "embed_sdp" and key in config:
        found.assumptions.append("embed_sdp is read; newer Galvatron reads vocab_sdp only")
    if "vocab_sdp" in config and config.get("embed_sdp", config["vocab_sdp"]) != config["vocab_sdp"]:
        found.fault(
            "vocab-sharding", "vocab_sdp and embed_sdp differ: versions read one or the other", "equal values"
        )
    own = "parameters" if config.get(key, 0) == 1 else SHARDINGS[base]
    found.states("sharding", own, f"default_dp_type {base}, {key} {config.get(key, 0)}")
    found.layer_sharding = () if set(shardings) == {own} else shardings
    if "vcp" in config and config["vcp"] != found.cp:
        found.unpriced.append(f"vcp {config['vcp']}: embedding and head split otherwise than the layers")
    vocabulary = whole(config.get("vtp", 1), "/vtp", most=MOST_RANKS)
    if vocabulary != found.tp or found.layer_tp:
        found.ends_tp, found.layer_tp = vocabulary, tuple(lists["tp_sizes_enc"])
        found.sequence_parallel = max(vocabulary, *found.layer_tp) > 1
        if "vtp" not in config:
            found.assumptions.append("vtp is not given: 1, Galvatron's default")
    ranks = (found.world_size or 0) // (found.pp or 1)
    if ranks and (ranks % (vocabulary * (found.cp or 1)) or vocabulary & (vocabulary - 1)):
        found.fault(
            "world-identity",
            f"vtp {vocabulary} x vcp {found.cp} in a stage of {ranks} ranks",
            f"powers of two that divide {ranks}",
        )
    if config.get("vsp"):
        found.unpriced.append("vsp: Ulysses on embedding and head")


def _batch(config: Mapping[str, Any], found: Imported) -> None:
    """Galvatron rounds a batch down that its data ranks and chunks do not divide."""
    if "global_bsz" not in config or "chunks" not in config:
        return
    batch, chunks = whole(config["global_bsz"], "/global_bsz"), whole(config["chunks"], "/chunks")
    found.states("global_batch", batch, f"global_bsz {batch}")
    found.microbatches = chunks
    found.where["microbatches"] = f"chunks {chunks}"
    used = (found.tp or 1) * (found.cp or 1) * (found.pp or 1)
    if found.world_size is None or found.world_size % used:
        return
    dp = found.world_size // used
    found.dp = dp
    least = min([found.tp or 1, *found.layer_tp, *([found.ends_tp] if found.ends_tp else [])])
    most = dp * (found.tp or 1) // least
    if batch % (most * chunks):
        unit = most * chunks
        found.fault(
            "batch-identity",
            f"global_bsz {batch} over dp {most} x {chunks} chunks leaves {batch % unit}",
            f"{max(unit, batch // unit * unit)}",
        )
        return
    found.microbatch_size = batch // dp // chunks


def _train(files: Files, found: Imported) -> None:
    """Sequence length, attention and precision of an exported train.yaml in the same folder."""
    document = files.get("train.yaml")
    runtime = document.get("runtime") if isinstance(document, Mapping) else None
    if not isinstance(runtime, Mapping):
        return
    train, model, parallel = (runtime.get(name) or {} for name in ("train", "model", "parallel"))
    length = train.get("seq_length")
    if isinstance(length, int):
        found.states("sequence_length", length, f"seq_length {length}")
    if isinstance(train.get("use_flash_attn"), bool):
        is_flash = train["use_flash_attn"]
        found.states(
            "attention", "flash" if is_flash else "unfused", f"use_flash_attn {str(is_flash).lower()}"
        )
    if parallel.get("mixed_precision") in ("bf16", "fp16"):
        found.states(
            "precision", parallel["mixed_precision"], f"mixed_precision {parallel['mixed_precision']}"
        )
    for key, word in (("num_layers", "layers"), ("hidden_size", "hidden size"), ("vocab_size", "vocabulary")):
        if isinstance(model.get(key), int):
            if word == "layers" and model[key] != found.shape["layers"]:
                found.fault(
                    "list-length",
                    f"tp_sizes_enc has {found.shape['layers']} entries for {model[key]} layers",
                    f"{model[key]} entries",
                )
            found.shape[word] = model[key]


def _world(files: Files) -> int | None:
    script = files.get("run.sh")
    if not isinstance(script, str) or "--nnodes" not in script:
        return None
    nodes, per_node = machine_size(script)
    return nodes * per_node
