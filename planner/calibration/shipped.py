"""The constants shipped with the planner: fitted values and intervals, read once from ``shipped.json``.

The file is written by ``planner calibrate`` on tests/published/measurements.csv and by nothing else; the
README's accuracy section says how it was split and judged.
"""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path

from planner.calibration.fitted import Fitted, read_fitted
from planner.documents import read_document

SHIPPED = Path(__file__).with_name("shipped.json")


@lru_cache(maxsize=1)
def shipped() -> Fitted:
    """The shipped calibration."""
    return read_fitted(json.loads(SHIPPED.read_text(encoding="utf-8")), str(SHIPPED))


def load_calibration(path: str) -> Fitted:
    """A calibration file of the user's. Raises InputError when it is not one."""
    return read_fitted(read_document(path), path)
