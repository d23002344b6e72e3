"""The error hierarchy; one exit code per class.

    PlannerError
    |- InputError             exit 2   file, pointer into it, what, allowed, hint
    |  |- UnknownName         exit 2   nearest names
    |  `- UnsupportedFeature  exit 2   something in the model or the cluster we cannot price
    |- InfeasibleError        exit 3   which rule cut the last candidates, nearest miss, cheapest changes
    |- SolverError            exit 4   status, log tail
    |- UnsupportedByTarget    exit 5   the launcher cannot express a field
    `- Interrupted            exit 130 Ctrl-C before there was anything to print

Every error is also data: ``as_dict()`` is what ``--json`` prints.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

EXIT_DONE = 0
EXIT_DIFFERENT = 1
EXIT_BAD_INPUT = 2
EXIT_INFEASIBLE = 3
EXIT_SOLVER = 4
EXIT_TARGET = 5
EXIT_BUG = 70
EXIT_INTERRUPTED = 130


class PlannerError(Exception):
    """Base of everything the planner raises on purpose.

    ``message`` says the rule and the numbers; ``hint`` gives a value or command that would work;
    ``details`` holds the same facts for machines.
    """

    exit_code = EXIT_BUG
    kind = "error"

    def __init__(self, message: str, *, hint: str = "", **details: Any) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.details = {key: value for key, value in details.items() if value is not None}

    def as_dict(self) -> dict[str, Any]:
        """The error as JSON-ready data: kind, exit_code, message, hint and details."""
        return {
            "error": {
                "kind": self.kind,
                "exit_code": self.exit_code,
                "message": self.message,
                "hint": self.hint,
                **self.details,
            }
        }


class InputError(PlannerError):
    """A file, flag or value that breaks a stated rule."""

    exit_code = EXIT_BAD_INPUT
    kind = "bad_input"

    def __init__(
        self,
        message: str,
        *,
        file: str | None = None,
        pointer: str | None = None,
        allowed: Any = None,
        hint: str = "",
        **details: Any,
    ) -> None:
        super().__init__(message, hint=hint, file=file, pointer=pointer, allowed=allowed, **details)

    def __str__(self) -> str:
        where = self.details.get("file", "")
        pointer = self.details.get("pointer", "")
        prefix = f"{where}{':' if where and pointer else ''}{pointer}"
        return f"{prefix}: {self.message}" if prefix else self.message


class UnknownName(InputError):
    """A name that is in no catalog; carries the nearest ones."""

    kind = "unknown_name"

    def __init__(self, what: str, name: str, known: Iterable[str], *, hint: str = "") -> None:
        candidates = sorted(known)
        nearest = nearest_names(name, candidates)
        text = f"unknown {what} {name!r}"
        if nearest:
            text += f"; nearest: {', '.join(nearest)}"
        super().__init__(text, hint=hint, nearest=nearest, name=name)


class UnsupportedFeature(InputError):
    """Something in the model or the cluster that cannot be priced; never guessed silently."""

    kind = "unsupported_feature"


class InfeasibleError(PlannerError):
    """No decision satisfies every rule and the memory limit."""

    exit_code = EXIT_INFEASIBLE
    kind = "infeasible"


class SolverError(PlannerError):
    """The integer-program solver failed and no other answer exists."""

    exit_code = EXIT_SOLVER
    kind = "solver_failed"


class UnsupportedByTarget(PlannerError):
    """The launcher cannot express a field of the plan."""

    exit_code = EXIT_TARGET
    kind = "unsupported_by_target"


class Interrupted(PlannerError):
    """Ctrl-C before there was a plan, a row or a file to show."""

    exit_code = EXIT_INTERRUPTED
    kind = "interrupted"


def nearest_names(name: str, known: Iterable[str], count: int = 3) -> list[str]:
    """Up to ``count`` names close to ``name``: spelling distance first, then shared pieces."""
    known = list(known)
    lowered = {candidate.lower(): candidate for candidate in known}
    close = difflib.get_close_matches(name.lower(), lowered, n=count, cutoff=0.5)
    if not close:
        pieces = [piece for piece in name.lower().replace("_", "-").split("-") if len(piece) > 1]
        scored = [(sum(piece in low for piece in pieces), low) for low in lowered]
        close = [low for score, low in sorted(scored, key=lambda x: (-x[0], x[1])) if score][:count]
    return [lowered[low] for low in close]
