"""Launchers by name. A launcher's module is imported when it is asked for, not before."""

from __future__ import annotations

from importlib import import_module
from typing import cast

from planner.errors import UnknownName
from planner.launchers.base import Launcher

# name -> (module, attribute holding the launcher)
_LAUNCHERS = {
    "accelerate": ("planner.launchers.accelerate", "ACCELERATE"),
    "deepspeed": ("planner.launchers.deepspeed", "DEEPSPEED"),
    "galvatron": ("planner.launchers.galvatron", "GALVATRON"),
    "megatron-bridge": ("planner.launchers.megatron_bridge", "MEGATRON_BRIDGE"),
    "megatron": ("planner.launchers.megatron", "MEGATRON"),
    "pytorch": ("planner.launchers.pytorch", "PYTORCH"),
    "torchtitan": ("planner.launchers.torchtitan", "TORCHTITAN"),
}


def launcher_names() -> list[str]:
    """Every launcher's name, sorted."""
    return sorted(_LAUNCHERS)


def launcher(name: str) -> Launcher:
    """The launcher called ``name``. Raises UnknownName with the nearest names."""
    if name not in _LAUNCHERS:
        raise UnknownName("launcher", name, _LAUNCHERS, hint=f"known: {', '.join(launcher_names())}")
    module, attribute = _LAUNCHERS[name]
    return cast(Launcher, getattr(import_module(module), attribute))
