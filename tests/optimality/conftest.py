"""An exhaustive planner: slow, obvious, and written without the search or its rules.

It loops over every mesh, expert degree, microbatch size, stage split, interleaving degree, sharding and
recompute assignment, checks the hard rules with its own arithmetic, and prices every decision with the
function that prices plans. Pricing is shared on purpose: it defines what best means. test_exhaustive and
test_many hold prices of many decisions at once to what each costs alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest

from planner.cost.decision_rows import decision_candidates, decision_rows
from planner.cost.layer import cost_table
from planner.cost.many import Many, price_many
from planner.cost.many_rows import many_rows
from planner.cost.memory import Item
from planner.cost.model import CostModel
from planner.cost.row import CandidateRow
from planner.cost.stage import StageModel
from planner.cost.step import price
from planner.model.spec import MixtureOfExperts, ModelSpec
from planner.search.candidate import interleaved_chunks
from planner.search.layout import Layout
from planner.strategy.candidates import Candidates
from planner.strategy.decision import GROUP_GLOBAL, GROUP_ISLAND, Decision, Degrees

Chunks = tuple[tuple[int, int], ...]
MODES = (0, 1, 2)


class Stages:
    """A ``StageModel`` that remembers the dear answers for the same layers; it has no other input."""

    def __init__(self, stages: StageModel) -> None:
        self.row, self.exposed = stages.row, stages.exposed
        self.seconds, self.weight_seconds = stages.seconds, stages.weight_seconds
        self.causes, self.synchronised = remembered(stages.causes), remembered(stages.synchronised)
        self.memory = remembered(stages.memory)


def remembered(question: Callable[..., Any]) -> Callable[..., Any]:
    """``question`` about a list of layers, asked once for equal ones."""
    known: dict[object, Any] = {}

    def ask(items: Sequence[Item], *others: Any) -> Any:
        key = (*items, *others)
        if key not in known:
            known[key] = question(items, *others)
        return known[key]

    return ask


@contextmanager
def remembered_ranks() -> Iterator[None]:
    """Inside, pricing remembers what ranks of equal layers and layer costs cost."""
    known: dict[int, tuple[dict[int, CandidateRow], Stages]] = {}  # rows are kept, so that ids stay theirs
    stage_model = CostModel.stage_model

    def ask(model: CostModel, rows: dict[int, CandidateRow]) -> Stages:
        if id(rows) not in known:
            known[id(rows)] = rows, Stages(stage_model(model, rows))
        return known[id(rows)][1]

    with patch.object(CostModel, "stage_model", ask):
        yield


def layer_cost_key(decision: Decision) -> object:
    """What layer costs depend on: everything but the stages, recompute and the number of microbatches."""
    return (
        decision.degrees,
        decision.sequence_parallel,
        decision.sharding,
        decision.sharding_group,
        decision.schedule,
        decision.virtual_stages,
        decision.microbatch_size,
        decision.offload,
    )


@dataclass(frozen=True)
class Priced:
    """A decision with what the exhaustive planner needs to know of it."""

    decision: Decision
    seconds: float
    peak_bytes: float


class Exhaustive:
    """Every decision of a small problem.

    ``schedules`` names the pipeline schedules to try; without ``is_folded`` equal layers of a stage are
    told apart.
    """

    def __init__(
        self,
        model: CostModel,
        schedules: Sequence[str] = ("1f1b", "interleaved", "zb-h1", "zb-v"),
        *,
        is_folded: bool = True,
    ) -> None:
        self.model, self.schedules, self.is_folded = model, schedules, is_folded
        self.spec: ModelSpec = model.problem.model
        self.workload = model.problem.workload
        self.kinds = [name for _, name in self.spec.block_sequence()]

    def price_all(self) -> list[Priced]:
        """Every decision priced, whatever its memory: at once where ``price_many`` can, else one by one."""
        decisions = list(self.decisions())
        if self.model.stack.makes_buffers_when_needed or any(d.offload for d in decisions):
            return self.price_each(decisions)
        alike: dict[object, list[int]] = {}
        for index, d in enumerate(decisions):
            key = d.schedule, d.degrees.pp, d.virtual_stages, d.microbatches
            alike.setdefault(key, []).append(index)
        found: dict[int, Priced] = {}
        for indices in alike.values():
            chosen = [decisions[index] for index in indices]
            priced = zip(*price_many(self.model, self.together(chosen)), strict=True)
            for index, decision, (seconds, peak) in zip(indices, chosen, priced, strict=True):
                found[index] = Priced(decision, float(seconds), float(peak))
        return [found[index] for index in range(len(decisions))]

    def together(self, decisions: Sequence[Decision]) -> Many:
        """Decisions of one schedule, number of stages, virtual stages and microbatches as arrays."""
        apart = {layer_cost_key(decision): decision for decision in decisions}
        number = {key: index for index, key in enumerate(apart)}
        meshes = Candidates.concatenate([decision_candidates(d, [d.sharding]) for d in apart.values()])
        model, first = self.model, decisions[0]
        return Many(
            table=cost_table(model.problem, model.chain, meshes, model.device, model.stack),
            rows=np.array([number[layer_cost_key(decision)] for decision in decisions]),
            schedule=first.schedule,
            virtual_stages=first.virtual_stages,
            ends=np.array([[end for _, end in decision.chunks] for decision in decisions]).T,
            modes=np.array([decision.recompute for decision in decisions]).T,
        )

    def price_each(self, decisions: Sequence[Decision]) -> list[Priced]:
        """One by one; layer costs are worked out once a mesh, and ranks of equal layers once."""
        apart = {layer_cost_key(decision): decision for decision in decisions}
        rows = dict(zip(apart, many_rows([(self.model, d) for d in apart.values()]), strict=True))
        found = []
        with remembered_ranks():
            for decision in decisions:
                cost = price(self.model, decision, rows=rows[layer_cost_key(decision)])
                found.append(Priced(decision, cost.step_seconds, cost.peak_memory_bytes))
        return found

    def decisions(self) -> Iterator[Decision]:
        """Every valid decision; recompute assignments that only swap equal layers of a stage come once."""
        for degrees in self.meshes():
            for size in range(1, self.workload.global_batch + 1):
                if self.workload.global_batch % (degrees.dp * size):
                    continue
                microbatches = self.workload.global_batch // (degrees.dp * size)
                for (sharding, group), split in product(
                    self.shardings(degrees), self.sequence_choices(degrees)
                ):
                    for schedule, stages, chunks in self.splits(
                        degrees, split, size, microbatches, sharding, group
                    ):
                        for recompute in self.assignments(chunks):
                            if schedule.startswith("zb") and 1 in recompute:
                                continue  # selective recompute backs up once
                            yield Decision(
                                degrees=degrees,
                                sequence_parallel=split,
                                sharding=sharding,
                                sharding_group=group,
                                schedule=schedule,
                                virtual_stages=stages,
                                microbatch_size=size,
                                microbatches=microbatches,
                                chunks=chunks,
                                recompute=recompute,
                            )

    def meshes(self) -> Iterator[Degrees]:
        """All degrees whose product is the cluster and that divide what they split."""
        world = self.model.problem.world_size
        some = range(1, world + 1)
        for tp, cp, pp, dp in product(some, some, some, some):
            if tp * cp * pp * dp != world or pp > len(self.kinds):
                continue
            if not (self.divides_model(tp) and self.divides_sequence(cp)):
                continue
            for ep, expert_tp in self.expert_degrees(tp, cp, dp):
                degrees = Degrees(dp=dp, tp=tp, pp=pp, cp=cp, ep=ep, expert_tp=expert_tp)
                # Experts see tokens split over tp only with sequence parallelism.
                if self.experts() and tp > 1 and not self.splits_sequence(degrees):
                    continue
                yield degrees

    def divides_model(self, tp: int) -> bool:
        """tp divides query heads and dense widths; key/value heads divide or are repeated whole."""
        for block in self.spec.block_kinds.values():
            for attention in (block.attention, block.cross_attention):
                if attention is None:
                    continue
                heads, kv = attention.num_heads, attention.num_kv_heads
                if heads % tp or (kv % tp and tp % kv):
                    return False
            ff = block.feed_forward
            width = ff.shared_ffn_size if isinstance(ff, MixtureOfExperts) else ff.ffn_size
            if width % tp:
                return False
        return True

    def divides_sequence(self, cp: int) -> bool:
        """Each cp rank takes one early and one late piece of every sequence; only flash attention can."""
        if cp == 1:
            return True
        return self.workload.attention == "flash" and all(s % (2 * cp) == 0 for s in self.lengths())

    def lengths(self) -> list[float]:
        return [self.workload.sequence_length * stack.sequence_scale for stack in self.spec.stacks]

    def splits_sequence(self, degrees: Degrees) -> bool:
        """Whether sequence parallelism is possible: tp divides the sequence of a cp rank."""
        cp, tp = degrees.cp, degrees.tp
        return tp > 1 and all(s % cp == 0 and (s // cp) % tp == 0 for s in self.lengths())

    def sequence_choices(self, degrees: Degrees) -> list[bool]:
        """Sequence parallelism on and off wherever it can be; off is not possible where experts need it."""
        is_on = self.splits_sequence(degrees)
        return [True, False] if is_on and not self.experts() else [is_on]

    def experts(self) -> list[MixtureOfExperts]:
        layers = [block.feed_forward for block in self.spec.block_kinds.values()]
        return [ff for ff in layers if isinstance(ff, MixtureOfExperts)]

    def expert_degrees(self, tp: int, cp: int, dp: int) -> Iterator[tuple[int, int]]:
        """(ep, expert_tp): inside dp cp tp ranks, dividing every expert count and width."""
        if not self.experts():
            yield 1, 1
            return
        for ep in range(1, dp * cp * tp + 1):
            for expert_tp in sorted({1, tp}):
                fits = all(
                    ff.num_experts % ep == 0 and ff.expert_ffn_size % expert_tp == 0 for ff in self.experts()
                )
                if fits and (dp * cp * tp) % (ep * expert_tp) == 0:
                    yield ep, expert_tp

    def shardings(self, d: Degrees) -> Iterator[tuple[int, int]]:
        """(sharding, group): only over more than one rank; an island must hold a proper part of them."""
        yield 0, GROUP_GLOBAL
        data = d.dp * d.cp
        expert_data = data * d.tp // (d.ep * d.expert_tp)
        # Ranks that hold the same weights (dense, or one expert). A dense model has no second group.
        island = self.model.problem.cluster.links[0].devices
        inner = math.gcd(data, max(1, island // d.tp))
        for sharding in (1, 2, 3):
            if data > 1 or expert_data > 1:
                yield sharding, GROUP_GLOBAL
            if 1 < inner < data:
                yield sharding, GROUP_ISLAND

    def splits(
        self, degrees: Degrees, split: bool, size: int, microbatches: int, sharding: int, group: int
    ) -> Iterator[tuple[str, int, Chunks]]:
        """(schedule, virtual stages, block ranges): every split in order, and the balanced interleavings."""
        blocks, pp = len(self.kinds), degrees.pp
        rounds = max(1, microbatches // pp)
        has_split = pp > 1 and sharding <= 1  # whole gradients until the step ends
        for schedule in ("1f1b", "gpipe", "zb-h1"):
            is_split = schedule == "zb-h1"
            if schedule in self.schedules and (not is_split or (has_split and microbatches % rounds == 0)):
                for sizes in compositions(blocks, pp):
                    yield schedule, 1, ranges(sizes)
        chunked = []
        if "interleaved" in self.schedules and pp > 1 and microbatches % pp == 0:
            chunked += [("interleaved", stages) for stages in range(2, blocks // pp + 1)]
        if "zb-v" in self.schedules and has_split and blocks >= 2 * pp:
            chunked.append(("zb-v", 2))
        for schedule, stages in chunked:
            probe = Decision(
                degrees, split, sharding, group, schedule, stages, size,
                microbatches, (), (),
            )  # fmt: skip
            row = decision_rows(self.model, probe)[sharding]
            yield schedule, stages, interleaved_chunks(Layout(self.model.chain), row)

    def assignments(self, chunks: Chunks) -> Iterator[tuple[int, ...]]:
        """Recompute modes of all blocks: 3^blocks, or once per count of modes of equal layers in a chunk."""
        if not self.is_folded:
            yield from product(MODES, repeat=len(self.kinds))
            return
        yield from (sum(parts, ()) for parts in product(*(self.folded(*span) for span in chunks)))

    def folded(self, first: int, end: int) -> list[tuple[int, ...]]:
        """Assignments of one chunk, without those that permute layers of one kind."""
        kinds = self.kinds[first:end]
        kept = {}
        for modes in product(MODES, repeat=len(kinds)):
            kept.setdefault(tuple(sorted(zip(kinds, modes, strict=True))), modes)
        return list(kept.values())


def compositions(total: int, parts: int) -> Iterator[tuple[int, ...]]:
    """Every way to write ``total`` as ``parts`` positive numbers, order kept."""
    if parts == 1:
        yield (total,)
        return
    for first in range(1, total - parts + 2):
        for rest in compositions(total - first, parts - 1):
            yield (first, *rest)


def ranges(sizes: Sequence[int]) -> Chunks:
    """Block ranges of the given sizes, from block 0 on."""
    ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
    return tuple(zip([0, *ends[:-1]], ends, strict=True))


def optimum(priced: Sequence[Priced], limit: float) -> Priced | None:
    """The fastest decision whose peak memory is within ``limit``; None when none is."""
    return min((p for p in priced if p.peak_bytes <= limit), key=lambda p: p.seconds, default=None)


class Oracle:
    """What tests use: the exhaustive planner and its optimum."""

    Exhaustive = Exhaustive
    compositions = staticmethod(compositions)
    optimum = staticmethod(optimum)


@pytest.fixture(scope="session")
def oracle() -> type[Oracle]:
    return Oracle
