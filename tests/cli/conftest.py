"""Running the command line: in this process (fast) or in a process of its own (true)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from shlex import split
from typing import Any

import pytest

from planner.cli.app import run

ROOT = Path(__file__).resolve().parents[2]
SMALL = split("--model llama-3.1-8b --gpu h100-sxm --gpus 8 --seq-len 4096 --global-batch 64")


@dataclass(frozen=True)
class Outcome:
    """What one invocation left behind."""

    code: int
    out: str
    err: str

    def json(self) -> Any:
        """stdout as one JSON document; NaN and infinity are errors."""

        def refuse(text: str) -> None:
            raise ValueError(f"{text} is not JSON")

        return json.loads(self.out, parse_constant=refuse)


@pytest.fixture
def cli(capfd: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """``cli("plan", "--model", ...)`` runs the command in this process."""

    def call(*arguments: object) -> Outcome:
        capfd.readouterr()
        code = run([str(argument) for argument in arguments])
        out, err = capfd.readouterr()
        return Outcome(code, out, err)

    return call


@pytest.fixture(scope="session")
def process() -> Callable[..., Outcome]:
    """``process("plan", ..., env={...})`` runs the command in a process of its own."""

    def call(*arguments: object, env: dict[str, str] | None = None, cwd: Path | None = None) -> Outcome:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), **(env or {})}
        done = subprocess.run(
            [sys.executable, "-m", "planner", *map(str, arguments)],
            capture_output=True,
            text=True,
            encoding="utf-8",
            env=environment,
            cwd=cwd or ROOT,
            timeout=60,
            check=False,
        )
        return Outcome(done.returncode, done.stdout, done.stderr)

    return call


@pytest.fixture(scope="session")
def small() -> list[str]:
    """Arguments of a plan that is found in a fraction of a second."""
    return list(SMALL)


@pytest.fixture(scope="session")
def plan_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plan file, written by the command line once for all tests."""
    path = tmp_path_factory.mktemp("plans") / "plan.json"
    assert run(["plan", *SMALL, "-o", str(path)]) == 0
    return path
