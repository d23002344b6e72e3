"""Where layers go: groups of equal layers for a range of blocks, and balanced chunks for interleaving."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from planner.cost.arrays import Number
from planner.model.chain import LayerChain
from planner.model.spec import ModelSpec
from planner.search.recompute import Group


class Layout:
    """Counts of layer kinds over block ranges, from prefix sums over the chain."""

    def __init__(self, chain: LayerChain) -> None:
        self.chain = chain
        self.num_blocks = chain.num_blocks
        self.is_block = tuple(kind.role == "block" for kind in chain.kinds)
        self._scales: list[float] | None = None
        self._prefix = [[0] * len(chain.kinds)]
        for kind in chain.layers:
            row = list(self._prefix[-1])
            row[kind] += 1
            self._prefix.append(row)
        # Where in the chain the layers of every block begin, and the end of the chain.
        starts = (chain.layer_range(block, block + 1)[0] for block in range(chain.num_blocks))
        self.boundaries = (*starts, len(chain.layers))
        # Layers of every kind (columns) before every block, and in all.
        self.layers_before = np.array([self._prefix[at] for at in self.boundaries], dtype=np.float64)
        self.kind_counts = lru_cache(maxsize=200_000)(self._kind_counts)

    def cut_scales(self, model: ModelSpec) -> list[float]:
        """``LayerChain.cut_scale`` before every block but the first."""
        if self._scales is None:
            self._scales = [self.chain.cut_scale(model, block) for block in range(1, self.num_blocks)]
        return self._scales

    def _kind_counts(self, first: int, end: int) -> tuple[int, ...]:
        """Layers per kind that blocks [first, end) carry, embeddings and head included."""
        low, high = self.chain.layer_range(first, end)
        return tuple(b - a for a, b in zip(self._prefix[low], self._prefix[high], strict=True))

    def groups(self, first: int, end: int, alive: tuple[int, ...]) -> tuple[Group, ...]:
        """The same as groups of equal layers with ``alive`` microbatches."""
        counts = self.kind_counts(first, end)
        return tuple(
            Group(kind, count, alive, self.is_block[kind]) for kind, count in enumerate(counts) if count
        )

    def sum_over(self, values: list[float], first: int, end: int) -> float:
        """Sum of a per-kind value over the layers of a block range."""
        counts = self.kind_counts(first, end)
        return sum(count * value for count, value in zip(counts, values, strict=True) if count)


def balanced_chunks(
    num_blocks: int, stages: int, first_extra: int = 0, last_extra: int = 0
) -> tuple[tuple[int, int], ...]:
    """``num_blocks`` over ``stages`` virtual stages, sizes differing by at most one.

    ``first_extra`` and ``last_extra`` are the block-equivalents of the embedding and the head: the first
    and last virtual stage get that many blocks fewer. When that would empty one, they count nothing.
    """
    units = num_blocks + first_extra + last_extra
    base, more = divmod(units, stages)
    sizes = [base + (1 if stage < more else 0) for stage in range(stages)]
    sizes[0] -= first_extra
    sizes[-1] -= last_extra
    if min(sizes) < 1:
        if first_extra or last_extra:
            return balanced_chunks(num_blocks, stages)
        raise ValueError(f"{num_blocks} blocks do not fill {stages} virtual stages")
    ends, total = [], 0
    for size in sizes:
        total += size
        ends.append(total)
    return tuple(zip([0, *ends[:-1]], ends, strict=True))


def end_weights(chain: LayerChain, seconds: list[Number]) -> tuple[Number, Number]:
    """Block-equivalents of the first and the last layer of the chain, rounded: (embedding, head).

    ``seconds`` per kind of one microbatch, floats or arrays over candidates.
    """
    blocks = [chain.layers[layer] for layer in chain.block_layers]
    mean = sum(seconds[kind] for kind in blocks) / len(blocks)
    return np.rint(seconds[chain.layers[0]] / mean), np.rint(seconds[chain.layers[-1]] / mean)
