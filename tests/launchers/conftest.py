"""Plans found by the real search, kept per session, and ways to change one on purpose."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from planner.catalog import load_device, load_model, load_profile
from planner.cluster.topology import resolve_cluster
from planner.cost.constants import default_constants
from planner.cost.model import CostModel
from planner.launchers.megatron import MEGATRON_LIMITS
from planner.launchers.registry import launcher
from planner.plan_file.build import build_decision, build_inputs, build_prediction
from planner.plan_file.schema import Options, Plan, SearchRecord
from planner.search.engine import search
from planner.search.tree import Pins
from planner.strategy.candidates import Problem
from planner.strategy.limits import Limits
from planner.workload import Workload

# Helper modules beside the tests; pytest's importlib mode leaves their folder out.
sys.path.insert(0, str(Path(__file__).resolve().parent))

# name: model, cluster profile, GPUs, sequence length, global batch, pins, other workload fields
CASES: dict[str, tuple[str, str, int, int, int, dict[str, Any], dict[str, Any]]] = {
    "llama-2-7b": ("llama-2-7b", "dgx-a100", 8, 4096, 64, {}, {}),
    "llama-3-8b-cp": ("llama-3-8b", "dgx-h100", 16, 8192, 64, {"cp": 2, "sharding": "optimizer"}, {}),
    "llama-3-8b-fp8": (
        "llama-3-8b",
        "dgx-h100",
        16,
        8192,
        64,
        {"tp": 2, "pp": 2, "cp": 1, "dp": 4, "recompute": "selective"},
        {"precision": "fp8", "tokens": 1e9},
    ),
    "llama-2-70b-fsdp": ("llama-2-70b", "dgx-a100", 32, 4096, 64, {"tp": 1, "pp": 1, "cp": 1}, {}),
    "llama-2-70b-full": (
        "llama-2-70b",
        "dgx-a100",
        32,
        4096,
        64,
        {"tp": 4, "pp": 4, "dp": 2, "virtual_stages": 1, "recompute": "full"},
        {},
    ),
    "gpt3-175b": ("gpt3-175b", "dgx-a100", 64, 2048, 128, {"tp": 8, "pp": 8, "virtual_stages": 6}, {}),
    "gpt2-unfused": (
        "gpt2-xl",
        "dgx-a100",
        8,
        1024,
        64,
        {"tp": 1, "pp": 4, "virtual_stages": 1, "recompute": "selective"},
        {"precision": "fp16", "attention": "unfused", "optimizer": "sgd-momentum"},
    ),
    "qwen2.5-72b-b200": ("qwen2.5-72b", "dgx-b200", 64, 8192, 64, {"tp": 4, "pp": 2}, {}),
    "mixtral-8x7b": ("mixtral-8x7b", "dgx-h100", 16, 4096, 64, {}, {}),
    "qwen3-30b-a3b": ("qwen3-30b-a3b", "dgx-h100", 16, 4096, 64, {"pp": 4, "schedule": "1f1b"}, {}),
    "deepseek-v2": (
        "deepseek-v2",
        "dgx-h100",
        64,
        4096,
        128,
        {"tp": 2, "pp": 8, "virtual_stages": 1, "recompute": "selective"},
        {},
    ),
    "deepseek-v3": ("deepseek-v3", "dgx-h100", 256, 4096, 1024, {}, {}),
    "gpt-oss-120b": ("gpt-oss-120b", "dgx-h100", 64, 4096, 64, {"cp": 1, "tp": 2, "pp": 4}, {}),
    "mistral-7b": ("mistral-7b", "dgx-h100", 8, 8192, 64, {"cp": 1, "pp": 4}, {}),
}


@cache
def find_plan(name: str) -> Plan:
    """The plan the search finds for a case, under Megatron-LM's limits."""
    model_name, profile_name, gpus, sequence, batch, pins, fields = CASES[name]
    return plan_for(model_name, profile_name, gpus, sequence, batch, pins, fields)


def plan_for(
    model_name: str,
    profile_name: str,
    gpus: int,
    sequence: int,
    batch: int,
    pins: dict[str, Any],
    fields: dict[str, Any],
    memory_bytes: float | None = None,
    limits: Limits = MEGATRON_LIMITS,
) -> Plan:
    """Search and build the plan file; ``memory_bytes`` overrides the device's."""
    model, _ = load_model(model_name)
    profile = load_profile(profile_name)
    device = load_device(profile.node_groups[0].device)
    limit = memory_bytes or device.memory_bytes
    workload = Workload(sequence_length=sequence, global_batch=batch, **fields)
    cluster = resolve_cluster(profile, device, gpus)
    priced = CostModel.of(Problem(model, cluster, workload, limit), default_constants(device), limits.stack)
    found = search(priced, limits, Pins(**pins), top=1)
    options = Options(target=limits.target, stack=limits.stack, memory_limit_bytes=limit)
    return Plan(
        planner_version="0.0.test",
        inputs=build_inputs(priced, profile, device, options),
        decision=build_decision(found.best.decision),
        prediction=build_prediction(priced, found.best.prediction),
        search=SearchRecord(
            status="gap",
            space=found.space,
            lower_bound_seconds=found.lower_bound_seconds,
            gap=found.gap,
            cpu_seconds=0.0,
            funnel=[],
        ),
    )


def change(plan: Plan, **paths: Any) -> Plan:
    """A copy with fields replaced; ``a__b__0__c`` is the place a.b[0].c of the plan file."""
    data = plan.model_dump(mode="json")
    for path, value in paths.items():
        *outer, last = path.split("__")
        place: Any = data
        for key in outer:
            place = place[int(key)] if key.isdigit() else place[key]
        place[int(last) if last.isdigit() else last] = value
    return Plan.model_validate(data)


def command_line(files: dict[str, str], folder: Path, **variables: str) -> list[str]:
    """What train.sh hands to torchrun, found by running it with a torchrun that prints its arguments."""
    fake = folder / "torchrun"
    fake.write_text('#!/bin/sh\nprintf \'%s\\0\' "$@" "env:${CUDA_DEVICE_MAX_CONNECTIONS-unset}"\n')
    fake.chmod(0o755)
    script = folder / "train.sh"
    script.write_text(files["train.sh"])
    environment = {
        "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}",
        "MEGATRON_LM": "/megatron",
        "LEARNING_RATE": "1e-4",
        "TRAIN_ITERS": "10",
        "ROTARY_BASE": "10000",
        "MASTER_ADDR": "node0",
        "NODE_RANK": "0",
        "MOCK_DATA": "1",
        "CUDA_DEVICE_MAX_CONNECTIONS": "7",
    } | variables
    environment = {name: value for name, value in environment.items() if value}
    done = subprocess.run(
        ["bash", str(script), "--log-interval", "1"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(done.stderr)
    return done.stdout.split("\0")[:-1]


@pytest.fixture(scope="session")
def plans() -> Callable[[str], Plan]:
    return find_plan


@cache
def target_plan(
    target: str,
    model: str,
    profile: str,
    gpus: int,
    sequence: int,
    batch: int,
    pins: tuple[tuple[str, Any], ...] = (),
    fields: tuple[tuple[str, Any], ...] = (),
    memory_bytes: float | None = None,
) -> Plan:
    """The plan the search finds under the limits of ``target``; kept, so arguments are hashable."""
    limits = launcher(target).limits
    return plan_for(model, profile, gpus, sequence, batch, dict(pins), dict(fields), memory_bytes, limits)


@pytest.fixture(scope="session")
def planned() -> Callable[..., Plan]:
    return target_plan


@pytest.fixture(scope="session")
def changed() -> Callable[..., Plan]:
    return change


@pytest.fixture(scope="session")
def plan_of() -> Callable[..., Plan]:
    return plan_for


@pytest.fixture
def run_script(tmp_path: Path) -> Callable[..., list[str]]:
    return lambda files, **variables: command_line(files, tmp_path, **variables)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Every test that takes ``case`` runs on every case."""
    if "case" in metafunc.fixturenames:
        metafunc.parametrize("case", list(CASES))
