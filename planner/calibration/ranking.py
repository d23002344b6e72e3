"""Does the prediction choose the right plan? Kendall's tau and top-1 regret inside comparable groups.

A group holds runs of one model on one machine at one batch. Runs of one plan (repeats, or another release of
the framework) count once, by their means: they compare software and noise, not plans. Two plans closer than
``NOISE`` tie as far as one run of each can tell; tau is given with and without such pairs. Two rows are the
same plan when degrees, virtual stages and microbatch agree and no other choice that both print differs.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from typing import TYPE_CHECKING, Any

from planner.calibration.case import Case

if TYPE_CHECKING:
    from planner.calibration.validation import RowResult

GROUP_COLUMNS = (
    "model_name",
    "layers",
    "hidden",
    "ffn_hidden",
    "heads",
    "kv_heads",
    "vocab",
    "seq_len",
    "gpu_name",
    "gpus",
    "global_batch",
    "precision",
)
LAYOUT_COLUMNS = ("dp", "tp", "pp", "vp", "cp", "ep", "micro_batch")
CHOICE_COLUMNS = ("sp", "zero_stage", "recompute")
# Runs of one configuration differ by 3 to 6 % (README of the measurements).
NOISE = 0.04
SCHEDULE = re.compile(r"schedule ([\w-]+)")
SHARDING_GROUP = re.compile(r"sharded over (all DP|\d+) ranks")


def group_key(case: Case) -> tuple[str, ...]:
    """Rows that compare plans of one model on one machine at one batch."""
    return (case.source, *(case.text(name) for name in GROUP_COLUMNS))


def is_same_plan(one: Case, other: Case) -> bool:
    """Whether two rows of a group ran the same plan, as far as both print it."""
    if any(one.text(name) != other.text(name) for name in LAYOUT_COLUMNS):
        return False
    # Without tensor or data ranks there is nothing for these two to split.
    idle = [name for name, axis in (("sp", "tp"), ("zero_stage", "dp")) if one.text(axis) == "1"]
    names = [name for name in CHOICE_COLUMNS if name not in idle]
    printed = [(one.text(name), other.text(name)) for name in names]
    printed.append((_noted(SCHEDULE, one), _noted(SCHEDULE, other)))
    printed.append((_noted(SHARDING_GROUP, one), _noted(SHARDING_GROUP, other)))
    return all(a == b for a, b in printed if a and b)


def _noted(pattern: re.Pattern[str], case: Case) -> str:
    """What the notes say of a choice, "" where they say nothing."""
    found = pattern.search(case.text("notes"))
    return found[1] if found else ""


def compared_plans(rows: list[RowResult]) -> dict[tuple[str, ...], list[tuple[float, float]]]:
    """For each group with at least two plans, by its key: (predicted, measured) seconds of each plan."""
    groups: dict[tuple[str, ...], list[list[RowResult]]] = defaultdict(list)
    for row in rows:
        if row.time_error() is None:
            continue
        plans = groups[group_key(row.case)]
        same = next((plan for plan in plans if is_same_plan(plan[0].case, row.case)), None)
        if same is None:
            plans.append([row])
        else:
            same.append(row)
    return {
        key: [
            (
                sum(row.predicted_step_s or 0.0 for row in plan) / len(plan),
                sum(row.measured_step_s or 0.0 for row in plan) / len(plan),
            )
            for plan in plans
        ]
        for key, plans in groups.items()
        if len(plans) > 1
    }


def ranking_by_group(rows: list[RowResult]) -> tuple[list[float], list[float], list[float]]:
    """(tau-b of each group where it is defined, the same of plans ``NOISE`` apart, top-1 regret of each).

    Regret: the measured loss of running the predicted-best plan instead of the measured-best.
    """
    groups = compared_plans(rows).values()
    whole, apart = (
        [tau for pairs in groups if (tau := kendall_tau(pairs, noise)) is not None] for noise in (0.0, NOISE)
    )
    return whole, apart, [top1_regret(pairs) for pairs in groups]


def group_records(rows: list[RowResult]) -> list[dict[str, Any]]:
    """Each group's key, number of plans, tau and regret, for ``validate --json``."""
    return [
        {
            **dict(zip(("source", *GROUP_COLUMNS), key, strict=True)),
            "plans": len(pairs),
            "kendall_tau": kendall_tau(pairs),
            "kendall_tau_apart": kendall_tau(pairs, NOISE),
            "top1_regret": top1_regret(pairs),
        }
        for key, pairs in compared_plans(rows).items()
    ]


def top1_regret(pairs: list[tuple[float, float]]) -> float:
    """Measured loss of the plan with the least predicted time over the best measured one, as a share."""
    return min(pairs)[1] / min(measured for _, measured in pairs) - 1.0


def kendall_tau(pairs: list[tuple[float, float]], noise: float = 0.0) -> float | None:
    """Kendall's tau-b of (predicted, measured) pairs; None when one side is constant (Kendall 1945).

    ``noise``: plans whose measured values differ by no more than this share of the smaller are not compared.
    """
    concordant = ties_first = ties_second = total = 0
    for i, (a, b) in enumerate(pairs):
        for c, d in pairs[:i]:
            if noise and abs(b - d) <= noise * min(b, d):
                continue
            first, second = (a > c) - (a < c), (b > d) - (b < d)
            concordant += first * second
            ties_first += first == 0
            ties_second += second == 0
            total += 1
    scale = (total - ties_first) * (total - ties_second)
    return concordant / math.sqrt(scale) if scale else None
