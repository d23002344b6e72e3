"""Odd values in launcher files: an answer or an error with words, never a traceback."""

from __future__ import annotations

import ast
import json
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from file_checks import (
    ACCELERATE,
    DEEPSPEED,
    GALVATRON,
    MEGATRON,
    TORCHTITAN,
    TRAINING,
    megatron_file,
    torchtitan_file,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from planner.errors import PlannerError
from planner.file_checking import check_file
from planner.imported_estimate import estimate_file
from planner.importing import Answers
from planner.launchers.registry import launcher
from planner.request import Request

ODD: list[Any] = [
    None,
    True,
    False,
    0,
    -1,
    1,
    3,
    7,
    64,
    10**12,
    1.5,
    "",
    "x",
    "auto",
    "4",
    "1,2",
    [],
    [1],
    {},
    {"a": 1},
]
REQUEST = Request("llama-3.1-8b", cluster="dgx-h100", gpus=16, optimizer=None, attention=None)


def tried(path: Path, target: str) -> None:
    """Check and price a file; only errors with words may come out."""
    for request in (REQUEST, REQUEST.changed(model="", gpus=None)):
        for ask in (
            partial(check_file, str(path), target, gpus=request.gpus),
            partial(estimate_file, target, str(path), request, Answers(), top=0),
        ):
            assert answer(ask)


def answer(ask: Callable[[], object]) -> str:
    """What a call says; anything but an error of this project goes through."""
    try:
        return str(ask())
    except PlannerError as error:
        return str(error)


def changed(data: st.DataObject, good: dict[str, Any]) -> dict[str, Any]:
    """One or two values, at the top or in a section, replaced by odd ones."""
    document = json.loads(json.dumps(good))
    for _ in range(data.draw(st.integers(1, 2))):
        place = document
        key = data.draw(st.sampled_from(sorted(document)))
        if isinstance(place[key], dict) and place[key] and data.draw(st.booleans()):
            place = place[key]
            key = data.draw(st.sampled_from(sorted(place)))
        place[key] = deepcopy(data.draw(st.sampled_from(ODD)))
    return document


@pytest.mark.parametrize(
    ("target", "name", "good"),
    [
        (
            "deepspeed",
            "ds.json",
            DEEPSPEED | {"tensor_parallel": {"autotp_size": 2}, "sequence_parallel_size": 1},
        ),
        ("accelerate", "a.yaml", ACCELERATE),
        ("galvatron", "g.json", GALVATRON),
        ("megatron", "flags.json", {"flags": MEGATRON, "nodes": 2, "gpus_per_node": 8, "environment": {}}),
    ],
)
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_odd_values_in_documents(tmp_path, target, name, good, data):
    path = tmp_path / name
    path.write_text(json.dumps(changed(data, good)), encoding="utf-8")
    tried(path, target)


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_odd_values_in_scripts(tmp_path, data):
    flags = data.draw(st.lists(st.sampled_from(sorted(MEGATRON)), min_size=1, max_size=2))
    odd = st.sampled_from(["", "x", "0", "-1", "1e3", "$A", "'Et|tL'", "99999999999", "'[1]*3'", "3 4"])
    path = tmp_path / "train.sh"
    path.write_text(
        megatron_file({flag: data.draw(odd) for flag in flags if "--n" not in flag[:3]}), encoding="utf-8"
    )
    tried(path, "megatron")


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_odd_values_in_modules(tmp_path, data):
    odd = st.sampled_from(ODD)
    mesh = {data.draw(st.sampled_from([*sorted(TORCHTITAN), "module_fqns_per_model_part"])): data.draw(odd)}
    training = {data.draw(st.sampled_from(sorted(TRAINING))): data.draw(odd)}
    path = tmp_path / "c.py"
    path.write_text(torchtitan_file(mesh, training), encoding="utf-8")
    tried(path, "torchtitan")


@pytest.mark.parametrize("target", ["pytorch", "torchtitan"])
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_odd_constants_in_exported_scripts(tmp_path, planned, target, data):
    plan = planned(target, "llama-3.1-8b", "dgx-h100", 16, 4096, 64, (("pp", 2),))
    files = launcher(target).export(plan)
    (name,) = [name for name in files if name.endswith(".py")]
    lines = files[name].splitlines()
    nodes = [
        n
        for n in ast.parse(files[name]).body
        if isinstance(n, ast.Assign) and isinstance(n.targets[0], ast.Name)
    ]
    node = data.draw(st.sampled_from([n for n in nodes if n.targets[0].id.isupper()]))
    text = f"{node.targets[0].id} = {data.draw(st.sampled_from(ODD))!r}"
    path = tmp_path / name
    path.write_text("\n".join([*lines[: node.lineno - 1], text, *lines[node.end_lineno :]]), encoding="utf-8")
    tried(path, target)
