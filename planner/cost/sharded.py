"""Exposed gathers and reductions of a layer's sharded weights, by what is gathered at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from planner.cost.arrays import Array, IntArray, Number
from planner.cost.collectives import exposed_seconds
from planner.cost.data_parallel import moves_seconds
from planner.cost.gather_units import repeated_units, unit_shares
from planner.cost.groups import Groups
from planner.cost.part import Move
from planner.model.spec import Block
from planner.strategy.decision import RECOMPUTE_FULL, RECOMPUTE_SELECTIVE, UNIT_BLOCK

# The (forward, backward) moves of a share of a layer's weights.
MovesOf = Callable[[float], tuple[tuple[Move, ...], tuple[Move, ...]]]


@dataclass(frozen=True)
class Sharded:
    """Exposed seconds of a layer's sharded weights, forward and backward; ``units`` gathered one by one.

    again: what (selective, full) recompute gathers once more; None where no candidate does.
    """

    forward: Number
    backward: Number
    units: Number = 1.0
    again: tuple[Number, Number] | None = None

    def chosen(self, mine: Array, finer: Sharded) -> Sharded:
        """``finer`` where ``mine`` holds, else this."""
        own, theirs = self.again or (0.0, 0.0), finer.again or (0.0, 0.0)
        return Sharded(
            np.where(mine, finer.forward, self.forward),
            np.where(mine, finer.backward, self.backward),
            np.where(mine, finer.units, self.units),
            (np.where(mine, theirs[0], own[0]), np.where(mine, theirs[1], own[1])),
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
    neighbour's compute: the same, where layers are alike. In units finer than the layer each hides under the
    unit before it, as long as that one's share of the weights: by convexity never less exposed than whole.
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
        ahead, behind = [], []
        for index, share in enumerate(shares):
            first, second = moves_of(share)
            before, after = shares[index - 1], shares[(index + 1) % len(shares)]
            ahead.append(exposed_seconds(moves_seconds(groups, first), forward * before, theft))
            behind.append(exposed_seconds(moves_seconds(groups, second), backward * after, theft))
        again = [
            sum(
                one
                for one, is_again in zip(ahead, repeated_units(block, hidden, unit, mode), strict=True)
                if is_again
            )
            for mode in (RECOMPUTE_SELECTIVE, RECOMPUTE_FULL)
        ]
        finer = Sharded(sum(ahead), sum(behind), float(len(shares)), (again[0], again[1]))
        found = found.chosen(units == unit, finer)
    return found
