"""Which layers of one rank to recompute so that it fits, at the least extra time.

Layers fall into groups of equal kind and equal microbatches in flight; in a group only the numbers per
mode matter. The choice is a small knapsack with Pareto fronts of (extra seconds, freed bytes), exact:
fronts of the groups are merged and dominated points dropped. Recomputing needs the working set of one
layer, so the highest mode used is fixed first and its working set charged.
"""

from __future__ import annotations

from dataclasses import dataclass

from planner.cost.stage import Item, StageModel
from planner.strategy.decision import RECOMPUTE_FULL, RECOMPUTE_NONE, RECOMPUTE_SELECTIVE

Point = tuple[float, float, tuple[tuple[int, int], ...]]


@dataclass(frozen=True)
class Group:
    """``count`` equal layers of ``kind`` with ``in_flight`` microbatches; blocks may be recomputed."""

    kind: int
    count: int
    in_flight: int
    is_block: bool


@dataclass(frozen=True)
class Choice:
    """Modes chosen for one rank: (selective, full) counts per group, and the extra seconds."""

    extra_seconds: float
    counts: tuple[tuple[int, int], ...]

    def items(self, groups: tuple[Group, ...], sharding: int) -> list[Item]:
        """The rank's layers as items."""
        found = []
        for group, (selective, full) in zip(groups, self.counts, strict=True):
            split = (group.count - selective - full, selective, full)
            for mode, count in enumerate(split):
                if count:
                    found.append(Item(group.kind, count, mode, sharding, group.in_flight))
        return found


def plain_items(groups: tuple[Group, ...], sharding: int, mode: int = RECOMPUTE_NONE) -> list[Item]:
    """All layers of a rank in one mode (blocks; other layers are never recomputed)."""
    return [
        Item(g.kind, g.count, mode if g.is_block else RECOMPUTE_NONE, sharding, g.in_flight)
        for g in groups
        if g.count
    ]


def choose_recompute(
    stages: StageModel, groups: tuple[Group, ...], limit_bytes: float, sharding: int
) -> Choice | None:
    """The cheapest modes that fit ``limit_bytes``; None when even full recompute of all does not fit."""
    none = tuple((0, 0) for _ in groups)
    excess = stages.memory(plain_items(groups, sharding))["total"] - limit_bytes
    if excess <= 0.0:
        return Choice(0.0, none)
    best: Choice | None = None
    slack = 1.0 + stages.device.constants.allocator_slack
    kinds = stages.rows[sharding].kinds
    for level in (RECOMPUTE_SELECTIVE, RECOMPUTE_FULL):
        blocks = [g for g in groups if g.is_block and g.count]
        if not blocks:
            break
        working = max(kinds[g.kind].working_bytes[mode] for g in blocks for mode in range(1, level + 1))
        need = excess + working * slack
        front: list[Point] = [(0.0, 0.0, ())]
        for group in groups:
            front = _merge(front, _group_front(kinds, group, level, slack, need))
        fitting = [point for point in front if point[1] >= need * (1.0 - 1e-12)]
        if fitting:
            extra, _, counts = min(fitting, key=lambda point: (point[0], -point[1]))
            if best is None or extra < best.extra_seconds:
                best = Choice(extra, counts)
    return best


def _group_front(kinds: object, group: Group, level: int, slack: float, need: float) -> list[Point]:
    """Pareto front of one group: numbers of selectively and fully recomputed layers."""
    if not group.is_block or not group.count:
        return [(0.0, 0.0, ((0, 0),))]
    kind = kinds[group.kind]  # type: ignore[index]
    base_time, base_bytes = kind.backward_seconds[0], kind.saved_bytes[0]
    costs = [kind.backward_seconds[mode] - base_time for mode in range(3)]
    freed = [(base_bytes - kind.saved_bytes[mode]) * group.in_flight * slack for mode in range(3)]
    points: list[Point] = []
    most_full = group.count if level == RECOMPUTE_FULL else 0
    for full in range(most_full + 1):
        for selective in range(group.count - full + 1):
            extra = full * costs[2] + selective * costs[1]
            bytes_freed = full * freed[2] + selective * freed[1]
            points.append((extra, bytes_freed, ((selective, full),)))
            if bytes_freed >= need:
                break
    return _pareto(points)


def _merge(left: list[Point], right: list[Point]) -> list[Point]:
    if len(left) == 1 and not left[0][2]:
        return right
    if len(right) == 1 and right[0][1] == 0.0:
        return [(a, b, c + right[0][2]) for a, b, c in left]
    return _pareto([(a + d, b + e, c + f) for a, b, c in left for d, e, f in right])


def _pareto(points: list[Point]) -> list[Point]:
    """Points no other beats in both less time and more bytes freed."""
    points.sort(key=lambda point: (point[0], -point[1]))
    kept: list[Point] = []
    most = -1.0
    for point in points:
        if point[1] > most:
            kept.append(point)
            most = point[1]
    return kept
