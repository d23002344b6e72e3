"""Labels of the dynamic program over stages: what the ranks so far cost, and which of them to keep."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from planner.cost.tail import Tail
from planner.search.recompute import Choice

SMALL = 1e-12


@dataclass(slots=True)
class Priced:
    """A rank's recompute choice (None for none), its least seconds per microbatch (sends excluded), its tail.

    The tail is worked out when first asked for: most ranges are ruled out before.
    """

    choice: Choice | None
    forward: float
    backward: float
    extra: float
    tail: Tail | None = None


class Label(NamedTuple):
    """What ranks 0..i cost, seconds; those of ``total`` have the straggler factor.

    total T, update U, before S, forward F and reduce R as in ``partition``; turn V and last L where weight
    gradients fill the drain; ``end``: blocks placed; ``priced`` and ``parent``: the last rank and the ranks
    before it.
    """

    total: float
    update: float
    before: float
    forward: float
    reduce: float
    turn: float = 0.0
    last: float = 0.0
    end: int = 0
    priced: Priced | None = None
    parent: Label | None = None

    @property
    def bound(self) -> float:
        return self.total + self.update

    def covers(self, other: Label, factor: float, *, has_drain: bool) -> bool:
        """Nothing that continues ``other`` can beat the same continuation of this label.

        ``factor``: the straggler factor. A longer update u is made up for where all else ends u sooner:
        what was seen, and what a later rank ends with, whose end grows by ``factor`` times the seconds before
        it (before + R; F for its own end; V + L without a drain).
        """
        longer = max(0.0, self.update - other.update)
        return (
            self.total + longer <= other.total + SMALL
            and self.reduce + longer <= other.reduce + factor * (other.before - self.before) + SMALL
            and longer <= factor * (other.forward - self.forward) + SMALL
            and (has_drain or self.last + longer <= other.last + factor * (other.turn - self.turn) + SMALL)
        )


def keep(labels: list[Label], new: Label, factor: float, *, has_drain: bool) -> None:
    """Add ``new`` to the labels of one state unless covered; drop what it covers."""
    total, update = new[0] + SMALL, new[1]
    before, forward = factor * new[2] + new[4] + SMALL, factor * new[3] + SMALL
    turn = factor * new[5] + new[6] + SMALL
    for old in labels:
        # ``covers`` written out: this line runs more often than any other of a deep model's search.
        longer = old[1] - update if old[1] > update else 0.0
        if (
            old[0] + longer <= total
            and factor * old[2] + old[4] + longer <= before
            and factor * old[3] + longer <= forward
            and (has_drain or factor * old[5] + old[6] + longer <= turn)
        ):
            return
    labels[:] = [
        old for old in labels if new[0] > old[0] + SMALL or not new.covers(old, factor, has_drain=has_drain)
    ]
    labels.append(new)
