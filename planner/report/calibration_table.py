"""A calibration for people: each constant with its standard error and rows, each measured link."""

from __future__ import annotations

from rich.table import Table

from planner.calibration.fitted import PARAMETERS, Fitted
from planner.units import GIGA, MICRO, significant

NAMES = {p.name: p for p in PARAMETERS}


def constants_table(fitted: Fitted) -> Table:
    """One line a constant: value, standard error, rows and sources that inform it, physical bound."""
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold")
    table.add_column("of", overflow="fold")
    table.add_column("constant", no_wrap=True)
    for name in ("value", "+-", "rows"):
        table.add_column(name, justify="right")
    table.add_column("sources", overflow="fold")
    for scope, groups in fitted.values.items():
        for key, values in groups.items():
            for name, value in values.items():
                evidence = fitted.evidence.get(scope, {}).get(key, {}).get(name)
                if evidence is None:
                    table.add_row(key, name, f"{value:.4g}", "-", "-", "")
                    continue
                mark = f" at {evidence.bound} bound" if evidence.bound else ""
                count = len(evidence.sources)
                sources = " ".join(evidence.sources) if count <= 4 else f"{count} sources"
                table.add_row(
                    key,
                    name,
                    f"{value:.4g}",
                    f"{evidence.standard_error:.2g}",
                    str(evidence.rows),
                    sources + mark,
                )
    return table


def links_table(fitted: Fitted) -> Table:
    """One line a collective and group: alpha, bus bandwidth, points and residual."""
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold")
    table.add_column("link", overflow="fold")
    table.add_column("collective", overflow="fold")
    for name in ("ranks", "nodes", "alpha us", "bus GB/s", "points", "residual %"):
        table.add_column(name, justify="right")
    for technology, link in fitted.links.items():
        for fit in link.fits:
            table.add_row(
                technology,
                fit.collective,
                str(fit.ranks),
                str(fit.nodes),
                significant(fit.alpha_seconds / MICRO),
                significant(1.0 / fit.beta_seconds_per_byte / GIGA),
                str(fit.points),
                f"{fit.residual * 100:.1f}",
            )
    return table


def link_lines(fitted: Fitted) -> list[str]:
    """What the planner makes of each link."""
    lines = []
    for technology, link in fitted.links.items():
        latency, switch = link.latency_seconds, link.in_network_efficiency
        hop = "as in the profile" if latency is None else f"{significant(latency / MICRO)} us"
        added = "" if switch is None else f", in-switch all-reduce {significant(switch)}"
        share = significant(link.efficiency)
        lines.append(f"{technology}: {share} of the printed rate{added}; hop {hop}")
    return lines
