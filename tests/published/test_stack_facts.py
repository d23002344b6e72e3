"""Facts of frameworks' code: fp32 tensors, FlashAttention-2, weights handed out by their owners."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from planner.calibration.case import read_cases
from planner.calibration.fitted import Fitted
from planner.calibration.rows import samples
from planner.calibration.validation import validate_cases
from planner.catalog import load_device
from planner.cost.compute import Device
from planner.cost.constants import FLASH2_SLOWDOWN, default_constants
from planner.cost.data_parallel import moves_seconds, step_moves
from planner.cost.groups import rank_groups
from planner.cost.layer import cost_table
from planner.cost.model import CostModel
from planner.cost.stack import STACKS
from planner.strategy.candidates import Candidates
from planner.strategy.decision import SHARDING_OPTIMIZER
from planner.workload import Workload

CASES = read_cases(Path(__file__).parent / "measurements.csv")
FP32, FP16 = STACKS["megatron-deepspeed-fp32"], STACKS["megatron-deepspeed"]


def saved_bytes(model: CostModel, candidates: Candidates) -> float:
    table = cost_table(model.problem, model.chain, candidates, model.device, model.stack)
    return float(table.rows[1].saved_bytes[0][0])


def test_fp32_tensors_are_twice_as_wide_and_multiply_as_tf32():
    [sample] = samples([case for case in CASES if case.id == "slr-013"], Fitted().constants_for)
    base = sample.model
    wide, half = (
        CostModel.of(base.problem, base.constants, stack.name, base.chain) for stack in (FP32, FP16)
    )
    spec = base.problem.cluster.device
    assert wide.device.matmul_flop_per_s == spec.peak_flop_per_s("tf32")
    assert half.device.matmul_flop_per_s == spec.peak_flop_per_s("bf16")
    candidates = Candidates.single(tp=4, dp=1, pp=1, microbatch_size=1)
    assert saved_bytes(wide, candidates) == pytest.approx(2.0 * saved_bytes(half, candidates))


def test_a_device_without_tf32_multiplies_fp32_on_its_fp32_units():
    spec = load_device("t4")
    workload = Workload(sequence_length=1024, global_batch=8, precision="fp16")
    device = Device.of(spec, workload, default_constants(spec), None, FP32)  # type: ignore[arg-type]
    assert device.matmul_flop_per_s == spec.peak_flop_per_s("fp32")


def test_sailor_runs_without_16_bit_flags():
    """Its scripts pass neither --fp16 nor --bf16; BLOOM's pass --fp16."""
    cases = [case for case in CASES if case.id in ("slr-013", "bsc-031", "amp-001")]
    stacks = {row.case.id: row.stack for row in validate_cases(cases)}
    assert stacks == {
        "slr-013": FP32.fitted_as,
        "bsc-031": "megatron-deepspeed-blocking",
        "amp-001": FP16.name,
    }


@pytest.mark.parametrize(
    ("gpu", "slowdown"), [("h100-sxm", FLASH2_SLOWDOWN["hopper"]), ("a100-80g-sxm", 1.0)]
)
def test_flash_attention_2_is_slower_where_newer_kernels_exist(gpu, slowdown):
    spec = load_device(gpu)
    workload = Workload(sequence_length=4096, global_batch=8)
    constants = default_constants(spec)
    seconds = [
        Device.of(spec, workload, constants, None, STACKS[name]).flash_seconds(  # type: ignore[arg-type]
            1e15, 1e6, 1.0, backward=False
        )
        for name in ("torchtitan", "megatron")
    ]
    assert seconds[0] / seconds[1] == pytest.approx(slowdown)


def test_owners_broadcast_their_weights_one_after_the_other(build):
    """One pass over the link however many owners, and the latency of a whole ring for each."""
    model = build.cost_model(build.model(4), build.cluster(64), batch=64)
    stack = replace(STACKS["internevo"], broadcast_elements=1e6)
    candidates = Candidates.single(dp=64, tp=1, pp=1, microbatch_size=1)
    groups = rank_groups(model.problem, model.constants, candidates)

    def seconds(elements: float) -> float:
        _, gathers = step_moves(stack, SHARDING_OPTIMIZER, False, "dp", elements, 64.0)
        return float(np.sum(moves_seconds(groups, gathers)))

    data = groups.data
    link, ring = float(np.sum(data.ring_seconds_per_byte)), float(np.sum(data.ring_latency))
    assert seconds(1e6) == pytest.approx(2e6 * link + ring)
    assert seconds(32e6) == pytest.approx(64e6 * link + 32 * ring)
    assert seconds(640e6) == pytest.approx(1280e6 * link + 64 * ring)
