"""Exact search over per-layer strategies, on a table and nothing else.

Branch and bound over (pp, microbatches, end strategy), best bound first; inside one, fronts of every stage's
choices (layered_front) are put together to pipelines (layered_pipeline). The objective is the step that is
reported: the replayed 1F1B timeline and the synchronisation it leaves exposed. Deterministic: ties go to the
setting that comes first in the table.

Where the table is only a lower bound of the real price, ``improve_layered`` asks a judge for that of every
plan found, and prunes what the table says cannot beat the best real price.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from planner.cost.layered_table import LayeredSetting
from planner.search.layered_branches import Branches, Judge
from planner.search.layered_settings import infeasible
from planner.strategy.layered import LayeredDecision


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

    Every setting whose bound is below the best judged plan is solved on its table; the best of each is
    judged. What the table promised below that plan stays as the bound; so does what the fastest stages alone
    promise where that is less than a share ``worth`` of the step; from 1 on nothing is solved and the best
    first plan stays.
    """
    search = Branches(
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
    search = Branches(settings, limit_bytes, time.process_time() + time_budget_seconds)
    coarse = search.run()
    best = search.best
    if best.setting < 0:
        raise infeasible(settings, limit_bytes, unproved=bool(search.unproved))
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
