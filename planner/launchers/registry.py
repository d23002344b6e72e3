"""Launchers by name. A launcher's module is imported when it is asked for, not before."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import cast

from planner.errors import UnknownName
from planner.launchers.base import Launcher
from planner.launchers.imported import Facts, Files, Imported

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

# name -> (module, function that reads the launcher's file); Bridge overrides are Megatron's flags renamed
_IMPORTERS = {
    "accelerate": ("planner.launchers.accelerate_import", "read_accelerate_files"),
    "megatron-bridge": ("planner.launchers.megatron_import", "read_megatron"),
    "deepspeed": ("planner.launchers.deepspeed_import", "read_deepspeed_files"),
    "galvatron": ("planner.launchers.galvatron_import", "read_galvatron_files"),
    "megatron": ("planner.launchers.megatron_import", "read_megatron"),
    "pytorch": ("planner.launchers.pytorch_import", "read_pytorch"),
    "torchtitan": ("planner.launchers.torchtitan_import", "read_torchtitan"),
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


def importer(name: str) -> Callable[[Files, Facts], Imported]:
    """The function that reads files of the launcher called ``name``. Raises UnknownName."""
    if name not in _IMPORTERS:
        raise UnknownName("launcher", name, _IMPORTERS, hint=f"known: {', '.join(sorted(_IMPORTERS))}")
    module, attribute = _IMPORTERS[name]
    return cast(Callable[[Files, Facts], Imported], getattr(import_module(module), attribute))


def not_carried(name: str) -> tuple[str, ...]:
    """Fields of a decision that the launcher's file cannot carry, so that an import may differ in them."""
    return cast("tuple[str, ...]", import_module(_IMPORTERS[name][0]).NOT_CARRIED)
