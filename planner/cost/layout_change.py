"""Changes of layout: hidden states handed from layers of one tensor degree to layers of another.

What Hetu-Galvatron runs between two modules (galvatron/core/runtime/redistribute.py and comm_groups.py,
release 2.4.0 and June 2026), with the sequence split inside a tp group and the batch over the data ranks.
Letters: a and b ranks over which a sequence is spread before and behind (tp cp), L bytes of hidden states on
one rank, the same in both layouts:

    a > 1   all-gather over the old group: a L whole
    b > a   all-gather over the ranks that grow into the new group (b / a, a ranks apart): b L whole

then every rank keeps its slice. Backward runs the change from b to a. The gathered tensor is short-lived.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from planner.cluster.topology import Cluster
from planner.cost.collectives import all_gather_seconds, group_costs
from planner.cost.constants import Constants


@dataclass(frozen=True)
class LayoutChange:
    """Seconds of one microbatch each way, bytes of the largest gathered tensor, and the gathers themselves.

    ``gathers`` holds (ranks in the group, bytes of the whole) of forward and backward together.
    """

    forward_seconds: float = 0.0
    backward_seconds: float = 0.0
    gathered_bytes: float = 0.0
    gathers: tuple[tuple[int, float], ...] = ()

    def __add__(self, other: LayoutChange) -> LayoutChange:
        return LayoutChange(
            self.forward_seconds + other.forward_seconds,
            self.backward_seconds + other.backward_seconds,
            max(self.gathered_bytes, other.gathered_bytes),
            self.gathers + other.gathers,
        )


NO_CHANGE = LayoutChange()


def layout_change(
    cluster: Cluster, constants: Constants, before: int, after: int, rank_bytes: float
) -> LayoutChange:
    """The change from ``before`` to ``after`` ranks a sequence; ``rank_bytes``: hidden states of one rank."""
    if before == after:
        return NO_CHANGE
    there, back = list(_gathers(before, after, rank_bytes)), list(_gathers(after, before, rank_bytes))
    forward, backward = (
        sum(
            float(all_gather_seconds(group_costs(cluster, constants, stride, size), whole))
            for stride, size, whole in moves
        )
        for moves in (there, back)
    )
    gathers = tuple((size, whole) for _, size, whole in (*there, *back))
    return LayoutChange(forward, backward, max(whole for _, whole in gathers), gathers)


def _gathers(before: int, after: int, rank_bytes: float) -> Iterator[tuple[int, int, float]]:
    """(stride, ranks, whole bytes) of every all-gather one way."""
    if before > 1:
        yield 1, before, before * rank_bytes
    if after > before:
        yield before, after // before, after * rank_bytes
