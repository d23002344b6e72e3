"""What Hetu-Galvatron's own reader (release 2.4.0) makes of a file, without the packages above it."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import sys
import types
from pathlib import Path
from typing import Any

import pytest


def reader(monkeypatch: pytest.MonkeyPatch) -> Any:
    """galvatron's hybrid_parallel_config module without the packages above it, which need CUDA builds."""
    spec = importlib.util.find_spec("galvatron")
    if spec is None or not spec.submodule_search_locations:
        raise ImportError("hetu-galvatron is not installed")
    root = Path(next(iter(spec.submodule_search_locations)))
    for name in ("galvatron", "galvatron.core", "galvatron.core.runtime"):
        package = types.ModuleType(name)
        package.__path__ = [str(root.parent.joinpath(*name.split(".")))]
        monkeypatch.setitem(sys.modules, name, package)
    path = root / "core" / "runtime" / "hybrid_parallel_config.py"
    loader = importlib.machinery.SourceFileLoader("galvatron_reader", str(path))
    module = types.ModuleType("galvatron_reader")
    loader.exec_module(module)
    return module


def derived_by_galvatron(
    config: dict[str, Any], layers: int, world: int, monkeypatch: pytest.MonkeyPatch
) -> tuple[dict[str, Any], types.SimpleNamespace]:
    """What release 2.4.0's own reader makes of the JSON on ``world`` ranks, and the arguments it changes."""
    module = reader(monkeypatch)
    monkeypatch.setattr(module.torch.distributed, "get_world_size", lambda *_: world)
    args = types.SimpleNamespace(
        local_rank=1,
        galvatron_config_path=config,
        pipeline_type="gpipe",
        default_dp_type="ddp",
        embed_sdp=0,
        chunks=1,
        global_train_batch_size=1,
        distributed_checkpoint=False,
    )
    monkeypatch.setattr(sys.modules["galvatron.core"], "get_args", lambda: args, raising=False)
    info = types.SimpleNamespace(layernums=lambda: [layers])
    found = module.get_hybrid_parallel_configs_api(None, args, lambda *_: info)
    module.check_hp_config(found, [layers])
    kinds = ["embed", *["gpt_dec"] * layers, "norm", "cls"]
    return found | module.hp_config_whole_model(kinds, found, args.embed_sdp, 0, args.vocab_tp), args
