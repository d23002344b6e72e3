"""Recompute settings a launcher takes, as the choice they leave for one rank."""

from __future__ import annotations

import bisect
import math
from dataclasses import dataclass, replace

from planner.cost.stage import StageModel
from planner.model.chain import LayerChain
from planner.search.recompute import MODES, Choice, Group, choose_recompute, plain_items
from planner.strategy.decision import RECOMPUTES
from planner.strategy.limits import Limits


@dataclass(frozen=True)
class RecomputePolicy:
    """How the layers of a rank are recomputed.

    mode "free": each layer its own of the ``offered`` modes, as memory asks. "first": as few of the first
    layers of every virtual stage in full as memory asks, every rank its own count: a relaxation of "block",
    exactly ``full_layers`` of the first layers of every virtual stage in full. Else a mode name for all
    layers. "first" and "block" need layers of one kind: then a group of equal layers is a virtual stage.
    """

    mode: str = "free"
    full_layers: int = 0
    offered: tuple[int, ...] = MODES

    @property
    def is_by_stage(self) -> bool:
        """Whether virtual stages of a rank are judged one by one."""
        return self.mode in ("first", "block")

    @property
    def is_plain_first(self) -> bool:
        """Whether nothing is recomputed wherever that fits."""
        return self.mode in ("free", "first", "none")

    def choose(
        self,
        stages: StageModel,
        groups: tuple[Group, ...],
        limit_bytes: float,
        sharding: int,
        most_extra_seconds: float = math.inf,
        plain_bytes: float | None = None,
    ) -> Choice | None:
        """Modes for one rank, None when they do not fit ``limit_bytes`` or cost too much.

        ``plain_bytes``: the rank's bytes without recomputation, where the caller knows them to be one sum.
        """
        if self.mode == "free":
            return choose_recompute(
                stages, groups, limit_bytes, sharding, most_extra_seconds, self.offered, plain_bytes
            )
        if self.mode == "first":
            return _fewest(stages, groups, limit_bytes, sharding)
        found = _choice(stages, groups, self._counts(groups), sharding)
        fits = stages.memory(found.items(groups, sharding))["total"] <= limit_bytes
        return found if fits else None

    def _counts(self, groups: tuple[Group, ...]) -> tuple[tuple[int, int], ...]:
        if self.mode == "block":
            return _first(groups, self.full_layers)
        whole = {"none": (0, 0), "selective": (1, 0), "full": (0, 1)}[self.mode]
        return tuple((g.count * whole[0], g.count * whole[1]) if g.is_block else (0, 0) for g in groups)


def recompute_policies(chain: LayerChain, limits: Limits, pinned: str | None) -> tuple[RecomputePolicy, ...]:
    """Recompute settings the search may use: free per layer, by stage, one pinned mode, or one for all.

    A model with several kinds of block has no settings by stage: there the first layers of a virtual stage
    are of a kind that depends on where it begins, which the dynamic program does not follow.
    """
    if pinned is not None:
        return (RecomputePolicy(pinned),)
    if limits.recompute_granularity == "layer":
        return (RecomputePolicy("free", offered=offered_modes(limits)),)
    is_alike = len({chain.layers[layer] for layer in chain.block_layers}) == 1
    if limits.recompute_granularity == "stage" and is_alike:
        others = [mode for mode in limits.recomputes if mode not in ("none", "full")]
        return (RecomputePolicy("first"), *(RecomputePolicy(mode) for mode in others))
    return tuple(RecomputePolicy(mode) for mode in limits.recomputes)


# PyTorch's selective checkpointing refuses the second half of a split backward.
SPLIT_RECOMPUTES = ("none", "full")


def split_policies(chain: LayerChain, limits: Limits, pinned: str | None) -> tuple[RecomputePolicy, ...]:
    """The settings for schedules that split the backward; none where the pinned mode is not among them."""
    if pinned is not None and pinned not in SPLIT_RECOMPUTES:
        return ()
    modes = tuple(mode for mode in limits.recomputes if mode in SPLIT_RECOMPUTES)
    return recompute_policies(chain, replace(limits, recomputes=modes), pinned)


def offered_modes(limits: Limits) -> tuple[int, ...]:
    """Codes of the recompute modes beside none that a layer may have."""
    return tuple(mode for mode in MODES if RECOMPUTES[mode] in limits.recomputes)


def _first(groups: tuple[Group, ...], count: int) -> tuple[tuple[int, int], ...]:
    return tuple((0, min(count, group.count)) if group.is_block else (0, 0) for group in groups)


def _choice(
    stages: StageModel, groups: tuple[Group, ...], counts: tuple[tuple[int, int], ...], sharding: int
) -> Choice:
    plain = sum(stages.seconds(plain_items(groups, sharding)))
    extra = sum(stages.seconds(Choice(0.0, counts).items(groups, sharding))) - plain
    return Choice(extra, counts)


def _fewest(
    stages: StageModel, groups: tuple[Group, ...], limit_bytes: float, sharding: int
) -> Choice | None:
    """The fewest first layers in full that fit: beyond one, more recompute never keeps more bytes."""

    def fits(count: int) -> bool:
        items = Choice(0.0, _first(groups, count)).items(groups, sharding)
        return stages.memory(items)["total"] <= limit_bytes

    most = max((group.count for group in groups if group.is_block), default=0)
    if fits(0):
        return _choice(stages, groups, _first(groups, 0), sharding)
    count = bisect.bisect_left(range(most + 1), True, lo=1, key=fits)
    return _choice(stages, groups, _first(groups, count), sharding) if count <= most else None
