"""Stages put together: labels over suffixes of the pipeline, bounded by paths, decided by replay.

A label of (stage i, first layer a) is a choice for stages i to the last: D the sum behind, N the least
seconds from microbatch 0 entering stage i to the last backward leaving it, S the same to the end of every
stage's synchronisation (paths of layered_bounds). First the labels are kept by (D, N, S) alone: the best of
them is the bound, and replaying it usually meets the bound. When it does not, the labels below the best
replayed step are kept by every stage's own seconds, of which the timeline is a monotone function, and all
that remain are replayed: no choice is lost that could be faster.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from planner.cost.layered_table import Codes, Floats, LayeredSetting, step_seconds
from planner.search.layered_bounds import Bounds, path_seconds, slack_seconds
from planner.search.layered_front import TooManyLabels, pareto

MAX_LABELS = 20_000
TOLERANCE = 1e-12

Options = Callable[[int, int, int], Floats]
Split = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Labels:
    """Labels of one (stage, first layer). ``rows``: D, N, S, U (the longest update), then every stage's
    seconds from the last to this one; ``came``: end layer, option, label behind."""

    rows: Floats
    came: Codes


@dataclass(frozen=True)
class Assembled:
    """A complete choice: its replayed step, and per stage (first, end, option index)."""

    seconds: float
    stages: tuple[tuple[int, int, int], ...]


@dataclass(frozen=True)
class PipelineResult:
    """Best found below the bound given (None when there is none), what is proved, and the effort."""

    best: Assembled | None
    lower_bound: float
    labels: int
    replays: int


def relaxed(setting: LayeredSetting, bounds: Bounds, below: float) -> tuple[float, Split]:
    """(least step, the split that has it) when every stage costs its bound; (infinity, ()) if not ``below``.

    Half of a stage's bound each way: the longer of the paths "start late" and "end late" is at least their
    mean, and the others depend on the sum alone, so this bounds every choice.
    """
    if setting.pp == 1:
        step = float(bounds.stage[0, 0, -1])
        return (step, ((0, len(setting.layers)),)) if step < below else (np.inf, ())

    def options(i: int, a: int, b: int) -> Floats:
        half = bounds.stage[i, a, b] / 2.0
        return np.array([[half, half, half, bounds.update]])

    tables, _ = _label(setting, bounds, options, below, is_exact=False)
    final = tables[0].get(0)
    if final is None:
        return np.inf, ()
    at = int(final.rows[:, 1].argmin())
    first, index, split = 0, at, []
    for i in range(setting.pp):
        end, _, label = (int(x) for x in tables[i][first].came[index])
        split.append((first, end))
        first, index = end, label
    return float(final.rows[at, 1]) + bounds.update, tuple(split)


def assemble(setting: LayeredSetting, bounds: Bounds, options: Options, below: float) -> PipelineResult:
    """The fastest step under ``below`` of one setting; ``options(i, a, b)`` are rows of a stage's seconds."""
    tables, labels = _label(setting, bounds, options, below, is_exact=False)
    final = tables[0].get(0)
    if final is None or not len(final.rows):
        return PipelineResult(None, below, labels, 0)
    ends = final.rows[:, 2] + final.rows[:, 3]
    least, at = float(ends.min()), int(ends.argmin())
    best = _replayed(setting, tables, at, options)
    if best.seconds <= least * (1 + TOLERANCE):
        return PipelineResult(best if best.seconds < below else None, min(best.seconds, below), labels, 1)
    limit = min(below, best.seconds)
    try:
        tables, more = _label(setting, bounds, options, limit, is_exact=True)
    except TooManyLabels:
        return PipelineResult(best if best.seconds < below else None, least, labels + MAX_LABELS, 1)
    final = tables[0].get(0)
    replays = 1
    if final is not None:
        ends = final.rows[:, 2] + final.rows[:, 3]
        for index in np.argsort(ends, kind="stable"):
            if ends[index] >= best.seconds:
                break
            replays += 1
            found = _replayed(setting, tables, int(index), options)
            if found.seconds < best.seconds:
                best = found
    is_better = best.seconds < below
    return PipelineResult(best if is_better else None, min(best.seconds, below), labels + more, replays)


def _label(
    setting: LayeredSetting, bounds: Bounds, options: Options, below: float, *, is_exact: bool
) -> tuple[list[dict[int, Labels]], int]:
    pp, count = setting.pp, len(setting.layers)
    tables: list[dict[int, Labels]] = [{} for _ in range(pp)]
    made = 0
    for i in range(pp - 1, -1, -1):
        is_open = bounds.stage[i] < slack_seconds(setting, bounds, i, below)
        for a in range(count) if i else (0,):
            rows, came = [], []
            for b in np.flatnonzero(is_open[a]).tolist():
                behind = None if i == pp - 1 else tables[i + 1].get(b)
                if (i < pp - 1) != (behind is not None):
                    continue
                own = options(i, a, b)
                if not len(own):
                    continue
                found, option, label = _join(setting, i, own, behind)
                # Backwards in front follow this stage's backward, not its synchronisation: S stands alone.
                latest = np.maximum(bounds.before[i, a] + found[:, 1], found[:, 2])
                alive = latest + np.maximum(found[:, 3], bounds.update) < below
                if alive.any():
                    rows.append(found[alive])
                    came.append(np.stack([np.full(int(alive.sum()), b), option[alive], label[alive]], axis=1))
            if rows:
                merged, source = np.concatenate(rows), np.concatenate(came)
                kept = pareto(merged[:, 4:] if is_exact else merged[:, :4])
                made += len(kept)
                if is_exact and made > MAX_LABELS:
                    raise TooManyLabels
                tables[i][a] = Labels(merged[kept], source[kept])
    return tables, made


def _join(
    setting: LayeredSetting, stage: int, own: Floats, behind: Labels | None
) -> tuple[Floats, Codes, Codes]:
    """Every option of a stage with every label behind it."""
    f, b, ending, update = own[:, 0:1], own[:, 1:2], own[:, 2:3], own[:, 3:4]
    m, w = setting.microbatches, setting.pp - 1 - stage
    if behind is None:
        zero = np.zeros((1, 1))
        n = path_seconds(m, w, f, b, zero)
        rows = np.stack([f + b, n, n + ending - b, update], axis=2).reshape(-1, 4)
        option = np.arange(len(own))
        return np.concatenate([rows, own], axis=1), option, np.full(len(own), -1)
    send = setting.send_forward_seconds + setting.send_backward_seconds
    d = behind.rows[None, :, 0] + send
    n = np.maximum(path_seconds(m, w, f, b, d), behind.rows[None, :, 1] + f + b + send)
    s = np.maximum(behind.rows[None, :, 2] + f + setting.send_forward_seconds, n + ending - b)
    total = d + f + b
    longest = np.maximum(behind.rows[None, :, 3], update)
    rows = np.stack([total, n, s, longest], axis=2).reshape(-1, 4)
    option = np.repeat(np.arange(len(own)), len(behind.rows))
    label = np.tile(np.arange(len(behind.rows)), len(own))
    return np.concatenate([rows, behind.rows[label, 4:], own[option]], axis=1), option, label


def _replayed(
    setting: LayeredSetting, tables: list[dict[int, Labels]], at: int, options: Options
) -> Assembled:
    """The choice behind one final label, its step replayed."""
    first, index = 0, at
    stages, forward, backward, sync, update = [], [], [], [], []
    for i in range(setting.pp):
        end, option, label = (int(x) for x in tables[i][first].came[index])
        f, b, ending, u = (float(x) for x in options(i, first, end)[option])
        stages.append((first, end, option))
        forward.append(f)
        backward.append(b)
        sync.append(ending - b)
        update.append(u)
        first, index = end, label
    return Assembled(step_seconds(setting, forward, backward, sync, update), tuple(stages))
