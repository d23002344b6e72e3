"""Bounds for schedules without virtual stages, whatever the split of the chain into stages."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from planner.cost.arrays import Array, IntArray, Number
from planner.cost.layer import CostTable
from planner.cost.model import CostModel
from planner.schedule.orders import ZERO_BUBBLE
from planner.search.kind_values import KindValues
from planner.search.memory_bounds import layer_counts
from planner.strategy.candidates import Candidates


def plain_share(pp: Number, m: Number, filling: Number) -> Number:
    """Least T / W of a schedule without virtual stages: f / (1 - (1 - f/m)^pp).

    ``filling`` f: the share of a rank's time of a microbatch that the next rank must wait for. 1 for fill
    and drain of whole backwards; the forward's share where weight gradients fill the drain.
    """
    return filling / (1.0 - (1.0 - filling / m) ** pp)


BISECTIONS = 14


def split_share(
    model: CostModel,
    table: CostTable,
    values: KindValues,
    c: Candidates,
    rows: IntArray,
    schedule: str,
) -> Array:
    """Least T / W over all splits of the chain that fit; infinite where none does.

    Rank r, with work x (of W = 1) and recomputation e behind work S of the ranks before it, cannot end before
    g S + m (x + e), g the share of S that keeps it waiting: all of it under 1F1B (fill and drain), the
    forwards f where weight gradients fill the drain. There also its first input gradient waits for microbatch
    0 to come back, beside which only w - 1 = min(m, pp - r) - 1 warm-up forwards are done: no sooner than
    f S + m x + (f + i)(1 - S - x) - (w - 1) f' x, i the input gradients' share, f' the most f of any layer.
    And the last input gradient still has to go back to rank 0, behind all of the rank's work but the weight
    gradients that wait (r of them and the last): no sooner than (f + i) S + m x - min(m, r + 1) v' x, v' the
    most share of weight gradients.
    Its a microbatches in flight hold x (s + a k) bytes, s and k the least static and saved bytes per second
    of work of any block; what passes the limit is freed at the best seconds per byte. The first and the last
    layer of the chain lie on the first and the last rank. A larger x on every rank is always better, so
    bisection on T asks whether the largest x of all ranks reach the blocks' work.
    """
    m = c.microbatches(model.problem.workload.global_batch).astype(np.float64)
    total = layer_counts(table) @ values.seconds
    blocks = np.array([kind.role == "block" for kind in table.chain.kinds])
    goal = (layer_counts(table) * blocks) @ values.seconds / total
    # The most ranks first: what every rank can hold is then asked of the first so many candidates.
    order = np.argsort(-c.pp, kind="stable")
    ranks = _Ranks.of(table, values, c, rows, m, schedule).in_order(order)
    low, high = m / c.pp, np.full(len(c), np.inf)
    middle = 2.0 * plain_share(c.pp, m, 1.0)  # first ask whether anything fits, recomputation included
    for _ in range(BISECTIONS):
        reaches = np.empty(len(c), dtype=bool)
        reaches[order] = ranks.placed(middle[order]) >= goal[order]
        low, high = np.where(reaches, low, middle), np.where(reaches, middle, high)
        middle = np.where(np.isfinite(high), 0.5 * (low + high), 4.0 * middle)
    # What does not fit in millions of times its own work never does.
    return np.where(np.isfinite(high), low, np.inf)


@dataclass(frozen=True)
class _Ranks:
    """What bounds the work x of every rank (rows) of candidates (columns, those of most ranks first).

    x is at most ``most``; ``spare``, what is left of the time T asked for; (spare + gain) / rate for either
    rate of recomputation; under zero bubble also what the two ways of microbatches leave (``split_share``).
    """

    counts: list[int]
    m: Array
    waiting: Array
    fixed: Array
    gains: tuple[Array, Array]
    rates: tuple[Array, Array]
    most: Array
    turn: Array
    least: Array
    divisors: tuple[Array, Array] | None

    @staticmethod
    def of(
        table: CostTable, values: KindValues, c: Candidates, rows: IntArray, m: Array, schedule: str
    ) -> _Ranks:
        is_zb = schedule in ZERO_BUBBLE
        pp = c.pp.astype(np.float64)
        counts = layer_counts(table)
        total = counts @ values.seconds
        blocks = np.array([kind.role == "block" for kind in table.chain.kinds])
        static, saved, stuck = (
            total * _least_ratio(value[blocks], values.seconds[blocks])
            for value in (values.static, values.saved, values.saved - values.freeable)
        )
        rate, second = values.first_rate.min(axis=0) / total, values.second_rate.min(axis=0) / total
        second = np.where(np.isfinite(second), second, rate)
        # Bytes that the first rank can free at most, per second of work of any block.
        cheap = total * _most_ratio(values.cheap[blocks], values.seconds[blocks])
        least, most, turn, weight = (share[rows] for share in forward_shares(table))
        rank = np.arange(int(c.pp.max(initial=1)), dtype=np.float64)[:, None]
        held = np.maximum(1.0, np.minimum(m, pp - rank))
        warm = np.maximum(0.0, np.minimum(m, pp - rank) - 1.0)
        if is_zb:
            held = np.minimum(m, pp) + 0.0 * rank
        ends = (table.chain.layers[0], table.chain.layers[-1])
        own = ((rank == 0) & (not blocks[ends[0]]), (rank == pp - 1) & (not blocks[ends[1]]))
        fixed = sum(has * values.seconds[kind] for has, kind in zip(own, ends, strict=True)) / total
        kept = sum(
            has * (values.static[kind] + held * values.saved[kind])
            for has, kind in zip(own, ends, strict=True)
        )
        room, size = values.spare_bytes - kept, static + held * saved
        steep = (size * second - cheap * held * (second - rate)) / held
        with np.errstate(divide="ignore", invalid="ignore"):
            holds = np.where(room >= 0.0, room / (static + held * stuck), 0.0)
        divisors = (m - turn - warm * most, m - np.minimum(m, rank + 1.0) * weight) if is_zb else None
        return _Ranks(
            counts=[int((c.pp > rank).sum()) for rank in range(len(rank))],
            m=m,
            waiting=least if is_zb else np.ones(len(c)),
            fixed=fixed,
            gains=(room * rate / held, room * second / held),
            rates=(1.0 + size * rate / held, 1.0 + steep),
            most=holds,
            turn=turn,
            least=least,
            divisors=divisors,
        )

    def in_order(self, order: IntArray) -> _Ranks:
        """The same of the candidates in another order."""

        def taken(value: Array) -> Array:
            return value[..., order]

        return _Ranks(
            counts=self.counts,
            m=taken(self.m),
            waiting=taken(self.waiting),
            fixed=taken(self.fixed),
            gains=(taken(self.gains[0]), taken(self.gains[1])),
            rates=(taken(self.rates[0]), taken(self.rates[1])),
            most=taken(self.most),
            turn=taken(self.turn),
            least=taken(self.least),
            divisors=(taken(self.divisors[0]), taken(self.divisors[1])) if self.divisors else None,
        )

    def placed(self, goal: Array) -> Array:
        """The blocks' work that ranks ending by T = ``goal`` can do at most, as a share of all work."""
        reached, placed = np.zeros(len(goal)), np.zeros(len(goal))
        for rank, n in enumerate(self.counts):
            fixed, before, until = self.fixed[rank, :n], reached[:n], goal[:n]
            spare = (until - self.waiting[:n] * before) / self.m[:n] - fixed
            x = np.minimum(spare, self.most[rank, :n])
            for gain, rate in zip(self.gains, self.rates, strict=True):
                x = np.minimum(x, (spare + gain[rank, :n]) / rate[rank, :n])
            if self.divisors is not None:
                first, second = self.divisors[0][rank, :n], self.divisors[1][rank, :n]
                turn = self.turn[:n]
                with np.errstate(divide="ignore", invalid="ignore"):
                    turned = (until - turn + (turn - self.least[:n]) * before) / first - fixed
                    back = (until - turn * before) / second - fixed
                x = np.where(first > 0.0, np.minimum(x, turned), x)
                x = np.where(second > 0.0, np.minimum(x, back), x)
            x = np.maximum(0.0, x)
            placed[:n] += x
            reached[:n] += x + fixed
        return placed


def _least_ratio(value: Array, seconds: Array) -> Array:
    """The least value per second of work over the layer kinds that work."""
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(seconds > 0.0, value / seconds, np.inf)
    result: Array = ratio.min(axis=0)
    return result


def _most_ratio(value: Array, seconds: Array) -> Array:
    """The most value per second of work over the layer kinds that work."""
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(seconds > 0.0, value / seconds, 0.0)
    result: Array = ratio.max(axis=0)
    return result


def forward_shares(table: CostTable) -> tuple[Array, Array, Array, Array]:
    """Over the layer kinds: least and most share of forward, least of forward and input gradient together.

    The last: the most share of weight gradients.
    """
    least, turn = np.ones(len(table.candidates)), np.ones(len(table.candidates))
    most = np.zeros(len(table.candidates))
    for row in table.rows:
        forward, backward = row.forward_seconds(), row.backward_seconds(0)
        with np.errstate(divide="ignore", invalid="ignore"):
            share = forward / (forward + backward)
            around = (forward + backward - row.weight_seconds) / (forward + backward)
        is_work = forward + backward > 0.0
        least = np.where(is_work, np.minimum(least, share), least)
        most = np.where(is_work, np.maximum(most, share), most)
        turn = np.where(is_work, np.minimum(turn, around), turn)
    return np.maximum(least, 1e-9), most, turn, 1.0 - turn


def rank_lower_bound(
    before: float,
    forward: float,
    backward: float,
    after: float,
    microbatches: int,
    warmup: int,
    *,
    has_drain: bool = True,
) -> float:
    """When the step can end at the earliest, judged from one rank of a non-interleaved schedule.

    ``before`` and ``after``: forward plus backward of one microbatch on the ranks before and after;
    ``warmup``: forwards issued before the first backward. The rank fills and drains with ``before``, works
    m (f + b), and idles while its first microbatch travels down and back (``after`` less the warm-up
    forwards that hide it) and, when m > warmup, again for its last one behind the draining backwards
    (not where weight gradients fill the drain: ``has_drain`` False).
    """
    idle = max(0.0, after - (warmup - 1) * forward)
    if microbatches > warmup and has_drain:
        idle += max(0.0, after - (warmup - 1) * backward)
    return before + microbatches * (forward + backward) + idle


# Weight gradients that rank r leaves waiting, per r.
WEIGHTS_DELAYED = {"zb-h1": 1, "zb-h2": 2}


def zero_bubble_return_bound(
    turn: float, seconds: float, weight: float, microbatches: int, rank: int, delayed: int
) -> float:
    """When the last microbatch's input gradient can be back at rank 0 at the earliest, judged from one rank.

    ``turn``: forward plus input gradient of one microbatch on the ranks before; ``seconds``: forward and
    whole backward on this one, ``weight`` the part that is weight gradients. The rank starts behind the
    forwards of the ranks before, does all its work but the weight gradients that wait (``delayed`` x rank of
    them, and the last), and the gradient passes the ranks before on its way back. Rank 0's last weight
    gradient follows.
    """
    return turn + microbatches * seconds - min(microbatches, delayed * rank + 1) * weight
