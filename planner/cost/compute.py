"""Seconds of kernels on one device: a roofline with size-dependent efficiency.

F FLOP of the kernel, p dense peak, e_max achieved share of the peak when large, F0 = p x overhead: the
FLOP at which half of e_max is reached (e = e_max F / (F + F0)). A matrix product also loses to tile and
wave quantisation: its (m, n) output is cut in 128 x 128 tiles and the last wave of tiles over the
multiprocessors is partly empty. Williams, Waterman and Patterson 2009 (roofline); NVIDIA's matrix
multiplication performance guide (tile and wave quantisation).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from planner.cluster.host import Host
from planner.cluster.spec import DeviceSpec
from planner.cost.arrays import Number, ceil_div
from planner.cost.constants import Constants
from planner.errors import UnsupportedFeature
from planner.workload import Workload

TILE = 128
ELEMENT_BYTES = 2.0
FP8_BYTES = 1.0


@dataclass(frozen=True)
class Device:
    """One device with its constants, ready for pricing kernels.

    matmul_flop_per_s: dense peak for matrix products in the workload's precision;
    half_flop_per_s: dense 16-bit peak, used for attention; bytes_per_s: HBM; host: of its node.
    """

    matmul_flop_per_s: float
    half_flop_per_s: float
    bytes_per_s: float
    multiprocessors: int
    is_fp8: bool
    constants: Constants
    host: Host

    @staticmethod
    def of(spec: DeviceSpec, workload: Workload, constants: Constants, host: Host) -> Device:
        """Raises UnsupportedFeature when the device has no peak for the workload's precision."""
        precision = workload.precision
        half = "bf16" if precision == "fp8" else precision
        peak, half_peak = spec.peak_flop_per_s(precision), spec.peak_flop_per_s(half)
        if peak is None or half_peak is None:
            able = sorted(set(spec.peak_tflop_per_s) & {"bf16", "fp16", "fp8"})
            raise UnsupportedFeature(
                f"{spec.name} has no {precision} matrix units; it supports {', '.join(able)}",
                allowed=able,
                hint=f"use --precision {able[0]}" if able else "",
            )
        return Device(
            peak,
            half_peak,
            spec.memory_bytes_per_s,
            spec.multiprocessors,
            precision == "fp8",
            constants,
            host,
        )

    def stream_seconds(self, num_bytes: Number) -> Number:
        """A kernel that only moves ``num_bytes`` through HBM."""
        return num_bytes / (self.bytes_per_s * self.constants.bandwidth_efficiency)

    def pass_seconds(self, num_bytes: Number) -> Number:
        """Element-wise kernels whose fused minimum moves ``num_bytes``: a stack moves more."""
        return self.stream_seconds(num_bytes) * self.constants.pass_factor

    def matmul_seconds(self, m: Number, n: Number, k: Number, batch: Number = 1.0) -> Number:
        """``batch`` products of (m, k) by (k, n): max of compute and HBM traffic.

        fp8 adds the casts of both inputs (read 2, write 1 byte an element, and the transposed copy).
        """
        flop = 2.0 * m * n * k * batch
        c = self.constants
        tiles = ceil_div(m, TILE) * ceil_div(n, TILE) * batch
        waves = np.ceil(tiles / self.multiprocessors)
        used = (m * n * batch) / (waves * self.multiprocessors * TILE * TILE)
        # A partly filled wave still overlaps with its neighbours' tails: count the square root of the loss.
        quantised = flop / np.sqrt(np.maximum(used, 1e-3))
        saturation = self.matmul_flop_per_s * c.matmul_overhead_seconds
        compute = (quantised + saturation) / (self.matmul_flop_per_s * c.matmul_efficiency)
        elements = (m * k + k * n) * batch
        width = FP8_BYTES if self.is_fp8 else ELEMENT_BYTES
        memory = self.stream_seconds(elements * width + m * n * batch * ELEMENT_BYTES)
        cast = self.stream_seconds(elements * 4.0) if self.is_fp8 else 0.0
        return np.maximum(compute, memory) + cast

    def flash_seconds(self, flop: Number, num_bytes: Number, pieces: Number, *, backward: bool) -> Number:
        """Fused attention of ``flop`` 16-bit FLOP touching ``num_bytes`` of Q, K, V and output.

        Ring attention runs it in ``pieces`` kernels (cp of them), each paying the saturation again.
        """
        c = self.constants
        efficiency = c.flash_backward_efficiency if backward else c.flash_forward_efficiency
        saturation = self.half_flop_per_s * c.matmul_overhead_seconds
        compute = (flop + pieces * saturation) / (self.half_flop_per_s * efficiency)
        return np.maximum(compute, self.stream_seconds(num_bytes))
