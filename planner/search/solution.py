"""A plan the search found, with its price and what is known of its candidate."""

from __future__ import annotations

from dataclasses import dataclass

from planner.cost.step import Prediction
from planner.strategy.decision import Decision

# Plans no further apart than this share are equally fast.
TIE = 1e-9


@dataclass(frozen=True)
class Solution:
    """A plan found: its decision, its prediction, and the bound of its candidate."""

    decision: Decision
    prediction: Prediction
    bound_seconds: float

    @property
    def seconds(self) -> float:
        return self.prediction.step_seconds
