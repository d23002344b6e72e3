"""The torchtitan stack against PyTorch itself: what a rank keeps, sends and computes, case by case.

PyTorch runs in fake mode (shapes without data) in a child process per case: its caches of process groups
outlive a group. ``python -m pytest -m heavy tests/oracle -s`` prints the table of the README.
"""

from __future__ import annotations

import sys
from multiprocessing import get_context
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from cases import CASES, SIZES
from predict import chunk_of, predict

from planner.cost.constants import Constants

pytestmark = pytest.mark.heavy

EXACT = 0.01
PEAK = 0.03
# Units finer than a block: the walk holds a recomputed block's to its end, PyTorch frees them one by one.
UNITS_OVER = 0.15
HEADER = (
    "| case | peak predicted GiB | PyTorch GiB | deviation | parameters | gradients | optimizer | saved "
    "| matmul FLOP | attention FLOP | collective bytes |\n" + "|---|" + "---:|" * 10
)
COLUMNS = (
    "parameter_bytes",
    "gradient_bytes",
    "optimizer_bytes",
    "saved_bytes",
    "matmul_flop",
    "attention_flop",
    "collective_bytes",
)
NO_SLACK = Constants(allocator_slack=0.0)


def _measured(case):
    """What PyTorch says of the case's rank, from a forked child."""
    pytest.importorskip("torch")
    from measure import Run, Shape, measure

    s = SIZES[case.model]
    shape = Shape(case.layers, s.hidden, s.heads, s.kv_heads, s.ffn, s.vocab, s.tied)
    run = Run(
        shape=shape,
        sequence=case.sequence,
        microbatch_size=case.microbatch_size,
        microbatches=case.microbatches,
        dp=case.dp,
        tp=case.tp,
        pp=case.pp,
        rank=case.rank,
        blocks=chunk_of(case),
        frees_weights=case.sharding == "parameters",
        recompute=case.recompute,
        unit=case.unit,
    )
    with get_context("fork").Pool(1) as pool:
        return pool.apply(measure, (run,))


@pytest.fixture(scope="module")
def table():
    """Rows of the table, printed when all cases are done (visible with -s)."""
    rows = []
    yield rows
    print("\n" + "\n".join([HEADER, *rows]))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_rank_keeps_sends_and_computes_what_pytorch_does(case, build, table):
    measured, predicted = _measured(case), predict(build, case, NO_SLACK)
    off = {
        name: getattr(predicted, name) / getattr(measured, name) - 1
        for name in ("peak_bytes", *COLUMNS[:-1])
        if getattr(measured, name)  # whole gradients are seen only where one waits for a next microbatch
    }
    counts = {key: count for key, (count, _) in measured.collectives.items()}
    assert {key: count for key, (count, _) in predicted.collectives.items()} == pytest.approx(counts)
    moved = {
        key: predicted.collectives[key][1] / total - 1 for key, (_, total) in measured.collectives.items()
    }
    off["collective_bytes"] = max(moved.values(), key=abs)
    gib = 1024**3
    order = ("peak_bytes", *COLUMNS)
    share = " | ".join(f"{100 * off[name]:+.2f} %" if name in off else "-" for name in order)
    table.append(
        f"| {case.name} | {predicted.peak_bytes / gib:.2f} | {measured.peak_bytes / gib:.2f} | {share} |"
    )
    wrong = {n: v for n, v in off.items() if abs(v) > (PEAK if n == "peak_bytes" else EXACT)}
    if case.unit != "block" and 0.0 < off["peak_bytes"] < UNITS_OVER:
        wrong.pop("peak_bytes", None)
    assert not wrong, f"{wrong}; moments {predicted.moments}, PyTorch's peak {measured.peak_split}"


def test_the_cases_cover_what_they_claim():
    """Guards the list: models, axes, shardings, recompute modes, batch and sequence."""
    assert len(CASES) >= 24
    assert {c.model for c in CASES} == set(SIZES)
    assert {c.recompute for c in CASES} == {"none", "selective", "full"}
    assert {c.sharding for c in CASES} == {"optimizer", "gradients", "parameters"}
    assert {c.rank for c in CASES if c.pp == 4} >= {0, 1, 3}
    for name in ("dp", "tp", "sequence", "microbatch_size", "microbatches"):
        assert len({getattr(c, name) for c in CASES}) >= 3, name
