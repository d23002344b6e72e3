"""A decision: every choice of a plan, and nothing that follows from it.

Codes are small integers so that thousands of candidates fit in arrays; names are what files and people
see. Rank order is fixed: tp varies fastest, then cp, then dp, then pp (Megatron-LM's tp-cp-ep-dp-pp).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

SHARDINGS = ("none", "optimizer", "gradients", "parameters")
SHARDING_GROUPS = ("global", "island")
RECOMPUTES = ("none", "selective", "full")
SCHEDULES = ("1f1b", "interleaved", "gpipe", "zb-h1", "zb-v", "zb-h2")
OFFLOADS = ("none", "optimizer")
GATHER_UNITS = ("block", "part", "matrix")
RANK_ORDER = "tp-cp-dp-pp"

SHARDING_NONE, SHARDING_OPTIMIZER, SHARDING_GRADIENTS, SHARDING_PARAMETERS = range(4)
GROUP_GLOBAL, GROUP_ISLAND = range(2)
RECOMPUTE_NONE, RECOMPUTE_SELECTIVE, RECOMPUTE_FULL = range(3)
OFFLOAD_NONE, OFFLOAD_OPTIMIZER = range(2)
UNIT_BLOCK, UNIT_PART, UNIT_MATRIX = range(3)


def rank_of_stage(schedule: str, stage: int, pp: int) -> int:
    """The pipeline rank a virtual stage runs on: c mod pp, or back up the V (``schedule.orders``)."""
    return 2 * pp - 1 - stage if schedule == "zb-v" and stage >= pp else stage % pp


def row_code(sharding: int, unit: int = UNIT_BLOCK, tensor: int = 0) -> int:
    """One number for what prices a layer: its sharding, its gather unit, and which tensor degree it has.

    ``tensor`` counts the plan's tensor degrees (``Decision.tensor_degrees``). A sharding's own code for whole
    blocks of the plan's degree.
    """
    return sharding + len(SHARDINGS) * (unit + len(GATHER_UNITS) * tensor)


def row_parts(code: int) -> tuple[int, int, int]:
    """(sharding, gather unit, tensor) of a ``row_code``."""
    rest, sharding = divmod(code, len(SHARDINGS))
    tensor, unit = divmod(rest, len(GATHER_UNITS))
    return sharding, unit, tensor


@dataclass(frozen=True)
class Degrees:
    """Sizes of the mesh axes. ``world_size = tp * cp * pp * dp``; ep and expert_tp divide inside."""

    dp: int
    tp: int
    pp: int
    cp: int = 1
    ep: int = 1
    expert_tp: int = 1

    @property
    def world_size(self) -> int:
        return self.dp * self.tp * self.pp * self.cp

    @property
    def stage_stride(self) -> int:
        """Ranks per pipeline stage: how far apart neighbouring stages' ranks are."""
        return self.dp * self.tp * self.cp


@dataclass(frozen=True)
class Decision:
    """All choices of a plan.

    ``chunks[c]`` is the (first, end) range of blocks on virtual stage c, which runs on pipeline rank
    ``rank_of_stage``. The embedding belongs to the first virtual stage, the final norm and head to the last.
    ``recompute[b]`` is the recompute code of block b; ``sharding`` (and its group) is one for the plan,
    ``layer_sharding`` overrides it per block when not empty. ``offload`` optimizer: optimizer states, fp32
    weights and the update itself are the host's. ``layer_units`` says per block what of its sharded weights
    is gathered at once (``cost.gather_units``); empty: whole blocks. ``layer_tp`` overrides the tensor degree
    per block: data ranks and microbatch size of the block follow, so that a stage's ranks and a microbatch's
    sequences stay. Embedding and head have ``degrees`` and ``sharding``.
    """

    degrees: Degrees
    sequence_parallel: bool
    sharding: int
    sharding_group: int
    schedule: str
    virtual_stages: int
    microbatch_size: int
    microbatches: int
    chunks: tuple[tuple[int, int], ...]
    recompute: tuple[int, ...]
    layer_sharding: tuple[int, ...] = ()
    offload: int = OFFLOAD_NONE
    layer_units: tuple[int, ...] = ()
    layer_tp: tuple[int, ...] = ()

    @property
    def global_batch(self) -> int:
        return self.degrees.dp * self.microbatch_size * self.microbatches

    @property
    def has_layer_choices(self) -> bool:
        """Whether any block differs from the plan's own sharding, whole-block gathers and tensor degree."""
        return bool(self.layer_sharding or self.layer_units or self.layer_tp)

    def sharding_of(self, block: int) -> int:
        """Sharding code of one block."""
        return self.layer_sharding[block] if self.layer_sharding else self.sharding

    def unit_of(self, block: int) -> int:
        """Gather unit code of one block."""
        return self.layer_units[block] if self.layer_units else UNIT_BLOCK

    def tp_of(self, block: int) -> int:
        """Tensor degree of one block."""
        return self.layer_tp[block] if self.layer_tp else self.degrees.tp

    @property
    def tensor_degrees(self) -> tuple[int, ...]:
        """Every tensor degree in use: that of embedding and head first, the others ascending."""
        own = self.degrees.tp
        return (own, *sorted(set(self.layer_tp) - {own}))

    def degrees_of(self, tp: int) -> Degrees:
        """Degrees of layers with ``tp``; data ranks are what is left of a stage."""
        d = self.degrees
        return d if tp == d.tp else replace(d, tp=tp, dp=d.dp * d.tp // tp)

    def microbatch_size_of(self, tp: int) -> int:
        """Sequences a data rank of layers with ``tp`` has of one microbatch."""
        return self.microbatch_size * tp // self.degrees.tp

    def strategies(self) -> list[tuple[int, int]]:
        """(sharding, gather unit) codes in use, the plan's own sharding with whole blocks first."""
        used = {(self.sharding_of(b), self.unit_of(b)) for b in range(len(self.recompute))}
        return [(self.sharding, UNIT_BLOCK), *sorted(used - {(self.sharding, UNIT_BLOCK)})]

    def row_code(self, block: int | None = None) -> int:
        """The code of a block, or of embedding and head; without ``layer_tp`` and units the sharding's."""
        if block is None or not self.has_layer_choices:
            return self.sharding
        tensor = self.tensor_degrees.index(self.tp_of(block)) if self.layer_tp else 0
        return row_code(self.sharding_of(block), self.unit_of(block), tensor)

    def row_codes(self) -> list[int]:
        """Every cost row in use, that of embedding and head first."""
        if not self.has_layer_choices:
            return [self.sharding]
        others = {self.row_code(block) for block in range(len(self.recompute))}
        return [self.sharding, *sorted(others - {self.sharding})]

    def blocks_of_rank(self, rank: int) -> list[tuple[int, tuple[int, int]]]:
        """(chunk index on the rank, block range) of one pipeline rank, in model order."""
        pp = self.degrees.pp
        return [
            (stage // pp, span)
            for stage, span in enumerate(self.chunks)
            if rank_of_stage(self.schedule, stage, pp) == rank
        ]

    def recompute_summary(self) -> str:
        """none, selective, full, or "mixed" when blocks differ."""
        modes = sorted(set(self.recompute))
        return RECOMPUTES[modes[0]] if len(modes) == 1 else "mixed"

    def label(self) -> str:
        """One short line for tables: TP4 PP2 DP8 ... with everything that is not its default.

        Of layers with tensor degrees of their own every degree, and the dp and microbatch of most of them.
        """
        most = Counter(self.layer_tp).most_common(1)[0][0] if self.layer_tp else self.degrees.tp
        d = self.degrees_of(most)
        tensor = "/".join(map(str, sorted(set(self.layer_tp) or {d.tp})))
        parts = [f"TP{tensor}", f"PP{d.pp}", f"DP{d.dp}"]
        if d.cp > 1:
            parts.append(f"CP{d.cp}")
        if d.ep > 1:
            parts.append(f"EP{d.ep}")
        if d.expert_tp > 1:
            parts.append(f"ETP{d.expert_tp}")
        if self.virtual_stages > 1:
            parts.append(f"VP{self.virtual_stages}")
        if self.schedule not in ("1f1b", "interleaved"):
            parts.append(self.schedule)
        parts.append(f"mb{self.microbatch_size_of(most)}")
        shard = SHARDINGS[self.sharding]
        if self.sharding != SHARDING_NONE and self.sharding_group == GROUP_ISLAND:
            shard += "/island"
        parts.append(f"shard:{shard}")
        parts.append(f"recompute:{self.recompute_summary()}")
        if any(self.layer_units):
            units = sorted(set(self.layer_units))
            parts.append(f"gathers:{GATHER_UNITS[units[0]] if len(units) == 1 else 'mixed'}")
        if self.offload:
            parts.append(f"offload:{OFFLOADS[self.offload]}")
        if self.layer_tp:
            parts.append(f"ends:TP{self.degrees.tp}")
        return " ".join(parts)
