"""Independent work on several processes, results in the order of the input.

New interpreters are started (spawn): nothing depends on what the parent has open, and every system has it.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import TypeVar

from planner.errors import PlannerError

Item = TypeVar("Item")
Result = TypeVar("Result")


def usable_cores() -> int:
    """Cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def in_order(work: Callable[[Item], Result], items: Sequence[Item], jobs: int) -> Iterator[Result]:
    """``work`` on every item, in order, on at most ``jobs`` processes; this one alone where that is 1.

    ``work`` and the items are pickled. A PlannerError of an item is raised when its turn comes, from this
    process, as it would be with one.
    """
    jobs = min(jobs, len(items))
    if jobs <= 1:
        yield from map(work, items)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context) as pool:
        try:
            futures = [pool.submit(_attempt, work, item) for item in items]
            for item, future in zip(items, futures, strict=True):
                found = future.result()
                yield work(item) if found is None else found[0]
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _attempt(work: Callable[[Item], Result], item: Item) -> tuple[Result] | None:
    """The result, None where it fails: errors carry what does not pickle, so the parent repeats the item."""
    try:
        return (work(item),)
    except PlannerError:
        return None
