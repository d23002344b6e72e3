"""Pareto fronts of (extra seconds, freed bytes): how many layers of a kind are recomputed, kinds summed."""

from __future__ import annotations

import bisect
import itertools

from planner.cost.row import KindCost
from planner.strategy.decision import RECOMPUTE_FULL, RECOMPUTE_SELECTIVE

# Extra seconds, bytes freed, and (selective, full) layers of every kind on the front.
Point = tuple[float, float, tuple[tuple[int, int], ...]]
TOLERANCE = 1.0 - 1e-12


def kind_front(kind: KindCost, in_flight: list[int], modes: list[int], need: float) -> list[Point]:
    """Pareto front over how many layers of one kind are recomputed selectively and in full (``modes``).

    Every layer costs the same seconds and frees bytes in proportion to its in-flight count, and full frees
    more than selective: so full goes to the layers with most in flight, selective to the next.
    """
    reach = [0, *itertools.accumulate(in_flight)]
    count = len(in_flight)
    costs = [kind.backward_seconds[mode] - kind.backward_seconds[0] for mode in range(3)]
    freed = [kind.saved_bytes[0] - kind.saved_bytes[mode] for mode in range(3)]
    points: list[Point] = []
    for full in range((count if RECOMPUTE_FULL in modes else 0) + 1):
        base = reach[full] * freed[2]
        for selective in range((count - full if RECOMPUTE_SELECTIVE in modes else 0) + 1):
            total = base + (reach[full + selective] - reach[full]) * freed[1]
            points.append((full * costs[2] + selective * costs[1], total, ((selective, full),)))
            if total >= need or freed[1] <= 0.0:
                break
        if base >= need:
            break
    return _pareto(points)


def cheapest_of_kind(kind: KindCost, in_flight: list[int], modes: list[int], need: float) -> Point | None:
    """The same for one kind: for each number of full layers, the fewest selective ones by bisection."""
    reach = [0, *itertools.accumulate(in_flight)]
    count = len(in_flight)
    costs = [kind.backward_seconds[mode] - kind.backward_seconds[0] for mode in range(3)]
    freed = [kind.saved_bytes[0] - kind.saved_bytes[mode] for mode in range(3)]
    can_select = RECOMPUTE_SELECTIVE in modes and freed[1] > 0.0
    best: Point | None = None
    for full in range((count if RECOMPUTE_FULL in modes else 0) + 1):
        base = reach[full] * freed[2]
        left = need * TOLERANCE - base
        if left <= 0.0:
            selective = 0
        elif not can_select:
            continue
        else:
            selective = bisect.bisect_left(reach, reach[full] + left / freed[1], lo=full) - full
            if full + selective > count:
                continue
        extra = full * costs[2] + selective * costs[1]
        if best is None or extra < best[0]:
            total = base + (reach[full + selective] - reach[full]) * freed[1]
            best = (extra, total, ((selective, full),))
        if left <= 0.0:
            break
    return best


def merged(left: list[Point], right: list[Point]) -> list[Point]:
    return _pareto([(a + d, b + e, c + f) for a, b, c in left for d, e, f in right])


def cheapest_pair(left: list[Point], right: list[Point], need: float) -> Point | None:
    """The cheapest sum of a point of each front that frees ``need``, by bisection in the right front.

    Along a front more seconds free more bytes, so for each left point the first right point that frees the
    rest is the cheapest.
    """
    freed = [point[1] for point in right]
    best: Point | None = None
    for extra, bytes_freed, counts in left:
        if best is not None and extra >= best[0]:
            break
        at = bisect.bisect_left(freed, need - bytes_freed)
        if at == len(right):
            continue
        total = extra + right[at][0]
        if best is None or total < best[0]:
            best = (total, bytes_freed + right[at][1], counts + right[at][2])
    return best


def _pareto(points: list[Point]) -> list[Point]:
    """Points no other beats in both less time and more bytes freed."""
    points.sort(key=lambda point: (point[0], -point[1]))
    kept: list[Point] = []
    most = -1.0
    for point in points:
        if point[1] > most:
            kept.append(point)
            most = point[1]
    return kept
