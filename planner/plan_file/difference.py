"""What differs between two plans: the decision first, then the inputs, then what is predicted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from planner.plan_file.schema import Plan

# Long or derived parts compared as wholes.
WHOLE = ("stages",)


@dataclass(frozen=True)
class Change:
    """One field that differs: where, and both values."""

    field: str
    before: Any
    after: Any


@dataclass(frozen=True)
class Difference:
    """Changes by part; empty lists when the parts agree."""

    decision: list[Change]
    inputs: list[Change]
    prediction: list[Change]

    @property
    def is_same(self) -> bool:
        """Whether nothing differs."""
        return not (self.decision or self.inputs or self.prediction)

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "same": self.is_same,
            **{
                part: [change.__dict__ for change in getattr(self, part)]
                for part in ("decision", "inputs", "prediction")
            },
        }


def diff_plans(before: Plan, after: Plan) -> Difference:
    """Field by field; stage lists are compared whole and reported by their layer ranges."""
    one, other = before.model_dump(mode="json"), after.model_dump(mode="json")
    inputs = _changes(one["inputs"], other["inputs"], "")
    for data in (one, other):
        data["decision"].setdefault("offload", "none")  # left out of files of plans without it
    return Difference(
        decision=_changes(one["decision"], other["decision"], ""),
        inputs=[change for change in inputs if change.field != "digest"],
        prediction=_changes(one["prediction"], other["prediction"], ""),
    )


def _changes(before: Any, after: Any, path: str) -> list[Change]:
    if isinstance(before, dict) and isinstance(after, dict):
        found = []
        for key in dict.fromkeys([*before, *after]):
            inner = f"{path}.{key}" if path else key
            if key in WHOLE and before.get(key) != after.get(key):
                values = before.get(key), after.get(key)
                shorts = [_short(value) for value in values]
                if shorts[0] == shorts[1]:
                    shorts = [_choices(value) for value in values]
                found.append(Change(inner, *shorts))
            elif key not in WHOLE:
                found += _changes(before.get(key), after.get(key), inner)
        return found
    return [] if before == after else [Change(path, before, after)]


def _choices(stages: Any) -> Any:
    """What the layers of each stage choose, where stages of equal layers differ."""
    if not isinstance(stages, list):
        return stages
    return [stage.get("layer_strategies", stage) for stage in stages]


def _short(stages: Any) -> Any:
    """Stages as their layer ranges where they have them, else as their bytes."""
    if not isinstance(stages, list):
        return stages
    return [stage.get("layers", stage.get("memory_bytes", {}).get("total")) for stage in stages]
