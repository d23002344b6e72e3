"""Exposed gathers and reductions of a layer's sharded weights, by what is gathered at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from planner.cost.arrays import Array, IntArray, Number
from planner.cost.collectives import exposed_seconds
from planner.cost.data_parallel import moves_seconds
from planner.cost.gather_units import unit_shares
from planner.cost.groups import Groups
from planner.cost.part import Move
from planner.model.spec import Block
from planner.strategy.decision import UNIT_BLOCK

# The (forward, backward) moves of a share of a layer's weights.
MovesOf = Callable[[float], tuple[tuple[Move, ...], tuple[Move, ...]]]


@dataclass(frozen=True)
class Sharded:
    """Exposed seconds of a layer's sharded weights, forward and backward.

    units: how many it is gathered in, one by one; largest: the share of the weights in the largest.
    """

    forward: Number
    backward: Number
    units: Number = 1.0
    largest: Number = 1.0

    def chosen(self, mine: Array, finer: Sharded) -> Sharded:
        """``finer`` where ``mine`` holds, else this."""
        return Sharded(
            np.where(mine, finer.forward, self.forward),
            np.where(mine, finer.backward, self.backward),
            np.where(mine, finer.units, self.units),
            np.where(mine, finer.largest, self.largest),
        )


def sharded_seconds(
    groups: Groups,
    theft: float,
    gathered: tuple[Block | None, int, IntArray],
    moves_of: MovesOf,
    forward: Number,
    backward: Number,
) -> Sharded:
    """What ``moves_of`` (a share of the layer's weights) exposes beside kernels of the given seconds.

    gathered: (block or None, hidden size, gather unit of every candidate). Collectives hide under the
    neighbour's compute: the same, where layers are alike. Units finer than the layer follow each other on the
    wire (the host issues gathers ahead of the kernels) and hide together; each adds its latencies.
    """
    block, hidden, units = gathered
    moves = moves_of(1.0)
    found = Sharded(
        exposed_seconds(moves_seconds(groups, moves[0]), forward, theft),
        exposed_seconds(moves_seconds(groups, moves[1]), backward, theft),
    )
    for unit in sorted(set(units[units != UNIT_BLOCK].tolist())):
        shares = unit_shares(block, hidden, unit)
        if len(shares) == 1:
            continue
        pairs = [moves_of(share) for share in shares]
        ahead, behind = (sum(moves_seconds(groups, pair[side]) for pair in pairs) for side in (0, 1))
        finer = Sharded(
            exposed_seconds(ahead, forward, theft),
            exposed_seconds(behind, backward, theft),
            float(len(shares)),
            max(shares),
        )
        found = found.chosen(units == unit, finer)
    return found
