"""Candidates: many mesh choices as arrays, one entry each, before stages and recompute are decided."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from planner.cluster.topology import Cluster
from planner.model.spec import ModelSpec
from planner.workload import Workload

IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Problem:
    """What is to be planned: the facts every rule and formula may read."""

    model: ModelSpec
    cluster: Cluster
    workload: Workload
    memory_limit_bytes: float

    @property
    def world_size(self) -> int:
        return self.cluster.num_devices


@dataclass(frozen=True)
class Candidates:
    """Struct of arrays; all of one length. Codes as in ``planner.strategy.decision``."""

    tp: IntArray
    cp: IntArray
    dp: IntArray
    pp: IntArray
    ep: IntArray
    expert_tp: IntArray
    microbatch_size: IntArray
    virtual_stages: IntArray
    schedule: IntArray
    sharding: IntArray
    sharding_group: IntArray
    sequence_parallel: IntArray
    offload: IntArray
    gather_unit: IntArray

    def __len__(self) -> int:
        return len(self.tp)

    def take(self, keep: npt.NDArray[np.bool_] | IntArray) -> Candidates:
        """The candidates selected by a mask or by indices."""
        return Candidates(**{f.name: getattr(self, f.name)[keep] for f in fields(self)})

    def repeat_each(self, counts: IntArray | int) -> Candidates:
        """Each candidate repeated ``counts`` times, for crossing with another choice."""
        return Candidates(**{f.name: np.repeat(getattr(self, f.name), counts) for f in fields(self)})

    def replace(self, **columns: IntArray) -> Candidates:
        """A copy with some columns replaced."""
        return Candidates(**{f.name: columns.get(f.name, getattr(self, f.name)) for f in fields(self)})

    def microbatches(self, global_batch: int) -> IntArray:
        """Microbatches per step: global_batch / (dp microbatch_size); exact once batch-identity holds."""
        return global_batch // (self.dp * self.microbatch_size)

    def world_size(self) -> IntArray:
        return self.tp * self.cp * self.dp * self.pp

    def data_ranks(self) -> IntArray:
        """Ranks that hold the same dense shard: dp cp, the group gradients are reduced over."""
        return self.dp * self.cp

    def expert_data_ranks(self) -> IntArray:
        """Ranks that hold the same experts: dp cp tp / (ep expert_tp)."""
        return self.dp * self.cp * self.tp // (self.ep * self.expert_tp)

    def island_shard_size(self, cluster: Cluster) -> IntArray:
        """Ranks of the dense data group inside one island: gcd(dp cp, island / tp), at least 1."""
        inner: IntArray = np.maximum(1, cluster.island_devices // self.tp)
        return np.gcd(self.data_ranks(), inner)

    def island_expert_shard_size(self, cluster: Cluster) -> IntArray:
        """Ranks of the expert data group inside one island."""
        inner: IntArray = np.maximum(1, cluster.island_devices // (self.ep * self.expert_tp))
        return np.gcd(self.expert_data_ranks(), inner)

    @staticmethod
    def single(**values: int) -> Candidates:
        """One candidate from plain integers; unnamed columns are 1 (codes: 0)."""
        defaults = {f.name: 1 for f in fields(Candidates)}
        defaults.update(schedule=0, sharding=0, sharding_group=0, offload=0, gather_unit=0)
        defaults.update(values)
        return Candidates(**{name: np.array([value], dtype=np.int64) for name, value in defaults.items()})

    @staticmethod
    def concatenate(parts: list[Candidates]) -> Candidates:
        """All candidates of ``parts`` in order."""
        return Candidates(
            **{f.name: np.concatenate([getattr(part, f.name) for part in parts]) for f in fields(Candidates)}
        )
