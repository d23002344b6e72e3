"""What the end of a rank waits for: the chain of operations and sends that leaves no gap before it.

Ends of operations are the longest of all ways through the graph of waits, each a sum of durations. Made
longer by d, an operation that lies n times on the critical way to an end therefore puts that end off by n d
at least, whatever else is made longer too: ends are convex in the durations, and the counts a subgradient.
"""

from __future__ import annotations

from dataclasses import dataclass

from planner.schedule.timeline import Program, Seconds


@dataclass(frozen=True)
class CriticalPaths:
    """Per rank: when it ends, and how often each duration (``Seconds.durations``) lies on the way there."""

    finish: tuple[float, ...]
    counts: tuple[tuple[int, ...], ...]


def critical_paths(program: Program, seconds: Seconds) -> CriticalPaths:
    """The critical way to the last operation of every rank; where two are as long, one of them."""
    durations, delays = seconds.durations(), seconds.delays()
    ends, causes = [0.0], [0]
    for before, source, delay, duration in program.steps:
        free, arrived = ends[before], ends[source] + delays[delay]
        ends.append((free if free > arrived else arrived) + durations[duration])
        causes.append(before if free > arrived else source)
    counts = []
    for mine in program.of_rank:
        found, step = [0] * len(durations), mine[-1]
        while step:
            found[program.steps[step - 1][3]] += 1
            step = causes[step]
        counts.append(tuple(found))
    return CriticalPaths(tuple(ends[mine[-1]] for mine in program.of_rank), tuple(counts))
