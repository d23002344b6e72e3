"""Branch and bound over the settings of per-layer tables: bounds, first plans, fronts, pipelines.

A setting is looked at by its relaxed step first; a first plan on the split that has it makes later bounds
bite. A setting that may hold a faster plan is solved once an end strategy: its stages are tightened to their
fastest real choices, then the fronts of its stages are put together. Where a judge prices plans, what the
table says only bounds them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from planner.cost.layered_table import Floats, LayeredSetting
from planner.search.layered_bounds import Bounds, bounds_of, slack_seconds, with_stages
from planner.search.layered_front import ENDING, StageOptions, TooManyLabels, stage_options
from planner.search.layered_pipeline import assemble, relaxed
from planner.search.layered_settings import StageKey, stage_key, widest, with_least_end
from planner.search.layered_start import choice_seconds, fill_stage, first_plan

TIED = 1e-12
# Seconds the front is complete below, and the front.
Fronts = dict[StageKey, tuple[float, StageOptions]]
# The fastest choice of a stage: seconds of a microbatch, and strategies.
Tight = dict[StageKey, tuple[float, tuple[int, ...]]]
# Settings given a first plan before any bound can be compared with one.
FIRST_LOOKS = 4
# Layers of stages tightened, all settings together, after which what is left is stated as the gap: a count,
# so that the same question has the same answer on every machine.
MOST_TIGHTENED = 7_000
# Times a limit is lowered by what a plan of it is over, before its setting is left to its bound.
MEMORY_TRIES = 4
# (setting, end, stages, strategies) -> (seconds, bytes over the limit or 0) of a complete plan.
Judge = Callable[[int, int, tuple[tuple[int, int], ...], tuple[int, ...]], tuple[float, float]]


@dataclass
class BestChoice:
    seconds: float = math.inf
    setting: int = -1
    end: int = -1
    stages: tuple[tuple[int, int], ...] = ()
    chosen: tuple[int, ...] = ()


@dataclass
class Effort:
    solved: int = 0
    labels: int = 0
    replays: int = 0
    options: int = 0
    tightened: int = 0


class Branches:
    """The search over ``settings`` within ``limit_bytes``; ``run`` leaves what it found in ``best``.

    ``unproved``: bounds of what was not searched to the end, or is only bounded by its table.
    """

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
        self.best, self.effort = BestChoice(known_seconds), Effort()
        self.unproved: list[float] = []
        self.coarse: dict[int, Bounds] = {}

    def run(self) -> list[float]:
        """Search everything that may beat the best plan; the bound or relaxed step of every setting."""
        coarse = []
        for index, setting in enumerate(self.settings):
            bounds = bounds_of(with_least_end(setting), 0, self.limit)
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
            if time.process_time() > self.deadline or self.worth >= 1.0 or self.is_spent:
                self.unproved.append(coarse[index])
                continue
            self.solve(index)
        return coarse

    @property
    def is_spent(self) -> bool:
        """Whether as much was tightened as is worth it."""
        return self.effort.tightened > MOST_TIGHTENED

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
                # Tightening is dear: only where the bounds as they are leave a split.
                step, split = relaxed(setting, bounds, self.best.seconds)
                if not split:
                    continue
                if self.is_spent:
                    self.unproved.append(step)
                    continue
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
        picked = [known.get(stage_key(setting, i, a, b, end), (0.0, ()))[1] for i, (a, b) in enumerate(split)]
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
                ranges.setdefault(stage_key(setting, i, a, b, end), []).append((a, b))
            for key, same in ranges.items():
                if key not in known:
                    (a, b), below = same[0], max(float(slack[a, b]) for a, b in same)
                    proof = float(stage[i, a, b]), float(bounds.multiplier[i, a, b])
                    known[key] = self.fastest(setting, i, (a, b), end, below, proof)
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
        proof: tuple[float, float],
    ) -> tuple[float, tuple[int, ...]]:
        """(least seconds of a microbatch on a stage, its strategies); (0, ()) when there is no telling.

        A stage with no choice under ``below`` has that much at least. ``proof``: its bound and multiplier.
        """
        first = fill_stage(setting, stage, layers, end, self.limit)
        if first is not None and first[0] <= proof[0] * (1 + TIED):
            return first[0], tuple(first[1])
        if first is not None and first[0] <= below:
            below = first[0]
        self.effort.tightened += layers[1] - layers[0]
        try:
            front = stage_options(
                setting, stage, layers, end, self.limit, below * (1 + TIED), proof[1], is_whole=True
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
            self.best = BestChoice(seconds, index, end, stages, chosen)
        return over

    def solve_end(self, index: int, end: int, bounds: Bounds, step: float, shared: Fronts) -> None:
        """The best of one setting and end below the best plan; ``step`` stays as its bound if not settled."""
        self.effort.solved += 1
        try:
            limit = self.limit
            over = self.solve_below(index, end, bounds, shared, limit)
            for _ in range(MEMORY_TRIES if over else 0):
                limit -= over
                over = self.solve_below(index, end, bounds, {}, limit)
                if not over:
                    break
        except TooManyLabels:
            self.unproved.append(step)

    def solve_below(self, index: int, end: int, bounds: Bounds, shared: Fronts, limit: float) -> float:
        """The fastest plan below the best step is offered: bytes it is over; 0 where there is none.

        ``limit`` is at most the limit of ``bounds``. Raises TooManyLabels.
        """
        setting, target = self.settings[index], self.best.seconds
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
                    same = stage_key(setting, i, a, b, end)
                    loosest = widest(setting, slack[i], a, b)
                    if same not in shared or shared[same][0] < loosest:
                        front = stage_options(
                            setting, i, (a, b), end, limit, loosest, float(bounds.multiplier[i, a, b])
                        )
                        shared[same] = (loosest, front)
                        self.effort.options += len(front.seconds)
                    found[key] = shared[same][1]
            return found[key].seconds

        result = assemble(setting, bounds, options, target)
        self.effort.labels += result.labels
        self.effort.replays += result.replays
        if result.best is None:
            return 0.0
        chosen: list[int] = []
        for i, (a, b, option) in enumerate(result.best.stages):
            chosen += found[(i, a, b)].chosen[option]
        stages = tuple((a, b) for a, b, _ in result.best.stages)
        over = self.offer(result.best.seconds, index, end, stages, tuple(chosen))
        is_judged = self.judge is not None and limit == self.limit
        if is_judged or result.lower_bound < result.best.seconds * (1 - 1e-9):
            self.unproved.append(result.lower_bound)
        return over
