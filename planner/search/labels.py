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

    def covers(self, other: Label) -> bool:
        """Nothing that continues ``other`` can beat the same continuation of this label."""
        return (
            self.total <= other.total + SMALL
            and self.update <= other.update + SMALL
            and self.before <= other.before + SMALL
            and self.forward <= other.forward + SMALL
            and self.reduce <= other.reduce + SMALL
            and self.turn <= other.turn + SMALL
            and self.last <= other.last + SMALL
        )


def keep(labels: list[Label], new: Label) -> None:
    """Add ``new`` to the labels of one state unless covered; drop what it covers."""
    total, update, before = new.total + SMALL, new.update + SMALL, new.before + SMALL
    forward, reduce = new.forward + SMALL, new.reduce + SMALL
    turn, last = new.turn + SMALL, new.last + SMALL
    for old in labels:
        # ``covers`` written out: this line runs more often than any other of a deep model's search.
        if (
            old[0] <= total
            and old[2] <= before
            and old[3] <= forward
            and old[1] <= update
            and old[4] <= reduce
            and old[5] <= turn
            and old[6] <= last
        ):
            return
    labels[:] = [old for old in labels if new[0] > old[0] + SMALL or not new.covers(old)]
    labels.append(new)
