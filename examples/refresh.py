"""Run the commands in the examples' and the project's README again, and rewrite outputs and plans.

    python examples/refresh.py [--check]

A fenced ``console`` block holds commands, one a line (a backslash continues it). The block behind the next
``<!-- output:NAME -->`` marker is what they print; ``exit:3`` in the marker is the exit code to expect, else
0. Each README's commands run in order in one temporary copy of its folder, so that a later command reads
the plan an earlier one wrote. ``--check`` writes nothing and exits 1 when anything is stale.
"""

from __future__ import annotations

import json
import math
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

EXAMPLES = Path(__file__).resolve().parent
ROOT = EXAMPLES.parent
FENCED = re.compile(r"^```console\n(?P<commands>.*?)^```$", re.DOTALL | re.MULTILINE)
SHOWN = re.compile(
    r"^<!-- output:(?P<name>[\w-]+)(?: exit:(?P<code>\d+))? -->\n```text\n(?P<text>.*?)^```$",
    re.DOTALL | re.MULTILINE,
)
CPU_SECONDS = re.compile(r"[\d.,]+ s of\s+CPU")
PROGRESS = re.compile(r"^  \d+ s: .*\n", re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """Commands as printed, the exit code they should have, and the output printed for them."""

    name: str
    commands: list[list[str]]
    code: int
    shown: str | None


@dataclass(frozen=True)
class Run:
    """What a block did: output and exit code of its last command (or of the first that failed)."""

    block: Block
    text: str
    code: int


def pages() -> list[Path]:
    """Every README that shows commands."""
    return [ROOT / "README.md", *sorted(EXAMPLES.glob("*/README.md"))]


def blocks(page: Path) -> list[Block]:
    """The command blocks of a README, each with the output shown for it."""
    text = page.read_text(encoding="utf-8")
    fences = list(FENCED.finditer(text))
    found = []
    for index, fence in enumerate(fences):
        end = fences[index + 1].start() if index + 1 < len(fences) else len(text)
        shown = SHOWN.search(text, fence.end(), end)
        name = shown["name"] if shown else f"block {index + 1}"
        code = int(shown["code"] or 0) if shown else 0
        found.append(Block(name, _commands(fence["commands"]), code, shown["text"] if shown else None))
    return found


def _commands(text: str) -> list[list[str]]:
    """Argument lists; of ``set up && planner ...`` only the planner's part."""
    lines = text.replace("\\\n", " ").strip().splitlines()
    found = []
    for line in lines:
        words = shlex.split(line.split("&&")[-1])
        if Path(words[0]).name != "planner":
            raise SystemExit(f"a console block may only run planner: {line}")
        found.append(words[1:])
    return found


def run_page(page: Path, folder: Path) -> Iterator[Run]:
    """Run a README's blocks in ``folder``, a copy of its own."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", "NO_COLOR": "1"}
    environment.pop("FORCE_COLOR", None)
    for block in blocks(page):
        text, code = "", 0
        for command in block.commands:
            done = subprocess.run(
                [sys.executable, "-W", "ignore", "-m", "planner", *command],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                encoding="utf-8",
                cwd=folder,
                env=environment,
                check=False,
            )
            text, code = text + done.stdout, done.returncode
            if code:
                break
        lines = PROGRESS.sub("", text).splitlines()
        yield Run(block, "".join(f"{line.rstrip()}\n" for line in lines), code)


def copy_of(page: Path, parent: Path) -> Path:
    """A copy of an example's input files without its plans; the published runs for the project's README."""
    folder = parent / page.parent.name
    if page.parent == ROOT:
        shutil.copytree(ROOT / "tests" / "published", folder / "tests" / "published")
    else:
        shutil.copytree(page.parent, folder, ignore=shutil.ignore_patterns("plan*.json"))
    return folder


def is_same_text(one: str, other: str) -> bool:
    """Whether two outputs agree in all but the CPU seconds spent (and the line breaks they move)."""

    def words(text: str) -> str:
        return " ".join(CPU_SECONDS.sub("CPU", text).split())

    return words(one) == words(other)


def is_same_data(one: Any, other: Any) -> bool:
    """Whether two JSON values agree, floating-point numbers to nine digits (processors round differently)."""
    if isinstance(one, dict) and isinstance(other, dict):
        return list(one) == list(other) and all(is_same_data(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(is_same_data, one, other))
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=1e-9, abs_tol=1e-9)
    return bool(one == other)


def is_same_plan(one: Path, other: Path) -> bool:
    """Whether two plan files state the same."""
    if not (one.is_file() and other.is_file()):
        return False
    return is_same_data(json.loads(one.read_text("utf-8")), json.loads(other.read_text("utf-8")))


def plans_of(page: Path) -> list[Path]:
    """The committed plans of an example."""
    return [] if page.parent == ROOT else sorted(page.parent.glob("plan*.json"))


def refresh(page: Path, *, check: bool) -> list[str]:
    """Rewrite what is stale beside ``page`` (nothing under ``check``) and say what it was."""
    stale = []
    text = page.read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory() as parent:
        folder = copy_of(page, Path(parent))
        for run in run_page(page, folder):
            if run.code != run.block.code:
                raise SystemExit(
                    f"{page}: {run.block.name}: exit {run.code}, not {run.block.code}\n{run.text}"
                )
            if run.block.shown is not None and not is_same_text(run.block.shown, run.text):
                stale.append(f"{page.relative_to(ROOT)}: output {run.block.name}")
                text = _with_output(text, run)
        if page.parent != ROOT:
            for plan in sorted({path.name for path in [*plans_of(page), *folder.glob("plan*.json")]}):
                made, kept = folder / plan, page.parent / plan
                if not is_same_plan(made, kept):
                    stale.append(str(kept.relative_to(ROOT)))
                    if not check:
                        shutil.copyfile(made, kept) if made.is_file() else kept.unlink()
    if not check and stale:
        page.write_text(text, encoding="utf-8")
    return stale


def _with_output(text: str, run: Run) -> str:
    for shown in SHOWN.finditer(text):
        if shown["name"] == run.block.name:
            return text[: shown.start("text")] + run.text + text[shown.end("text") :]
    raise SystemExit(f"no output marker {run.block.name}")


def main() -> int:
    """Exit code: 1 when ``--check`` found something stale."""
    check = "--check" in sys.argv[1:]
    stale = [line for page in pages() for line in refresh(page, check=check)]
    for line in stale:
        print(f"{'stale' if check else 'rewrote'}: {line}")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
