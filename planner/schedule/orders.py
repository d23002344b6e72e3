"""Operation orders of pipeline schedules.

An operation is (kind, microbatch, chunk): one microbatch through one chunk of the rank. Chunk c of a rank is
virtual stage c * pp + rank, or, where the pipeline folds back (zb-v), 2 pp - 1 - rank for the second chunk.
Orders follow Megatron-LM: 1F1B (Narayanan et al., arXiv 2104.04473, section 2.2), interleaved 1F1B (same,
section 2.2.2) and GPipe (1811.06965); and PyTorch: zero bubble (Qi et al., arXiv 2401.10241), zb-h1
(section 2.3.1, rank r delays r weight gradients), zb-h2 (2.3.2, twice as deep) and zb-v (section 6). Pure
combinatorics: no times, no
hardware.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

from planner.errors import InputError

FORWARD, BACKWARD, INPUT_GRADIENT, WEIGHT_GRADIENT = range(4)
ZERO_BUBBLE = ("zb-h1", "zb-h2", "zb-v")


class Operation(NamedTuple):
    """One pass of one microbatch through one chunk of a rank.

    kind: FORWARD; BACKWARD whole; or its two halves, INPUT_GRADIENT (what the stage before waits for) and
    WEIGHT_GRADIENT (which nothing waits for).
    """

    kind: int
    microbatch: int
    chunk: int

    @property
    def is_backward(self) -> bool:
        return self.kind != FORWARD


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
    if schedule in ("zb-h1", "zb-h2"):
        return tuple(_zero_bubble_h(schedule, rank, pp, microbatches) for rank in range(pp))
    if schedule == "zb-v":
        if virtual_stages != 2:
            raise InputError(
                f"zb-v schedule: needs exactly 2 virtual stages, not {virtual_stages}",
                allowed=[2],
                hint="use --virtual-stages 2",
            )
        return tuple(_zero_bubble_v(rank, pp, microbatches) for rank in range(pp))
    names = ["1f1b", "interleaved", "gpipe", *ZERO_BUBBLE]
    raise InputError(f"unknown schedule {schedule!r}", allowed=names)


def virtual_stage(schedule: str, rank: int, chunk: int, pp: int) -> int:
    """The virtual stage that chunk ``chunk`` of pipeline rank ``rank`` is."""
    if schedule == "zb-v" and chunk == 1:
        return 2 * pp - 1 - rank
    return chunk * pp + rank


def warmup_operations(schedule: str, rank: int, pp: int, microbatches: int, virtual_stages: int = 1) -> int:
    """Forward operations a rank issues before its first backward."""
    if schedule == "gpipe":
        return microbatches
    if schedule in ("1f1b", "zb-h1"):
        return min(microbatches, pp - rank)
    if schedule == "zb-h2":
        return min(microbatches, 2 * (pp - rank) - 1)
    if schedule == "zb-v":
        # Of the first chunk until the second one's first forward, then in turns until its first backward.
        return min(microbatches, 2 * pp - rank - 1) + min(microbatches, rank + 1)
    total = microbatches * virtual_stages
    return min(total, 2 * (pp - rank - 1) + (virtual_stages - 1) * pp + 1)


@lru_cache(maxsize=65536)
def alive_states(
    schedule: str, rank: int, pp: int, microbatches: int, virtual_stages: int = 1
) -> tuple[tuple[int, ...], ...]:
    """Microbatches whose activations a rank holds, per chunk, at every moment that may be its fullest.

    The first state is the end of the warm-up, just before the first backward frees anything. Without
    virtual stages that is the fullest (with zero bubble, as soon as weight gradients wait); with them the
    total stays the same but shifts between chunks, so every state not covered by another is listed.
    """
    warmup = warmup_operations(schedule, rank, pp, microbatches, virtual_stages)
    if schedule in ("1f1b", "gpipe"):
        return ((warmup,),)
    if schedule in ("zb-h1", "zb-h2"):
        # The weight gradients that wait keep every rank at what rank 0 holds.
        return ((warmup_operations(schedule, 0, pp, microbatches),),)
    if schedule == "zb-v":
        # The first forwards of the second chunk take the place of the last ones of the first.
        down, back = min(microbatches, 2 * pp - 1 - rank), min(microbatches, rank + 1)
        return ((down, back), (down + 1, back - 1)) if down < microbatches else ((down, back),)
    # Forward and backward take turns, so the pattern repeats after pp * virtual_stages forwards.
    last = min(microbatches * virtual_stages, warmup + pp * virtual_stages)
    counts, period = list(_held(warmup, 0, pp, virtual_stages)), pp * virtual_stages
    seen = {tuple(counts): None}
    for k in range(warmup, last):
        counts[virtual_stages - 1 - (k - warmup) % period // pp] -= 1
        counts[k % period // pp] += 1
        seen[tuple(counts)] = None
    states = list(seen)
    # Only a state with more in total can cover another.
    totals = [sum(state) for state in states]
    kept = [
        state
        for state, total in zip(states[1:], totals[1:], strict=True)
        if not any(more > total and _covers(other, state) for other, more in zip(states, totals, strict=True))
    ]
    return (states[0], *kept)


def _held(forwards: int, backwards: int, pp: int, virtual_stages: int) -> tuple[int, ...]:
    """Microbatches each chunk of an interleaved rank holds after so many forwards and backwards."""
    groups, within = divmod(forwards, pp * virtual_stages)
    ended, ending = divmod(backwards, pp * virtual_stages)
    return tuple(
        (groups - ended) * pp
        + min(pp, max(0, within - chunk * pp))
        - min(pp, max(0, ending - (virtual_stages - 1 - chunk) * pp))
        for chunk in range(virtual_stages)
    )


def _covers(one: tuple[int, ...], other: tuple[int, ...]) -> bool:
    return all(a >= b for a, b in zip(one, other, strict=True))


@lru_cache(maxsize=65536)
def in_flight(
    schedule: str, rank: int, pp: int, microbatches: int, virtual_stages: int = 1
) -> tuple[int, ...]:
    """The first of ``alive_states``: counts per chunk at the end of the warm-up."""
    if schedule in ZERO_BUBBLE:
        return alive_states(schedule, rank, pp, microbatches, virtual_stages)[0]
    warmup = warmup_operations(schedule, rank, pp, microbatches, virtual_stages)
    return _held(warmup, 0, pp, virtual_stages)


def _gpipe(microbatches: int) -> tuple[Operation, ...]:
    forward = [Operation(FORWARD, i, 0) for i in range(microbatches)]
    return tuple(forward + [Operation(BACKWARD, i, 0) for i in range(microbatches)])


def _one_f_one_b(rank: int, pp: int, microbatches: int) -> tuple[Operation, ...]:
    warmup = min(microbatches, pp - rank - 1)
    forward = [Operation(FORWARD, i, 0) for i in range(microbatches)]
    backward = [Operation(BACKWARD, i, 0) for i in range(microbatches)]
    steady = [op for pair in zip(forward[warmup:], backward, strict=False) for op in pair]
    return tuple(forward[:warmup] + steady + backward[microbatches - warmup :])


def _interleaved(rank: int, pp: int, microbatches: int, v: int) -> tuple[Operation, ...]:
    """pp microbatches through chunk 0, then chunk 1, ...; backward the other way round."""
    total = microbatches * v
    warmup = min(total, 2 * (pp - rank - 1) + (v - 1) * pp)
    turns = [
        (microbatch, chunk)
        for first in range(0, microbatches, pp)
        for chunk in range(v)
        for microbatch in range(first, first + pp)
    ]
    forward = [Operation(FORWARD, microbatch, chunk) for microbatch, chunk in turns]
    backward = [Operation(BACKWARD, microbatch, v - 1 - chunk) for microbatch, chunk in turns]
    steady = [op for pair in zip(forward[warmup:], backward, strict=False) for op in pair]
    return tuple(forward[:warmup] + steady + backward[total - warmup :])


def _zero_bubble_h(schedule: str, rank: int, pp: int, microbatches: int) -> tuple[Operation, ...]:
    """1F1B with split backwards; the first weight gradients wait, so that every rank holds as much.

    zb-h1 holds pp microbatches, with ``rank`` weight gradients behind; zb-h2 fills the warm-up too and holds
    2 pp - 1, with 2 ``rank`` behind.
    """
    warmup = warmup_operations(schedule, rank, pp, microbatches) - 1
    behind = rank if schedule == "zb-h1" else 2 * rank
    found = [Operation(FORWARD, i, 0) for i in range(warmup)]
    weights = 0
    for i in range(microbatches):
        if warmup + i < microbatches:
            found.append(Operation(FORWARD, warmup + i, 0))
        found.append(Operation(INPUT_GRADIENT, i, 0))
        if i >= behind:
            found.append(Operation(WEIGHT_GRADIENT, weights, 0))
            weights += 1
    return (*found, *(Operation(WEIGHT_GRADIENT, i, 0) for i in range(weights, microbatches)))


def _zero_bubble_v(rank: int, pp: int, microbatches: int) -> tuple[Operation, ...]:
    """The V: down through the first chunks, back up through the second; weight gradients fill the drain."""
    total = max(2 * pp - 1, microbatches)
    found: list[Operation] = []
    done = {(kind, chunk): 0 for kind in (FORWARD, INPUT_GRADIENT, WEIGHT_GRADIENT) for chunk in (0, 1)}

    def issue(kind: int, chunk: int) -> None:
        found.append(Operation(kind, done[kind, chunk], chunk))
        done[kind, chunk] += 1

    def backward(chunk: int) -> None:
        issue(INPUT_GRADIENT, chunk)
        issue(WEIGHT_GRADIENT, chunk)

    for _ in range(2 * (pp - rank) - 1):
        issue(FORWARD, 0)
    for _ in range(rank):
        issue(FORWARD, 1)
        issue(FORWARD, 0)
    for _ in range(pp - rank):
        issue(FORWARD, 1)
        backward(1)
    while done[FORWARD, 1] < done[FORWARD, 0] or done[FORWARD, 0] < total:
        if done[FORWARD, 0] < total:
            issue(FORWARD, 0)
        backward(0)
        issue(FORWARD, 1)
        backward(1)
    for _ in range(rank):
        issue(INPUT_GRADIENT, 0)
        issue(INPUT_GRADIENT, 1)
    for _ in range(pp - rank):
        issue(INPUT_GRADIENT, 0)
        issue(WEIGHT_GRADIENT, 0)
    for chunk in (1, 0):
        while done[WEIGHT_GRADIENT, chunk] < done[INPUT_GRADIENT, chunk]:
            issue(WEIGHT_GRADIENT, chunk)
    # With fewer microbatches than fill the V, those beyond the last are left out.
    return tuple(operation for operation in found if operation.microbatch < microbatches)
