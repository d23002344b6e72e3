"""The launchers' own code takes exported files and agrees with the plan; a changed file it does not."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from acceptance import ACCEPTANCE
from round_trip import write

pytestmark = pytest.mark.heavy

PACKAGES = {
    "accelerate": ("accelerate", "transformers"),
    "deepspeed": ("deepspeed",),
    "galvatron": ("torch",),  # its own package puts a Megatron of its own on the path when imported
    "megatron": ("megatron.core", "torch"),
    "pytorch": ("torch",),
    "torchtitan": ("torch", "torchtitan"),
}
PINS = {
    "accelerate": (("tp", 2),),
    "deepspeed": (("tp", 2),),
    "megatron": (("tp", 2), ("pp", 4), ("virtual_stages", 2)),
    "pytorch": (("tp", 2), ("pp", 2)),
    "torchtitan": (("tp", 2), ("pp", 2)),
    "galvatron": (("tp", 2), ("pp", 2)),
}


def edit_json(file: str, change: Callable[[dict], None]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        document = json.loads((folder / file).read_text(encoding="utf-8"))
        change(document)
        (folder / file).write_text(json.dumps(document), encoding="utf-8")

    return edit


def edit_text(file: str, pattern: str, new: str) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        path = next(folder.glob(file))
        text = path.read_text(encoding="utf-8")
        changed = re.sub(pattern, new, text, count=1)
        assert changed != text
        path.write_text(changed, encoding="utf-8")

    return edit


CHANGES = {
    "accelerate": edit_text("accelerate.yaml", r"tp_size: 2", "tp_size: 4"),
    "deepspeed": edit_json("ds_config.json", lambda d: d.update(gradient_accumulation_steps=1)),
    "megatron": edit_json("flags.json", lambda d: d["flags"].update({"--recompute-granularity": ["ful"]})),
    "pytorch": edit_text("train.py", r'"dp_replicate": 1', '"dp_replicate": 2'),
    "torchtitan": edit_text("planner_config.py", r'("tensor_parallel_degree"): 2', r"\1: 4"),
    "galvatron": edit_text("galvatron_config*.json", r'("pp_deg"): 2', r"\1: 4"),
}


@pytest.fixture(params=sorted(ACCEPTANCE))
def exported(request, planned, tmp_path):
    target = request.param
    for package in PACKAGES.get(target, (target,)):
        pytest.importorskip(package)
    plan = planned(target, "llama-3.1-8b", "dgx-h100", 16, 4096, 64, PINS.get(target, ()))
    write(plan, target, tmp_path)
    return target, plan, tmp_path


def test_the_launcher_agrees_with_the_plan(exported):
    target, plan, folder = exported
    assert ACCEPTANCE[target](plan, folder) == []


def test_a_changed_file_is_refused_or_differs(exported):
    target, plan, folder = exported
    if target not in CHANGES:
        pytest.fail(f"{target} has an acceptance function and no changed file to try it on")
    CHANGES[target](folder)
    try:
        found = ACCEPTANCE[target](plan, folder)
    except Exception as error:
        found = [str(error)]
    assert found
