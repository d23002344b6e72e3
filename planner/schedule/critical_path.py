"""What the end of a rank waits for: the chain of operations and sends that leaves no gap before it.

Ends of operations are the longest of all ways through the graph of waits, each a sum of durations. Made
longer by d, an operation that lies n times on the critical way to an end therefore puts that end off by n d
at least, whatever else is made longer too: ends are convex in the durations, and the counts a subgradient.
"""

from __future__ import annotations

from functools import cached_property

from planner.schedule.timeline import Program, Seconds, run


class CriticalPaths:
    """``program`` replayed with these ``seconds``."""

    def __init__(self, program: Program, seconds: Seconds) -> None:
        self.program, self._delays = program, seconds.delays()
        self._num_durations = len(seconds.durations())
        self._ends = run(program, seconds)

    @cached_property
    def finish(self) -> tuple[float, ...]:
        """When each rank ends."""
        return tuple(self._ends[mine[-1]] for mine in self.program.of_rank)

    def counts(self, rank: int) -> tuple[int, ...]:
        """How often each duration (``Seconds.durations``) lies on the critical way to the end of a rank.

        Where two ways are as long, those of one of them.
        """
        steps, ends, delays = self.program.steps, self._ends, self._delays
        counts = [0] * self._num_durations
        step = self.program.of_rank[rank][-1]
        while step:
            before, source, delay, duration = steps[step - 1]
            counts[duration] += 1
            step = before if ends[before] > ends[source] + delays[delay] else source
        return tuple(counts)
