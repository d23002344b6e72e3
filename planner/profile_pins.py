"""Choices a user fixes beside ``--profile``: the tables with what is left of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from planner.cost.layered_table import EndCosts, LayerCosts, LayeredSetting
from planner.errors import InputError
from planner.profiles.galvatron_costs import Tabled
from planner.strategy.decision import RECOMPUTES, SHARDINGS
from planner.strategy.layered import LayerChoice


@dataclass(frozen=True)
class ProfilePins:
    """Choices fixed for every layer, and for embedding and head where they have them; None is free.

    ``cp`` is context parallelism by all-to-all, the tables' sp. ``microbatch_size``: sequences of one data
    rank.
    """

    pp: int | None = None
    tp: int | None = None
    dp: int | None = None
    cp: int | None = None
    microbatch_size: int | None = None
    sharding: str | None = None
    recompute: str | None = None

    def items(self) -> dict[str, int | str]:
        """The choices that are pinned."""
        return {name: value for name, value in self.__dict__.items() if value is not None}


FLAGS = {"microbatch_size": "--micro-batch"}
# What a choice is on a strategy, given the sequences of one microbatch over all ranks of a stage.
VALUES: dict[str, Callable[[LayerChoice, int], int | str]] = {
    "tp": lambda c, _: c.tp,
    "dp": lambda c, _: c.dp,
    "cp": lambda c, _: c.sp,
    "microbatch_size": lambda c, sequences: sequences // c.dp,
    "sharding": lambda c, _: SHARDINGS[c.sharding],
    "recompute": lambda c, _: RECOMPUTES[c.recompute],
}


def with_pins(tabled: Tabled, pins: ProfilePins, global_batch: int) -> Tabled:
    """The tables with the pinned choices alone.

    A layer alone on its weights follows any pinned sharding; recompute binds layers only. Raises InputError
    naming the values the profile covers when nothing is left.
    """
    wanted = pins.items()
    settings = tabled.settings
    for name, value in wanted.items():
        kept = [one for one in (_pinned(s, name, value, global_batch) for s in settings) if one is not None]
        allowed = sorted({v for s in settings for v in _values(s, name, global_batch)}, key=str)
        if not kept or value not in allowed:
            flag = FLAGS.get(name, f"--{name}")
            beside = ", ".join(f"{FLAGS.get(k, '--' + k)} {v}" for k, v in wanted.items() if k != name)
            raise InputError(
                f"{flag} {value}: the profile covers {', '.join(map(str, allowed))}"
                + (f" beside {beside}" if beside else ""),
                allowed=allowed,
                hint=f"use {flag} {allowed[-1]}",
            )
        settings = kept
    return Tabled(settings, tabled.left_out)


def _values(setting: LayeredSetting, name: str, global_batch: int) -> list[int | str]:
    if name == "pp":
        return [setting.pp]
    sequences = global_batch // setting.microbatches
    return [VALUES[name](choice, sequences) for choice in setting.strategies]


def _pinned(setting: LayeredSetting, name: str, value: Any, global_batch: int) -> LayeredSetting | None:
    """The setting with strategies of one value, None when a layer or the ends have none left."""
    if name == "pp":
        return setting if setting.pp == value else None
    sequences = global_batch // setting.microbatches

    def keeps(choice: LayerChoice) -> bool:
        is_free = name == "sharding" and choice.sharding_ranks == 1
        return is_free or VALUES[name](choice, sequences) == value

    layers = [i for i, choice in enumerate(setting.strategies) if keeps(choice)]
    ends = [i for i, choice in enumerate(setting.ends) if name == "recompute" or keeps(choice)]
    if not layers or not ends:
        return None
    columns: dict[str, Any] = {
        name: None if array is None else array[:, layers] for name, array in vars(setting.costs).items()
    }
    return replace(
        setting,
        strategies=tuple(setting.strategies[i] for i in layers),
        ends=tuple(setting.ends[i] for i in ends),
        costs=LayerCosts(**columns),
        first=_some(setting.first, ends),
        last=_some(setting.last, ends),
        layout=setting.layout[layers],
        end_layout=setting.end_layout[ends],
    )


def _some(costs: EndCosts, ends: list[int]) -> EndCosts:
    columns: dict[str, Any] = {
        name: None if array is None else array[ends] for name, array in vars(costs).items()
    }
    return EndCosts(**columns)
