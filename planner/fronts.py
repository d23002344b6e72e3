"""The front of a finished search as plan records: head-rooms, the least memory, the balance of the mesh."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from planner.calibration.error_bars import ErrorBars
from planner.cost.model import CostModel
from planner.errors import InputError
from planner.plan_file.build import build_decision, build_prediction
from planner.plan_file.schema import FrontPointRecord, FrontRecord, SplitRecord
from planner.reasons import alternative_reason
from planner.search.engine import SearchResult
from planner.search.front import FrontPoint, head_room_front
from planner.search.reporter import Reporter
from planner.search.split_front import SplitPoint, split_front
from planner.search.tree import Pins
from planner.strategy.limits import Limits

PERCENT = 100.0


def parse_head_rooms(text: str) -> tuple[float, ...]:
    """Shares from percents such as "5,10,20". Raises InputError for what is not between 0 and 100."""
    shares = []
    for word in text.split(","):
        try:
            percent = float(word.strip().removesuffix("%"))
        except ValueError:
            percent = math.nan
        if not 0.0 < percent < PERCENT:
            raise InputError(
                f"--head-room {word.strip()!r} is not a percentage between 0 and 100",
                hint="use --head-room 5,10,20",
            )
        shares.append(percent / PERCENT)
    return tuple(sorted(set(shares)))


def front_record(
    model: CostModel,
    limits: Limits,
    pins: Pins,
    result: SearchResult,
    head_rooms: Sequence[float],
    errors: ErrorBars,
    *,
    time_budget_seconds: float = math.inf,
    reporter: Reporter | None = None,
) -> FrontRecord:
    """The front of ``result`` at ``head_rooms`` (shares of the memory limit), and its mesh's splits."""
    front = head_room_front(
        model,
        limits,
        pins,
        result,
        head_rooms,
        time_budget_seconds=time_budget_seconds,
        reporter=reporter,
    )
    splits = split_front(model, limits, pins, result.best.decision) if front.is_complete else []
    return FrontRecord(
        points=[_point(model, result, point, errors) for point in front.points],
        unfit=front.unfit,
        least_memory_bound_bytes=front.least.bound_bytes if front.least else None,
        splits=[_split(model, split, errors) for split in splits],
        is_complete=front.is_complete,
    )


def _point(model: CostModel, result: SearchResult, point: FrontPoint, errors: ErrorBars) -> FrontPointRecord:
    limited = replace(model, problem=replace(model.problem, memory_limit_bytes=point.limit_bytes))
    is_best = point.solution.decision == result.best.decision
    return FrontPointRecord.model_validate(
        {
            "head_room": point.head_room,
            "decision": build_decision(point.solution.decision),
            "prediction": build_prediction(limited, point.solution.prediction, errors),
            "status": point.status,
            "lower_bound_seconds": point.lower_bound_seconds,
            "gap": point.gap,
            "why": "" if is_best else alternative_reason(result.best, point.solution, errors),
            "tied": errors.is_tied(result.best.seconds, point.solution.seconds),
        }
    )


def _split(model: CostModel, split: SplitPoint, errors: ErrorBars) -> SplitRecord:
    return SplitRecord.model_validate(
        {
            "balance": split.balance,
            "decision": build_decision(split.solution.decision),
            "prediction": build_prediction(model, split.solution.prediction, errors),
            "lower_bound_seconds": split.solution.bound_seconds,
        }
    )
