"""What an importer hands back: a launcher's file in the planner's words, with its faults.

Every launcher's ``*_import.py`` fills one ``Imported``. None means the file does not say; nothing is
filled in that the file or the launcher's documented default does not give. The rules that need only these
words are in ``file_rules``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from planner.errors import InputError
from planner.model.spec import Attention, MixtureOfExperts, ModelSpec

# Files by name: JSON and YAML parsed to objects, everything else as text.
Files = Mapping[str, Any]


@dataclass(frozen=True)
class Facts:
    """What is known beside the file: GPUs, the model, the GPU's generation (all from flags), or None."""

    world_size: int | None = None
    model: ModelSpec | None = None
    generation: str | None = None

    @property
    def num_layers(self) -> int | None:
        """Blocks of the model, when it is known."""
        return self.model.num_layers if self.model is not None else None


@dataclass(frozen=True)
class Fault:
    """A broken rule of a launcher file: the rule, this file's numbers, what would work.

    is_fatal: the launcher refuses, crashes, or trains something else than the file says. Otherwise the
    launcher changes the setting without a word and what it makes of it is known (and priced).
    """

    rule: str
    numbers: str
    nearest: str = ""
    is_fatal: bool = True

    def text(self) -> str:
        """One line for people."""
        return self.numbers + (f"; use {self.nearest}" if self.nearest else "")


@dataclass
class Imported:
    """A launcher file as far as it is stated.

    stage_layers: layers of every virtual stage in model order. shard_ranks: ranks one shard group spans,
    None for the whole data group. recompute: one mode, or one per layer; recompute_block: full on the first
    so many layers of every virtual stage. where: the file's own words for a field. unpriced: settings that
    change the decision and have no counterpart in one. not_read: settings that do not change it.
    """

    launcher: str
    file: str
    tp: int | None = None
    pp: int | None = None
    cp: int | None = None
    dp: int | None = None
    ep: int | None = None
    expert_tp: int | None = None
    world_size: int | None = None
    sequence_parallel: bool | None = None
    sharding: str | None = None
    layer_sharding: tuple[str, ...] = ()
    layer_units: tuple[str, ...] = ()
    shard_ranks: int | None = None
    schedule: str | None = None
    virtual_stages: int | None = None
    stage_layers: tuple[int, ...] | None = None
    microbatch_size: int | None = None
    microbatches: int | None = None
    global_batch: int | None = None
    sequence_length: int | None = None
    recompute: str | tuple[str, ...] | None = None
    recompute_block: int | None = None
    precision: str | None = None
    optimizer: str | None = None
    attention: str | None = None
    offload: str | None = None
    model: ModelSpec | None = None
    model_hint: Any = None
    shape: dict[str, int] = field(default_factory=dict)
    where: dict[str, str] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    unpriced: list[str] = field(default_factory=list)
    not_read: list[str] = field(default_factory=list)
    assumptions: list[str] = field(default_factory=list)

    def fault(self, rule: str, numbers: str, nearest: str = "", *, is_fatal: bool = True) -> None:
        """Record a broken rule, once."""
        found = Fault(rule, numbers, nearest, is_fatal)
        if found not in self.faults:
            self.faults.append(found)

    def states(self, name: str, value: Any, words: str) -> None:
        """Record that the file states a field, in its own words."""
        setattr(self, name, value)
        self.where[name] = words


# Larger numbers are slips; lists of stages and layers are built from some of them.
MOST = 1 << 40
MOST_RANKS = 1 << 20
MOST_LAYERS = 1 << 16


def whole(value: Any, pointer: str, least: int = 1, most: int = MOST) -> int:
    """A whole number of at least ``least`` and at most ``most``. Raises InputError naming ``pointer``."""
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        words = (
            f"must be a whole number from {least} to {most}" if isinstance(value, int) else "must be a number"
        )
        raise InputError(f"{words}, not {value!r}", pointer=pointer)
    return value


def one_file(files: Files, launcher: str, names: tuple[str, ...], suffixes: tuple[str, ...]) -> str:
    """Name of the file to read: the only one, else the first called as an exporter calls it.

    Raises InputError when a folder holds none of them, or several by suffix alone.
    """
    if len(files) == 1:
        return next(iter(files))
    for name in names:
        if name in files:
            return name
    found = sorted(name for name in files if name.endswith(suffixes))
    if len(found) == 1:
        return found[0]
    raise InputError(
        f"the folder holds {'several' if found else 'no'} files that {launcher} could be read from"
        + (f": {', '.join(found[:6])}" if found else ""),
        allowed=list(names),
        hint="give the file itself",
    )


def shape_facts(model: ModelSpec) -> dict[str, int]:
    """The sizes two descriptions of one model must agree in, by the words of messages."""
    blocks = [model.block_kinds[kind] for _, kind in model.block_sequence()]
    attention = blocks[0].attention
    facts = {
        "layers": model.num_layers,
        "hidden size": model.hidden_size,
        "attention heads": attention.num_heads,
    }
    if model.vocab_size:
        facts["vocabulary"] = model.vocab_size
    if isinstance(attention, Attention):
        facts |= {"key/value heads": attention.num_kv_heads, "head width": attention.head_dim}
    dense = [b.feed_forward.ffn_size for b in blocks if b.feed_forward.kind == "dense"]
    if dense:
        facts["feed-forward width"] = dense[0]
    experts = [b.feed_forward for b in blocks if isinstance(b.feed_forward, MixtureOfExperts)]
    facts["experts"] = experts[0].num_experts if experts else 0
    if experts:
        facts |= {
            "experts per token": experts[0].experts_per_token,
            "expert width": experts[0].expert_ffn_size,
        }
    return facts
