"""The import table of the architecture, held by reading the imports of every module."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "planner"
# Who may import whom, inside the package. Rooms not listed here (api, cli, ...) may import everything.
ALLOWED = {
    "units": set(),
    "errors": set(),
    "workload": {"units", "errors"},
    "model": {"units", "errors"},
    "cluster": {"units", "errors"},
    "strategy": {"units", "errors", "model", "cluster", "workload"},
    "schedule": {"errors"},
    "cost": {"units", "errors", "model", "cluster", "workload", "strategy", "schedule"},
    "profiles": {"units", "errors", "documents", "model", "strategy", "cost"},
    "search": {"units", "errors", "model", "cluster", "workload", "strategy", "schedule", "cost"},
    "launchers": {"units", "errors", "model", "cluster", "workload", "strategy", "plan_file"},
}
# One module touches each outside thing.
OUTSIDE = {
    "pulp": {"search/integer_program.py"},
    "networkx": {"model/graph.py", "cluster/graph.py", "profiles/piper.py"},
    "yaml": {"documents.py"},
    "typer": "cli/",
    "rich": ("report/", "cli/"),
}
NO_PYDANTIC = ("cost", "profiles", "search", "schedule", "strategy")


@cache
def nodes(path: Path) -> list[ast.AST]:
    """Every node of a file's syntax tree."""
    return list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))


@cache
def imports(path: Path) -> set[str]:
    """Absolute module names a file imports anywhere, inside functions too."""
    found = set()
    for node in nodes(path):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def room(path: Path) -> str:
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


@pytest.mark.parametrize("name", sorted(ALLOWED))
def test_a_room_imports_only_what_the_table_allows(name):
    for path in modules():
        if room(path) != name:
            continue
        for module in imports(path):
            parts = module.split(".")
            if parts[0] == "planner" and len(parts) > 1 and parts[1] != name:
                assert parts[1] in ALLOWED[name], f"{path.relative_to(PACKAGE)} imports {module}"


@pytest.mark.parametrize("library", sorted(OUTSIDE))
def test_one_place_touches_each_outside_library(library):
    places = OUTSIDE[library]
    for path in modules():
        relative = path.relative_to(PACKAGE).as_posix()
        if library in {module.split(".")[0] for module in imports(path)}:
            fits = relative in places if isinstance(places, set) else relative.startswith(places)
            assert fits, f"{relative} imports {library}"


@pytest.mark.parametrize("name", NO_PYDANTIC)
def test_formulas_and_search_do_not_import_pydantic(name):
    for path in modules():
        if room(path) == name:
            assert "pydantic" not in {module.split(".")[0] for module in imports(path)}


def test_no_assert_on_user_input():
    for path in modules():
        assert not any(isinstance(node, ast.Assert) for node in nodes(path)), path
