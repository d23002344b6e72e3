"""Independent work on several processes, results in the order of the input.

New interpreters are started (spawn): nothing depends on what the parent has open, and every system has it.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
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
    others = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(jobs, mp_context=context)
    try:
        with _deaf_children():
            futures = [pool.submit(_attempt, work, item) for item in items]
        for item, future in zip(items, futures, strict=True):
            found = future.result()
            yield work(item) if found is None else found[0]
    except BaseException:
        # Nobody waits for what is still being worked on.
        pool.shutdown(wait=False, cancel_futures=True)
        for child in set(multiprocessing.active_children()) - others:
            child.terminate()
        raise
    pool.shutdown()


@contextlib.contextmanager
def _deaf_children() -> Iterator[None]:
    """Processes started inside ignore Ctrl-C: a terminal sends it to all, and this one answers it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _attempt(work: Callable[[Item], Result], item: Item) -> tuple[Result] | None:
    """The result, None where it fails: errors carry what does not pickle, so the parent repeats the item."""
    try:
        return (work(item),)
    except PlannerError:
        return None
