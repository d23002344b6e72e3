"""Events of a search; every method is empty, so a listener overrides only what it wants to hear."""

from __future__ import annotations


class Reporter:
    """Listens to a search."""

    def enumerated(self, candidates: int) -> None:
        """The decision tree left this many candidates."""

    def progress(self, tried: int, remaining: int, best_seconds: float, bound_seconds: float) -> None:
        """Some candidates were solved; ``best_seconds`` so far, nothing left can beat ``bound_seconds``."""

    def improved(self, label: str, step_seconds: float) -> None:
        """A better plan was found."""

    def refining(self, label: str) -> None:
        """The integer program starts on a plan whose memory binds."""
