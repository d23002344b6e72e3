"""A first plan for the per-layer search: the relaxed split, two strategies a stage, one change.

Any complete choice is an upper bound; this one is found by enumerating, for every stage, the pairs of
strategies and the layer where the first gives way to the second. It only makes the exact search's pruning
bite early.
"""

from __future__ import annotations

import numpy as np

from planner.cost.layered_table import LayeredSetting, stage_cost, step_seconds
from planner.search.layered_front import BYTES, WORKING, end_row, layer_rows, weight_rows

Split = tuple[tuple[int, int], ...]
Choice = tuple[Split, tuple[int, ...]]


def first_plan(setting: LayeredSetting, end: int, split: Split, limit_bytes: float) -> Choice | None:
    """(stages, strategy of every layer) within memory, or None when two strategies a stage never fit."""
    chosen: list[int] = []
    for stage, layers in enumerate(split):
        found = fill_stage(setting, stage, layers, end, limit_bytes)
        if found is None:
            return None
        chosen += found[1]
    return split, tuple(chosen)


def choice_seconds(setting: LayeredSetting, end: int, choice: Choice) -> float:
    """The step of a complete choice, priced by the table's own rule."""
    split, chosen = choice
    costs = [stage_cost(setting, i, layers, chosen, end) for i, layers in enumerate(split)]
    return step_seconds(
        setting,
        [c.forward_seconds for c in costs],
        [c.backward_seconds for c in costs],
        [c.sync_seconds for c in costs],
        [c.update_seconds for c in costs],
    )


def fill_stage(
    setting: LayeredSetting, stage: int, layers: tuple[int, int], end: int, limit_bytes: float
) -> tuple[float, list[int]] | None:
    """(seconds by ``weight_rows``, strategies) of the fastest such choice; None when none fits."""
    rows = layer_rows(setting, stage)
    own = end_row(setting, stage, end)
    kinds = np.array(setting.layers[layers[0] : layers[1]])
    count, strategies = len(kinds), rows.shape[1]
    scale = setting.microbatches if setting.pp == 1 else 1
    change = scale * (setting.change_forward_seconds + setting.change_backward_seconds)
    seconds = np.where(np.isfinite(weight_rows(rows, setting.pp)), weight_rows(rows, setting.pp), np.inf)[
        kinds
    ]
    sums = np.concatenate([np.zeros((1, strategies)), np.cumsum(seconds, axis=0)])
    size = np.concatenate([np.zeros((1, strategies)), np.cumsum(rows[kinds][:, :, BYTES], axis=0)])
    working = rows[kinds][:, :, WORKING].max(axis=0)
    limit = limit_bytes - setting.reserve_bytes - float(own[BYTES])
    at = np.arange(1, count + 1)
    with np.errstate(invalid="ignore"):
        # [cut, first, second]: the first strategy holds ``cut`` layers, the second the rest.
        time = sums[at][:, :, None] + (sums[count] - sums[at])[:, None, :]
        need = size[at][:, :, None] + (size[count] - size[at])[:, None, :]
    both = np.where(at[:, None, None] < count, np.maximum(working[:, None], working[None, :])[None], 0.0)
    need = need + np.maximum(both, working[None, :, None])
    if setting.shared_bytes is not None:
        masks = [setting.mask(s) for s in range(strategies)]
        shared = {mask: setting.shared(stage, end, mask) for mask in {a | b for a in masks for b in masks}}
        pairs = np.array([[shared[a | b] for b in masks] for a in masks])
        need = need + np.where(at[:, None, None] < count, pairs[None], pairs.diagonal()[None, :, None])
    between = change[np.ix_(setting.layout, setting.layout)][None]
    time = time + np.where(at[:, None, None] < count, between, 0.0)
    if stage == 0:
        time = time + change[int(setting.end_layout[end]), setting.layout][None, :, None]
    if stage == setting.pp - 1:
        leave = change[setting.layout, int(setting.end_layout[end])]
        time = time + np.where(at[:, None, None] < count, leave[None, None, :], leave[None, :, None])
    time = np.where((need <= limit) & np.isfinite(time), time, np.inf)
    best = int(time.argmin())
    if not np.isfinite(time.flat[best]):
        return None
    cut, first, second = (int(x) for x in np.unravel_index(best, time.shape))
    own_seconds = float(weight_rows(own, setting.pp))
    return float(time.flat[best]) + own_seconds, [first] * (cut + 1) + [second] * (count - cut - 1)
