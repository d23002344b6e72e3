"""Bounds of the per-layer search: seconds no stage, and no pipeline, can beat.

A stage of layers a to b within M bytes needs, for any multiplier u >= 0, at least
sum over layers of min over strategies (seconds + u bytes) - u M: the Lagrangian relaxation of the memory
limit (layout changes left out). Multipliers are the slopes of each kind's lower hull, where the relaxation's
optimum lies. The working set is one value of the choice, so the bound is the least over its values.

A pipeline needs at least the longest of these paths through its 1F1B event graph, from microbatch 0 entering
stage i to the last backward leaving it (t = f + b, w = pp - 1 - i stages behind, D = their t and sends both
ways, m microbatches):

    stay        m t
    start late  t + D + max(0, m - 1 - w) f + (m - 1) b         down and up once, then the rest of its work
    end late    t + D + (m - 1) f + max(0, m - 1 - w) b         the mirror image
    bounce r    r (t + D) + (m - 1 - (r - 1)(w + 1)) t          a round trip every w + 1 microbatches, r >= 2

Every one is a path of real dependencies, so each is a bound; with free sends and the slowest stage in front
they are the timeline.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from planner.cost.layered_table import Floats, LayeredSetting
from planner.search.layered_front import BYTES, UPDATE, WORKING, end_row, layer_rows, weight_rows

MAX_MULTIPLIERS = 24


@dataclass(frozen=True)
class Bounds:
    """Of one setting and end strategy.

    ``stage[i, a, b]``: least seconds of layers a to b on stage i (infinite when they do not fit or the split
    is not allowed); ``multiplier[i, a, b]`` that proves it. ``before[i, a]``: least sum of stages 0 to i - 1
    holding layers 0 to a, sends both ways included; ``behind[i, b]``: least sum of stages i to pp - 1 holding
    layers b to the last, sends from stage i - 1 on included. ``update``: least seconds of the longest update
    behind a pipeline. ``step``: least seconds of a step.
    """

    stage: Floats
    multiplier: Floats
    before: Floats
    behind: Floats
    update: float
    step: float


def bounds_of(setting: LayeredSetting, end: int, limit_bytes: float) -> Bounds:
    """The bounds of one setting with end strategy ``end`` under ``limit_bytes`` a device."""
    count, pp = len(setting.layers), setting.pp
    stage = np.full((pp, count + 1, count + 1), np.inf)
    multiplier = np.zeros_like(stage)
    for i in range(pp):
        stage[i], multiplier[i] = _stage_bounds(setting, i, end, limit_bytes)
    if setting.splits is not None:
        allowed = np.zeros_like(stage, dtype=bool)
        for i, (first, last) in enumerate(setting.splits):
            allowed[i, first, last] = True
        stage[~allowed] = np.inf
    return with_stages(setting, stage, multiplier, _least_update(setting, end) if pp > 1 else 0.0)


def with_stages(setting: LayeredSetting, stage: Floats, multiplier: Floats, update: float) -> Bounds:
    """Bounds that follow from those of the stages."""
    before, behind = _sums(setting, stage)
    step = _least_step(setting, stage, before, behind) + update
    return Bounds(stage, multiplier, before, behind, update, step)


def path_seconds(microbatches: int, after: int, forward: Floats, backward: Floats, behind: Floats) -> Floats:
    """The longest path above for a stage with ``after`` stages behind it, elementwise."""
    m, w = microbatches, after
    whole = forward + backward
    left = max(0, m - 1 - w)
    found = np.maximum(
        m * whole,
        whole + behind + np.maximum(left * forward + (m - 1) * backward, (m - 1) * forward + left * backward),
    )
    most = 1 + (m - 1) // (w + 1)
    for r in {2, most} if most >= 2 else ():
        found = np.maximum(found, r * (whole + behind) + (m - 1 - (r - 1) * (w + 1)) * whole)
    return found


def slack_seconds(setting: LayeredSetting, bounds: Bounds, stage: int, best: float) -> Floats:
    """[a, b]: stage seconds from which on every step with layers a to b on ``stage`` takes ``best`` or more.

    From the paths "stay" and "bounce" with everything else at its least: both are linear in t.
    """
    if setting.pp == 1:
        return np.full(bounds.stage.shape[1:], best)
    best = best - bounds.update
    m, w = setting.microbatches, setting.pp - 1 - stage
    before = bounds.before[stage][:, None]
    behind = bounds.behind[stage + 1][None, :] if stage + 1 < setting.pp else _nothing_behind(setting)
    with np.errstate(invalid="ignore"):
        room = best - before
        found = room / m + np.zeros_like(behind)
        most = 1 + (m - 1) // (w + 1)
        for r in {2, most} if most >= 2 else ():
            found = np.minimum(found, (room - r * behind) / (m - (r - 1) * w))
        found = np.minimum(found, room - behind)
    return np.where(np.isnan(found), -np.inf, found)


def _nothing_behind(setting: LayeredSetting) -> Floats:
    behind = np.full((1, len(setting.layers) + 1), np.inf)
    behind[0, -1] = 0.0
    return behind


def _stage_bounds(setting: LayeredSetting, stage: int, end: int, limit_bytes: float) -> tuple[Floats, Floats]:
    rows = layer_rows(setting, stage)
    own = end_row(setting, stage, end)
    seconds, size = weight_rows(rows, setting.pp), rows[:, :, BYTES]
    # What a strategy's own group needs, every choice that has it needs.
    working = rows[:, :, WORKING] + [
        setting.shared(stage, end, setting.mask(s)) for s in range(rows.shape[1])
    ]
    order = np.array(setting.layers)
    room = limit_bytes - setting.reserve_bytes - float(own[BYTES])
    multipliers = _multipliers(seconds, size)
    count = len(order)
    spans = np.arange(count + 1)
    is_equal = len(set(setting.layers)) == 1
    # Layers of one kind are bounded by their number: ranges from the first layer stand for all.
    ranges = _counted if is_equal else _ranges
    shape = (1, count + 1) if is_equal else (count + 1, count + 1)
    found, proof = np.full(shape, np.inf), np.zeros(shape)
    # A choice whose largest working set is w uses strategies of at most w and has w less for the rest.
    for w in np.unique(working):
        usable = np.isfinite(seconds) & (working <= w)
        is_open = usable.any(axis=1)
        blocked = ranges((~is_open).astype(float)[order][None])[0]
        least = ranges(np.where(is_open, np.where(usable, size, np.inf).min(axis=1), 0.0)[order][None])[0]
        priced = np.where(usable, seconds[None] + multipliers[:, None, None] * size[None], np.inf)
        cheapest = np.where(is_open, priced.min(axis=2), 0.0)[:, order]
        values = ranges(cheapest) - (multipliers * (room - w))[:, None, None]
        best = values.argmax(axis=0)
        value = np.take_along_axis(values, best[None], axis=0)[0]
        value[(least > room - w) | (blocked > 0.0)] = np.inf
        better = value < found
        found[better], proof[better] = value[better], multipliers[best][better]
    if is_equal:
        number = np.maximum(0, spans[None, :] - spans[:, None])
        found, proof = found[0][number], proof[0][number]
    found = found + float(weight_rows(own, setting.pp))
    found[spans[None, :] <= spans[:, None]] = np.inf
    if stage == 0:
        found[1:] = np.inf
    if stage == setting.pp - 1:
        found[:, :-1] = np.inf
    return found, proof


def _ranges(values: Floats) -> Floats:
    """[row, a, b]: sums of values a to b - 1 of every row."""
    sums = np.concatenate([np.zeros((len(values), 1)), np.cumsum(values, axis=1)], axis=1)
    found: Floats = sums[:, None, :] - sums[:, :, None]
    return found


def _counted(values: Floats) -> Floats:
    """[row, 0, n]: sums of the first n values of every row."""
    sums = np.concatenate([np.zeros((len(values), 1)), np.cumsum(values, axis=1)], axis=1)
    return sums[:, None, :]


def _multipliers(seconds: Floats, size: Floats) -> Floats:
    """Slopes of every kind's lower hull of (bytes, seconds), and 0."""
    slopes = {0.0}
    for kind in range(len(seconds)):
        points = sorted(
            (float(b), float(t)) for b, t in zip(size[kind], seconds[kind], strict=True) if np.isfinite(t)
        )
        hull: list[tuple[float, float]] = []
        for b, t in points:
            if hull and t >= hull[-1][1]:
                continue
            while hull and hull[-1][0] == b:
                hull.pop()
            while len(hull) > 1 and _is_above(hull[-2], hull[-1], (b, t)):
                hull.pop()
            hull.append((b, t))
        slopes |= {(one[1] - two[1]) / (two[0] - one[0]) for one, two in pairwise(hull)}
    ordered = sorted(slopes)
    every = -(-len(ordered) // MAX_MULTIPLIERS)
    return np.array(ordered[::every])


def _is_above(one: tuple[float, float], middle: tuple[float, float], other: tuple[float, float]) -> bool:
    return (middle[1] - one[1]) * (other[0] - one[0]) >= (other[1] - one[1]) * (middle[0] - one[0])


def _sums(setting: LayeredSetting, stage: Floats) -> tuple[Floats, Floats]:
    """Least sums in front of and behind a stage, sends both ways with each stage boundary."""
    pp, size = setting.pp, stage.shape[1]
    send = setting.send_forward_seconds + setting.send_backward_seconds
    before = np.full((pp, size), np.inf)
    before[0, 0] = 0.0
    for i in range(1, pp):
        before[i] = (before[i - 1][:, None] + stage[i - 1]).min(axis=0) + send
    behind = np.full((pp, size), np.inf)
    behind[pp - 1] = stage[pp - 1][:, -1] + send
    for i in range(pp - 2, 0, -1):
        behind[i] = (stage[i] + behind[i + 1][None, :]).min(axis=1) + send
    return before, behind


def _least_step(setting: LayeredSetting, stage: Floats, before: Floats, behind: Floats) -> float:
    """Least step: some stage is at least as slow as the mean, and the sum passes through every path."""
    pp, m = setting.pp, setting.microbatches
    if pp == 1:
        return float(stage[0, 0, -1])
    whole = float((stage[0, 0, :] + behind[1]).min())
    slowest = _least_slowest(stage)
    # A stage of t seconds with w behind takes sum + (m - 1) t + max(-D, D - w t) >= sum + (m - 1 - w / 2) t.
    paths = [whole + slowest * (m - 1 - (pp - 1) / 2.0), m * slowest, whole]
    return max(paths) if m - 1 >= pp else max(m * slowest, whole)


def _least_update(setting: LayeredSetting, end: int) -> float:
    """Least seconds of the longest update over all splits, each layer with its own least."""
    order, spans = np.array(setting.layers), np.arange(len(setting.layers) + 1)
    found = []
    for stage in range(setting.pp):
        least = layer_rows(setting, stage)[:, :, UPDATE].min(axis=1)[order]
        held = _ranges(least[None])[0] + end_row(setting, stage, end)[UPDATE]
        held[spans[None, :] <= spans[:, None]] = np.inf
        found.append(held)
    return _least_slowest(np.array(found))


def _least_slowest(stage: Floats) -> float:
    """Least seconds of the slowest stage over all splits."""
    least = stage[0][0]
    for i in range(1, len(stage)):
        least = np.maximum(least[:, None], stage[i]).min(axis=0)
    return float(least[-1])
