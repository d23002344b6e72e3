"""Smaller spaces of the same tables: what another tool searches, for comparison."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

from planner.cost.layered_table import LayeredSetting


def even_settings(settings: Sequence[LayeredSetting]) -> list[LayeredSetting]:
    """Hetu-Galvatron's space: even stages (the last takes the remainder), powers of two, microbatches >= pp.

    Source: galvatron/core/search_engine/search_engine.py (pp_division_even, degree_range, June 2026).
    """
    found = []
    for s in settings:
        if s.pp & (s.pp - 1) or s.microbatches < s.pp:
            continue
        each = len(s.layers) // s.pp
        ends = [*(each * i for i in range(s.pp)), len(s.layers)]
        found.append(replace(s, splits=tuple(pairwise(ends))))
    return found
