"""Operation orders of pipeline schedules.

An operation is (is_backward, microbatch, chunk): one microbatch through one chunk of the rank. Virtual
stage c * pp + rank is chunk c of that rank. Orders follow Megatron-LM: 1F1B (Narayanan et al., arXiv
2104.04473, section 2.2), interleaved 1F1B (same, section 2.2.2) and GPipe (1811.06965). Pure
combinatorics: no times, no hardware.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

from planner.errors import InputError


class Operation(NamedTuple):
    """One forward or backward of one microbatch through one chunk of a rank."""

    is_backward: bool
    microbatch: int
    chunk: int


Order = tuple[tuple[Operation, ...], ...]


@lru_cache(maxsize=64)
def operation_order(schedule: str, pp: int, microbatches: int, virtual_stages: int = 1) -> Order:
    """Per rank, the operations in the order the rank issues them.

    Raises InputError for interleaving with microbatches not a multiple of pp, or an unknown schedule.
    """
    if schedule == "gpipe":
        return tuple(_gpipe(microbatches) for _ in range(pp))
    if schedule == "1f1b":
        return tuple(_one_f_one_b(rank, pp, microbatches) for rank in range(pp))
    if schedule == "interleaved":
        if microbatches % pp:
            low = microbatches // pp * pp
            raise InputError(
                f"interleaved schedule: microbatches ({microbatches}) must be a multiple of pp ({pp})",
                allowed=[value for value in (low, low + pp) if value],
                hint=f"use {low + pp} microbatches or the 1f1b schedule",
            )
        return tuple(_interleaved(rank, pp, microbatches, virtual_stages) for rank in range(pp))
    raise InputError(f"unknown schedule {schedule!r}", allowed=["1f1b", "interleaved", "gpipe"])


def warmup_operations(schedule: str, rank: int, pp: int, microbatches: int, virtual_stages: int = 1) -> int:
    """Forward operations a rank issues before its first backward."""
    if schedule == "gpipe":
        return microbatches
    if schedule == "1f1b":
        return min(microbatches, pp - rank)
    total = microbatches * virtual_stages
    return min(total, 2 * (pp - rank - 1) + (virtual_stages - 1) * pp + 1)


@lru_cache(maxsize=65536)
def alive_states(
    schedule: str, rank: int, pp: int, microbatches: int, virtual_stages: int = 1
) -> tuple[tuple[int, ...], ...]:
    """Microbatches whose activations a rank holds, per chunk, at every moment that may be its fullest.

    The first state is the end of the warm-up, just before the first backward frees anything. Without
    virtual stages no later moment holds more; with them the total stays the same but shifts between
    chunks, so every state not covered by another is listed.
    """
    warmup = warmup_operations(schedule, rank, pp, microbatches, virtual_stages)
    if virtual_stages == 1:
        return ((warmup,),)
    # The pattern repeats every pp microbatches: a few groups show every state.
    few = min(microbatches, 4 * pp)
    counts = [0] * virtual_stages
    seen: dict[tuple[int, ...], None] = {}
    forwards = 0
    for operation in operation_order(schedule, pp, few, virtual_stages)[rank]:
        counts[operation.chunk] += -1 if operation.is_backward else 1
        forwards += not operation.is_backward
        if not operation.is_backward and forwards >= min(warmup, few * virtual_stages):
            seen[tuple(counts)] = None
    states = list(seen)
    first = states[0]
    kept = [
        state
        for state in states[1:]
        if not any(_covers(other, state) and other != state for other in states) and state != first
    ]
    return (first, *kept)


def _covers(one: tuple[int, ...], other: tuple[int, ...]) -> bool:
    return all(a >= b for a, b in zip(one, other, strict=True))


@lru_cache(maxsize=65536)
def in_flight(
    schedule: str, rank: int, pp: int, microbatches: int, virtual_stages: int = 1
) -> tuple[int, ...]:
    """The first of ``alive_states``: counts per chunk at the end of the warm-up."""
    warmup = warmup_operations(schedule, rank, pp, microbatches, virtual_stages)
    if virtual_stages == 1:
        return (warmup,)
    groups, within = divmod(warmup, pp * virtual_stages)
    return tuple(groups * pp + min(pp, max(0, within - chunk * pp)) for chunk in range(virtual_stages))


def _gpipe(microbatches: int) -> tuple[Operation, ...]:
    forward = [Operation(False, i, 0) for i in range(microbatches)]
    return tuple(forward + [Operation(True, i, 0) for i in range(microbatches)])


def _one_f_one_b(rank: int, pp: int, microbatches: int) -> tuple[Operation, ...]:
    warmup = min(microbatches, pp - rank - 1)
    forward = [Operation(False, i, 0) for i in range(microbatches)]
    backward = [Operation(True, i, 0) for i in range(microbatches)]
    steady = [op for pair in zip(forward[warmup:], backward, strict=False) for op in pair]
    return tuple(forward[:warmup] + steady + backward[microbatches - warmup :])


def _virtual_microbatch(k: int, pp: int, virtual_stages: int) -> tuple[int, int]:
    """(microbatch, chunk) of the k-th forward: pp microbatches through chunk 0, then chunk 1, ..."""
    group, within = divmod(k, pp * virtual_stages)
    chunk, offset = divmod(within, pp)
    return group * pp + offset, chunk


def _interleaved(rank: int, pp: int, microbatches: int, v: int) -> tuple[Operation, ...]:
    total = microbatches * v
    warmup = min(total, 2 * (pp - rank - 1) + (v - 1) * pp)
    forward = [Operation(False, *_virtual_microbatch(k, pp, v)) for k in range(total)]
    backward = []
    for k in range(total):
        microbatch, chunk = _virtual_microbatch(k, pp, v)
        backward.append(Operation(True, microbatch, v - 1 - chunk))
    steady = [op for pair in zip(forward[warmup:], backward, strict=False) for op in pair]
    return tuple(forward[:warmup] + steady + backward[total - warmup :])
