"""The moments of one backward that may be a rank's fullest, where tensors are made when needed.

In backward's order, for the first backward of a step and, where gradients stay from one microbatch to the
next, for a later one:

    loss     the loss over the logits: all saved tensors, the head's weights
    block k  k blocks are done: their gradients are there, the last one's still being reduced, the next
             unit's weights prefetched, the block's own tensors all back
    table    the embedding: its gradient, whole on every tp rank where the framework makes it so
    final    under a pipeline, whole gradients become shards after the last microbatch

Each block done frees its saved tensors (the least recomputed blocks come last in the chain, so first in
backward) and adds its gradients: the total is convex in k, its largest values are at the ends. What changes
at the ends (the reduction behind, the prefetch ahead) makes it the first two and the last two blocks.

Legend: u and r bytes per element of gathered weights and of reductions; n microbatches alive.
Sources: PyTorch 2.13, torch/distributed/fsdp/_fully_shard/_fsdp_param_group.py (one unit prefetched in
backward; a reduction's input held until the next unit reduces) and torch/distributed/pipelining/stage.py
(receive buffers of all microbatches made at once, outputs kept for backward, gradients whole until the last
microbatch).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

from planner.cost.memory import Item, Moment, RankMemory
from planner.cost.row import KindCost
from planner.strategy.decision import SHARDING_GRADIENTS, SHARDING_PARAMETERS


def walked(rank: RankMemory) -> list[Moment]:
    """The moments of ``rank``, at least one where it has layers."""
    walk = _Walk(rank)
    found = [moment for fewer, is_later in walk.passes() for moment in walk.backward(fewer, is_later)]
    return [*found, *walk.final()] or [rank.moment("empty", rank.static(), 0.0, 0.0)]


@dataclass(frozen=True)
class _Walk:
    """Sums and largest values of a rank's layers by role, and the moments made of them."""

    rank: RankMemory

    # ---- layers

    @cached_property
    def by_role(self) -> dict[str, list[Item]]:
        found: dict[str, list[Item]] = {"block": [], "head": [], "embedding": [], "norm": []}
        for item in self.rank.items:
            found[self.rank.kind(item).role].append(item)
        return found

    def largest(self, role: str, value: Callable[[Item], float]) -> float:
        return max((value(item) for item in self.by_role[role]), default=0.0)

    def total(self, role: str, value: Callable[[Item], float]) -> float:
        return sum(item.count * value(item) for item in self.by_role[role])

    def kind(self, item: Item) -> KindCost:
        return self.rank.kind(item)

    def gradients(self, item: Item) -> float:
        return self.kind(item).state_bytes[1]

    def extra(self, item: Item) -> float:
        return self.kind(item).backward_bytes

    def saved(self, item: Item) -> float:
        return self.kind(item).saved_bytes[item.mode]

    def elements(self, item: Item) -> float:
        return self.kind(item).dense_parameters + self.kind(item).expert_parameters

    def weights(self, item: Item) -> float:
        """One whole copy of a layer's compute weights, or of their gradients."""
        return self.elements(item) * self.rank.stack.parameter_bytes

    def staying(self, item: Item) -> float:
        """The weights of a layer that stays gathered from forward to backward."""
        return 0.0 if item.sharding == SHARDING_PARAMETERS else self.weights(item)

    def window(self, item: Item) -> float:
        """The weights of a layer that is gathered for itself alone."""
        whole = self.weights(item) if item.sharding == SHARDING_PARAMETERS else 0.0
        return whole * self.kind(item).held_shares[item.mode]

    def reduction(self, item: Item) -> float:
        """The input of a layer's reduction, where every backward reduces."""
        if self.holds_gradients or item.sharding < SHARDING_GRADIENTS:
            return 0.0
        return self.elements(item) * self.rank.stack.gradient_reduce_bytes * self.kind(item).held_shares[0]

    # ---- the rank

    @property
    def has_pipeline(self) -> bool:
        return self.rank.row.degrees.pp > 1

    @property
    def holds_gradients(self) -> bool:
        return self.has_pipeline and self.rank.stack.holds_pipeline_gradients

    @cached_property
    def alive(self) -> int:
        return max((max(item.alive) for item in self.rank.items), default=0)

    @cached_property
    def is_tied(self) -> bool:
        """The table is one unit with the head, on one rank."""
        return self.rank.row.is_tied and not self.has_pipeline and bool(self.by_role["embedding"])

    @cached_property
    def constant(self) -> float:
        """Buffers there at every moment: the receive buffers of all microbatches."""
        if not self.has_pipeline:
            return 0.0
        row = self.rank.row
        sides = (not self.by_role["embedding"]) + (not self.by_role["head"])
        return sides * row.microbatches * row.virtual_stages * row.boundary_bytes

    @cached_property
    def tied_table(self) -> float:
        """From the head's backward on: a tied table, gathered once more, and its gradient as a head."""
        if not self.is_tied:
            return 0.0
        return self.largest("embedding", self.window) + self.largest("embedding", self.weights)

    @cached_property
    def all_staying(self) -> float:
        return sum(item.count * self.staying(item) for item in self.rank.items)

    def held(self, fewer: int) -> float:
        """Tensors saved for backward with ``fewer`` microbatches less than at the fullest.

        A stage's input is its receive buffer and its output waits for backward.
        """
        last = next(iter(self.by_role["embedding"] or self.rank.items)).alive
        total = self.rank.saved(lambda item: fewer if item.alive == last else 0)
        if self.has_pipeline:
            ends = (not self.by_role["head"]) - (not self.by_role["embedding"])
            total += max(0, self.alive - fewer) * self.rank.row.boundary_bytes * ends
        return total

    def share(self, fewer: int) -> float:
        return max(0.0, 1.0 - fewer / self.alive) if self.alive else 0.0

    # ---- moments

    def passes(self) -> Iterator[tuple[int, bool]]:
        """(microbatches fewer than at the fullest, whether gradients are there) of backwards to look at."""
        if not self.rank.items:
            return
        row = self.rank.row
        if row.virtual_stages > 1 or row.microbatches > self.alive:
            yield 0, True
            return
        yield 0, False
        if row.microbatches > 1:
            yield 1, True

    def backward(self, fewer: int, is_later: bool) -> Iterator[Moment]:
        """The moments of one backward that starts ``fewer`` microbatches below the fullest."""
        rank = self.rank
        parameters, gradients, optimizer = rank.static()
        blocks = round(self.total("block", lambda item: 1.0))

        def static(done: float) -> tuple[float, float, float]:
            return parameters, gradients if is_later else done, optimizer

        start, end = self.held(fewer), self.held(fewer + 1)
        if self.by_role["head"]:
            # A tied table's unit began forward, and is freed behind it like any other.
            window = 0.0 if self.is_tied else self.largest("head", self.window)
            buffers = self.all_staying + window + self.largest("head", self.extra) + self.constant
            yield rank.moment("loss", static(0.0), start, buffers, self.share(fewer), False)
        head_gradients = self.total("head", self.gradients)
        for done in sorted({0, 1, blocks - 2, blocks - 1} & set(range(blocks))):
            buffers = self._block_buffers(done, blocks) + self.tied_table
            present = head_gradients + self.total("block", self.gradients) * done / blocks
            is_early = done <= 1 and done < blocks - 1
            if is_early:
                tensors = start - self.total("head", self.saved) - done * self._saved_of_one(max, min)
                tensors += self.largest("block", lambda item: self.kind(item).working_bytes[item.mode])
            else:
                tensors = end + self.total("embedding", self.saved)
                tensors += self.largest("block", lambda item: self.kind(item).saved_bytes[0])
                tensors += (blocks - 1 - done) * self._saved_of_one(min, max)
            share: float | None = self.share(fewer) if is_early else self.share(fewer + 1)
            if done == blocks - 2 and not is_early:
                share = None  # what is left is one block's: it follows from no count of bytes freed
            yield rank.moment(f"block {done}", static(present), tensors, buffers, share, is_early)
        if self.by_role["embedding"]:
            present = gradients - self.total("embedding", self.gradients)
            buffers = self._table_buffers()
            yield rank.moment("table", static(present), end, buffers, self.share(fewer + 1), False)

    def _saved_of_one(self, of_modes: Callable[..., float], of_kinds: Callable[..., float]) -> float:
        """Saved bytes of one block: the most or least its kind saves in a mode in use, over kinds.

        The most recomputed blocks come first in the chain: the last block saves the most, the first the
        least.
        """
        by_kind: dict[int, list[float]] = {}
        for item in self.by_role["block"]:
            by_kind.setdefault(item.kind, []).append(self.saved(item))
        return of_kinds(of_modes(values) for values in by_kind.values())

    def _block_buffers(self, done: int, blocks: int) -> float:
        """Weights, reductions and short-lived tensors while the block behind ``done`` others runs."""
        staying, window = self.all_staying, self.largest("block", self.window)
        if not self.has_pipeline:
            staying -= self.total("head", self.staying) + self.total("block", self.staying) * done / blocks
        table = 0.0 if self.is_tied else self.largest("embedding", self.window)
        prefetched = table if done == blocks - 1 else window
        reducing = self.largest("block" if done else "head", self.reduction)
        return staying + window + prefetched + reducing + self.largest("block", self.extra) + self.constant

    def _table_buffers(self) -> float:
        """The same for the embedding: its gradient is made, then turned into the reduction's input.

        A tied table's second gradient is added to its first in a third tensor; its weights are freed before
        the reduction.
        """
        table = "embedding"
        staying = self.all_staying if self.has_pipeline else self.total(table, self.staying)
        window = 0.0 if self.is_tied else self.largest(table, self.window)
        made = staying + window + self.largest("block", self.reduction) + self.largest(table, self.extra)
        made += self.tied_table + (self.largest(table, self.weights) if self.is_tied else 0.0)
        reduced = self.largest(table, self.reduction) + self.largest(table, self.weights)
        return max(made, reduced) + self.constant

    def final(self) -> Iterator[Moment]:
        """After a pipeline's last microbatch: whole gradients beside the input of the largest reduction."""
        if not self.holds_gradients:
            return
        width = self.rank.stack.gradient_reduce_bytes
        largest = max((self.elements(item) * width for item in self.rank.items), default=0.0)
        buffers = self.all_staying + self.constant + largest
        yield self.rank.moment("final", self.rank.static(), 0.0, buffers, 0.0, False)
