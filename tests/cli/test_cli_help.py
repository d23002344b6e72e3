"""--help of every command: exit 0, an example that truly runs, at most 80 columns."""

from __future__ import annotations

import re
from pathlib import Path
from shlex import split

import pytest

from planner import __version__

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = [
    "plan",
    "estimate",
    "explain",
    "compare",
    "export",
    "report",
    "validate",
    "calibrate",
    "schema",
    "models list",
    "models show",
    "hardware list",
    "hardware show",
]


def example_of(text: str) -> list[str]:
    """The words behind ``Example: planner``; the help may have wrapped them, even inside a flag."""
    found = re.search(r"Example:\s+planner\s+(.*?)\n\s*\n", text, re.DOTALL)
    assert found, text
    return split(re.sub(r"(?<=[a-z])-\n\s+", "-", found.group(1)))


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_an_example_that_works(cli, command, plan_file, tmp_path, monkeypatch):
    outcome = cli(*command.split(), "--help")
    assert outcome.code == 0
    assert max(map(len, outcome.out.splitlines())) <= 80
    assert "\x1b" not in outcome.out
    words = example_of(outcome.out)
    assert words[: len(command.split())] == command.split()
    if command in ("validate", "calibrate"):  # run whole by tests of their own
        assert command != "validate" or (ROOT / words[-1]).is_file()
        return
    monkeypatch.chdir(tmp_path)
    (tmp_path / "plan.json").write_bytes(plan_file.read_bytes())
    if command == "export":
        arguments = split("--model llama-3.1-8b --gpu h100-sxm --gpus 8 --seq-len 4096 --global-batch 64")
        assert cli("plan", *arguments, "--target", "megatron", "-o", "plan.json").code == 0
    assert cli(*words).code == 0


@pytest.mark.parametrize("group", ["", "models", "hardware"])
def test_help_of_the_groups(cli, group):
    outcome = cli(*group.split(), "--help")
    assert outcome.code == 0
    assert "Commands:" in outcome.out
    assert max(map(len, outcome.out.splitlines())) <= 80


def test_the_version(cli):
    outcome = cli("--version")
    assert outcome.code == 0
    assert outcome.out == f"planner {__version__}\n"


def test_no_command_shows_the_help(cli):
    outcome = cli()
    assert outcome.code in (0, 2)
    assert "Commands:" in outcome.out + outcome.err
