"""Pareto fronts of one stage's per-layer choices.

C(l, s) is the set of (forward, backward, backward + synchronisation, update, bytes, working set) that no other choice
of the layers up to l ending in layout s beats everywhere; a layer adds its own cost and the change of layout
(Galvatron's recurrence, arXiv 2211.13878, with fronts in place of a memory axis). Backward + synchronisation
stands for the synchronisation because a stage ends one backward and one synchronisation after its last
backward starts: trading one for the other changes nothing else.

Labels that cannot lead below a bound on the stage's seconds are dropped by reduced cost: for the multiplier
of memory that solves the relaxed problem, seconds + multiplier x bytes of the rest is at least the sum of the
layers' minima.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from planner.cost.layered_table import Codes, Floats, LayeredSetting

FORWARD, BACKWARD, ENDING, UPDATE, BYTES, WORKING = range(6)
COLUMNS = 6
# Sums of the same terms in another order: far above their rounding, far below any tolerance.
SAME = 1e-12
# Columns of a stage's seconds: what the pipeline is put together from.
SECONDS = slice(0, 4)
# A front past these many labels, before and after dominance, is not worth its proof: the bound stays.
MAX_LABELS, MAX_FRONT = 8_000, 800


class TooManyLabels(Exception):
    """A front outgrew its budget; the caller falls back to its bound."""


@dataclass(frozen=True)
class StageOptions:
    """The front of one stage: rows of (forward, backward, backward + sync, update), and the strategies of
    each."""

    seconds: Floats
    chosen: tuple[tuple[int, ...], ...]


def pareto(rows: Floats, most: int | None = None) -> Codes:
    """Indices of rows no other row is at most everywhere; of equal rows the first, by total then by index.

    Numbers that differ by rounding alone (``SAME`` of their column's largest) are equal. Raises TooManyLabels
    when the front passes ``most`` rows.
    """
    order = np.argsort(rows.sum(axis=1), kind="stable")
    kept: list[int] = []
    left = order
    largest = np.abs(rows).max(axis=0, initial=0.0)
    values = np.rint(rows[order] / (np.where(largest > 0.0, largest, 1.0) * SAME))
    while len(left):
        kept.append(int(left[0]))
        if most is not None and len(kept) > most:
            raise TooManyLabels
        alive = (values < values[0]).any(axis=1)
        left, values = left[alive], values[alive]
    return np.array(kept, dtype=np.intp)


def layer_rows(setting: LayeredSetting, stage: int, end: int) -> Floats:
    """[kind, strategy, column]: what one layer adds on ``stage``, the working set as its own."""
    c = setting.costs
    kept = setting.in_flight(stage)
    if setting.pp == 1:
        # One stage: the step is linear, so one column carries it and the front has fewer dimensions.
        whole = setting.microbatches * (c.forward_seconds + c.backward_seconds) + c.sync_seconds + c.update
        zero = np.zeros_like(whole)
        columns = [zero, zero, whole, zero]
    else:
        columns = [c.forward_seconds, c.backward_seconds, c.backward_seconds + c.sync_seconds, c.update]
    size = c.state_bytes + kept * c.activation_bytes
    return np.stack([*columns, size, setting.working(stage, end)], axis=2)


def change_rows(setting: LayeredSetting) -> Floats:
    """[layout, layout, column]: what a change of layout adds."""
    f, b = setting.change_forward_seconds, setting.change_backward_seconds
    zero = np.zeros_like(f)
    if setting.pp == 1:
        return np.stack([zero, zero, setting.microbatches * (f + b), zero, zero, zero], axis=2)
    return np.stack([f, b, b, zero, zero, zero], axis=2)


def end_row(setting: LayeredSetting, stage: int, end: int) -> Floats:
    """[column]: embedding, head and loss on ``stage``, with what they keep, and the stage's own seconds."""
    row = np.zeros(COLUMNS)
    kept = setting.in_flight(stage)
    own, constant = setting.own_seconds(stage), setting.constant(end)
    if setting.pp == 1:
        row[ENDING] = setting.microbatches * sum(own) + constant
    else:
        row[:4] = (*own, own[1], constant)
    for at, costs in ((0, setting.first), (setting.pp - 1, setting.last)):
        if stage == at:
            f, b, g, u = (
                float(x[end])
                for x in (costs.forward_seconds, costs.backward_seconds, costs.sync_seconds, costs.update)
            )
            row[BYTES] += float(costs.state_bytes[end]) + kept * float(costs.activation_bytes[end])
            if setting.pp == 1:
                row[ENDING] += setting.microbatches * (f + b) + g + u
            else:
                row[:4] += (f, b, b + g, u)
    return row


def weight_rows(rows: Floats, pp: int) -> Floats:
    """The scalar a bound limits: stage seconds a microbatch, or the whole step when there is one stage."""
    return rows[..., ENDING] if pp == 1 else rows[..., FORWARD] + rows[..., BACKWARD]


def as_whole(rows: Floats) -> Floats:
    """Rows whose seconds of a microbatch, forward and backward together, stand alone: one column to be least."""
    whole = np.zeros_like(rows)
    whole[..., ENDING] = rows[..., FORWARD] + rows[..., BACKWARD]
    whole[..., BYTES:] = rows[..., BYTES:]
    return whole


def stage_options(
    setting: LayeredSetting,
    stage: int,
    layers: tuple[int, int],
    end: int,
    limit_bytes: float,
    below: float,
    multiplier: float,
    *,
    is_whole: bool = False,
) -> StageOptions:
    """The front of ``layers`` on ``stage`` within ``limit_bytes``, labels with seconds under ``below``.

    ``multiplier`` (seconds a byte) only speeds the pruning up. ``is_whole``: the fastest choice alone, by the
    seconds of one microbatch. Raises TooManyLabels past the budget.
    """
    table, change, own = layer_rows(setting, stage, end), change_rows(setting), end_row(setting, stage, end)
    if is_whole and setting.pp > 1:
        table, change, own = as_whole(table), as_whole(change), as_whole(own)
    pp = 1 if is_whole else setting.pp
    limit = limit_bytes - setting.reserve_bytes
    kinds = [setting.layers[layer] for layer in range(*layers)]
    reduced = [float((weight_rows(table[k], pp) + multiplier * table[k, :, BYTES]).min()) for k in kinds]
    least = [float(table[k, :, BYTES].min()) for k in kinds]
    rest_cost, rest_bytes = _suffix_sums(reduced), _suffix_sums(least)
    usable = [_usable(table[k], setting.layout) for k in kinds]
    layouts = sorted({int(x) for x in setting.layout})
    labels: dict[int, Floats] = {}
    history: list[dict[int, Codes]] = []
    for position, kind in enumerate(kinds):
        found: dict[int, tuple[Floats, Codes]] = {}
        for layout in layouts:
            strategies = usable[position][setting.layout[usable[position]] == layout]
            if not len(strategies):
                continue
            if position == 0:
                start = own.copy()
                if stage == 0:
                    start = start + change[int(setting.end_layout[end]), layout]
                base, source = start[None, :], np.array([[-1, -1]], dtype=np.intp)
            else:
                base, source = _arrivals(labels, change, layout)
            rows, came = _extend(base, source, table[kind], strategies)
            if position + 1 == len(kinds) and stage == setting.pp - 1:
                rows = rows + change[layout, int(setting.end_layout[end])]
            fits = rows[:, BYTES] + rows[:, WORKING] + rest_bytes[position + 1] <= limit
            weight = weight_rows(rows, pp)
            free = np.maximum(limit - rows[:, BYTES] - rows[:, WORKING], 0.0)
            promise = weight + rest_cost[position + 1] - multiplier * free
            alive = fits & (promise < below) & (weight < below)
            if alive.any():
                rows, came = rows[alive], came[alive]
                if len(rows) > MAX_LABELS:
                    raise TooManyLabels
                front = pareto(rows, MAX_FRONT)
                found[layout] = rows[front], came[front]
        labels = {layout: rows for layout, (rows, _) in found.items()}
        history.append({layout: came for layout, (_, came) in found.items()})
        if not labels:
            return StageOptions(np.zeros((0, 4)), ())
    return _collect(labels, history)


def _usable(rows: Floats, layout: Codes) -> Codes:
    """Strategies of finite cost that no strategy of the same layout beats everywhere."""
    kept = []
    for group in np.unique(layout):
        members = np.flatnonzero((layout == group) & np.isfinite(rows).all(axis=1))
        if len(members):
            kept.append(members[pareto(rows[members])])
    return np.sort(np.concatenate(kept)) if kept else np.zeros(0, dtype=np.intp)


def _arrivals(labels: dict[int, Floats], change: Floats, layout: int) -> tuple[Floats, Codes]:
    """Labels of every layout after changing to ``layout``, with (layout, index) each came from."""
    rows = [label + change[before, layout] for before, label in labels.items()]
    sources = [
        np.stack([np.full(len(label), before), np.arange(len(label))], axis=1)
        for before, label in labels.items()
    ]
    merged, source = np.concatenate(rows), np.concatenate(sources)
    kept = pareto(merged, MAX_FRONT)
    return merged[kept], source[kept]


def _extend(base: Floats, source: Codes, table: Floats, strategies: Codes) -> tuple[Floats, Codes]:
    """Every label with every strategy: sums, but the larger working set; (layout, index, strategy) behind."""
    rows = base[:, None, :] + table[strategies][None, :, :]
    rows[:, :, WORKING] = np.maximum(base[:, None, WORKING], table[strategies][None, :, WORKING])
    count = len(strategies)
    came = np.concatenate([np.repeat(source, count, axis=0), np.tile(strategies, len(base))[:, None]], axis=1)
    return rows.reshape(-1, COLUMNS), came


def _suffix_sums(values: list[float]) -> list[float]:
    sums = [0.0]
    for value in reversed(values):
        sums.append(sums[-1] + value)
    return sums[::-1]


def _collect(labels: dict[int, Floats], history: list[dict[int, Codes]]) -> StageOptions:
    """The front over all last layouts in its seconds, strategies traced back."""
    ends = [(layout, index) for layout, rows in labels.items() for index in range(len(rows))]
    rows = np.concatenate(list(labels.values()))[:, SECONDS]
    kept = pareto(rows)
    chosen = []
    for at in kept:
        layout, index = ends[int(at)]
        strategies = []
        for step in reversed(history):
            before, previous, strategy = (int(x) for x in step[layout][index])
            strategies.append(strategy)
            layout, index = before, previous
        chosen.append(tuple(reversed(strategies)))
    return StageOptions(rows[kept], tuple(chosen))
