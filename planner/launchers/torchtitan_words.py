"""Settings of a torchtitan run, found in a Python configuration module or a flag list; nothing is executed.

Three forms are read: assignments on a configuration (``c.parallelism.tensor_parallel_degree = 2``), sections
built by call (``ParallelismConfig(tensor_parallel_degree=2)``, ``replace(base.training, seq_len=4096)``), and
the constants of a module this project exports. Flags are ``--parallelism.tensor_parallel_degree 2``.
"""

from __future__ import annotations

import ast
import re
import shlex
from dataclasses import dataclass, field
from typing import Any

from planner.errors import InputError
from planner.launchers.imported import Files, one_file
from planner.launchers.shell import read_shell

SECTIONS = ("parallelism", "training", "activation_checkpoint", "optimizer", "model")
CALLS = {"ParallelismConfig": "parallelism", "TrainingConfig": "training"}
MODES = {"FullAC": "full", "SelectiveAC": "selective", "MemoryBudgetAC": "memory-budget", "None": "none"}
FLAG_MODES = {"full": "full", "selective": "selective", "memory-budget": "memory-budget", "none": "none"}


@dataclass
class Settings:
    """Section to field to value; one batch per version where a module has both; the model's name.

    is_complete: a section was built whole, so torchtitan's defaults hold for what it leaves out.
    """

    file: str
    sections: dict[str, dict[str, Any]] = field(default_factory=dict)
    versions: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    recompute: str | None = None
    registry: tuple[str, str] | None = None
    base: str | None = None
    is_complete: bool = False
    unknown: list[str] = field(default_factory=list)

    def put(self, section: str, name: str, value: Any) -> None:
        """Keep a setting."""
        self.sections.setdefault(section, {})[name] = value


def read_settings(files: Files) -> Settings:
    """The settings in a file. Raises InputError when there are none."""
    name = one_file(files, "torchtitan", ("planner_config.py",), (".py", ".sh", ".txt"))
    text = str(files[name])
    found = _module(name, text) if name.endswith(".py") else _flags(name, text)
    if not found.sections and not found.versions:
        raise InputError(
            "no settings of torchtitan (c.parallelism.x = ..., ParallelismConfig(...), --parallelism.x ...)",
            file=name,
        )
    return found


def _flags(name: str, text: str) -> Settings:
    found = Settings(name, is_complete=False)
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    if lines and lines[0].lstrip().startswith("--"):
        words = shlex.split(text.replace("\\\n", " "), comments=True)
    else:
        runs = [c for c in read_shell(text).commands if any(w.text.startswith("--parallelism.") for w in c)]
        if len(runs) != 1:
            raise InputError(f"{len(runs)} commands with --parallelism settings", file=name, hint="give one")
        for flag, after in zip(runs[0], [*runs[0][1:], runs[0][-1]], strict=True):
            doubt = flag.doubt or ("" if after.text.startswith("--") else after.doubt)
            if flag.text.startswith("--") and doubt:
                raise InputError(f"{flag.text}: {doubt}", file=name, hint="write the value")
        words = [word.text for word in runs[0]]
    at = 0
    while at < len(words):
        word, at = words[at], at + 1
        if word.startswith("activation-checkpoint:"):
            found.recompute = FLAG_MODES.get(word.partition(":")[2], word)
        if not word.startswith("--"):
            continue
        key, joined, value = word[2:].partition("=")
        if not joined and at < len(words) and not words[at].startswith("--"):
            value, at = words[at], at + 1
        elif not joined:
            value = "false" if ".no-" in key or ".no_" in key else "true"
        section, _, setting = key.replace("-", "_").partition(".")
        if setting:
            found.put(section, setting.removeprefix("no_") if value == "false" else setting, _literal(value))
        elif section in ("module", "config"):
            found.base = f"{found.base or ''} {value}".strip()
    return found


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return {"true": True, "false": False, "none": None}.get(text.lower(), text)


def _module(name: str, text: str) -> Settings:
    found = Settings(name)
    try:
        tree = ast.parse(text)
    except SyntaxError as error:
        raise InputError(f"not Python: line {error.lineno}: {error.msg}", file=name) from None
    constants: dict[str, Any] = {}
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            value = _value(node.value, constants)
            if value is not _UNKNOWN:
                constants[node.targets[0].id] = value
    if {"PARALLELISM", "BATCHES", "STAGES"} <= constants.keys():
        for constant in ("PARALLELISM", "BATCHES"):
            if not isinstance(constants[constant], dict):
                raise InputError(f"{constant} must be a table, not {constants[constant]!r}", file=name)
        for version, sections in constants["BATCHES"].items():
            if not isinstance(sections, dict) or not all(isinstance(s, dict) for s in sections.values()):
                raise InputError(f"BATCHES[{version!r}] must be a table of tables", file=name)
        found.sections["parallelism"] = dict(constants["PARALLELISM"])
        found.sections["parallelism"]["module_fqns_per_model_part"] = constants["STAGES"]
        found.versions = constants["BATCHES"]
        found.is_complete = True
    visitor = _Visitor(found, constants)
    visitor.visit(tree)
    match = re.search(r"torchtitan\.models\.(\w+) import [^\n]*model_registry", text)
    flavor = re.search(r"model_registry\(\s*[\"']([^\"']+)[\"']", text)
    if match and flavor:
        found.registry = (match[1], flavor[1])
    base = re.search(r"torchtitan\.models\.\w+\.config_registry import (\w+)", text)
    found.base = base[1] if base else None
    return found


_UNKNOWN = object()


class _Visitor(ast.NodeVisitor):
    """Collects assignments to sections and calls that build them."""

    def __init__(self, found: Settings, constants: dict[str, Any]) -> None:
        self.found, self.constants = found, constants

    def visit_Assign(self, node: ast.Assign) -> None:
        """``c.section.name = value`` and ``c.activation_checkpoint = FullAC.Config()``."""
        path = _path(node.targets[0])
        if len(path) >= 3 and path[-2] in SECTIONS:
            value = _value(node.value, self.constants)
            if value is _UNKNOWN:
                self.found.unknown.append(f"{path[-2]}.{path[-1]}")
            else:
                self.found.put(path[-2], path[-1], value)
        elif path and path[-1] == "activation_checkpoint":
            self._recompute(node.value)
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        """``ParallelismConfig(...)``, ``replace(base.training, ...)``, ``activation_checkpoint=...``."""
        path = _path(node.func)
        section = CALLS.get(path[-1]) if path else None
        if section is not None:
            self.found.is_complete |= section == "parallelism"
        elif path and path[-1] == "replace" and node.args:
            inner = _path(node.args[0])
            section = inner[-1] if inner and inner[-1] in SECTIONS else None
        for keyword in node.keywords:
            if keyword.arg == "activation_checkpoint":
                self._recompute(keyword.value)
            elif section is not None and keyword.arg is not None:
                value = _value(keyword.value, self.constants)
                if value is _UNKNOWN:
                    self.found.unknown.append(f"{section}.{keyword.arg}")
                else:
                    self.found.put(section, keyword.arg, value)
        self.generic_visit(node)

    def _recompute(self, node: ast.expr) -> None:
        text = ast.unparse(node)
        name = next((name for name in MODES if re.search(rf"\b{name}\b", text)), None)
        self.found.recompute = MODES[name] if name is not None else text


def _path(node: ast.expr) -> list[str]:
    """``a.b.c`` as its names; empty for anything else."""
    names: list[str] = []
    while isinstance(node, ast.Attribute):
        names.insert(0, node.attr)
        node = node.value
    return [node.id, *names] if isinstance(node, ast.Name) else names


def _value(node: ast.expr, constants: dict[str, Any]) -> Any:
    """A literal or a constant of the module; ``_UNKNOWN`` for what only running it would tell."""
    if isinstance(node, ast.Name) and node.id in constants:
        return constants[node.id]
    try:
        return ast.literal_eval(node)
    except ValueError:
        return _UNKNOWN
