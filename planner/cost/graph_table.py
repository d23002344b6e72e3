"""The cost table of a layer graph: what a search over its stages sees.

A node is a layer; its alternatives at tensor width t differ in seconds and memory (plain, recomputed).
Node order is
topological.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from planner.cost.layered_table import Floats


@dataclass(frozen=True)
class WidthCosts:
    """Costs at one tensor width; arrays [node].

    ``seconds``, ``kept_bytes`` (a microbatch in flight) and ``fixed_bytes`` of the fastest alternative;
    ``extra_seconds``, ``saved_kept_bytes``, ``saved_fixed_bytes`` of the leaner one against it (zeros
    without one).
    ``weight_bytes`` are what replicas synchronise; ``in_bytes`` and ``out_bytes`` [edge] what an edge cut
    in front
    of its head, or behind its tail, moves for one sample one way.
    """

    seconds: Floats
    kept_bytes: Floats
    fixed_bytes: Floats
    extra_seconds: Floats
    saved_kept_bytes: Floats
    saved_fixed_bytes: Floats
    weight_bytes: Floats
    in_bytes: Floats
    out_bytes: Floats


@dataclass(frozen=True)
class GraphTable:
    """A layer graph with costs by tensor width; ``nodes`` names in topological order, ``edges`` (tail,
    head)."""

    nodes: tuple[str, ...]
    edges: tuple[tuple[int, int], ...]
    widths: dict[int, WidthCosts]
    memory_bytes: float
    devices: int
    samples: int
    bytes_per_s: float


@dataclass(frozen=True)
class GraphStage:
    """One stage: its nodes, its replicas and width, which nodes take the leaner alternative."""

    nodes: tuple[int, ...]
    dp: int
    tp: int
    lean: tuple[int, ...]


def stage_load(table: GraphTable, stage: GraphStage, behind: int) -> tuple[float, float]:
    """(seconds a sample, bytes) of a stage when replicas of it and all stages behind it sum to ``behind``.

    Piper (Tarnawski et al., NeurIPS 2021, section 3): compute / d + traffic / bandwidth, where traffic is
    twice
    every cut edge / d, and 4 (d - 1) / d of the weights once in all samples; memory is what ceil(behind / d)
    samples keep and what is fixed.
    """
    c, d = table.widths[stage.tp], stage.dp
    inside = set(stage.nodes)
    nodes, lean = list(stage.nodes), list(stage.lean)
    seconds = float(c.seconds[nodes].sum() + c.extra_seconds[lean].sum())
    traffic = 0.0
    for index, (tail, head) in enumerate(table.edges):
        if head in inside and tail not in inside:
            traffic += 2.0 * float(c.in_bytes[index])
        if tail in inside and head not in inside:
            traffic += 2.0 * float(c.out_bytes[index])
    sync = 4.0 * (d - 1) / d * float(c.weight_bytes[nodes].sum()) / table.samples
    kept = -(-behind // d)
    size = kept * float(c.kept_bytes[nodes].sum() - c.saved_kept_bytes[lean].sum())
    size += float(c.fixed_bytes[nodes].sum() - c.saved_fixed_bytes[lean].sum())
    return seconds / d + (traffic / d + sync) / table.bytes_per_s, size


def plan_load(table: GraphTable, stages: tuple[GraphStage, ...]) -> float:
    """The slowest stage's seconds a sample; infinite when a stage does not fit. Stages from first to last."""
    behind = sum(stage.dp for stage in stages)
    worst = 0.0
    for stage in stages:
        load, size = stage_load(table, stage, behind)
        if size > table.memory_bytes:
            return float(np.inf)
        worst = max(worst, load)
        behind -= stage.dp
    return worst
