"""Which links a group of ranks crosses, and who shares them.

Ranks are numbered so that consecutive ranks fill the innermost tier first. A *family* of groups is given
by (stride, size): the group of rank r holds ``size`` ranks spaced ``stride`` apart, and every rank is in
exactly one group of the family, so the whole family communicates at once. For each tier the questions are
how many members of a group sit in one child unit, and how many groups push through that unit's uplink at
the same time; both follow from integer arithmetic when blocks align and from a count over one period of
the pattern when they do not. ``planner/cluster/graph.py`` answers the same questions on a networkx graph,
and tests hold the two together.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

from planner.cluster.host import Host, host_of
from planner.cluster.spec import ClusterProfile, DeviceSpec, NodeGroup
from planner.errors import InputError, UnsupportedFeature

# Point-to-point meshes: every pair of devices has its own link, so a small group reaches few of them.
MESH_TECHNOLOGIES = ("nvlink-mesh", "xgmi")


@dataclass(frozen=True)
class Link:
    """One tier ready for arithmetic.

    child_devices: devices below one uplink; devices: devices one unit of this tier joins;
    bytes_per_s: one child unit's uplink, one direction; links: parallel links in that uplink.
    """

    name: str
    technology: str
    child_devices: int
    devices: int
    bytes_per_s: float
    links: int
    latency_seconds: float
    in_network_reduction: bool

    @property
    def device_bytes_per_s(self) -> float:
        """What a single device can push through this uplink when nobody else uses it."""
        return self.bytes_per_s / self.links * max(1, self.links // self.child_devices)


@dataclass(frozen=True)
class Crossing:
    """How a group family uses one tier.

    units: child units of this tier one group touches inside one unit of the tier; members: group members
    in a child unit (the fewest); sharers: groups of the family pushing through one uplink at once;
    bytes_per_s: what one group gets through one uplink.
    """

    link: Link
    units: int
    members: int
    sharers: int
    bytes_per_s: float


@dataclass(frozen=True)
class Cluster:
    """A homogeneous set of devices with its tiers, as the cost model uses it."""

    name: str
    device: DeviceSpec
    num_devices: int
    devices_per_node: int
    links: tuple[Link, ...]
    host: Host
    price_dollars_per_device_hour: float | None = None

    @property
    def num_nodes(self) -> int:
        return -(-self.num_devices // self.devices_per_node)

    @cached_property
    def island_devices(self) -> int:
        """Devices joined by the innermost tier: the fastest island, capped by the cluster."""
        return min(self.links[0].devices, self.num_devices)

    @cached_property
    def _crossings(self) -> dict[tuple[int, int], tuple[Crossing, ...]]:
        return {}

    def crossings(self, stride: int, size: int) -> tuple[Crossing, ...]:
        """The tiers a (stride, size) group family crosses, innermost first; empty for size 1."""
        key = (stride, size)
        if key not in self._crossings:
            self._crossings[key] = tuple(_crossings(self.links, self.num_devices, stride, size))
        return self._crossings[key]

    def neighbour_link(self, first_rank: int, stride: int) -> tuple[Link, float]:
        """The outermost tier between ranks ``first_rank + j`` and ``first_rank + stride + j``.

        Returns the link and the bytes/s one rank gets while the whole stage (``stride`` ranks) sends at
        once: the uplink divided by its senders, at most one device's own links.
        """
        key = (first_rank, stride)
        if key not in self._neighbours:
            self._neighbours[key] = self._neighbour_link(*key)
        return self._neighbours[key]

    @cached_property
    def _neighbours(self) -> dict[tuple[int, int], tuple[Link, float]]:
        return {}

    def _neighbour_link(self, first_rank: int, stride: int) -> tuple[Link, float]:
        crossed = self.links[0]
        for link in self.links:
            below = link.child_devices
            last = first_rank + stride - 1
            if any(r // below != (r + stride) // below for r in (first_rank, last)) or stride >= below:
                crossed = link
        senders = max(1, min(stride, crossed.child_devices))
        return crossed, min(crossed.device_bytes_per_s, crossed.bytes_per_s / senders)


def resolve_cluster(profile: ClusterProfile, device: DeviceSpec, num_devices: int | None = None) -> Cluster:
    """A profile narrowed to ``num_devices`` devices (all when None), ready for pricing.

    Raises UnsupportedFeature for mixed clusters (the format carries them; search does not cover them
    yet) and InputError when more devices are asked for than the profile describes, or a number that
    leaves a node partly used beyond the first.
    """
    if len(profile.node_groups) > 1:
        kinds = ", ".join(f"{g.num_nodes} x {g.devices_per_node} {g.device}" for g in profile.node_groups)
        raise UnsupportedFeature(
            f"cluster {profile.name!r} mixes node groups ({kinds}); mixed clusters are described by the "
            f"format but not planned yet",
            pointer="/node_groups",
            hint=f"plan one group at a time, for example a profile with only {profile.node_groups[0].name!r}",
        )
    group = profile.node_groups[0]
    available = group.num_nodes * group.devices_per_node
    count = available if num_devices is None else num_devices
    if count > available:
        raise InputError(
            f"--gpus {count} asks for more than the {available} devices that profile {profile.name!r} "
            f"describes ({group.num_nodes} nodes x {group.devices_per_node})",
            allowed=available,
            hint=f"use --gpus {available} or raise num_nodes in a copy of the profile",
        )
    if count > group.devices_per_node and count % group.devices_per_node:
        low = count // group.devices_per_node * group.devices_per_node
        raise InputError(
            f"--gpus {count} does not fill nodes of {group.devices_per_node}: {count} % "
            f"{group.devices_per_node} = {count % group.devices_per_node}",
            allowed=[low, low + group.devices_per_node],
            hint=f"use --gpus {low} or --gpus {low + group.devices_per_node}; plan --allow-idle leaves some "
            f"idle",
        )
    price = group.price_dollars_per_device_hour
    return Cluster(
        name=profile.name,
        device=device,
        num_devices=count,
        devices_per_node=group.devices_per_node,
        links=_links(group, count),
        host=host_of(group, device, min(count, group.devices_per_node)),
        price_dollars_per_device_hour=price.value if price else None,
    )


def _links(group: NodeGroup, count: int) -> tuple[Link, ...]:
    links: list[Link] = []
    child = 1
    for tier in group.tiers:
        devices = min(tier.devices or count, max(count, 1))
        links.append(
            Link(
                name=tier.name,
                technology=tier.technology,
                child_devices=child,
                devices=devices,
                bytes_per_s=tier.bytes_per_s,
                links=tier.links,
                latency_seconds=tier.latency_seconds,
                in_network_reduction=tier.in_network_reduction,
            )
        )
        child = tier.devices or count
        if child >= count:
            break
    return tuple(links)


def _crossings(links: tuple[Link, ...], count: int, stride: int, size: int) -> list[Crossing]:
    if size <= 1:
        return []
    found = []
    for link in links:
        below, above = link.child_devices, link.devices
        if _is_aligned(stride, size, below) and _is_aligned(stride, size, above):
            members = _members(stride, size, below)
            units = _members(stride, size, above) // members
            if units <= 1:
                continue
            sharers = below // members
        else:
            units, members, sharers = _count_period(stride, size, below, above, count)
            if units <= 1:
                continue
        share = min(link.bytes_per_s / max(1, sharers), members * link.device_bytes_per_s)
        if link.technology in MESH_TECHNOLOGIES and link.child_devices == 1:
            # A full mesh has one link per peer: a group of n devices uses n-1 of the links it could.
            share *= (units - 1) / (link.devices - 1)
        found.append(Crossing(link, units, members, max(1, sharers), share))
    return found


def _is_aligned(stride: int, size: int, block: int) -> bool:
    """Whether blocks of ``block`` ranks cut every group of the family the same way."""
    span = stride * size
    if block >= span:
        return block % span == 0
    if block >= stride:
        return block % stride == 0 and span % block == 0
    return stride % block == 0


def _members(stride: int, size: int, block: int) -> int:
    """Group members inside one aligned block of ``block`` consecutive ranks."""
    return max(1, min(size, block // stride))


def _count_period(stride: int, size: int, below: int, above: int, count: int) -> tuple[int, int, int]:
    """Unaligned case: (most units touched, fewest members in a unit, most crossing groups per unit)."""
    span = stride * size
    period = min(count, math.lcm(span, below, above))
    most_units, fewest, crossing_at = 1, size, dict[int, int]()
    for base in range(0, period - span + 1, span):
        for offset in range(min(stride, period)):
            ranks = [base + offset + i * stride for i in range(size)]
            by_outer: dict[int, dict[int, int]] = {}
            for rank in ranks:
                inner = by_outer.setdefault(rank // above, {})
                inner[rank // below] = inner.get(rank // below, 0) + 1
            for inner in by_outer.values():
                if len(inner) < 2:
                    continue
                most_units = max(most_units, len(inner))
                fewest = min(fewest, min(inner.values()))
                for unit in inner:
                    crossing_at[unit] = crossing_at.get(unit, 0) + 1
    return most_units, fewest, max(crossing_at.values(), default=1)
