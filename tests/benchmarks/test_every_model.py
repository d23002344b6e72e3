"""Every built-in model on three machines: valid, fits, sums consistent. Prints the table with ``-s``.

    python -m pytest tests/benchmarks/test_every_model.py -m benchmark -s

Each plan is also priced again from its own file, and CPU seconds are printed, never asserted.
"""

from __future__ import annotations

import math
import time

import pytest

import planner
from planner.api import reprice
from planner.catalog import load_model, model_names
from planner.errors import InfeasibleError
from planner.units import GIB, format_seconds

MACHINES = (("dgx-a100", 64), ("dgx-h100", 256), ("mi300x-8", 64))
# Models that need more memory than the usual count of GPUs has.
LARGE = {
    "megatron-1008b": 16,
    "megatron-529.6b": 8,
    "deepseek-v3": 8,
    "megatron-310.1b": 8,
    "llama-3.1-405b": 8,
    "deepseek-v2": 4,
    "qwen3-235b-a22b": 4,
    "gpt3-175b": 2,
    "bloom-176b": 2,
    "mixtral-8x22b": 2,
    "megatron-145.6b": 2,
    "gpt-oss-120b": 2,
}

pytestmark = pytest.mark.benchmark


@pytest.mark.parametrize("name", model_names())
@pytest.mark.parametrize(("machine", "gpus"), MACHINES)
def test_plan_is_valid_fits_and_adds_up(name, machine, gpus, tmp_path):
    model = load_model(name)[0]
    sequence = model.fixed_sequence_length or min(model.max_sequence_length, 4096)
    count = gpus * LARGE.get(name, 1)
    started = time.process_time()
    try:
        plan = planner.plan(name, cluster=machine, gpus=count, seq_len=sequence, global_batch=1024)
    except InfeasibleError as error:
        pytest.fail(f"{name} on {count} of {machine}: {error.message}")
    spent = time.process_time() - started
    p, d = plan.prediction, plan.decision
    assert p.peak_memory_bytes <= p.memory_limit_bytes * (1 + 1e-9)
    assert math.isclose(sum(p.breakdown_seconds.values()), p.step_seconds, rel_tol=1e-9)
    g = d.degrees
    assert g.tp * g.pp * g.dp * g.cp == count
    assert d.microbatch_size * d.microbatches * g.dp == 1024
    assert sum(s.layers[1] - s.layers[0] + 1 for s in d.stages) == model.num_layers
    for stage in p.stages:
        parts = [value for key, value in stage.memory_bytes.items() if key != "total"]
        assert math.isclose(sum(parts), stage.memory_bytes["total"], rel_tol=1e-9)
    file = tmp_path / "plan.json"
    file.write_text(plan.to_json(), encoding="utf-8")
    assert reprice(str(file)).prediction.step_seconds == pytest.approx(p.step_seconds, rel=1e-12)
    mesh = f"TP{g.tp} PP{g.pp} DP{g.dp} CP{g.cp} EP{g.ep} VP{d.virtual_stages} mb{d.microbatch_size}"
    print(
        f"| {name} | {count} x {plan.inputs.cluster.device.name} | {mesh} {d.sharding} {d.recompute} | "
        f"{p.peak_memory_bytes / GIB:.1f} | {format_seconds(p.step_seconds)} | {p.mfu:.1%} | "
        f"{plan.search.status} {plan.search.gap:.2%} | {spent:.2f} |"
    )
