"""An import-only triton, so that projects which import it can be read on a machine without a GPU."""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any


class _Anything:
    """Stands for every lower-case name: a decorator that changes nothing, an object that allows all."""

    def __call__(self, *args: Any, **options: Any) -> Any:
        is_decorator = len(args) == 1 and callable(args[0]) and not options
        return args[0] if is_decorator else self

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Anything()

    def __getitem__(self, key: Any) -> Any:
        return self


class _Module(ModuleType):
    """A module with every name: capitalised ones are classes, others ``_Anything``."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        value: Any = _Anything()
        if name[:1].isupper():
            value = type(name, (), {"__init__": lambda self, *args, **options: None})
        setattr(self, name, value)
        return value


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname.split(".")[0] != "triton":
            return None
        return importlib.machinery.ModuleSpec(fullname, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        module = _Module(spec.name)
        module.__dict__["__version__"] = "0"
        return module

    def exec_module(self, module: ModuleType) -> None:
        pass


def install() -> None:
    """Make ``import triton`` work, after torch has found that there is none. Nothing if there is one."""
    is_there = any(isinstance(finder, _Finder) for finder in sys.meta_path)
    if is_there or importlib.util.find_spec("triton") is not None:
        return
    importlib.import_module("torch.utils._triton").has_triton_package()
    importlib.import_module("torch._dynamo")
    sys.meta_path.insert(0, _Finder())
