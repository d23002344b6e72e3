"""Piper's layer graphs, strictly read (format: the README of msr-fiddle/piper).

Times are seconds a sample, sizes bytes, bandwidth bytes/s; the bundled GNMT and ResNet-50 hold
milliseconds by
their size, which a graph cannot say: the planner takes what is written, as Piper does.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import networkx as nx
import numpy as np

from planner.cost.graph_table import GraphTable, WidthCosts
from planner.errors import InputError, UnsupportedFeature, nearest_names
from planner.profiles.files import PIPER_KEYS, ProfileFile

NODE_KEYS = ("id", "name", "TMPCs")
ALTERNATIVE_KEYS = (
    "id", "timePerSample", "parameterSize", "memoryUsageA", "memoryUsageB", "syncTimeFw", "syncTimeBw",
)  # fmt: skip
EDGE_KEYS = ("sourceId", "destId", "communicationCost")


def read_piper(
    file: ProfileFile,
    *,
    devices: int | None = None,
    memory_bytes: float | None = None,
    samples: int | None = None,
    bytes_per_s: float | None = None,
) -> GraphTable:
    """The graph of a Piper file, its machine replaced where arguments say so.

    Raises InputError for a missing or unknown key, a number out of range, a cycle, an edge without costs;
    UnsupportedFeature for alternatives this planner cannot tell apart by recompute.
    """
    document = file.content
    _keys(file, document, PIPER_KEYS, "")
    nodes, edges = document["nodes"], document["edges"]
    if not isinstance(nodes, list) or not isinstance(edges, list) or not nodes:
        raise InputError("nodes and edges must be lists, nodes not empty", file=file.path, pointer="/nodes")
    graph = nx.DiGraph()
    by_id: dict[int, dict[str, Any]] = {}
    for at, node in enumerate(nodes):
        _keys(file, node, NODE_KEYS, f"/nodes/{at}", optional=("name",))
        if node["id"] in by_id:
            raise InputError(f"node id {node['id']} twice", file=file.path, pointer=f"/nodes/{at}/id")
        by_id[node["id"]] = node
        graph.add_node(node["id"])
    costs: dict[tuple[int, int], float] = {}
    for at, edge in enumerate(edges):
        where = f"/edges/{at}"
        _keys(file, edge, EDGE_KEYS, where)
        ends = (edge["sourceId"], edge["destId"])
        if ends[0] not in by_id or ends[1] not in by_id or ends in costs:
            raise InputError(
                f"edge {ends[0]} to {ends[1]} is double or has no node", file=file.path, pointer=where
            )
        costs[ends] = _number(file, edge["communicationCost"], f"{where}/communicationCost")
        graph.add_edge(*ends)
    if not nx.is_directed_acyclic_graph(graph):
        cycle = " -> ".join(str(tail) for tail, _ in nx.find_cycle(graph))
        raise InputError(f"the graph has a cycle: {cycle}", file=file.path, pointer="/edges")
    order = list(nx.lexicographical_topological_sort(graph))
    position = {name: index for index, name in enumerate(order)}
    pairs = sorted((position[u], position[v], u, v) for u, v in costs)
    widths = sorted({int(t) for node in nodes for t in _widths(file, node)})
    table = GraphTable(
        nodes=tuple(f"{name}" for name in order),
        edges=tuple((u, v) for u, v, _, _ in pairs),
        widths={
            t: _width(file, [by_id[name] for name in order], [(u, v, costs[u, v]) for _, _, u, v in pairs], t)
            for t in widths
        },
        memory_bytes=_number(file, document["maxMemoryPerDevice"], "/maxMemoryPerDevice"),
        devices=int(_number(file, document["maxDevices"], "/maxDevices")),
        samples=int(_number(file, document["mbsInBatch"], "/mbsInBatch")),
        bytes_per_s=_number(file, document["bandwidth"], "/bandwidth"),
    )
    return replace(
        table,
        memory_bytes=memory_bytes if memory_bytes is not None else table.memory_bytes,
        devices=devices if devices is not None else table.devices,
        samples=samples if samples is not None else table.samples,
        bytes_per_s=bytes_per_s if bytes_per_s is not None else table.bytes_per_s,
    )


def _keys(
    file: ProfileFile, value: Any, known: tuple[str, ...], where: str, optional: tuple[str, ...] = ()
) -> None:
    if not isinstance(value, dict):
        raise InputError("must be an object", file=file.path, pointer=where)
    for key in value:
        if key not in known:
            raise InputError(
                f"unknown key {key!r}",
                file=file.path,
                pointer=f"{where}/{key}",
                allowed=list(known),
                nearest=nearest_names(key, known),
            )
    for key in known:
        if key not in value and key not in optional:
            raise InputError(f"no {key!r}", file=file.path, pointer=where or "/", allowed=list(known))


def _number(file: ProfileFile, value: Any, where: str) -> float:
    if (
        isinstance(value, bool)
        or not isinstance(value, (int, float))
        or not math.isfinite(value)
        or value < 0
    ):
        raise InputError(f"must be a number of at least 0, not {value!r}", file=file.path, pointer=where)
    return float(value)


def _widths(file: ProfileFile, node: dict[str, Any]) -> list[str]:
    entries = node["TMPCs"]
    if not isinstance(entries, dict) or "1" not in entries:
        raise InputError(f"node {node['id']}: no costs at width 1", file=file.path, pointer="/nodes")
    for key, alternatives in entries.items():
        if not key.isdigit() or not isinstance(alternatives, list) or not 1 <= len(alternatives) <= 2:
            raise UnsupportedFeature(
                f"node {node['id']}, width {key!r}: one or two alternatives "
                "(plain, recomputed) are understood",
                file=file.path,
            )
    return list(entries)


def _width(
    file: ProfileFile, nodes: list[dict[str, Any]], edges: list[tuple[int, int, float]], t: int
) -> WidthCosts:
    """Arrays of one width; a node without it costs infinity."""
    rows, syncs = [], {}
    for node in nodes:
        alternatives = node["TMPCs"].get(str(t))
        if alternatives is None:
            rows.append((np.inf, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0))
            continue
        where = f"/nodes/{node['id']}/TMPCs/{t}"
        read = []
        for entry in alternatives:
            _keys(file, entry, ALTERNATIVE_KEYS, where)
            names = ALTERNATIVE_KEYS[1:5]
            read.append(tuple(_number(file, entry[name], f"{where}/{name}") for name in names))
        first, last = alternatives[0], alternatives[-1]
        if any(first[key] != last[key] for key in ("parameterSize", "syncTimeFw", "syncTimeBw")):
            raise UnsupportedFeature(
                f"node {node['id']}, width {t}: alternatives with different weights or traffic",
                file=file.path,
            )
        read.sort(key=lambda row: row[0])
        (p, w, a, b), (lean_p, _, lean_a, lean_b) = read[0], read[-1]
        rows.append((p, a, b, lean_p - p, a - lean_a, b - lean_b, w))
        syncs[node["id"]] = (first["syncTimeFw"], first["syncTimeBw"])
    into, out = [], []
    for u, v, cost in edges:
        into.append(cost + _sync(file, syncs, v, 0, u))
        out.append(cost + _sync(file, syncs, u, 1, v))
    p, a, b, extra, less, less_fixed, weights = np.array(rows).T
    return WidthCosts(p, a, b, extra, less, less_fixed, weights, np.array(into), np.array(out))


def _sync(file: ProfileFile, syncs: dict[int, tuple[Any, Any]], node: int, side: int, other: int) -> float:
    if node not in syncs:
        return 0.0
    entries = syncs[node][side]
    if str(other) not in entries:
        raise InputError(f"node {node}: no synchronisation cost for its edge with {other}", file=file.path)
    return _number(file, entries[str(other)], f"/nodes/{node}")
