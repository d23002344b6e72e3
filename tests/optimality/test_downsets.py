"""Stages of layer graphs: search = every ordered partition, on random graphs and on pieces of BERT-32."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import combinations, product
from pathlib import Path

import numpy as np
import pytest

from planner.cost.graph_table import GraphTable, WidthCosts, plan_load
from planner.errors import InfeasibleError
from planner.profiles.files import ProfileFile, read_file
from planner.profiles.piper import read_piper
from planner.search.downsets import search_graph

PIPER = Path(__file__).parents[1] / "data" / "piper"


def subsets(items):
    return (set(c) for size in range(1, len(items) + 1) for c in combinations(items, size))


def slow_load(table, nodes, d, t, lean, behind):
    """Piper's objective and memory, written out node by node and edge by edge."""
    c = table.widths[t]
    seconds = traffic = size = weights = 0.0
    kept = int(np.ceil(behind / d))
    for v in nodes:
        is_lean = v in lean
        seconds += c.seconds[v] + (c.extra_seconds[v] if is_lean else 0.0)
        size += kept * (c.kept_bytes[v] - (c.saved_kept_bytes[v] if is_lean else 0.0))
        size += c.fixed_bytes[v] - (c.saved_fixed_bytes[v] if is_lean else 0.0)
        weights += c.weight_bytes[v]
    for index, (u, v) in enumerate(table.edges):
        if (u in nodes) != (v in nodes):
            traffic += 2 * (c.in_bytes[index] if v in nodes else c.out_bytes[index])
    load = (
        seconds / d
        + traffic / d / table.bytes_per_s
        + 4 * (d - 1) / d * weights / table.samples / table.bytes_per_s
    )
    return load if size <= table.memory_bytes else np.inf


def slow_best(table):
    """Least load over every ordered partition, width, replicas and set of lean nodes."""
    everything = frozenset(range(len(table.nodes)))
    limit = min(table.samples, table.devices)
    best = np.inf

    def walk(left, devices, behind, load):
        """Stages from the last to the first: ``left`` must stay closed under predecessors."""
        nonlocal best
        if not left:
            best = min(best, load)
            return
        for nodes in subsets(sorted(left)):
            rest = left - nodes
            if any(u in nodes and v in rest for u, v in table.edges):
                continue
            for t, d in product(table.widths, range(1, limit + 1)):
                if table.samples % d or devices + t * d > table.devices or behind + d > limit:
                    continue
                if not np.isfinite(table.widths[t].seconds[list(nodes)]).all():
                    continue
                own = min(
                    slow_load(table, nodes, d, t, lean, behind + d)
                    for lean in [set(), *subsets(sorted(nodes))]
                )
                if max(own, load) < best:
                    walk(rest, devices + t * d, behind + d, max(own, load))

    walk(everything, 0, 0, 0.0)
    return best


def random_table(rng):
    count = int(rng.integers(2, 5))
    edges = tuple((u, v) for u in range(count) for v in range(u + 1, count) if rng.random() < 0.5)

    def width(t):
        def draw(low, high, size=count):
            return rng.integers(low, high + 1, size).astype(float)

        seconds = draw(2, 20) / t + rng.integers(0, 3)
        if t > 1 and rng.random() < 0.3:
            seconds[int(rng.integers(count))] = np.inf
        kept = draw(2, 8)
        saved = np.minimum(kept, draw(0, 3))
        return WidthCosts(
            seconds=seconds,
            kept_bytes=kept,
            fixed_bytes=draw(4, 8) / t,
            extra_seconds=draw(0, 6),
            saved_kept_bytes=saved,
            saved_fixed_bytes=-np.minimum(saved, draw(0, 3)),
            weight_bytes=draw(0, 9) / t,
            in_bytes=draw(0, 4, len(edges)),
            out_bytes=draw(0, 4, len(edges)),
        )

    return GraphTable(
        nodes=tuple(str(v) for v in range(count)),
        edges=edges,
        widths={t: width(t) for t in (1, 2)[: int(rng.integers(1, 3))]},
        memory_bytes=float(rng.integers(8, 60)),
        devices=int(rng.integers(1, 5)),
        samples=int(rng.choice([2, 4, 6])),
        bytes_per_s=float(rng.integers(1, 6)),
    )


def found_load(table):
    try:
        found = search_graph(table)
    except InfeasibleError:
        return np.inf
    assert plan_load(table, found.stages) == pytest.approx(found.load_seconds)
    assert sum(s.dp * s.tp for s in found.stages) <= table.devices
    assert sorted(v for s in found.stages for v in s.nodes) == list(range(len(table.nodes)))
    assert found.status == "proved"
    return found.load_seconds


def test_search_is_exhaustive_search():
    feasible = 0
    for seed in range(400):
        table = random_table(np.random.default_rng(seed))
        want = slow_best(table)
        assert found_load(table) == pytest.approx(want, rel=1e-8), seed
        feasible += np.isfinite(want)
    assert feasible > 150


def cut_down(first, count, **machine):
    """``count`` neighbouring nodes of BERT-32 with the edges between them."""
    whole = read_file(str(PIPER / "bert32a100.json"))
    order = [int(name) for name in read_piper(whole).nodes][first : first + count]
    document = json.loads(json.dumps(whole.content))
    document["nodes"] = [node for node in document["nodes"] if node["id"] in order]
    document["edges"] = [e for e in document["edges"] if e["sourceId"] in order and e["destId"] in order]
    for node in document["nodes"]:
        for alternatives in node["TMPCs"].values():
            for entry in alternatives:
                for key in ("syncTimeFw", "syncTimeBw"):
                    entry[key] = {k: v for k, v in entry[key].items() if int(k) in order}
    return read_piper(ProfileFile("bert", "piper", {}, document), **machine)


@pytest.mark.parametrize(("first", "devices", "gib"), [(0, 4, 2.0), (4, 4, 1.0), (20, 6, 1.5), (30, 5, 0.8)])
def test_pieces_of_bert(first, devices, gib):
    table = cut_down(first, 4, devices=devices, memory_bytes=gib * 2**30, samples=12)
    want = slow_best(table)
    assert found_load(table) == pytest.approx(want, rel=1e-8)


# Piper's own program on the same graph and machine (bandwidth 25 GiB/s): its printed load.
PIPER_LOADS = {
    ("bert32a100", 32, 2.0, 1920): 0.0665495,
    ("bert32a100", 64, 8.0, 1920): 0.0202005502945,
    ("bert32a100", 512, 8.0, 1920): 0.00256112784601,
    ("bert32a100", 512, 80.0, 1920): 0.00227252010888,
}


@pytest.mark.parametrize("case", PIPER_LOADS)
def test_bert_is_never_above_pipers_own_plan(case):
    name, devices, gib, samples = case
    table = read_piper(
        read_file(str(PIPER / f"{name}.json")),
        devices=devices, memory_bytes=gib * 2**30, samples=samples, bytes_per_s=25.0 * 2**30,
    )  # fmt: skip
    found = search_graph(table)
    assert found.status == "proved"
    assert found.load_seconds <= PIPER_LOADS[case] * (1 + 1e-9)


def test_graphs_that_are_no_chains_plan_too():
    """A diamond: two branches side by side, either order of which is a legal cut."""
    base = random_table(np.random.default_rng(1))
    ones = np.ones(4)
    costs = WidthCosts(ones * 4, ones, ones, ones, ones * 0, ones * 0, ones * 0, ones, ones)
    table = replace(
        base, nodes=("a", "b", "c", "d"), edges=((0, 1), (0, 2), (1, 3), (2, 3)), widths={1: costs},
        memory_bytes=100.0, devices=2, samples=2, bytes_per_s=1e9,
    )  # fmt: skip
    assert found_load(table) == pytest.approx(slow_best(table))
