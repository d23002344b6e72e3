"""Laws of one matrix product's seconds: waves of tiles, never cheaper than its FLOP."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.cost.compute import Device

# Rows, columns and rate of each tile, written out as five: the formula halves and doubles a square one.
TILES = ((256, 128, 1.0), (128, 256, 1.0), (128, 128, 0.9), (128, 64, 0.75), (64, 128, 0.75))
SETTINGS = settings(deadline=None, derandomize=True, max_examples=200)


@pytest.fixture(scope="module")
def device(build):
    """A device whose memory is never what a product waits for."""
    model = build.cost_model(build.model(2), build.cluster(2))
    return replace(model.device, bytes_per_s=1e30)


def covered(device: Device, m: int, n: int, batch: int) -> float:
    """Elements of the waves that the best of the five tiles takes."""
    return min(
        math.ceil(math.ceil(m / rows) * math.ceil(n / columns) * batch / device.multiprocessors)
        * device.multiprocessors
        * rows
        * columns
        / rate
        for rows, columns, rate in TILES
    )


@SETTINGS
@given(m=st.integers(1, 20_000), n=st.integers(1, 20_000), batch=st.integers(1, 64))
def test_a_product_takes_the_best_of_five_tiles_in_whole_waves(m, n, batch, device):
    k = 1 << 20
    rate = device.product_flop_per_s
    slow = device.constants.misaligned_slowdown if batch == 1 and n % 32 else 1.0
    flop = 2.0 * covered(device, m, n, batch) * (k + device.constants.matmul_depth)
    assert device.matmul_seconds(m, n, k, batch) == pytest.approx(
        flop * slow / rate + device.start_seconds(), rel=1e-9
    )


@SETTINGS
@given(m=st.integers(1, 20_000), n=st.integers(1, 20_000), k=st.integers(1, 20_000))
def test_a_product_is_never_faster_than_its_flop_at_the_achieved_rate(m, n, k, device):
    assert device.matmul_seconds(m, n, k) >= 2.0 * m * n * k / device.product_flop_per_s


def test_one_tile_past_a_full_wave_costs_a_wave(device):
    """NVIDIA's guide, wave quantisation: multiprocessors x 256 x 128 fill one wave exactly."""
    full, k = 256 * device.multiprocessors, 1 << 20
    one = device.matmul_seconds(full, 128, k)
    assert device.matmul_seconds(full - 1, 128, k) == pytest.approx(one)
    assert device.matmul_seconds(full + 1, 128, k) > 1.3 * one
