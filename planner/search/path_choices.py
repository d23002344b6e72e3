"""Whole choices of every rank near the optimum of a path program, and the best of them together.

Ranks are coupled by the paths alone: with the choices of all others given, the step is the longest path, and
that is read off for every choice of a rank at once. So ranks change theirs in turn until none gains, which
takes milliseconds however many choices there are. What decides is that they differ in kind: of each number of
layers in the dearest mode some are kept.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from planner.cost.arrays import Array
from planner.search.choice_front import Choice
from planner.search.linear_program import Optimum
from planner.search.path_program import PathProgram

# Turns of all ranks, and paths looked for where the ranks' choices make another one critical.
MOST_TURNS = 8
MOST_PATHS = 12
# What a ms beyond the optimum's weighs at least: some passes, for what no path runs through yet.
LEAST_SURPLUS = 3.0
# ms of the step for which a choice is not changed.
TOLERANCE = 1e-9


class PathChoices:
    """Choices around one optimum of ``program``."""

    def __init__(self, program: PathProgram, found: Optimum) -> None:
        self.program = program
        self.extra = program.extras(found)
        self.weights = program.weights(found)
        self.offered: dict[int, list[Choice]] = {}
        for rank, choices in program.choices.items():
            mine = program.step.placed[rank]
            surplus = np.maximum(self.weights[mine], LEAST_SURPLUS)
            self.offered[rank] = choices.around(self.weights[mine], self.extra[mine], surplus)

    def best(self) -> Mapping[int, Choice] | None:
        """A choice of every rank, none of which a rank alone can better; None where a rank has none."""
        program = self.program
        if not all(self.offered.values()):
            return None
        for _ in range(MOST_PATHS):
            extra, picks = self._settled()
            longest = max(path.length + float(path.counts @ extra) for path in program.paths)
            if not program.add_path(extra, longest):
                break
        return {rank: self.offered[rank][pick] for rank, pick in picks.items()}

    def _settled(self) -> tuple[Array, dict[int, int]]:
        """(ms by virtual stage, choice of each rank): the heaviest ranks choose first."""
        program = self.program
        placed = program.step.placed
        counts = np.array([path.counts for path in program.paths])
        extra, picks = self.extra.copy(), dict[int, int]()
        ends = np.array([path.length for path in program.paths]) + counts @ extra
        table = {rank: np.array([one.extra for one in offered]) for rank, offered in self.offered.items()}
        # Of choices that no path tells apart the lighter one.
        light = {
            rank: 1e-3 * (each @ np.maximum(1.0, self.weights[placed[rank]])) for rank, each in table.items()
        }
        order = sorted(table, key=lambda rank: -float(self.weights[placed[rank]].sum()))
        for _ in range(MOST_TURNS):
            is_changed = False
            for rank in order:
                mine = placed[rank]
                others = ends - counts[:, mine] @ extra[mine]
                longest = (others[:, None] + counts[:, mine] @ table[rank].T).max(axis=0) + light[rank]
                pick = int(np.argmin(longest))
                if rank not in picks or longest[pick] < longest[picks[rank]] - TOLERANCE:
                    picks[rank], is_changed = pick, True
                    extra[mine] = table[rank][pick]
                    ends = others + counts[:, mine] @ extra[mine]
            if not is_changed:
                break
        return extra, picks
