"""Per layer kind and candidate: what bounds on ranks with known layers are made of."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from planner.cost.arrays import Array, IntArray, Number
from planner.cost.collectives import GroupCosts
from planner.cost.groups import Groups
from planner.cost.layer import CostTable
from planner.cost.model import CostModel
from planner.cost.row import reserve_bytes
from planner.cost.tail import Sync, Tail, exposed_tail, sync
from planner.search.memory_bounds import state_rates, static_bytes
from planner.strategy.candidates import BoolArray


def synchronised(
    model: CostModel, groups: Groups, code: int, has_pipeline: Number, dense: Number, expert: Number
) -> Sync:
    """What ranks with these elements synchronise, norm weights over tp aside."""
    moments = model.problem.workload.moment_bytes_per_parameter
    args = (model.stack, code, has_pipeline, groups, moments)
    return sync(*args, "dp", dense) + sync(*args, "expert_dp", expert)


@dataclass(frozen=True)
class KindValues:
    """Per kind (rows) and chosen candidate (columns): seconds, bytes, recompute's price, elements."""

    seconds: Array
    forward: Array
    slow_backward: Array
    static: Array
    saved: Array
    first_rate: Array
    second_rate: Array
    cheap: Array
    freeable: Array
    dense: Array
    expert: Array
    spare_bytes: float
    groups: Groups
    sharding: IntArray
    data_ranks: IntArray
    has_pipeline: BoolArray

    @staticmethod
    def of(model: CostModel, table: CostTable, chosen: IntArray) -> KindValues:
        c = table.candidates
        columns: dict[str, list[Array]] = {name: [] for name in _COLUMNS}
        rates = state_rates(model, table)
        for row in table.rows:
            plain, forward = row.backward_seconds(0), row.forward_seconds()
            slowest = np.maximum.reduce([row.backward_seconds(mode) for mode in range(3)])
            freed = [(row.saved_bytes[0] - row.saved_bytes[mode])[chosen] for mode in (1, 2)]
            extra = [(row.backward_seconds(mode) - plain)[chosen] for mode in (1, 2)]
            first_rate, second_rate, cheap = _recompute_rates(freed, extra)
            values = {
                "seconds": (forward + plain)[chosen],
                "forward": forward[chosen],
                "slow_backward": slowest[chosen],
                "static": static_bytes(rates, row)[chosen],
                "saved": row.saved_bytes[0][chosen],
                "first_rate": first_rate,
                "second_rate": second_rate,
                "cheap": cheap,
                "freeable": np.maximum.reduce([np.zeros(len(chosen)), *freed]),
                "dense": row.dense_parameters[chosen],
                "expert": row.expert_parameters[chosen],
            }
            for name, value in values.items():
                columns[name].append(value)
        slack = 1.0 + model.constants.allocator_slack
        arrays = {name: np.array(rows) for name, rows in columns.items()}
        arrays["static"] = arrays["static"] / slack
        return KindValues(
            **arrays,
            spare_bytes=(model.problem.memory_limit_bytes - reserve_bytes(model.constants, 1)) / slack,
            groups=taken_groups(table.groups, chosen),
            sharding=c.sharding[chosen],
            data_ranks=c.data_ranks()[chosen],
            has_pipeline=c.pp[chosen] > 1,
        )

    def taken(self, chosen: IntArray) -> KindValues:
        """The values of the chosen candidates."""
        columns = {name: getattr(self, name)[:, chosen] for name in _COLUMNS}
        return replace(
            self,
            **columns,
            groups=taken_groups(self.groups, chosen),
            sharding=self.sharding[chosen],
            data_ranks=self.data_ranks[chosen],
            has_pipeline=self.has_pipeline[chosen],
        )

    def work(self, mine: slice, counts: Array, flight: Array, m: Array, fill: Array) -> Array:
        """Seconds before which rank r (rows) of candidates ``mine`` cannot end, fill and drain included.

        counts[chunk, rank, kind], flight[chunk, rank]; ``fill``: what a kind keeps the next rank waiting.
        """
        per_rank = counts.sum(axis=0)
        work = per_rank @ self.seconds[:, mine]
        held = (flight[:, :, None] * counts).sum(axis=0)
        need = per_rank @ self.static[:, mine] + held @ self.saved[:, mine] - self.spare_bytes
        deepest = (flight[:, :, None] * (counts > 0)).max(axis=0)
        # A rank's own kinds first, as many as any rank has: few where no two layers are alike.
        own = np.argsort(deepest == 0, axis=1, kind="stable")[:, : int((deepest > 0).sum(axis=1).max())]
        deepest = np.take_along_axis(deepest, own, axis=1)[:, :, None]
        with np.errstate(divide="ignore", invalid="ignore"):
            rates = [
                np.where(deepest > 0, rate[:, mine][own] / deepest, np.inf).min(axis=1)
                for rate in (self.first_rate, self.second_rate)
            ]
        second = np.where(np.isfinite(rates[1]), rates[1], rates[0])
        beyond = np.maximum(0.0, need - held @ self.cheap[:, mine]) * (second - rates[0])
        with np.errstate(invalid="ignore"):
            extra = np.where(need > 0, need * rates[0] + np.maximum(0.0, beyond), 0.0)
        extra = np.where(need > held @ self.freeable[:, mine], np.inf, extra)
        waits = np.cumsum(counts[0] @ fill[:, mine], axis=0)[:-1]
        before = np.vstack([np.zeros(waits.shape[1]), waits])
        result: Array = before + m * (work + extra)
        return result

    def tail(self, model: CostModel, mine: slice, per_rank: Array) -> Tail:
        """At least the tails of every rank (rows) of candidates ``mine``: with the widest backward."""
        forward, backward = per_rank @ self.forward[:, mine], per_rank @ self.slow_backward[:, mine]
        dense, expert = per_rank @ self.dense[:, mine], per_rank @ self.expert[:, mine]
        parts = [np.zeros(dense.shape) for _ in range(3)]
        for code, where in by_code(self.sharding[mine]):
            rows = where + mine.start
            groups = taken_groups(self.groups, rows)
            total = synchronised(
                model, groups, code, self.has_pipeline[rows], dense[:, where], expert[:, where]
            )
            ranks = self.data_ranks[rows]
            tail = exposed_tail(
                model.device, model.stack, ranks, total, forward[:, where], backward[:, where]
            )
            for part, value in zip(parts, (tail.reduce, tail.optimizer, tail.gather), strict=True):
                part[:, where] = value
        return Tail(*parts)


_COLUMNS = (
    "seconds",
    "forward",
    "slow_backward",
    "static",
    "saved",
    "first_rate",
    "second_rate",
    "cheap",
    "freeable",
    "dense",
    "expert",
)


def _recompute_rates(freed: list[Array], extra: list[Array]) -> tuple[Array, Array, Array]:
    """(seconds per byte at first, seconds per byte beyond, bytes at the first rate) of a layer's recompute.

    ``freed`` and ``extra`` of selective and of full. The convex hull from none over selective to full, or
    straight to full where that is cheaper; infinite where nothing can be freed.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        selective = np.where(freed[0] > 0.0, extra[0] / freed[0], np.inf)
        full = np.where(freed[1] > 0.0, extra[1] / freed[1], np.inf)
        onward = (extra[1] - extra[0]) / (freed[1] - freed[0])
    has_more = freed[1] > freed[0]
    is_bent = (selective < full) & has_more
    first = np.minimum(selective, full)
    second = np.where(is_bent, onward, np.inf)
    cheap = np.where(is_bent, freed[0], np.maximum(freed[0], freed[1]))
    return first, second, np.maximum(0.0, cheap)


def by_code(sharding: IntArray) -> Iterator[tuple[int, IntArray]]:
    """Each sharding code that occurs, with the candidates that have it."""
    for code in np.flatnonzero(np.bincount(sharding)).tolist():  # np.unique would import numpy.ma
        yield int(code), np.flatnonzero(sharding == code)


def taken_groups(groups: Groups, chosen: IntArray) -> Groups:
    """The groups of the chosen candidates."""

    def one(value: Number) -> Number:
        if isinstance(value, GroupCosts):
            return GroupCosts(*(column[chosen] for column in vars(value).values()))
        return value[chosen]

    return Groups(**{name: one(value) for name, value in vars(groups).items()})
