"""The whole search: one choice for all layers first, then, where the launcher runs them, one for each."""

from __future__ import annotations

import math
import time

from planner.cost.model import CostModel
from planner.errors import InfeasibleError
from planner.search.engine import SearchResult
from planner.search.last_resort import search_all
from planner.search.layer_degrees import has_layer_degrees, only_layer_degrees, with_layer_degrees
from planner.search.reporter import Reporter
from planner.search.tree import Funnel, Pins
from planner.strategy.limits import Limits


def search_every_layer(
    model: CostModel,
    limits: Limits,
    pins: Pins,
    *,
    top: int = 4,
    time_budget_seconds: float = math.inf,
    reporter: Reporter | None = None,
    certify: bool = True,
) -> SearchResult:
    """``last_resort.search_all``, and per-layer plans that are faster than its best, or fit where none does.

    Raises what ``search_all`` raises where no per-layer plan fits either.
    """
    started = time.process_time()
    is_layered = has_layer_degrees(model, limits, pins)
    try:
        uniform = search_all(
            model,
            limits,
            pins,
            top=top,
            time_budget_seconds=time_budget_seconds,
            reporter=reporter,
            certify=certify,
        )
    except InfeasibleError as error:
        if not is_layered:
            raise
        left = time_budget_seconds - (time.process_time() - started)
        funnel = Funnel(list(error.details.get("funnel", [])))
        found = only_layer_degrees(model, limits, pins, funnel, time_budget_seconds=left)
        if found is None:
            raise
        return found
    if not is_layered or uniform.status == "interrupted":
        return uniform
    left = time_budget_seconds - (time.process_time() - started)
    return with_layer_degrees(model, limits, pins, uniform, top=top, time_budget_seconds=left)
