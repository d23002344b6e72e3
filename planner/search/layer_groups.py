"""Equal layers of a decision, rank by rank and chunk by chunk, and the option each block has in it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from planner.cost.decision_rows import rank_items
from planner.cost.model import CostModel
from planner.strategy.decision import UNIT_BLOCK, Decision, rank_of_stage

# (sharding, gather unit) and the recompute mode of a layer.
Option = tuple[tuple[int, int], int]


@dataclass(frozen=True)
class LayerGroup:
    """Equal layers on one rank and chunk; ``alive`` microbatches in flight in each state."""

    rank: int
    chunk: int
    kind: int
    count: int
    alive: tuple[int, ...]
    is_block: bool


def layer_groups(model: CostModel, decision: Decision) -> Iterator[LayerGroup]:
    """The groups of a decision's stages, whatever its layers' options."""
    chain, pp = model.chain, decision.degrees.pp
    for rank in range(pp):
        for stage, items in rank_items(model, decision, rank):
            merged: dict[tuple[int, tuple[int, ...]], int] = {}
            for item in items:
                key = (item.kind, item.alive)
                merged[key] = merged.get(key, 0) + item.count
            for (kind, alive), count in merged.items():
                is_block = chain.kinds[kind].role == "block"
                yield LayerGroup(rank, stage // pp, kind, count, alive, is_block)


def options_of(model: CostModel, decision: Decision) -> dict[tuple[int, int, int], list[Option]]:
    """Per (rank, chunk, kind) the options of its blocks in the decision, first block first."""
    chain, pp = model.chain, decision.degrees.pp
    sharding = decision.layer_sharding or (decision.sharding,) * len(decision.recompute)
    units = decision.layer_units or (UNIT_BLOCK,) * len(decision.recompute)
    found: dict[tuple[int, int, int], list[Option]] = {}
    for stage, (first, end) in enumerate(decision.chunks):
        rank = rank_of_stage(decision.schedule, stage, pp)
        for block in range(first, end):
            key = rank, stage // pp, chain.layers[chain.block_layers[block]]
            option = (sharding[block], units[block]), decision.recompute[block]
            found.setdefault(key, []).append(option)
    return found
