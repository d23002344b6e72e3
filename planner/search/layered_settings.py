"""Settings seen whole: which stages cost the same, the least any end strategy costs, the least bytes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from planner.cost.layered_table import EndCosts, Floats, LayeredSetting
from planner.errors import InfeasibleError
from planner.search.layered_front import BYTES, end_row, layer_rows
from planner.units import format_bytes

# (stage, kinds of its layers, end or -1): stages that cost the same.
StageKey = tuple[int, tuple[int, ...], int]


def stage_key(setting: LayeredSetting, stage: int, first: int, last: int, end: int) -> StageKey:
    """Inner stages do not depend on the end strategy, unless every step's constant does."""
    is_own = stage in (0, setting.pp - 1) or len(set(setting.constant_seconds)) > 1
    return stage, setting.layers[first:last], end if is_own else -1


def widest(setting: LayeredSetting, slack: Floats, a: int, b: int) -> float:
    """The loosest bound among ranges of the same kinds: their fronts are shared."""
    if len(set(setting.layers)) > 1:
        return max(
            float(slack[x, x + b - a])
            for x in range(len(setting.layers) - (b - a) + 1)
            if setting.layers[x : x + b - a] == setting.layers[a:b]
        )
    return max(float(slack[x, x + b - a]) for x in range(len(setting.layers) - (b - a) + 1))


def with_least_end(setting: LayeredSetting) -> LayeredSetting:
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


def infeasible(settings: Sequence[LayeredSetting], limit_bytes: float, *, unproved: bool) -> InfeasibleError:
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
