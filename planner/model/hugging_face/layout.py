"""Folding a model's blocks into kinds and run-length layout runs."""

from __future__ import annotations

from collections.abc import Sequence

from planner.model.spec import Block, LayoutRun

MAX_PATTERN = 64
"""Longest repeating pattern looked for, in blocks. Published models repeat after at most 8."""

Labelled = tuple[tuple[str, ...], Block]


def fold(sequence: Sequence[str]) -> list[LayoutRun]:
    """``sequence`` of kind names as layout runs.

    From the left, the pattern whose repetitions cover most blocks wins, the shortest on a tie:
    s f s f becomes one run of [s, f] x 2; d d d m m becomes [d] x 3 and [m] x 2.
    """
    runs: list[LayoutRun] = []
    start = 0
    while start < len(sequence):
        length, repeat = best_pattern(sequence, start)
        runs.append(LayoutRun(kinds=list(sequence[start : start + length]), repeat=repeat))
        start += length * repeat
    return runs


def best_pattern(sequence: Sequence[str], start: int) -> tuple[int, int]:
    """(pattern length, repetitions) of the best run that begins at ``start``."""
    best = (1, repetitions(sequence, start, 1))
    for length in range(2, min(MAX_PATTERN, (len(sequence) - start) // 2) + 1):
        repeat = repetitions(sequence, start, length)
        if repeat > 1 and length * repeat > best[0] * best[1]:
            best = (length, repeat)
    return best


def repetitions(sequence: Sequence[str], start: int, length: int) -> int:
    """How often the ``length`` names at ``start`` come in a row."""
    same = start + length
    while same < len(sequence) and sequence[same] == sequence[same - length]:
        same += 1
    return (same - start) // length


def name_blocks(
    blocks: Sequence[Labelled], single: str = "block"
) -> tuple[dict[str, Block], list[LayoutRun]]:
    """Kinds by name, and the layout, of labelled blocks.

    A label is a tuple of words (("sliding", "moe")); words that are the same in every block say nothing
    and are left out of the name. One kind only is called ``single``.
    """
    columns = list(zip(*(labels for labels, _ in blocks), strict=True))
    telling = [index for index, column in enumerate(columns) if len(set(column)) > 1]
    kinds: dict[str, Block] = {}
    sequence: list[str] = []
    for labels, block in blocks:
        name = "-".join(labels[index] for index in telling) or single
        kinds[name] = block
        sequence.append(name)
    return kinds, fold(sequence)
