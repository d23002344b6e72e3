"""The examples and the project's README: every command runs as printed, nothing shown is stale."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def _load():
    spec = importlib.util.spec_from_file_location("refresh", ROOT / "examples" / "refresh.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["refresh"] = module
    spec.loader.exec_module(module)
    return module


refresh = _load()
PAGES = {page.parent.name if page.parent != ROOT else "README": page for page in refresh.pages()}


@pytest.mark.parametrize("name", PAGES)
def test_every_command_runs_as_printed_and_its_output_is_not_stale(name, tmp_path):
    page = PAGES[name]
    folder = refresh.copy_of(page, tmp_path)
    runs = list(refresh.run_page(page, folder))
    assert runs
    for run in runs:
        assert run.code == run.block.code, f"{run.block.name}: {run.text}"
        assert "Traceback" not in run.text
        if run.block.shown is not None:
            same = refresh.is_same_text(run.block.shown, run.text)
            assert same, f"{page}: run examples/refresh.py; {run.block.name} now prints\n{run.text}"
    for plan in refresh.plans_of(page):
        assert refresh.is_same_plan(folder / plan.name, plan), f"{plan} is stale: run examples/refresh.py"


@pytest.mark.parametrize("name", PAGES)
def test_shown_output_is_attached_to_a_command(name):
    text = PAGES[name].read_text(encoding="utf-8")
    shown = [found["name"] for found in refresh.SHOWN.finditer(text)]
    attached = [block.name for block in refresh.blocks(PAGES[name]) if block.shown is not None]
    assert shown == attached
    assert len(set(shown)) == len(shown)
    assert text.count("<!-- output:") == len(shown)


def test_every_example_that_plans_commits_its_plan():
    for name, page in PAGES.items():
        commands = [command for block in refresh.blocks(page) for command in block.commands]
        writes = {
            command[command.index("-o") + 1]
            for command in commands
            if command[0] == "plan" and "-o" in command
        }
        if name != "README":
            assert {plan.name for plan in refresh.plans_of(page)} == writes


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("a, 1.20 s of CPU\n", "a, 0.07 s of CPU\n", True),
        ("a, 1.20 s of\n  CPU\n", "a, 0.07 s of CPU\n", True),
        ("54.7 s a step", "54.8 s a step", False),
        ("TP 2", "TP 4", False),
    ],
)
def test_only_the_cpu_seconds_may_differ(one, other, same):
    assert refresh.is_same_text(one, other) == same


def test_data_is_compared_to_nine_digits():
    assert refresh.is_same_data({"a": [1.0, "x"]}, {"a": [1.0 + 1e-12, "x"]})
    assert not refresh.is_same_data({"a": [1.0]}, {"a": [1.0001]})
    assert not refresh.is_same_data({"a": 1}, {"a": 2})
    assert not refresh.is_same_data({"a": 1}, {"b": 1})
