"""Our native PyTorch script (train.py) as a decision: its constants hold all of it, the model too."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from planner.errors import InputError
from planner.launchers.imported import MOST_LAYERS, MOST_RANKS, Facts, Files, Imported, one_file, whole
from planner.launchers.torch_rules import SCHEDULE_OF
from planner.model.spec import (
    Attention,
    Block,
    Embedding,
    FeedForward,
    Head,
    LayoutRun,
    ModelSpec,
    Norm,
    Stack,
)
from planner.strategy.decision import GATHER_UNITS

NOT_CARRIED: tuple[str, ...] = ()
_NAMES_TEXT = (
    "MODEL MESH STAGES RECOMPUTE GATHER_UNITS SHARDING SEQUENCE_PARALLEL SCHEDULE VIRTUAL_STAGES "
    "MICROBATCH_SIZE MICROBATCHES GLOBAL_BATCH SEQUENCE_LENGTH OPTIMIZER PRECISION"
)
NAMES = tuple(_NAMES_TEXT.split())
LONGEST = 1 << 20


def read_pytorch(files: Files, facts: Facts) -> Imported:
    """What the script trains, with every broken rule. Raises InputError when constants are missing."""
    name = one_file(files, "pytorch", ("train.py",), (".py",))
    values = _constants(str(files[name]), name)
    found = Imported("pytorch", name)
    _shapes(values, name)
    mesh = values["MESH"]
    sizes = {
        key: whole(mesh.get(key), f"MESH.{key}", most=MOST_RANKS)
        for key in ("pp", "dp_replicate", "dp_shard", "tp")
    }
    found.states("tp", sizes["tp"], f"MESH tp {sizes['tp']}")
    found.states("pp", sizes["pp"], f"MESH pp {sizes['pp']}")
    found.cp = found.ep = found.expert_tp = 1
    found.dp = sizes["dp_replicate"] * sizes["dp_shard"]
    found.where["dp"] = f"MESH dp_replicate {sizes['dp_replicate']} x dp_shard {sizes['dp_shard']}"
    world = sizes["pp"] * found.dp * sizes["tp"]
    found.states("world_size", world, f"a MESH of {world} ranks")
    _stages(values, found)
    _sharding(values, sizes, found)
    _units(values, found)
    found.sequence_parallel = bool(values["SEQUENCE_PARALLEL"]) and sizes["tp"] > 1
    found.schedule = SCHEDULE_OF.get(values["SCHEDULE"])
    if found.schedule is None:
        found.fault("schedule", f"SCHEDULE {values['SCHEDULE']!r}", ", ".join(SCHEDULE_OF))
    else:
        found.where["schedule"] = f"SCHEDULE {values['SCHEDULE']}"
    for field, constant in (
        ("microbatch_size", "MICROBATCH_SIZE"),
        ("microbatches", "MICROBATCHES"),
        ("global_batch", "GLOBAL_BATCH"),
        ("sequence_length", "SEQUENCE_LENGTH"),
    ):
        found.states(field, whole(values[constant], constant), f"{constant} {values[constant]}")
    found.states("optimizer", values["OPTIMIZER"], f"OPTIMIZER {values['OPTIMIZER']}")
    found.states("precision", values["PRECISION"], f"PRECISION {values['PRECISION']}")
    kernel = values["MODEL"].get("attention")
    found.states("attention", kernel, f"attention {kernel}")
    try:
        found.model = _model(values["MODEL"], len(values["RECOMPUTE"]), name)
    except (KeyError, TypeError, ValidationError) as error:
        raise InputError(f"MODEL does not describe a model: {error}", file=name) from None
    return found


def _shapes(values: dict[str, Any], name: str) -> None:
    """Raises InputError unless tables are tables and lists are lists of what they hold."""
    spans, modes, units = values["STAGES"], values["RECOMPUTE"], values["GATHER_UNITS"]
    wrong = [
        constant
        for constant, is_good in (
            ("MODEL", isinstance(values["MODEL"], dict)),
            ("MESH", isinstance(values["MESH"], dict)),
            ("STAGES", isinstance(spans, list) and bool(spans) and all(map(_is_span, spans))),
            ("RECOMPUTE", isinstance(modes, list) and bool(modes) and all(isinstance(m, str) for m in modes)),
            ("GATHER_UNITS", isinstance(units, list) and all(isinstance(unit, str) for unit in units)),
        )
        if not is_good
    ]
    wrong += [
        constant
        for constant in ("SHARDING", "SCHEDULE", "OPTIMIZER", "PRECISION")
        if not isinstance(values[constant], str)
    ]
    if wrong:
        raise InputError(f"{', '.join(wrong)}: not what the script can run", file=name)


def _is_span(span: Any) -> bool:
    return (
        isinstance(span, list)
        and len(span) == 2
        and all(type(end) is int and 0 <= end <= MOST_LAYERS for end in span)
    )


def _stages(values: dict[str, Any], found: Imported) -> None:
    spans, modes = values["STAGES"], values["RECOMPUTE"]
    chunks = whole(values["VIRTUAL_STAGES"], "VIRTUAL_STAGES")
    held = [layer for first, last in spans for layer in range(first, last + 1)]
    if held != list(range(len(modes))):
        lost = sorted(set(range(len(modes))) - set(held))
        found.fault(
            "stages-cover-layers",
            f"STAGES {spans} for {len(modes)} layers" + (f": layers {lost[:8]} are lost" if lost else ""),
            "every layer once and in order",
        )
    if len(spans) != (found.pp or 1) * chunks:
        found.fault(
            "stages-cover-layers",
            f"{len(spans)} STAGES for pp {found.pp} x {chunks} virtual stages",
            f"{(found.pp or 1) * chunks} stages",
        )
    found.virtual_stages = chunks
    found.stage_layers = tuple(last - first + 1 for first, last in spans)
    bad = sorted(set(modes) - {"none", "selective", "full"})
    if bad:
        found.fault("recompute", f"RECOMPUTE has {bad}", "none, selective or full")
        return
    found.states("recompute", modes[0] if len(set(modes)) == 1 else tuple(modes), "RECOMPUTE")


def _units(values: dict[str, Any], found: Imported) -> None:
    units, layers = values["GATHER_UNITS"], len(values["RECOMPUTE"])
    bad = sorted(set(units) - set(GATHER_UNITS))
    if bad or len(units) != layers:
        numbers = f"GATHER_UNITS has {bad}" if bad else f"{len(units)} GATHER_UNITS for {layers} layers"
        found.fault("gather-units", numbers, f"{', '.join(GATHER_UNITS)} for every layer")
        return
    if set(units) - {"block"} and found.sharding != "parameters":
        found.fault(
            "gather-units",
            f"GATHER_UNITS {', '.join(sorted(set(units)))} with SHARDING {found.sharding}",
            "block, or SHARDING parameters",
        )
        return
    if set(units) - {"block"}:
        found.layer_units = tuple(units)


def _sharding(values: dict[str, Any], sizes: dict[str, int], found: Imported) -> None:
    sharding = values["SHARDING"]
    if sharding not in ("none", "optimizer", "gradients", "parameters"):
        found.fault("sharding", f"SHARDING {sharding!r}", "none, optimizer, gradients or parameters")
        return
    if sharding == "none" and sizes["dp_shard"] > 1:
        found.fault("shard-group", f"SHARDING none on dp_shard {sizes['dp_shard']}", "dp_shard 1")
    if sharding != "none" and sizes["dp_shard"] == 1 and sizes["dp_replicate"] > 1:
        found.fault(
            "shard-group", f"SHARDING {sharding} with dp_shard 1: nothing is sharded", "dp_shard above 1"
        )
    found.states("sharding", sharding, f"SHARDING {sharding}")
    if sharding != "none" and sizes["dp_replicate"] > 1:
        found.shard_ranks = sizes["dp_shard"]
        found.where["shard_ranks"] = f"dp_shard {sizes['dp_shard']}"


def _model(shape: Mapping[str, Any], layers: int, name: str) -> ModelSpec:
    attention = Attention(
        num_heads=shape["num_heads"],
        num_kv_heads=shape["num_kv_heads"],
        head_dim=shape["head_dim"],
        qkv_bias=shape["qkv_bias"],
        out_bias=shape["out_bias"],
        qk_norm=shape["qk_norm"],
    )
    block = Block(
        attention=attention,
        feed_forward=FeedForward(ffn_size=shape["ffn_size"], gated=shape["gated"], bias=shape["ffn_bias"]),
        norm=Norm(kind=shape["norm"], bias=shape["norm_bias"]),
        dropout=shape["dropout"] > 0,
    )
    return ModelSpec(
        name=f"model of {name}",
        source=name,
        hidden_size=shape["hidden_size"],
        vocab_size=shape["vocab_size"],
        max_sequence_length=shape["num_positions"] or LONGEST,
        block_kinds={"dense": block},
        stacks=[
            Stack(
                name="decoder",
                embedding=Embedding(kind="tokens", num_positions=shape["num_positions"]),
                layout=[LayoutRun(kinds=["dense"], repeat=layers)],
            )
        ],
        head=Head(kind="language_model", tied=shape["tied"]),
    )


def _constants(text: str, name: str) -> dict[str, Any]:
    try:
        tree = ast.parse(text)
    except SyntaxError as error:
        raise InputError(f"not Python: line {error.lineno}: {error.msg}", file=name) from None
    found = {}
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            target = node.targets[0].id
            if target in NAMES:
                try:
                    found[target] = ast.literal_eval(node.value)
                except ValueError:
                    raise InputError(f"{target} is not a plain value", file=name) from None
    missing = [name for name in NAMES if name not in found]
    if missing:
        raise InputError(
            f"the script does not set {', '.join(missing)}",
            file=name,
            hint="give a train.py that planner export --to pytorch wrote",
        )
    return found
