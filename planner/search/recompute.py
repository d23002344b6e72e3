"""Which layers of one rank to recompute so that it fits, at the least extra time.

Layers fall into groups of equal kind and equal microbatches in flight; in a group only the numbers per
mode matter. The choice is a small knapsack with Pareto fronts of (extra seconds, freed bytes), exact:
fronts of the groups are merged and dominated points dropped. Recomputing needs the working set of one
layer: the largest working set in use is fixed first, charged, and only modes within it are offered.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from planner.cost.memory import Item, Moment
from planner.cost.row import KindCost
from planner.cost.stage import StageModel
from planner.search.recompute_fronts import (
    TOLERANCE,
    Point,
    cheapest_of_kind,
    cheapest_pair,
    kind_front,
    merged,
)
from planner.strategy.decision import RECOMPUTE_FULL, RECOMPUTE_NONE, RECOMPUTE_SELECTIVE

LIMIT_TRIES = 5
MODES = (RECOMPUTE_SELECTIVE, RECOMPUTE_FULL)


@dataclass(frozen=True)
class Group:
    """``count`` equal layers of ``kind`` with ``alive`` microbatches per moment; blocks may recompute."""

    kind: int
    count: int
    alive: tuple[int, ...]
    is_block: bool

    @property
    def in_flight(self) -> int:
        """Microbatches alive at the end of the warm-up."""
        return self.alive[0]


@dataclass(frozen=True)
class Choice:
    """Modes chosen for one rank: (selective, full) counts per group, and the extra seconds.

    ``spared_seconds``: by how much a choice nobody looked for could at most be cheaper; 0 when exact.
    """

    extra_seconds: float
    counts: tuple[tuple[int, int], ...]
    spared_seconds: float = 0.0

    def items(self, groups: tuple[Group, ...], sharding: int) -> list[Item]:
        """The rank's layers as items."""
        found = []
        for group, (selective, full) in zip(groups, self.counts, strict=True):
            split = (group.count - selective - full, selective, full)
            for mode, count in enumerate(split):
                if count:
                    found.append(Item(group.kind, count, mode, sharding, group.alive))
        return found


def plain_items(groups: tuple[Group, ...], sharding: int, mode: int = RECOMPUTE_NONE) -> list[Item]:
    """All layers of a rank in one mode (blocks; other layers are never recomputed)."""
    return [
        Item(g.kind, g.count, mode if g.is_block else RECOMPUTE_NONE, sharding, g.alive)
        for g in groups
        if g.count
    ]


def choose_recompute(
    stages: StageModel,
    groups: tuple[Group, ...],
    limit_bytes: float,
    sharding: int,
    most_extra_seconds: float = math.inf,
    offered: tuple[int, ...] = MODES,
    plain_bytes: float | None = None,
) -> Choice | None:
    """The cheapest of the ``offered`` recompute modes that fit ``limit_bytes`` at the end of the warm-up.

    None when even full recompute of all does not fit, or when every way to fit costs at least
    ``most_extra_seconds`` per microbatch. Where a stack has several moments that may be the fullest, the
    bytes to free follow from those that tell, every choice is checked against all, and one mode for all
    layers is tried too: such a choice may free a layer more than it must. (Stacks of that kind take one
    mode for all layers, so this choice is not what their plans are made of.) ``plain_bytes``: the one
    moment's bytes without recomputation, where the caller has them.
    """
    none = tuple((0, 0) for _ in groups)
    if plain_bytes is not None:
        if plain_bytes <= limit_bytes:
            return Choice(0.0, none)
        moments = [Moment("all", {"total": plain_bytes})]
        return _cheapest_choice(stages, groups, moments, limit_bytes, sharding, most_extra_seconds, offered)
    warm = tuple(replace(group, alive=group.alive[:1]) for group in groups)
    moments = stages.moments(plain_items(warm, sharding))
    if max(moment.total for moment in moments) <= limit_bytes:
        return Choice(0.0, none)
    if len(moments) == 1:
        return _cheapest_choice(stages, groups, moments, limit_bytes, sharding, most_extra_seconds, offered)
    return _checked_choice(stages, warm, moments, limit_bytes, sharding, most_extra_seconds, offered)


def _checked_choice(
    stages: StageModel,
    groups: tuple[Group, ...],
    moments: list[Moment],
    limit_bytes: float,
    sharding: int,
    most_extra_seconds: float,
    offered: tuple[int, ...],
) -> Choice | None:
    """The cheapest of: modes by the bytes to free (limit lowered by what they are over), one mode for all."""
    kinds = stages.rows[sharding].kinds
    found: list[Choice] = []
    for mode in offered:
        counts = tuple(
            ((g.count, 0) if mode == RECOMPUTE_SELECTIVE else (0, g.count)) if g.is_block else (0, 0)
            for g in groups
        )
        extra = sum(
            g.count * (kinds[g.kind].backward_seconds[mode] - kinds[g.kind].backward_seconds[0])
            for g in groups
            if g.is_block
        )
        found.append(Choice(extra, counts))

    def over(choice: Choice) -> float:
        return stages.memory(choice.items(groups, sharding))["total"] - limit_bytes

    found = [choice for choice in found if over(choice) <= 0.0]
    limit = limit_bytes
    for _ in range(LIMIT_TRIES):
        best = _cheapest_choice(stages, groups, moments, limit, sharding, most_extra_seconds, offered)
        if best is None:
            break
        excess = over(best)
        if excess <= 0.0:
            found.append(best)
            break
        limit -= excess
    fitting = min(found, key=lambda choice: choice.extra_seconds, default=None)
    return fitting if fitting is not None and fitting.extra_seconds < most_extra_seconds else None


def _cheapest_choice(
    stages: StageModel,
    groups: tuple[Group, ...],
    moments: list[Moment],
    limit_bytes: float,
    sharding: int,
    most_extra_seconds: float,
    offered: tuple[int, ...],
) -> Choice | None:
    """The cheapest modes that take what ``moments`` (without recompute) pass ``limit_bytes`` by off them."""
    slack = 1.0 + stages.device.constants.allocator_slack
    kinds = stages.rows[sharding].kinds
    if any(m.freed_share == 0.0 and m.total > limit_bytes for m in moments):
        return None
    # At least a byte: a moment that tells no number may still need one layer recomputed.
    told = [m for m in moments if m.freed_share]

    def needed(working: float) -> float:
        needs = [
            ((m.total - limit_bytes) / slack + (working if m.has_working else 0.0)) / (m.freed_share or 1.0)
            for m in told
        ]
        return max([1.0, *needs])

    if least_extra_seconds(kinds, groups, needed(0.0)) >= most_extra_seconds:
        return None
    blocks = sorted({g.kind for g in groups if g.is_block and g.count})
    if len(blocks) > EXACT_KINDS:
        return _by_efficiency(kinds, groups, needed, offered)
    best: Choice | None = None
    for working in _working_sets(kinds, blocks, offered):
        found = _cheapest(kinds, groups, blocks, working, needed(working), offered)
        if found is not None:
            extra, _, counts = found
            if best is None or extra < best.extra_seconds:
                best = Choice(extra, _deal(groups, dict(zip(blocks, counts, strict=True))))
    return best


EXACT_KINDS = 4


def _by_efficiency(
    kinds: tuple[KindCost, ...],
    groups: tuple[Group, ...],
    needed: Callable[[float], float],
    offered: tuple[int, ...],
) -> Choice | None:
    """Many kinds of layers: the linear relaxation of the knapsack rounded up, and how far it may be off.

    Each layer's modes form a convex chain of steps (bytes freed, seconds); steps are taken by seconds per
    byte until what is ``needed`` beside the largest working set is free. The relaxation without working
    sets is the bound (Dantzig 1957; multiple-choice knapsack, Sinha and Zoltners 1979).
    """
    chains = [_steps(kinds[g.kind], g.in_flight, offered) if g.is_block else [] for g in groups]
    steps = sorted(
        (seconds / freed, index, step, freed, seconds)
        for index, (group, chain) in enumerate(zip(groups, chains, strict=True))
        for step, (freed, seconds) in enumerate(chain)
        for _ in range(group.count)
    )
    working = max((max(kinds[g.kind].working_bytes) for g in groups if g.is_block and g.count), default=0.0)
    need, need_all = needed(0.0), needed(working)
    least = extra = freed = 0.0
    taken: dict[int, list[int]] = {}
    for rate, index, step, bytes_freed, seconds in steps:
        if freed >= need_all:
            break
        if freed < need:
            least += rate * min(bytes_freed, need - freed)
        freed, extra = freed + bytes_freed, extra + seconds
        if index not in taken:
            taken[index] = [0, 0]
        taken[index][step] += 1
    if freed < need_all * TOLERANCE:
        return None
    counts = []
    for index, chain in enumerate(chains):
        first, second = taken.get(index, (0, 0))
        if RECOMPUTE_FULL not in offered:
            counts.append((first, 0))
        else:
            counts.append((0, first) if len(chain) == 1 else (first - second, second))
    return Choice(extra, tuple(counts), extra - least)


def _steps(kind: KindCost, in_flight: int, offered: tuple[int, ...]) -> list[tuple[float, float]]:
    """(bytes freed, seconds) of going to selective and on to full, or to full at once where cheaper."""
    plain, selective, full = kind.saved_bytes
    plain_seconds, selective_seconds, full_seconds = kind.backward_seconds
    freed, cost = (plain - selective) * in_flight, selective_seconds - plain_seconds
    can_select = freed > 0.0 and RECOMPUTE_SELECTIVE in offered
    if RECOMPUTE_FULL not in offered:
        return [(freed, cost)] if can_select else []
    most_freed, most_cost = (plain - full) * in_flight, full_seconds - plain_seconds
    if most_freed <= 0.0:
        return []
    more_freed, more_cost = most_freed - freed, most_cost - cost
    if can_select and more_freed > 0.0 and cost * more_freed <= more_cost * freed:
        return [(freed, cost), (more_freed, more_cost)]
    return [(most_freed, most_cost)]


def _cheapest(
    kinds: tuple[KindCost, ...],
    groups: tuple[Group, ...],
    blocks: list[int],
    working: float,
    need: float,
    offered: tuple[int, ...],
) -> Point | None:
    """The point of least extra seconds that frees ``need`` bytes with working sets up to ``working``."""

    def modes(kind: int) -> list[int]:
        return [mode for mode in offered if kinds[kind].working_bytes[mode] <= working]

    if len(blocks) == 1:
        kind = blocks[0]
        return cheapest_of_kind(kinds[kind], _by_in_flight(groups, kind), modes(kind), need)
    fronts = [kind_front(kinds[kind], _by_in_flight(groups, kind), modes(kind), need) for kind in blocks]
    order = sorted(range(len(blocks)), key=lambda index: (len(fronts[index]), index))
    left = fronts[order[0]]
    for index in order[1:-1]:
        left = merged(left, fronts[index])
    found = cheapest_pair(left, fronts[order[-1]], need * TOLERANCE)
    if found is None:
        return None
    counts = dict(zip(order, found[2], strict=True))
    return found[0], found[1], tuple(counts[index] for index in range(len(blocks)))


def _working_sets(kinds: tuple[KindCost, ...], blocks: list[int], offered: tuple[int, ...]) -> list[float]:
    """The working sets that may be the largest in use: one per kind and mode, ascending."""
    return sorted({kinds[kind].working_bytes[mode] for kind in blocks for mode in offered})


def least_extra_seconds(kinds: tuple[KindCost, ...], groups: tuple[Group, ...], need: float) -> float:
    """A lower bound on the extra seconds that free ``need`` bytes: the best seconds per byte throughout."""
    best = math.inf
    for group in groups:
        if not group.is_block or not group.count:
            continue
        kind = kinds[group.kind]
        for mode in MODES:
            freed = (kind.saved_bytes[0] - kind.saved_bytes[mode]) * group.in_flight
            if freed > 0.0:
                best = min(best, (kind.backward_seconds[mode] - kind.backward_seconds[0]) / freed)
    return best * need


def _by_in_flight(groups: tuple[Group, ...], kind: int) -> list[int]:
    """In-flight counts of every layer of a kind, most first."""
    counts = [g.in_flight for g in groups if g.kind == kind for _ in range(g.count)]
    return sorted(counts, reverse=True)


def _deal(groups: tuple[Group, ...], counts: dict[int, tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """(selective, full) per group from the totals per kind: most in flight first."""
    left = {kind: list(pair) for kind, pair in counts.items()}
    result = [(0, 0)] * len(groups)
    for index in sorted(range(len(groups)), key=lambda i: (-groups[i].in_flight, i)):
        group = groups[index]
        if not group.is_block or group.kind not in left:
            continue
        pool = left[group.kind]
        full = min(pool[1], group.count)
        selective = min(pool[0], group.count - full)
        pool[0] -= selective
        pool[1] -= full
        result[index] = (selective, full)
    return tuple(result)
