"""Exact search over per-layer strategies, on a table and nothing else.

Branch and bound over (pp, microbatches, end strategy), best bound first; inside one, fronts of every stage's
choices (layered_front) are put together to pipelines (layered_pipeline). The objective is the step that is
reported: the replayed 1F1B timeline and the synchronisation it leaves exposed. Deterministic: ties go to the
setting that comes first in the table.

Where the table is only a lower bound of the real price, ``improve_layered`` asks a judge for that of every plan
found, and prunes what the table says cannot beat the best real price.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from planner.cost.layered_table import EndCosts, Floats, LayeredSetting
from planner.errors import InfeasibleError
from planner.search.layered_bounds import Bounds, bounds_of, slack_seconds, with_stages
from planner.search.layered_front import (
    BYTES,
    ENDING,
    StageOptions,
    TooManyLabels,
    end_row,
    layer_rows,
    stage_options,
)
from planner.search.layered_pipeline import assemble, relaxed
from planner.search.layered_start import choice_seconds, fill_stage, first_plan
from planner.strategy.layered import LayeredDecision
from planner.units import format_bytes

TIED = 1e-12
# (stage, kinds of its layers, end or -1): stages that cost the same.
StageKey = tuple[int, tuple[int, ...], int]
# Seconds the front is complete below, and the front.
Fronts = dict[StageKey, tuple[float, StageOptions]]
# The fastest choice of a stage: seconds of a microbatch, and strategies.
Tight = dict[StageKey, tuple[float, tuple[int, ...]]]
# Settings given a first plan before any bound can be compared with one.
FIRST_LOOKS = 4
# Shares of the way from a bound to the best step at which a search under a target is tried.
TARGETS = (1.0,)
# Times a limit is lowered by what a plan of it is over, before its setting is left to its bound.
MEMORY_TRIES = 4
# (setting, end, stages, strategies) -> (seconds, bytes over the limit or 0) of a complete plan.
Judge = Callable[[int, int, tuple[tuple[int, int], ...], tuple[int, ...]], tuple[float, float]]


@dataclass
class _Best:
    seconds: float = math.inf
    setting: int = -1
    end: int = -1
    stages: tuple[tuple[int, int], ...] = ()
    chosen: tuple[int, ...] = ()


@dataclass(frozen=True)
class LayeredResult:
    """The best decision, its step, what is proved, and the count of everything tried.

    ``seconds_by_setting`` holds (pp, microbatches, bound or solved step, whether solved) of every setting.
    """

    decision: LayeredDecision
    setting: LayeredSetting
    end: int
    chosen: tuple[int, ...]
    step_seconds: float
    lower_bound_seconds: float
    status: str
    funnel: list[dict[str, Any]]
    seconds_by_setting: list[tuple[int, int, float, bool]] = field(default_factory=list)

    @property
    def gap(self) -> float:
        """(step - bound) / step."""
        return max(0.0, 1.0 - self.lower_bound_seconds / self.step_seconds)


@dataclass
class _Effort:
    solved: int = 0
    labels: int = 0
    replays: int = 0
    options: int = 0


class _Search:
    def __init__(
        self,
        settings: Sequence[LayeredSetting],
        limit_bytes: float,
        deadline: float,
        judge: Judge | None = None,
        known_seconds: float = math.inf,
        worth: float = 0.0,
    ) -> None:
        self.settings, self.limit, self.deadline = settings, limit_bytes, deadline
        self.judge, self.worth = judge, worth
        self.best, self.effort = _Best(known_seconds), _Effort()
        self.unproved: list[float] = []
        self.coarse: dict[int, Bounds] = {}

    def run(self) -> list[float]:
        coarse = []
        for index, setting in enumerate(self.settings):
            bounds = bounds_of(_with_least_end(setting), 0, self.limit)
            coarse.append(bounds.step)
            self.coarse[index] = bounds
        order = sorted(range(len(coarse)), key=lambda i: (coarse[i], i))
        for index in order[:FIRST_LOOKS]:
            self.look(index, coarse)
        for index in order[FIRST_LOOKS:]:
            if coarse[index] < self.best.seconds * (1 - TIED):
                self.look(index, coarse)
        order.sort(key=lambda i: (coarse[i], i))
        for index in order:
            if coarse[index] >= self.best.seconds * (1 - TIED) or not math.isfinite(coarse[index]):
                break
            if time.process_time() > self.deadline:
                self.unproved.append(coarse[index])
                continue
            self.solve(index)
        return coarse

    def look(self, index: int, coarse: list[float]) -> None:
        """A tighter bound of a setting, and a first plan on the split that has it."""
        setting = self.settings[index]
        if not math.isfinite(coarse[index]):
            return
        step, split = relaxed(setting, self.coarse[index], self.best.seconds)
        coarse[index] = max(coarse[index], min(step, self.best.seconds))
        if not split:
            return
        for end in range(len(setting.ends)):
            self.offer_split(index, end, split)

    def solve(self, index: int) -> None:
        setting = self.settings[index]
        bounded = []
        tight: Tight = {}
        for end in range(len(setting.ends)):
            bounds = bounds_of(setting, end, self.limit)
            if bounds.step < self.best.seconds * (1 - TIED):
                bounded.append((bounds.step, end, bounds))
        bounded.sort(key=lambda entry: entry[:2])
        shared: Fronts = {}
        for step, end, bounds in bounded:
            if step >= self.best.seconds * (1 - TIED):
                break
            if setting.pp > 1:
                bounds = self.tightened(setting, end, bounds, tight)
            step, split = (
                relaxed(setting, bounds, self.best.seconds)
                if bounds.step < self.best.seconds
                else (math.inf, ())
            )
            if not split:
                continue
            self.offer_split(index, end, split)
            self.offer_fastest(index, end, split, tight)
            if step >= self.best.seconds * (1 - TIED):
                continue
            if step >= self.best.seconds * (1 - self.worth):
                self.unproved.append(step)
            else:
                self.solve_end(index, end, bounds, step, shared)

    def offer_fastest(self, index: int, end: int, split: tuple[tuple[int, int], ...], known: Tight) -> None:
        """Offer a split with every stage at its fastest, where that is known."""
        setting = self.settings[index]
        picked = [known.get(_same(setting, i, a, b, end), (0.0, ()))[1] for i, (a, b) in enumerate(split)]
        chosen = tuple(s for stage in picked for s in stage)
        if len(chosen) == len(setting.layers):
            self.offer(choice_seconds(setting, end, (split, chosen)), index, end, split, chosen)

    def offer_split(self, index: int, end: int, split: tuple[tuple[int, int], ...]) -> None:
        """Offer a first plan on a split."""
        setting = self.settings[index]
        start = first_plan(setting, end, split, self.limit)
        if start is not None:
            self.offer(choice_seconds(setting, end, start), index, end, *start)

    def tightened(self, setting: LayeredSetting, end: int, bounds: Bounds, known: Tight) -> Bounds:
        """The bounds with every stage that may matter at its fastest real choice, layer by layer.

        ``known`` keeps them from one end strategy to the next.
        """
        stage = bounds.stage.copy()
        for i in range(setting.pp):
            slack = slack_seconds(setting, bounds, i, self.best.seconds)
            ranges: dict[StageKey, list[tuple[int, int]]] = {}
            for a, b in np.argwhere(stage[i] < slack).tolist():
                ranges.setdefault(_same(setting, i, a, b, end), []).append((a, b))
            for key, same in ranges.items():
                if key not in known:
                    (a, b), widest = same[0], max(float(slack[a, b]) for a, b in same)
                    known[key] = self.fastest(
                        setting, i, (a, b), end, widest, float(bounds.multiplier[i, a, b])
                    )
                for a, b in same:
                    stage[i, a, b] = max(stage[i, a, b], known[key][0])
        return with_stages(setting, stage, bounds.multiplier, bounds.update)

    def fastest(
        self,
        setting: LayeredSetting,
        stage: int,
        layers: tuple[int, int],
        end: int,
        below: float,
        multiplier: float,
    ) -> tuple[float, tuple[int, ...]]:
        """(least seconds of a microbatch on a stage, its strategies); (0, ()) when there is no telling.

        A stage with no choice under ``below`` has that much at least.
        """
        first = fill_stage(setting, stage, layers, end, self.limit)
        if first is not None and first[0] <= below:
            below = first[0]
        try:
            front = stage_options(
                setting, stage, layers, end, self.limit, below * (1 + TIED), multiplier, is_whole=True
            )
        except TooManyLabels:
            return 0.0, ()
        if len(front.seconds):
            return float(front.seconds[0, ENDING]), front.chosen[0]
        return (first[0], tuple(first[1])) if first is not None and first[0] <= below else (below, ())

    def offer(
        self,
        seconds: float,
        index: int,
        end: int,
        stages: tuple[tuple[int, int], ...],
        chosen: tuple[int, ...],
    ) -> float:
        """Keep a plan that is faster than the best; bytes it is over the limit when a judge says so."""
        over = 0.0
        if self.judge is not None and seconds < self.best.seconds * (1 - TIED):
            seconds, over = self.judge(index, end, stages, chosen)
        if not over and seconds < self.best.seconds * (1 - TIED):
            self.best = _Best(seconds, index, end, stages, chosen)
        return over

    def solve_end(self, index: int, end: int, bounds: Bounds, step: float, shared: Fronts) -> None:
        """The best of one setting and end: ever looser targets, so that fronts stay short.

        A target that nothing meets is proved to be a bound; the first that something meets gives the optimum.
        """
        self.effort.solved += 1
        proved = step
        for share in TARGETS:
            target = step + (self.best.seconds - step) * share if share < 1.0 else self.best.seconds
            if not math.isfinite(target) and share < 1.0:
                continue
            try:
                over = self.solve_below(index, end, bounds, target, shared, self.limit)
                if over is None:
                    proved = target
                    continue
                limit = self.limit
                for _ in range(MEMORY_TRIES if over else 0):
                    limit -= over or 0.0
                    over = self.solve_below(index, end, bounds, self.best.seconds, {}, limit)
                    if not over:
                        break
                return
            except TooManyLabels:
                self.unproved.append(proved)
                return

    def solve_below(
        self, index: int, end: int, bounds: Bounds, target: float, shared: Fronts, limit: float
    ) -> float | None:
        """None when no step under ``target`` exists; else the best one is offered: bytes it is over the limit.

        ``limit`` is at most the limit of ``bounds``. Raises TooManyLabels.
        """
        setting = self.settings[index]
        found: dict[tuple[int, int, int], StageOptions] = {}
        slack = [slack_seconds(setting, bounds, i, target) for i in range(setting.pp)]

        def options(i: int, a: int, b: int) -> Floats:
            key = (i, a, b)
            if key not in found:
                below = float(slack[i][a, b])
                if bounds.stage[i, a, b] >= below:
                    found[key] = StageOptions(np.zeros((0, 4)), ())
                else:
                    # Fronts of inner stages do not depend on the ends: kept from one end to the next.
                    same = _same(setting, i, a, b, end)
                    widest = _widest(setting, slack[i], a, b)
                    if same not in shared or shared[same][0] < widest:
                        front = stage_options(
                            setting, i, (a, b), end, limit, widest, float(bounds.multiplier[i, a, b])
                        )
                        shared[same] = (widest, front)
                        self.effort.options += len(front.seconds)
                    found[key] = shared[same][1]
            return found[key].seconds

        result = assemble(setting, bounds, options, target)
        self.effort.labels += result.labels
        self.effort.replays += result.replays
        if result.best is None:
            return None
        chosen: list[int] = []
        for i, (a, b, option) in enumerate(result.best.stages):
            chosen += found[(i, a, b)].chosen[option]
        stages = tuple((a, b) for a, b, _ in result.best.stages)
        over = self.offer(result.best.seconds, index, end, stages, tuple(chosen))
        is_judged = self.judge is not None and limit == self.limit
        if is_judged or result.lower_bound < result.best.seconds * (1 - 1e-9):
            self.unproved.append(result.lower_bound)
        return over


@dataclass(frozen=True)
class Improvement:
    """What a judged search found beside a known plan.

    ``setting`` indexes the settings, -1 when no plan is faster than the known one; ``lower_bound_seconds`` no
    plan of the settings is below; infinite when none is below the best plan.
    """

    seconds: float
    setting: int
    end: int
    stages: tuple[tuple[int, int], ...]
    chosen: tuple[int, ...]
    lower_bound_seconds: float
    solved: int
    labels: int


def improve_layered(
    settings: Sequence[LayeredSetting],
    limit_bytes: float,
    judge: Judge,
    known_seconds: float,
    *,
    worth: float = 0.0,
    time_budget_seconds: float = math.inf,
) -> Improvement:
    """The fastest plan by ``judge`` that beats ``known_seconds``, on tables that bound what it says.

    Every setting whose bound is below the best judged plan is solved on its table; the best of each is judged.
    What the table promised below that plan stays as the bound; so does what the fastest stages alone promise
    where that is less than a share ``worth`` of the step.
    """
    search = _Search(
        settings, limit_bytes, time.process_time() + time_budget_seconds, judge, known_seconds, worth
    )
    search.run()
    best, effort = search.best, search.effort
    below = [bound for bound in search.unproved if bound < best.seconds]
    return Improvement(
        seconds=best.seconds,
        setting=best.setting,
        end=best.end,
        stages=best.stages,
        chosen=best.chosen,
        lower_bound_seconds=min(below, default=math.inf),
        solved=effort.solved,
        labels=effort.options,
    )


def search_layered(
    settings: Sequence[LayeredSetting],
    limit_bytes: float,
    *,
    time_budget_seconds: float = math.inf,
    funnel: Sequence[dict[str, Any]] = (),
) -> LayeredResult:
    """The fastest decision of all settings within ``limit_bytes`` a device.

    ``time_budget_seconds`` of CPU stops it with the best so far. ``funnel`` states what was left out before.
    Raises InfeasibleError with the least bytes any decision needs when nothing fits.
    """
    search = _Search(settings, limit_bytes, time.process_time() + time_budget_seconds)
    coarse = search.run()
    best = search.best
    if best.setting < 0:
        raise _infeasible(settings, limit_bytes, unproved=bool(search.unproved))
    setting = settings[best.setting]
    bound = min([best.seconds, *search.unproved])
    steps = [
        *funnel,
        {"step": "settings", "candidates": len(settings), "reason": "pipeline degrees x microbatch counts"},
        {
            "step": "within bounds",
            "candidates": sum(value < best.seconds for value in coarse),
            "reason": "settings whose relaxed step is below the best plan's (exact: the bound is a proof)",
        },
        {
            "step": "solved",
            "candidates": search.effort.solved,
            "reason": f"(setting, end strategy) searched; {search.effort.options} stage choices on fronts, "
            f"{search.effort.labels} partial pipelines, {search.effort.replays} timelines replayed",
        },
    ]
    return LayeredResult(
        decision=LayeredDecision(
            pp=setting.pp,
            microbatches=setting.microbatches,
            stages=best.stages,
            choices=tuple(setting.strategies[s] for s in best.chosen),
            ends=setting.ends[best.end],
        ),
        setting=setting,
        end=best.end,
        chosen=best.chosen,
        step_seconds=best.seconds,
        lower_bound_seconds=bound,
        status="proved" if bound >= best.seconds * (1 - 1e-9) else "gap",
        funnel=steps,
        seconds_by_setting=[
            (s.pp, s.microbatches, value, index == best.setting)
            for index, (s, value) in enumerate(zip(settings, coarse, strict=True))
        ],
    )


def _same(setting: LayeredSetting, stage: int, first: int, last: int, end: int) -> StageKey:
    """Inner stages do not depend on the end strategy, unless every step's constant does."""
    is_own = stage in (0, setting.pp - 1) or len(set(setting.constant_seconds)) > 1
    return stage, setting.layers[first:last], end if is_own else -1


def _widest(setting: LayeredSetting, slack: Floats, a: int, b: int) -> float:
    """The loosest bound among ranges of the same kinds: their fronts are shared."""
    if len(set(setting.layers)) > 1:
        return max(
            float(slack[x, x + b - a])
            for x in range(len(setting.layers) - (b - a) + 1)
            if setting.layers[x : x + b - a] == setting.layers[a:b]
        )
    return max(float(slack[x, x + b - a]) for x in range(len(setting.layers) - (b - a) + 1))


def _with_least_end(setting: LayeredSetting) -> LayeredSetting:
    """The setting with one end that has the least of every cost: bounds every end strategy."""

    def least(costs: EndCosts) -> EndCosts:
        return EndCosts(
            *(
                np.array([np.min(values)])
                for values in (
                    costs.forward_seconds,
                    costs.backward_seconds,
                    costs.sync_seconds,
                    costs.state_bytes,
                    costs.activation_bytes,
                    costs.update,
                )
            )
        )

    every, shared = range(len(setting.ends)), setting.shared_bytes

    def least_shared(stage: int, _: int, mask: int) -> float:
        return min(setting.shared(stage, end, mask) for end in every)

    return replace(
        setting,
        ends=setting.ends[:1],
        first=least(setting.first),
        last=least(setting.last),
        end_layout=setting.end_layout[:1],
        constant_seconds=(min(setting.constant_seconds),) if setting.constant_seconds else (),
        shared_bytes=None if shared is None else least_shared,
    )


def least_bytes(setting: LayeredSetting) -> float:
    """A floor of the fullest device's bytes over every decision of a setting (even shares at best)."""
    count = len(setting.layers)
    kinds = np.array(setting.layers)
    floors = []
    for end in range(len(setting.ends)):
        own = [float(end_row(setting, i, end)[BYTES]) for i in range(setting.pp)]
        least = np.array(
            [
                np.concatenate([[0.0], np.cumsum(layer_rows(setting, i)[:, :, BYTES].min(axis=1)[kinds])])
                for i in range(setting.pp)
            ]
        )
        reach = np.full(count + 1, np.inf)
        reach[0] = 0.0
        for i in range(setting.pp):
            spans = least[i][None, :] - least[i][:, None] + own[i]
            spans[np.tril_indices(count + 1)] = np.inf
            reach = np.maximum(reach[:, None], spans).min(axis=0)
        floors.append(float(reach[-1]))
    return min(floors) + setting.reserve_bytes


def _infeasible(settings: Sequence[LayeredSetting], limit_bytes: float, *, unproved: bool) -> InfeasibleError:
    if unproved:
        return InfeasibleError("the search stopped before any plan was found", hint="raise --time-budget")
    if not settings:
        return InfeasibleError(
            "no pipeline degree and microbatch count is covered by the profile and divides the batch",
            hint="use a global batch that is a multiple of the number of GPUs",
        )
    needs = [(least_bytes(s), s) for s in settings]
    need, nearest = min(needs, key=lambda pair: pair[0])
    return InfeasibleError(
        f"no decision fits in {format_bytes(limit_bytes)} a GPU: the leanest needs at least "
        f"{format_bytes(need)} (pp {nearest.pp}, {nearest.microbatches} microbatches)",
        hint=f"use --memory-limit-gib {math.ceil(need / 2**30)} or more, or more GPUs",
        nearest_miss={"bytes": need, "pp": nearest.pp, "microbatches": nearest.microbatches},
    )
