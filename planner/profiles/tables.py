"""Measured tables and the two places where they are read between their rows.

Batch: seconds of b samples follow a + c b, least squares over the measured batches (Hetu-Galvatron fits
the same
line). Message size: straight lines between neighbouring sizes; below the smallest its time (latency),
above the
largest its last slope. Nothing else is interpolated: a degree or group that was not measured is a gap.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass

import numpy as np

from planner.errors import InputError
from planner.units import GIGA

# A buffer rate beyond these bytes/s means milliseconds were written as another unit.
RATE_RANGE = (1e6, 1e13)


@dataclass(frozen=True)
class SampleTable:
    """Seconds of a batch: ``fixed + each * samples``; ``worst`` is the fit's largest relative error."""

    fixed: float
    each: float
    worst: float

    @staticmethod
    def fit(rows: dict[int, float], file: str, what: str) -> SampleTable:
        """The line through (samples, seconds). One row, or rows whose line would start below zero, give the
        line through the origin.

        Raises InputError when time falls with the batch.
        """
        samples = np.array(sorted(rows), dtype=float)
        seconds = np.array([rows[int(b)] for b in samples])
        if len(samples) == 1:
            return SampleTable(0.0, float(seconds[0] / samples[0]), 0.0)
        each, fixed = (float(x) for x in np.polyfit(samples, seconds, 1))
        if each <= 0:
            raise InputError(
                f"{what}: time falls as the batch grows ({seconds[0]:.3g} s at {samples[0]:g} samples, "
                f"{seconds[-1]:.3g} s at {samples[-1]:g})",
                file=file,
                hint="rows are milliseconds per sample; measure again",
            )
        if fixed < 0.0:
            fixed, each = 0.0, float((samples * seconds).sum() / (samples * samples).sum())
        worst = float(np.abs((fixed + each * samples) / seconds - 1.0).max())
        return SampleTable(fixed, each, worst)

    def seconds(self, samples: float) -> float:
        """Seconds of ``samples`` samples (a fraction when a sequence is split)."""
        return self.fixed + self.each * samples


@dataclass(frozen=True)
class SizeTable:
    """Seconds of a collective by bytes of the buffer on every rank."""

    sizes: tuple[float, ...]
    times: tuple[float, ...]

    @staticmethod
    def of(rows: dict[float, float], file: str, what: str) -> SizeTable:
        """Rows in order. Raises InputError for a single row or a rate no link has (a wrong unit)."""
        sizes = tuple(sorted(rows))
        times = tuple(rows[size] for size in sizes)
        if len(sizes) < 2:
            raise InputError(f"{what}: one size is no table", file=file, hint="measure at least two sizes")
        rate = sizes[-1] / times[-1]
        if not RATE_RANGE[0] <= rate <= RATE_RANGE[1]:
            raise InputError(
                f"{what}: {sizes[-1]:.3g} bytes in {times[-1]:.3g} s is {rate / GIGA:.3g} GB/s: times of "
                f"this file "
                f"are milliseconds",
                file=file,
                hint="multiply seconds by 1000",
            )
        return SizeTable(sizes, times)

    def seconds(self, size: float) -> float:
        """Seconds of a buffer of ``size`` bytes."""
        if size <= self.sizes[0]:
            return self.times[0]
        at = min(bisect_left(self.sizes, size), len(self.sizes) - 1)
        low, high = self.sizes[at - 1], self.sizes[at]
        slope = (self.times[at] - self.times[at - 1]) / (high - low)
        return self.times[at - 1] + slope * (size - low)
