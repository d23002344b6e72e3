"""Error bars of one prediction: intervals, the risk of running out of memory, and ties.

Legend: r = log(predicted / measured), a residual; q10 and q90 its quantiles over the fitted rows. The 80 %
interval of the true value behind a predicted v is [v exp(-q90), v exp(-q10)].

Memory: r is taken as normal with the mean (q10 + q90) / 2 and the standard deviation (q90 - q10) / (2 x
1.2816), the normal distribution with these two quantiles; a run fails when the true peak passes the
capacity C, so P(out of memory) = P(r < log(v / C)). Ignored: that runs differ from one another in more than
a factor, and that a launcher may free caches and go on.

Ties: plans of one search share model, machine and batch, so most of their error is common and cancels.
``ranking_noise`` is the 80 % quantile of |r_i - r_j| over pairs of measured runs of equal model, machine
and batch: a predicted difference |log(v_i / v_j)| below it is within the error.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

NORMAL_90 = NormalDist().inv_cdf(0.90)


@dataclass(frozen=True)
class ErrorBars:
    """Residual quantiles (10 %, 90 %) of time and memory, and the noise between plans of one search.

    closeness: how near the case is to calibrated ground, "site", "same", "part" or "datasheet".
    ranking_noise: None when the table holds no two comparable runs.
    """

    closeness: str
    time: tuple[float, float]
    memory: tuple[float, float]
    ranking_noise: float | None

    def time_interval(self, seconds: float) -> tuple[float, float]:
        """80 % interval of the measured step time behind a predicted one, seconds."""
        return seconds * math.exp(-self.time[1]), seconds * math.exp(-self.time[0])

    def memory_interval(self, num_bytes: float) -> tuple[float, float]:
        """80 % interval of the measured peak behind a predicted one, bytes."""
        return num_bytes * math.exp(-self.memory[1]), num_bytes * math.exp(-self.memory[0])

    @property
    def _memory_residual(self) -> NormalDist:
        low, high = self.memory
        return NormalDist((low + high) / 2.0, max((high - low) / (2.0 * NORMAL_90), 1e-6))

    def out_of_memory_probability(self, peak_bytes: float, capacity_bytes: float) -> float:
        """P(the true peak passes the capacity), between 0 and 1, for a predicted peak."""
        return self._memory_residual.cdf(math.log(peak_bytes / capacity_bytes))

    def peak_bytes_at_risk(self, capacity_bytes: float, risk: float) -> float:
        """The predicted peak whose P(out of memory) is ``risk`` (between 0 and 1, exclusive), bytes."""
        return capacity_bytes * math.exp(self._memory_residual.inv_cdf(risk))

    def is_tied(self, seconds: float, other_seconds: float) -> bool:
        """Whether two plans of one search differ by less than the ranking noise."""
        if self.ranking_noise is None:
            return False
        return abs(math.log(other_seconds / seconds)) < self.ranking_noise
