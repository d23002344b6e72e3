"""Seconds of kernels on one device: a roofline with size-dependent efficiency.

F FLOP of the kernel, p dense peak, e_max achieved share of the peak when large, F0 = p x overhead: the
FLOP at which half of e_max is reached (e = e_max F / (F + F0)). A matrix product also loses to tile and
wave quantisation: its (m, n) output is cut in tiles (of five shapes, the best) and the last wave of
them over the multiprocessors takes as long as a full one. Its inner length k pays for starting and storing
each tile: k + depth. Dimensions that are no multiple of 32 elements miss the widest loads. Williams,
Waterman and Patterson 2009 (roofline); NVIDIA's matrix multiplication performance guide (tiles and waves).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from planner.cluster.host import Host
from planner.cluster.spec import DeviceSpec
from planner.cost.arrays import Number
from planner.cost.constants import FLASH2_SLOWDOWN, Constants
from planner.cost.stack import Stack
from planner.errors import UnsupportedFeature
from planner.workload import Workload

TILE = 128
# Output tiles a library chooses from: 256 x 128 either way, 128 x 128, 128 x 64 either way. The order of
# their rates is NVIDIA's guide's (smaller tiles load their factors more often); the rates against the largest
# are assumed.
MIDDLE_TILE_RATE = 0.9
SMALL_TILE_RATE = 0.75
ALIGNED = 32.0  # elements
ELEMENT_BYTES = 2.0
FP8_BYTES = 1.0
CAST_BYTES = 4.0


@dataclass(frozen=True)
class Device:
    """One device with its constants, ready for pricing kernels.

    matmul_flop_per_s: dense peak for matrix products in the workload's precision; sustained_flop_per_s: what
    the power limit lets 16-bit products reach; pass_scale: element-wise bytes of the stack over the fused;
    half_flop_per_s: dense 16-bit peak, used for attention; element_bytes: of an element of the tensors
    between kernels, 4 on a stack without 16-bit ones (both peaks are then theirs); flash_slowdown: of the
    stack's fused attention over the architecture's best; bytes_per_s: HBM; host: of its node.
    """

    matmul_flop_per_s: float
    half_flop_per_s: float
    bytes_per_s: float
    multiprocessors: int
    is_fp8: bool
    constants: Constants
    host: Host
    sustained_flop_per_s: float = math.inf
    pass_scale: float = 1.0
    element_bytes: float = ELEMENT_BYTES
    flash_slowdown: float = 1.0

    @staticmethod
    def of(
        spec: DeviceSpec,
        workload: Workload,
        constants: Constants,
        host: Host,
        stack: Stack,
    ) -> Device:
        """The device as ``stack`` uses it.

        Products of fp32 tensors run as TF32 where the device can, on its fp32 units elsewhere. Raises
        UnsupportedFeature when the device has no peak for the workload's precision.
        """
        precision: str = workload.precision
        sixteen_peak = spec.peak_flop_per_s("bf16" if precision == "fp8" else precision)
        if stack.element_bytes > ELEMENT_BYTES:
            precision = "tf32" if "tf32" in spec.peak_tflop_per_s else "fp32"
        half = "bf16" if precision == "fp8" else precision
        peak, half_peak = spec.peak_flop_per_s(precision), spec.peak_flop_per_s(half)
        if peak is None or half_peak is None or sixteen_peak is None:
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
            spec.sustained_flop_per_s * half_peak / sixteen_peak,
            stack.pass_scale,
            stack.element_bytes,
            FLASH2_SLOWDOWN.get(spec.generation, 1.0) if stack.runs_flash2 else 1.0,
        )

    @property
    def product_flop_per_s(self) -> float:
        """What large matrix products reach: a share of the peak, or what the power limit leaves."""
        limit = self.sustained_flop_per_s * self.matmul_flop_per_s / self.half_flop_per_s
        return min(self.matmul_flop_per_s * self.constants.matmul_efficiency, limit)

    def stream_seconds(self, num_bytes: Number) -> Number:
        """A kernel that only moves ``num_bytes`` through HBM."""
        return num_bytes / (self.bytes_per_s * self.constants.bandwidth_efficiency)

    def pass_seconds(self, num_bytes: Number) -> Number:
        """Element-wise kernels whose fused minimum moves ``num_bytes``: a stack moves more."""
        return self.stream_seconds(num_bytes) * self.constants.pass_factor * self.pass_scale

    def matmul_seconds(
        self,
        m: Number,
        n: Number,
        k: Number,
        batch: Number = 1.0,
        *,
        is_half: bool = False,
        casts: bool = True,
    ) -> Number:
        """``batch`` products of (m, k) by (k, n): max of compute and HBM traffic.

        fp8 adds the cast of the first factor (read 2, write 1 byte an element, and the transposed copy);
        ``casts`` False where both factors were cast before. is_half: in 16 bits under fp8 too, as the
        vocabulary's and the router's products are.
        """
        c = self.constants
        is_fp8 = self.is_fp8 and not is_half
        rate = self.product_flop_per_s * (self.half_flop_per_s / self.matmul_flop_per_s if is_half else 1.0)
        flop = 2.0 * self._covered(m, n, batch) * (k + c.matmul_depth)
        misaligned = (batch == 1.0) & ((n % ALIGNED > 0) | (k % ALIGNED > 0))
        compute = flop * np.where(misaligned, c.misaligned_slowdown, 1.0) / rate + self.start_seconds()
        width = FP8_BYTES if is_fp8 else self.element_bytes
        memory = self.stream_seconds((m * k + k * n) * batch * width + m * n * batch * self.element_bytes)
        cast = self.stream_seconds(m * k * batch * CAST_BYTES) if is_fp8 and casts else 0.0
        return np.maximum(compute, memory) + cast

    def _covered(self, m: Number, n: Number, batch: Number) -> Number:
        """Output elements that ``batch`` (m, n) products cost, with the best of the tiles.

        Whole waves of whole tiles, one tile a multiprocessor; a smaller tile's elements cost more.
        """
        rows, columns = m / TILE, n / TILE
        whole, wide = np.ceil(rows), np.ceil(columns)
        squares = whole * batch, wide * batch
        large = self._waves(np.ceil(0.5 * rows) * squares[1], squares[0] * np.ceil(0.5 * columns))
        middle = np.ceil(squares[0] * wide / self.multiprocessors) / MIDDLE_TILE_RATE
        small = self._waves(np.ceil(2.0 * rows) * squares[1], squares[0] * np.ceil(2.0 * columns))
        best = np.minimum(np.minimum(2.0 * large, middle), 0.5 / SMALL_TILE_RATE * small)
        return best * (self.multiprocessors * TILE * TILE)

    def _waves(self, tall: Number, wide: Number) -> Number:
        """Waves of tiles that are twice as long as wide, or as wide as long, whichever are fewer."""
        return np.ceil(np.minimum(tall, wide) / self.multiprocessors)

    def start_seconds(self) -> float:
        """What one product costs beside its FLOP: the FLOP at which half of the peak's share is reached."""
        return self.matmul_flop_per_s * self.constants.matmul_overhead_seconds / self.product_flop_per_s

    def weight_gradient_seconds(self, m: Number, n: Number, tokens: Number) -> Number:
        """A weight gradient: its factors were cast by the products before it."""
        return self.matmul_seconds(m, n, tokens, casts=False)

    def flash_seconds(self, flop: Number, num_bytes: Number, pieces: Number, *, backward: bool) -> Number:
        """Fused attention of ``flop`` 16-bit FLOP touching ``num_bytes`` of Q, K, V and output.

        Ring attention runs it in ``pieces`` kernels (cp of them), each paying the saturation again.
        """
        c = self.constants
        efficiency = c.flash_backward_efficiency if backward else c.flash_forward_efficiency
        saturation = self.half_flop_per_s * c.matmul_overhead_seconds
        rate = min(self.half_flop_per_s * efficiency, self.sustained_flop_per_s)
        compute = (flop + pieces * saturation) / rate * c.attention_slowdown * self.flash_slowdown
        return np.maximum(compute, self.stream_seconds(num_bytes))
