"""Where a calibration comes from: the table and its digest, the day, the planner's version."""

from __future__ import annotations

import datetime
import hashlib
import os
from pathlib import Path
from typing import Any

from planner import __version__
from planner.calibration.case import Case
from planner.calibration.rows import split_rows
from planner.errors import InputError


def provenance(path: str, rows: int) -> dict[str, Any]:
    """The record of a fit to ``rows`` rows of the table at ``path``.

    The date is today's, or that of SOURCE_DATE_EPOCH (seconds since 1970, UTC) where it is set, so that a
    fit can be repeated to the byte on another day. Raises InputError when that is not a number.
    """
    file = Path(path)
    return {
        "table": file.name,
        "sha256": _digest(file),
        "rows_fitted": rows,
        "date": _today().isoformat(),
        "planner_version": __version__,
    }


def fitted_ids(record: dict[str, Any], path: str, cases: list[Case]) -> set[str]:
    """The rows of the table at ``path`` that the fit of ``record`` saw; none where it saw another table."""
    if record.get("sha256") != _digest(Path(path)):
        return set()
    seen = cases if record.get("rows_fitted") == len(cases) else split_rows(cases)[0]
    return {case.id for case in seen}


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _today() -> datetime.date:
    epoch = os.environ.get("SOURCE_DATE_EPOCH")
    if not epoch:
        return datetime.datetime.now(datetime.timezone.utc).date()
    try:
        return datetime.datetime.fromtimestamp(int(epoch), datetime.timezone.utc).date()
    except (ValueError, OverflowError, OSError):
        raise InputError(
            f"SOURCE_DATE_EPOCH is {epoch!r}, not seconds since 1970", hint="SOURCE_DATE_EPOCH=1767225600"
        ) from None
