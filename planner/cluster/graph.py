"""The cluster as a networkx graph: devices, the units of every tier, and the uplinks between them.

A device is ("device", rank); the unit of tier k that holds it is (tier name, number). An edge from a child
to its parent is one uplink (attributes: bytes_per_s one direction, links, latency_seconds). Answers here
are counted on paths and are slow but obvious; ``topology.Cluster.crossings`` gives the same ones from
integer arithmetic, and tests hold the two together.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import networkx as nx

from planner.cluster.topology import Cluster
from planner.errors import InputError

MAX_DEVICES = 8192


def topology_graph(cluster: Cluster) -> Any:
    """A networkx.DiGraph of the cluster, edges pointing outward. Raises InputError beyond 8192 devices."""
    if cluster.num_devices > MAX_DEVICES:
        raise InputError(
            f"a graph of {cluster.num_devices} devices is too large to draw; at most {MAX_DEVICES}",
            hint="use fewer --gpus",
        )
    graph = nx.DiGraph(name=cluster.name)
    for rank in range(cluster.num_devices):
        child: tuple[str, int] = ("device", rank)
        graph.add_node(child, tier=-1, size=1)
        for level, link in enumerate(cluster.links):
            parent = (link.name, rank // link.devices)
            graph.add_node(parent, tier=level, size=link.devices)
            graph.add_edge(
                child,
                parent,
                tier=level,
                bytes_per_s=link.bytes_per_s,
                links=link.links,
                latency_seconds=link.latency_seconds,
            )
            child = parent
    return graph


def group_uplinks(graph: Any, ranks: list[int]) -> dict[int, dict[tuple[str, int], int]]:
    """Uplinks a group of ranks needs, by tier: {tier: {child unit: members below it}}.

    A child unit's uplink is needed when the group also has members elsewhere below the same parent.
    """
    path: dict[int, dict[tuple[str, int], dict[tuple[str, int], int]]] = defaultdict(dict)
    for rank in ranks:
        node: tuple[str, int] = ("device", rank)
        for parent in _ancestors(graph, node):
            tier = graph.edges[node, parent]["tier"]
            children = path[tier].setdefault(parent, defaultdict(int))
            children[node] += 1
            node = parent
    needed: dict[int, dict[tuple[str, int], int]] = {}
    for tier, parents in path.items():
        found = {
            child: members
            for children in parents.values()
            if len(children) > 1
            for child, members in children.items()
        }
        if found:
            needed[tier] = found
    return needed


def _ancestors(graph: Any, node: tuple[str, int]) -> list[tuple[str, int]]:
    found = []
    while graph.out_degree(node):
        node = next(iter(graph.successors(node)))
        found.append(node)
    return found


def family_sharers(graph: Any, groups: list[list[int]]) -> dict[int, int]:
    """For each tier, the most groups of a family that push through one uplink at once."""
    counts: dict[int, dict[tuple[str, int], int]] = defaultdict(lambda: defaultdict(int))
    for ranks in groups:
        for tier, children in group_uplinks(graph, ranks).items():
            for child in children:
                counts[tier][child] += 1
    return {tier: max(children.values()) for tier, children in counts.items()}


def rank_groups(num_devices: int, stride: int, size: int) -> list[list[int]]:
    """All groups of a (stride, size) family over ``num_devices`` ranks."""
    span = stride * size
    return [
        [base + offset + index * stride for index in range(size)]
        for base in range(0, num_devices - span + 1, span)
        for offset in range(stride)
    ]
