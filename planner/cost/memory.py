"""Memory of one pipeline rank at the moments that may be its fullest.

Two kinds of stack. One keeps every buffer for the whole step (Megatron-LM's gradient and parameter buffers):
its one moment adds up what is kept and the largest of each short-lived need. The other makes tensors when they
are needed and frees them after (PyTorch's FSDP2 with autograd): its peak is the largest of a few moments of
one backward, in backward's order:

    loss    the loss over the logits: all saved tensors, the head's weights, no new gradients yet
    last    the last block: the head's gradients are being reduced, the next block's weights prefetched
    first   the first block: its own tensors alone, every other block's gradients
    table   the embedding: its gradient, whole on every tp rank where the framework makes it so
    final   under a pipeline, whole gradients turned into shards after the last microbatch

Between ``last`` and ``first`` the total is convex in the number of blocks done: each frees its saved tensors
(the least recomputed blocks come last in the chain) and adds its gradients. So the ends hold the largest.

Legend: u and r bytes per element of gathered weights and of reductions, P elements of a layer, n microbatches
alive. Sources: PyTorch 2.13, torch/distributed/fsdp/_fully_shard/_fsdp_param_group.py (one unit prefetched in
backward; a reduction's input held until the next unit reduces) and torch/distributed/pipelining/stage.py
(receive buffers of all microbatches made at once; outputs kept for backward).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest

from planner.cost.constants import Constants
from planner.cost.row import CandidateRow, KindCost, reserve_bytes
from planner.cost.stack import Stack
from planner.strategy.decision import SHARDING_GRADIENTS, SHARDING_PARAMETERS

MEMORY_CATEGORIES = ("parameters", "gradients", "optimizer", "activations", "buffers", "reserve")


@dataclass(frozen=True)
class Item:
    """``count`` layers of one kind: recompute ``mode``, ``sharding`` code, microbatches ``alive``.

    ``alive`` has one entry per moment that may be the rank's fullest (``schedule.orders.alive_states``).
    """

    kind: int
    count: int
    mode: int
    sharding: int
    alive: tuple[int, ...]


@dataclass(frozen=True)
class Moment:
    """Bytes by category at one moment, ``total`` included.

    freed_share: how much of the bytes that recompute takes off the saved tensors is off at this moment;
    has_working: whether a layer that recomputes has its tensors back beside them.
    """

    name: str
    bytes: dict[str, float]
    freed_share: float = 1.0
    has_working: bool = True

    @property
    def total(self) -> float:
        return self.bytes["total"]


@dataclass(frozen=True)
class RankMemory:
    """Memory of one rank: its items, the candidate row of each sharding in use, and the stack's habits."""

    rows: Mapping[int, CandidateRow]
    stack: Stack
    constants: Constants
    items: Sequence[Item]

    @property
    def row(self) -> CandidateRow:
        return next(iter(self.rows.values()))

    def kind(self, item: Item) -> KindCost:
        return self.rows[item.sharding].kinds[item.kind]

    def moments(self) -> list[Moment]:
        """The moments that may be the fullest; always at least one."""
        if self.stack.makes_buffers_when_needed:
            return self._walked()
        return [self._kept()]

    def _moment(
        self,
        name: str,
        static: tuple[float, float, float],
        activations: float,
        buffers: float,
        share: float = 1.0,
        has_working: bool = True,
    ) -> Moment:
        slack = 1.0 + self.constants.allocator_slack
        reserve = reserve_bytes(self.constants, self.row.num_communicators)
        values = (*static, activations * slack, buffers * slack, reserve)
        result = dict(zip(MEMORY_CATEGORIES, values, strict=True))
        result["total"] = sum(values)
        return Moment(name, result, share, has_working)

    def _static(self) -> tuple[float, float, float]:
        """(parameters, gradients, optimizer) bytes of all layers."""
        states = [(item.count, self.kind(item).state_bytes) for item in self.items]
        first, second, third = (sum(n * state[i] for n, state in states) for i in range(3))
        return first, second, third

    def _saved(self, fewer: Callable[[Item], int] = lambda item: 0) -> float:
        """Saved bytes of the fullest state, each item holding ``fewer`` microbatches less."""
        total: list[float] = []
        for item in self.items:
            kept = item.count * self.kind(item).saved_bytes[item.mode]
            alive = [max(0, n - fewer(item)) for n in item.alive]
            total = [kept * n + before for n, before in zip_longest(alive, total, fillvalue=0.0)]
        return max(total, default=0.0)

    def _kept(self) -> Moment:
        """Everything kept, and the largest of each short-lived need, at once."""
        working = transient = gathered = 0.0
        for item in self.items:
            kind = self.kind(item)
            working = max(working, kind.working_bytes[item.mode])
            transient = max(transient, kind.transient_bytes)
            gathered = max(gathered, kind.gathered_bytes)
        boundary = 2.0 * self.row.boundary_bytes if self.row.degrees.pp > 1 else 0.0
        return self._moment("all", self._static(), self._saved() + working, transient + gathered + boundary)

    # ---- tensors made when needed

    def _walked(self) -> list[Moment]:
        row, stack = self.row, self.stack
        has_pipeline = row.degrees.pp > 1
        blocks = [item for item in self.items if self.kind(item).role == "block"]
        heads = [item for item in self.items if self.kind(item).role == "head"]
        tables = [item for item in self.items if self.kind(item).role == "embedding"]
        parameters, gradients, optimizer = self._static()

        def static(present: float) -> tuple[float, float, float]:
            return parameters, present, optimizer

        def largest(items: list[Item], value: Callable[[Item], float]) -> float:
            return max((value(item) for item in items), default=0.0)

        def total(items: list[Item], value: Callable[[Item], float]) -> float:
            return sum(item.count * value(item) for item in items)

        # Weights that stay gathered, and what a unit sharded to the last needs while it runs.
        whole = sum(item.count * self._whole(item) for item in self.items)
        window = {role: largest(group, self._window) for role, group in _roles(blocks, heads, tables)}
        reduced = {role: largest(group, self._reduced) for role, group in _roles(blocks, heads, tables)}
        is_tied = row.is_tied and not has_pipeline
        tied = largest(tables, self._window) if is_tied else 0.0  # gathered from forward to the end
        tied_gradient = largest(tables, self._weights) if is_tied else 0.0

        alive = max((max(item.alive) for item in self.items), default=0)
        is_steady = row.virtual_stages > 1 or row.microbatches > alive
        before = gradients if is_steady else 0.0
        ends = {
            role: total(group, lambda i: self.kind(i).state_bytes[1])
            for role, group in _roles(blocks, heads, tables)
        }
        after_head = before if is_steady else ends["head"]
        every = gradients if is_steady else gradients - ends["table"]

        receive = self._receive_bytes(bool(tables), bool(heads))
        saved = self._saved() + self._pipeline_saved(bool(tables), bool(heads), alive)
        share = (alive - 1) / alive if alive else 0.0
        last_chunk = tables[0].alive if tables else (self.items[0].alive if self.items else ())
        rest = self._saved(lambda item: int(item.alive == last_chunk))
        rest += self._pipeline_saved(bool(tables), bool(heads), max(0, alive - 1))
        head_saved = total(heads, lambda i: self.kind(i).saved_bytes[i.mode])
        extra = largest(blocks, lambda i: self.kind(i).backward_bytes)
        working = largest(blocks, lambda i: self.kind(i).working_bytes[i.mode])
        one_block = largest(blocks, lambda i: self.kind(i).saved_bytes[0])
        table_saved = total(tables, lambda i: self.kind(i).saved_bytes[i.mode])
        done = 0.0 if has_pipeline else total(heads, self._whole)
        left = whole if has_pipeline else largest(blocks, self._whole) + total(tables, self._whole)

        found = []
        if heads:
            loss = largest(heads, lambda i: self.kind(i).backward_bytes)
            buffers = whole + max(window["head"], tied) + loss + receive
            found.append(self._moment("loss", static(before), saved, buffers, 1.0, False))
        if blocks:
            pending = max(reduced["head"], reduced["block"] if total(blocks, lambda i: 1.0) > 1 else 0.0)
            buffers = whole - done + 2.0 * window["block"] + tied + tied_gradient
            buffers += pending + extra + receive
            activations = saved - head_saved + working
            found.append(self._moment("last", static(after_head), activations, buffers))
            following = window["table"] if tables and not is_tied else 0.0
            before_it = largest(blocks, lambda i: self.kind(i).state_bytes[1])
            present = every if is_steady else max(0.0, every - before_it)
            buffers = left + window["block"] + following + tied + tied_gradient
            buffers += reduced["block"] + extra + receive
            activations = rest + one_block + table_saved
            found.append(self._moment("first", static(present), activations, buffers, share, False))
        if tables:
            buffers = (whole if has_pipeline else total(tables, self._whole)) + window["table"]
            buffers += max(
                reduced["block"] + largest(tables, lambda i: self.kind(i).backward_bytes) + tied_gradient,
                reduced["table"] + largest(tables, self._weights) - window["table"],
            )
            found.append(self._moment("table", static(every), rest, buffers + receive, share, False))
        if has_pipeline and stack.holds_pipeline_gradients:
            buffers = whole + receive + largest(list(self.items), self._final)
            found.append(self._moment("final", static(gradients), 0.0, buffers, 0.0, False))
        return found

    def _elements(self, item: Item) -> float:
        kind = self.kind(item)
        return kind.dense_parameters + kind.expert_parameters

    def _weights(self, item: Item) -> float:
        """Bytes of one whole copy of the layer's compute weights (or of their gradients)."""
        return self._elements(item) * self.stack.parameter_bytes

    def _whole(self, item: Item) -> float:
        """The compute weights of one layer, where they stay gathered over the pass."""
        return 0.0 if item.sharding == SHARDING_PARAMETERS else self._weights(item)

    def _window(self, item: Item) -> float:
        """The same where they are gathered for the layer alone."""
        return self._weights(item) if item.sharding == SHARDING_PARAMETERS else 0.0

    def _reduced(self, item: Item) -> float:
        """The input of the layer's reduction, held until the next layer reduces."""
        holds = self.stack.holds_pipeline_gradients and self.row.degrees.pp > 1
        if holds or item.sharding < SHARDING_GRADIENTS:
            return 0.0
        return self._elements(item) * self.stack.gradient_reduce_bytes

    def _final(self, item: Item) -> float:
        return self._elements(item) * self.stack.gradient_reduce_bytes

    def _receive_bytes(self, is_first: bool, is_last: bool) -> float:
        """Buffers hidden states (unless first) and their gradients (unless last) are received into."""
        if self.row.degrees.pp == 1:
            return 0.0
        sides = int(not is_first) + int(not is_last)
        return sides * self.row.microbatches * self.row.virtual_stages * self.row.boundary_bytes

    def _pipeline_saved(self, is_first: bool, is_last: bool, alive: int) -> float:
        """What a stage's ends change: its input is its receive buffer, its output waits for backward."""
        if self.row.degrees.pp == 1:
            return 0.0
        return alive * self.row.boundary_bytes * (int(not is_last) - int(not is_first))


def _roles(blocks: list[Item], heads: list[Item], tables: list[Item]) -> tuple[tuple[str, list[Item]], ...]:
    return ("block", blocks), ("head", heads), ("table", tables)
