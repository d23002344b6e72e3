"""Links measured with nccl-tests, as a calibration file states them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from planner.cluster.spec import Quantity
from planner.errors import InputError
from planner.units import MICRO


@dataclass(frozen=True)
class LinkFit:
    """t = alpha + beta x bus bytes of one collective on one group.

    ranks and nodes: the group; alpha_seconds: what an empty message takes; beta_seconds_per_byte: per byte
    over the bus (nccl-tests' busbw is its inverse); points: sizes fitted; residual: root mean square of
    predicted / measured - 1; log: the file it came from.
    """

    collective: str
    ranks: int
    nodes: int
    alpha_seconds: float
    beta_seconds_per_byte: float
    points: int
    residual: float
    log: str


@dataclass(frozen=True)
class MeasuredLink:
    """One tier by its technology: achieved share of its printed rate, one hop's latency, the fits behind.

    latency_seconds is None where the logs say nothing about it (one group size whose hops inside the node
    explain the time); the profile's own latency then stands. in_network_efficiency: the all-reduce of
    switches that add, over the link's ring rate; None without such a run.
    """

    efficiency: float
    latency_seconds: float | None
    fits: tuple[LinkFit, ...]
    in_network_efficiency: float | None = None

    @property
    def points(self) -> int:
        return sum(fit.points for fit in self.fits)

    def words(self) -> str:
        """Where the figures come from."""
        kinds = sorted({fit.collective for fit in self.fits})
        return f"measured by you: nccl-tests {', '.join(kinds)}, {self.points} points"

    def latency_quantity(self) -> Quantity:
        """The latency as a machine file states it."""
        seconds = self.latency_seconds or 0.0
        return Quantity(value=seconds / MICRO, basis="measured", source="nccl-tests", note=self.words())


def read_links(document: Any, file: str) -> dict[str, MeasuredLink]:
    """The links of a calibration file. Raises InputError naming the link that is not one."""
    found = {}
    for name, link in dict(document).items():
        pointer = f"/links/{name}"
        try:
            fits = tuple(LinkFit(**fit) for fit in link["fits"])
            measured = MeasuredLink(
                float(link["efficiency"]), link["latency_seconds"], fits, link.get("in_network_efficiency")
            )
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"not a measured link: {error}", file=file, pointer=pointer) from error
        latency = measured.latency_seconds
        if not 0.0 < measured.efficiency <= 1.5 or (latency is not None and not 0.0 < latency < 1.0):
            raise InputError(
                f"efficiency {measured.efficiency:g} and latency {latency} s of {name} are not a link's",
                file=file,
                pointer=pointer,
                hint="an efficiency lies between 0 and 1.5 of the printed rate, a latency below a second",
            )
        found[name] = measured
    return found
