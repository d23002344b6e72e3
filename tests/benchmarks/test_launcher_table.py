"""At least 200 plans through every launcher: none refused, none differing."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.benchmark


def test_no_plan_is_refused_or_differs() -> None:
    for package in ("megatron.core", "deepspeed", "accelerate", "transformers", "torch"):
        pytest.importorskip(package)
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    from launcher_table import run

    rows, count, text, failures = run()
    print(text)
    assert failures == []
    assert count >= 200
    for row in rows.values():
        assert row.emitted == row.expressible == row.read_equal == row.round_trip
        assert row.expressible + row.cannot == count
        assert row.expressible > 0
