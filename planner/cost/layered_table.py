"""The cost table of per-layer strategies: what a search over them sees, whoever filled it.

One ``LayeredSetting`` a (pp, microbatches): for every layer kind and strategy the seconds of one microbatch
and the bytes of one device. A reader of measured profiles fills it; an analytical model may. The price of a
decision is read off the table here and nowhere else:

    stage forward  = sum of its layers' forward  + layout changes between neighbours + its end + its own
    stage backward = the same of backward seconds
    stage update   = sum of its layers' updates + its end + the end's own constant
    stage bytes    = sum of states + microbatches in flight x sum of activations
                     + the largest working set among its layers + what their groups share
                     + its end + the reserve
    step           = max over stages of (its last backward's end in the replayed 1F1B timeline + its
                     exposed gradient synchronisation, which only the last microbatch has)
                     + max over stages of its update

Layouts: strategies that leave activations on the same ranks share a layout; ``change_*[a, b]`` is what a
layer of layout b pays behind one of layout a (both directions of a microbatch).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from planner.errors import InputError
from planner.schedule.steady import timeline as schedule_timeline
from planner.schedule.timeline import Timeline
from planner.strategy.layered import LayerChoice

Floats = NDArray[np.float64]
Codes = NDArray[np.intp]


@dataclass(frozen=True)
class LayerCosts:
    """Arrays [kind, strategy]: seconds of one microbatch, ``sync`` and ``update`` once a step; bytes of one
    device.

    ``update_seconds`` start when every stage has synchronised; None: there are none. ``activation_bytes`` are
    kept per microbatch in flight, ``working_bytes`` are needed while one layer runs. A strategy a kind cannot
    use has infinite seconds.
    """

    forward_seconds: Floats
    backward_seconds: Floats
    sync_seconds: Floats
    state_bytes: Floats
    activation_bytes: Floats
    working_bytes: Floats
    update_seconds: Floats | None = None

    @property
    def update(self) -> Floats:
        """``update_seconds``, zeros where there are none."""
        return np.zeros_like(self.sync_seconds) if self.update_seconds is None else self.update_seconds


@dataclass(frozen=True)
class EndCosts:
    """Embedding (first stage) or head and loss (last stage): arrays [end strategy], as ``LayerCosts``."""

    forward_seconds: Floats
    backward_seconds: Floats
    sync_seconds: Floats
    state_bytes: Floats
    activation_bytes: Floats
    update_seconds: Floats | None = None

    @property
    def update(self) -> Floats:
        """``update_seconds``, zeros where there are none."""
        return np.zeros_like(self.sync_seconds) if self.update_seconds is None else self.update_seconds


@dataclass(frozen=True)
class LayeredSetting:
    """The table of one (pp, microbatches).

    ``layers[l]`` is the kind of layer l; ``layout`` and ``end_layout`` map strategies to layouts;
    ``send_*_seconds`` is one microbatch between neighbouring stages, a delay that occupies no rank.
    ``reserve_bytes`` is held by every device. ``splits`` restricts the stages to one list of layer ranges.
    ``stage_forward_seconds`` and ``stage_backward_seconds`` are what every stage has beside its layers (sends
    that block it), ``constant_seconds[end]`` what every step has. Strategies that need the same buffers are
    one ``group``; ``shared_bytes(stage, end, mask)`` is what a stage needs once for all groups of a bit mask,
    never less for more of them.
    """

    pp: int
    microbatches: int
    layers: tuple[int, ...]
    strategies: tuple[LayerChoice, ...]
    ends: tuple[LayerChoice, ...]
    costs: LayerCosts
    first: EndCosts
    last: EndCosts
    layout: Codes
    end_layout: Codes
    change_forward_seconds: Floats
    change_backward_seconds: Floats
    send_forward_seconds: float = 0.0
    send_backward_seconds: float = 0.0
    reserve_bytes: float = 0.0
    splits: tuple[tuple[int, int], ...] | None = None
    stage_forward_seconds: tuple[float, ...] = ()
    stage_backward_seconds: tuple[float, ...] = ()
    constant_seconds: tuple[float, ...] = ()
    group: tuple[int, ...] = ()
    shared_bytes: Callable[[int, int, int], float] | None = None

    def mask(self, strategy: int) -> int:
        """The bit of a strategy's group."""
        return 1 << self.group[strategy] if self.group else 0

    def shared(self, stage: int, end: int, mask: int) -> float:
        """Bytes a stage needs once for the groups of ``mask``."""
        return self.shared_bytes(stage, end, mask) if self.shared_bytes is not None else 0.0

    def own_seconds(self, stage: int) -> tuple[float, float]:
        """(forward, backward) seconds of a microbatch that a stage has beside its layers."""
        if not self.stage_forward_seconds:
            return 0.0, 0.0
        return self.stage_forward_seconds[stage], self.stage_backward_seconds[stage]

    def constant(self, end: int) -> float:
        """Seconds of every step beside all stages' own."""
        return self.constant_seconds[end] if self.constant_seconds else 0.0

    def in_flight(self, stage: int) -> int:
        """Microbatches whose activations a stage of 1F1B holds at its fullest moment."""
        return min(self.microbatches, self.pp - stage)


@dataclass(frozen=True)
class LayeredStageCost:
    """One stage priced: seconds of one microbatch, exposed synchronisation, bytes by category."""

    forward_seconds: float
    backward_seconds: float
    sync_seconds: float
    state_bytes: float
    activation_bytes: float
    working_bytes: float
    reserve_bytes: float
    update_seconds: float = 0.0

    @property
    def total_bytes(self) -> float:
        return self.state_bytes + self.activation_bytes + self.working_bytes + self.reserve_bytes


def stage_cost(
    setting: LayeredSetting, stage: int, layers: tuple[int, int], chosen: tuple[int, ...], end: int
) -> LayeredStageCost:
    """Price of layers first to end (exclusive) on ``stage``; ``chosen`` are strategy indices of all
    layers."""
    c, kept = setting.costs, setting.in_flight(stage)
    sync = states = activations = working = 0.0
    forward, backward = setting.own_seconds(stage)
    update, mask = setting.constant(end), 0
    before: int | None = int(setting.end_layout[end]) if stage == 0 else None
    for layer in range(*layers):
        kind, s = setting.layers[layer], chosen[layer]
        layout = int(setting.layout[s])
        if before is not None:
            forward += float(setting.change_forward_seconds[before, layout])
            backward += float(setting.change_backward_seconds[before, layout])
        before = layout
        forward += float(c.forward_seconds[kind, s])
        backward += float(c.backward_seconds[kind, s])
        sync += float(c.sync_seconds[kind, s])
        states += float(c.state_bytes[kind, s])
        activations += float(c.activation_bytes[kind, s])
        working = max(working, float(c.working_bytes[kind, s]))
        mask |= setting.mask(s)
        update += float(c.update[kind, s])
    if stage == setting.pp - 1 and before is not None:
        after = int(setting.end_layout[end])
        forward += float(setting.change_forward_seconds[before, after])
        backward += float(setting.change_backward_seconds[before, after])
    for at, costs in ((0, setting.first), (setting.pp - 1, setting.last)):
        if stage == at:
            forward += float(costs.forward_seconds[end])
            backward += float(costs.backward_seconds[end])
            sync += float(costs.sync_seconds[end])
            update += float(costs.update[end])
            states += float(costs.state_bytes[end])
            activations += float(costs.activation_bytes[end])
    working += setting.shared(stage, end, mask)
    return LayeredStageCost(
        forward, backward, sync, states, activations * kept, working, setting.reserve_bytes, update
    )


def pipeline_timeline(
    setting: LayeredSetting, forward: list[float], backward: list[float], *, keep_events: bool = False
) -> Timeline:
    """The replayed 1F1B timeline of stages with these seconds a microbatch."""
    sends = [setting.send_forward_seconds] * setting.pp, [setting.send_backward_seconds] * setting.pp
    return schedule_timeline(
        "1f1b", setting.pp, setting.microbatches, 1, forward, backward, *sends, keep_events=keep_events
    )


def step_seconds(
    setting: LayeredSetting,
    forward: list[float],
    backward: list[float],
    sync: list[float],
    update: list[float] | None = None,
) -> float:
    """Seconds of a step: the latest end of a stage's last backward and its exposed synchronisation, then the
    longest update."""
    update = update or [0.0]
    if setting.pp == 1:
        return setting.microbatches * (forward[0] + backward[0]) + sync[0] + update[0]
    timeline = pipeline_timeline(setting, forward, backward)
    return max(end + extra for end, extra in zip(timeline.finish, sync, strict=True)) + max(update)


def chosen_indices(setting: LayeredSetting, choices: tuple[LayerChoice, ...]) -> tuple[int, ...]:
    """Strategy indices of ``choices``. Raises InputError for one the table does not have."""
    known = {choice: index for index, choice in enumerate(setting.strategies)}
    for layer, choice in enumerate(choices):
        if choice not in known:
            raise InputError(
                f"layer {layer}: the profile has no costs for {choice.label()} with pp {setting.pp} and "
                f"{setting.microbatches} microbatches",
                allowed=[other.label() for other in setting.strategies],
                hint=f"use {setting.strategies[0].label()}",
            )
    return tuple(known[choice] for choice in choices)
