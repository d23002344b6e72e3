"""How commands print: data on stdout, notes on stderr, errors as text or JSON, exit codes."""

from __future__ import annotations

import json
import re
import shutil
import sys
import time
from typing import TYPE_CHECKING, Any

from planner.errors import PlannerError
from planner.search.reporter import Reporter

if TYPE_CHECKING:
    from rich.console import Console

MAX_WIDTH, MIN_WIDTH = 80, 40
# The words of the running command, for hints that repeat it with a change.
invocation: list[str] = []
TRAILING_BLANKS = re.compile(r" +(?=\n)")
PROGRESS_AFTER_SECONDS = 1.0
PROGRESS_EVERY_SECONDS = 1.0


def console(*, stderr: bool = False) -> Console:
    """A console of at most 80 columns, fewer where COLUMNS or the terminal say so.

    Plain text when piped, no colour under NO_COLOR.
    """
    from rich.console import Console

    class Piped(Console):
        """Rich would exit 1, which says that a difference was found, when the reader went away."""

        def on_broken_pipe(self) -> None:
            raise BrokenPipeError

    stream: Any = sys.stderr if stderr else sys.stdout
    if not stream.isatty():
        stream = _Trimmed(stream)
    width = min(MAX_WIDTH, shutil.get_terminal_size((MAX_WIDTH, 0)).columns)
    return Piped(file=stream, width=max(MIN_WIDTH, width), highlight=False, soft_wrap=False, markup=False)


class _Trimmed:
    """A stream without the blanks that Rich fills lines with: files and pipes are read by other tools."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        return int(self.stream.write(TRAILING_BLANKS.sub("", text)))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def print_json(data: Any) -> None:
    """One JSON document on stdout."""
    sys.stdout.write(json.dumps(data, indent=2, allow_nan=False) + "\n")


def note(text: str) -> None:
    """One line on stderr."""
    sys.stderr.write(text + "\n")


def print_error(error: PlannerError, *, as_json: bool) -> None:
    """An error: as JSON on stdout, or in words on stderr."""
    if as_json:
        print_json(json.loads(json.dumps(error.as_dict(), default=str)))
        return
    note(f"error: {error}")
    if error.hint:
        note(f"hint: {error.hint}")


class ProgressLine(Reporter):
    """Progress on stderr once a search takes longer than a second."""

    def __init__(self) -> None:
        self.started = time.monotonic()
        self.last = self.started + PROGRESS_AFTER_SECONDS - PROGRESS_EVERY_SECONDS
        self.candidates = 0

    def enumerated(self, candidates: int) -> None:
        self.candidates = candidates
        self.say(f"pricing {candidates:,} candidates")

    def progress(self, tried: int, remaining: int, best_seconds: float, bound_seconds: float) -> None:
        best = f"best {best_seconds:.4g} s" if best_seconds < float("inf") else "no plan yet"
        self.say(f"{tried:,} solved, {best}, nothing left below {bound_seconds:.4g} s")

    def refining(self, label: str) -> None:
        self.say(f"integer program on {label}")

    def say(self, text: str) -> None:
        """``text`` on stderr when enough time has passed."""
        now = time.monotonic()
        if now - self.started >= PROGRESS_AFTER_SECONDS and now - self.last >= PROGRESS_EVERY_SECONDS:
            self.last = now
            note(f"  {now - self.started:.0f} s: {text}")
