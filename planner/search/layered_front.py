"""Pareto fronts of one stage's per-layer choices.

C(l, s) is the set of (forward, backward, backward + synchronisation, update, bytes, working set, groups used)
that no other choice of the layers up to l ending in layout s beats everywhere; a layer adds its own cost and
the change of layout (Galvatron's recurrence, arXiv 2211.13878, with fronts in place of a memory axis).
Backward + synchronisation stands for the synchronisation because a stage ends one backward and one
synchronisation after its last backward starts: trading one for the other changes nothing else.

Labels that cannot lead below a bound on the stage's seconds are dropped by reduced cost: for the multiplier
of memory that solves the relaxed problem, seconds + multiplier x bytes of the rest is at least the sum of the
layers' minima.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from planner.cost.layered_table import Codes, Floats, LayeredSetting
from planner.search.undominated import undominated

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


def pareto(rows: Floats, most: int | None = None, masks: Floats | None = None) -> Codes:
    """Indices of rows no other row is at most everywhere; of equal rows the first, by total then by index.

    ``masks``: further columns, that do not count in the total. Numbers that differ by rounding alone
    (``SAME`` of their column's largest) are equal. Raises TooManyLabels when the front passes ``most`` rows.
    """
    if len(rows) == 1:
        return np.zeros(1, dtype=np.intp)
    total = rows.sum(axis=1)
    order = np.argsort(total, kind="stable") if masks is None else np.lexsort((masks.sum(axis=1), total))
    largest = np.abs(rows).max(axis=0, initial=0.0)
    values = np.rint(rows[order] / (np.where(largest > 0.0, largest, 1.0) * SAME))
    if masks is not None:
        values = np.concatenate([values, masks[order]], axis=1)
    found = order[undominated(values)]
    if most is not None and len(found) > most:
        raise TooManyLabels
    return found


def layer_rows(setting: LayeredSetting, stage: int) -> Floats:
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
    return np.stack([*columns, size, c.working_bytes], axis=2)


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
    """Rows with the seconds of a microbatch, forward and backward together, as the one column to be least."""
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
    table, change, own = layer_rows(setting, stage), change_rows(setting), end_row(setting, stage, end)
    if is_whole and setting.pp > 1:
        table, change, own = as_whole(table), as_whole(change), as_whole(own)
    pp = 1 if is_whole else setting.pp
    limit = limit_bytes - setting.reserve_bytes
    kinds = [setting.layers[layer] for layer in range(*layers)]
    priced = (weight_rows(table, pp) + multiplier * table[:, :, BYTES]).min(axis=1).tolist()
    smallest = table[:, :, BYTES].min(axis=1).tolist()
    reduced, least = [priced[k] for k in kinds], [smallest[k] for k in kinds]
    rest_cost, rest_bytes = _suffix_sums(reduced), _suffix_sums(least)
    usable = {k: _usable(table[k], setting.layout, np.array(setting.group)) for k in set(kinds)}
    bits = np.array([setting.mask(s) for s in range(table.shape[1])], dtype=np.intp)
    shared: dict[int, float] = {}
    layouts = sorted({int(x) for x in setting.layout})
    labels: dict[int, Labels] = {}
    history: list[dict[int, Codes]] = []
    for position, kind in enumerate(kinds):
        found: dict[int, tuple[Labels, Codes]] = {}
        for layout in layouts:
            strategies = usable[kind][setting.layout[usable[kind]] == layout]
            if not len(strategies):
                continue
            if position == 0:
                start = own.copy()
                if stage == 0:
                    start = start + change[int(setting.end_layout[end]), layout]
                base = Labels(start[None, :], np.zeros(1, dtype=np.intp))
                source = np.array([[-1, -1]], dtype=np.intp)
            else:
                base, source = _arrivals(labels, change, layout)
            rows, masks, came = _extend(base, source, table[kind], bits, strategies)
            if position + 1 == len(kinds) and stage == setting.pp - 1:
                rows = rows + change[layout, int(setting.end_layout[end])]
            need = rows[:, BYTES] + rows[:, WORKING]
            if setting.shared_bytes is not None:
                for mask in np.unique(masks).tolist():
                    if mask not in shared:
                        shared[mask] = setting.shared(stage, end, mask)
                need = need + np.array([shared[mask] for mask in masks.tolist()])
            weight = weight_rows(rows, pp)
            promise = weight + rest_cost[position + 1] - multiplier * np.maximum(limit - need, 0.0)
            alive = (need + rest_bytes[position + 1] <= limit) & (promise < below) & (weight < below)
            if alive.any():
                rows, masks, came = rows[alive], masks[alive], came[alive]
                if len(rows) > MAX_LABELS:
                    raise TooManyLabels
                front = pareto(rows, MAX_FRONT, _bits(masks))
                found[layout] = Labels(rows[front], masks[front]), came[front]
        labels = {layout: own_labels for layout, (own_labels, _) in found.items()}
        history.append({layout: came for layout, (_, came) in found.items()})
        if not labels:
            return StageOptions(np.zeros((0, 4)), ())
    return _collect(labels, history)


@dataclass(frozen=True)
class Labels:
    """Choices up to a layer, one row each, and the groups of strategies they use as bit masks."""

    rows: Floats
    masks: Codes


def _bits(masks: Codes) -> Floats | None:
    """One column a group, 1 where a label uses it; None where no label differs."""
    used = int(np.bitwise_or.reduce(masks))
    columns = [masks >> group & 1 for group in range(used.bit_length()) if used >> group & 1]
    return np.stack(columns, axis=1).astype(float) if len(columns) > 1 else None


def _usable(rows: Floats, layout: Codes, group: Codes) -> Codes:
    """Strategies of finite cost that no strategy of the same layout and group beats everywhere."""
    kept = []
    classes = layout if not len(group) else layout * (int(group.max()) + 1) + group
    for one in np.unique(classes):
        members = np.flatnonzero((classes == one) & np.isfinite(rows).all(axis=1))
        if len(members):
            kept.append(members[pareto(rows[members])])
    return np.sort(np.concatenate(kept)) if kept else np.zeros(0, dtype=np.intp)


def _arrivals(labels: dict[int, Labels], change: Floats, layout: int) -> tuple[Labels, Codes]:
    """Labels of every layout after changing to ``layout``, with (layout, index) each came from."""
    rows = np.concatenate([label.rows + change[before, layout] for before, label in labels.items()])
    masks = np.concatenate([label.masks for label in labels.values()])
    source = np.concatenate(
        [
            np.stack([np.full(len(label.rows), before), np.arange(len(label.rows))], axis=1)
            for before, label in labels.items()
        ]
    )
    if len(labels) == 1:  # a front moved as a whole is one still
        return Labels(rows, masks), source
    kept = pareto(rows, MAX_FRONT, _bits(masks))
    return Labels(rows[kept], masks[kept]), source[kept]


def _extend(
    base: Labels, source: Codes, table: Floats, bits: Codes, strategies: Codes
) -> tuple[Floats, Codes, Codes]:
    """Every label with every strategy: sums, but the larger working set; masks; (layout, index, strategy)
    behind."""
    rows = base.rows[:, None, :] + table[strategies][None, :, :]
    rows[:, :, WORKING] = np.maximum(base.rows[:, None, WORKING], table[strategies][None, :, WORKING])
    masks = base.masks[:, None] | bits[strategies][None, :]
    count = len(strategies)
    behind = np.tile(strategies, len(base.rows))[:, None]
    came = np.concatenate([np.repeat(source, count, axis=0), behind], axis=1)
    return rows.reshape(-1, COLUMNS), masks.reshape(-1), came


def _suffix_sums(values: list[float]) -> list[float]:
    sums = [0.0]
    for value in reversed(values):
        sums.append(sums[-1] + value)
    return sums[::-1]


def _collect(labels: dict[int, Labels], history: list[dict[int, Codes]]) -> StageOptions:
    """The front over all last layouts in its seconds, strategies traced back."""
    ends = [(layout, index) for layout, own in labels.items() for index in range(len(own.rows))]
    rows = np.concatenate([own.rows for own in labels.values()])[:, SECONDS]
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
