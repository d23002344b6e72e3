"""Alpha and beta of links from nccl-tests runs, and what they make of a machine's tiers.

Legend: t seconds of a size, x bytes over the bus, t = alpha + beta x. Fitted by least squares of the
relative error, alpha not negative (Hockney 1994; nccl-tests' own PERFORMANCE.md uses the same form).

A tier's efficiency is beta at the printed rate over beta as measured, the printed rate being what the cost
model gives the same group at efficiency 1; its latency is alpha over the hops the cost model counts, the
collective's own start and the hops of the tiers inside taken away first. Several runs of one tier count
by their median. Where the tier's switches add (NVLink SHARP), all-reduce does not run as a ring: it gives
the in-network efficiency instead.
What a line cannot say: the change of protocol between small and large messages; ``residual`` shows it.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from statistics import median

import numpy as np

from planner.calibration.links import LinkFit, MeasuredLink
from planner.calibration.nccl_log import NcclRun
from planner.cluster.topology import Cluster, Crossing
from planner.cost.collectives import BASE_LATENCY_SECONDS, group_costs
from planner.cost.constants import Constants
from planner.errors import InputError


def fit_run(run: NcclRun) -> LinkFit:
    """alpha and beta of one run. Raises InputError when its times do not grow with the size."""
    x = np.array(run.size_bytes) * run.bus_factor
    t = np.array(run.seconds)
    design = np.stack([1.0 / t, x / t], axis=1)
    alpha, beta = np.linalg.lstsq(design, np.ones(len(t)), rcond=None)[0]
    if alpha < 0.0:
        alpha, beta = 0.0, float((x / t).sum() / ((x / t) ** 2).sum())
    if beta <= 0.0:
        raise InputError(
            f"{run.collective} on {run.ranks} ranks: times do not grow with the size up to "
            f"{max(run.size_bytes):g} bytes, so no bandwidth can be read",
            file=run.file,
            hint="run up to larger sizes: -e 1G",
        )
    residual = float(np.sqrt((((alpha + beta * x) / t - 1.0) ** 2).mean()))
    return LinkFit(
        collective=run.collective,
        ranks=run.ranks,
        nodes=run.nodes,
        alpha_seconds=_digits(alpha),
        beta_seconds_per_byte=_digits(beta),
        points=len(t),
        residual=_digits(residual),
        log=run.file.replace("\\", "/").rsplit("/", 1)[-1],
    )


def measured_links(runs: list[NcclRun], cluster: Cluster) -> dict[str, MeasuredLink]:
    """Measured links by technology, for the tiers of ``cluster`` that the runs cross.

    ``cluster`` must hold the largest group. Raises InputError when a run does not fit its nodes.
    """
    by_tier: dict[str, list[LinkFit]] = defaultdict(list)
    crossed: dict[LinkFit, tuple[Crossing, ...]] = {}
    for run in runs:
        _check_nodes(run, cluster)
        fit = fit_run(run)
        crossings = cluster.crossings(1, run.ranks)
        crossed[fit] = crossings
        by_tier[_limiting(crossings).link.technology].append(fit)
    found: dict[str, MeasuredLink] = {}
    # From the inside out: a tier's latency needs those of the tiers inside it.
    order = [link.technology for link in cluster.links]
    for technology in sorted(by_tier, key=order.index):
        fits = by_tier[technology]
        rings = [fit for fit in fits if not _adds_in_switch(fit, crossed[fit])]
        efficiency = _median([_ideal_beta(fit, cluster) / fit.beta_seconds_per_byte for fit in rings])
        stated = efficiency or Constants().efficiency_of(technology)
        switched = [
            2.0 * (fit.ranks - 1) / fit.ranks * fit.beta_seconds_per_byte for fit in fits if fit not in rings
        ]
        in_network = _median(
            [
                _ideal_beta(fit, cluster) / stated / whole
                for fit, whole in zip([f for f in fits if f not in rings], switched, strict=True)
            ]
        )
        latencies = [_hop_seconds(fit, crossed[fit], technology, found) for fit in rings]
        latency = _median([value for value in latencies if value is not None and value > 0.0])
        found[technology] = MeasuredLink(stated, latency, tuple(fits), in_network)
    return found


def _check_nodes(run: NcclRun, cluster: Cluster) -> None:
    inside = min(run.ranks, cluster.devices_per_node)
    expected = -(-run.ranks // inside)
    if run.nodes != expected:
        raise InputError(
            f"{run.collective}: {run.ranks} ranks on {run.nodes} hosts, but {cluster.name} has "
            f"{cluster.devices_per_node} GPUs a node, which makes {expected}",
            file=run.file,
            hint="give the machine the log was taken on, with its --gpus-per-node",
        )


def _limiting(crossings: tuple[Crossing, ...]) -> Crossing:
    """The tier that sets the rate: the least bytes per second, the outer of equals."""
    return min(reversed(crossings), key=lambda crossing: crossing.bytes_per_s)


def _adds_in_switch(fit: LinkFit, crossings: tuple[Crossing, ...]) -> bool:
    return fit.collective == "all_reduce" and all(c.link.in_network_reduction for c in crossings)


def _ideal_beta(fit: LinkFit, cluster: Cluster) -> float:
    """Seconds per bus byte of the same group in the cost model at efficiency 1."""
    perfect = replace(Constants(), link_efficiency=tuple((link.technology, 1.0) for link in cluster.links))
    if fit.collective == "sendrecv":
        return 1.0 / cluster.neighbour_link(min(fit.ranks, cluster.devices_per_node) - 1, 1)[1]
    costs = group_costs(cluster, perfect, 1, fit.ranks)
    if fit.collective == "alltoall":
        return float(costs.exchange_seconds_per_byte) * fit.ranks / (fit.ranks - 1)
    return float(costs.ring_seconds_per_byte)


def _hop_seconds(
    fit: LinkFit, crossings: tuple[Crossing, ...], technology: str, inner: dict[str, MeasuredLink]
) -> float | None:
    """One hop of ``technology``: alpha less the hops of the other tiers, over its own hops."""
    hops = _hops(fit.collective, crossings)
    base = {"sendrecv": 0.0, "all_reduce": 2.0}.get(fit.collective, 1.0) * BASE_LATENCY_SECONDS
    rest, own = fit.alpha_seconds - base, 0
    for crossing, count in zip(crossings, hops, strict=True):
        if crossing.link.technology == technology:
            own += count
            continue
        measured = inner.get(crossing.link.technology)
        latency = measured.latency_seconds if measured else None
        rest -= count * (crossing.link.latency_seconds if latency is None else latency)
    return rest / own if own else None


def _hops(collective: str, crossings: tuple[Crossing, ...]) -> list[int]:
    """Hops of an empty message by tier, as the cost model counts them (cost/collectives.py)."""
    ring, beyond = [], 1
    for crossing in reversed(crossings):
        ring.append((crossing.units - 1) * beyond)
        beyond *= crossing.units
    ring.reverse()
    tree = [(crossing.units - 1).bit_length() for crossing in crossings]
    if collective == "sendrecv":
        return [0] * (len(crossings) - 1) + [1]
    if collective == "alltoall":
        return tree
    if collective == "all_reduce":
        return [2 * h for h in (tree if sum(tree) <= sum(ring) else ring)]
    return ring


def _median(values: list[float]) -> float | None:
    return _digits(median(values)) if values else None


def _digits(value: float) -> float:
    return float(f"{value:.4g}")
