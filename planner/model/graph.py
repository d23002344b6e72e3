"""The model as a networkx graph of layers: what ``models show`` prints and what the chain is checked against.

Nodes are layers in execution order (attributes: kind, role, parameters, stack); edges carry hidden states
(attribute: sequence_scale, in workload sequence lengths). An encoder-decoder has cross edges from the
encoder's end to every decoder block. ``folded_graph`` joins runs of equal layers into one node with a count.
"""

from __future__ import annotations

from typing import Any

import networkx as nx

from planner.model.chain import LayerChain, LayerKind, kind_parameters, layer_chain
from planner.model.parameters import block_parameters
from planner.model.spec import ModelSpec


def layer_graph(model: ModelSpec) -> Any:
    """A networkx.DiGraph with one node a layer, numbered in execution order."""
    chain = layer_chain(model)
    graph = nx.DiGraph(name=model.name)
    for index, kind_index in enumerate(chain.layers):
        kind = chain.kinds[kind_index]
        graph.add_node(
            index,
            kind=kind.name,
            role=kind.role,
            stack=kind.stack.name,
            parameters=layer_parameters(model, kind),
        )
    for edge in chain.edges:
        scale = model.stacks[edge.stack_index].sequence_scale
        graph.add_edge(edge.source, edge.target, stack_index=edge.stack_index, sequence_scale=scale)
    return graph


def layer_parameters(model: ModelSpec, kind: LayerKind) -> int:
    """Parameters of one layer of a kind."""
    if kind.block is not None:
        return block_parameters(kind.block, model.hidden_size)
    return kind_parameters(model, kind)


def cut_sequences(graph: Any, position: int) -> float:
    """Hidden-state sequences that cross a cut before node ``position``, in workload sequence lengths.

    Every source is sent once, however many layers behind the cut read it.
    """
    crossing = {
        (source, data["stack_index"]): data["sequence_scale"]
        for source, target, data in graph.edges(data=True)
        if source < position <= target
    }
    return float(sum(crossing.values()))


def folded_graph(model: ModelSpec) -> Any:
    """A networkx.DiGraph of runs of equal layers: attributes kind, count, parameters (of one layer)."""
    graph = layer_graph(model)
    chain = layer_chain(model)
    runs = _runs(chain)
    node_of = {layer: number for number, (first, end) in enumerate(runs) for layer in range(first, end)}
    folded = nx.DiGraph(name=model.name)
    for number, (first, end) in enumerate(runs):
        folded.add_node(number, **graph.nodes[first], count=end - first)
    for source, target, data in graph.edges(data=True):
        if node_of[source] != node_of[target]:
            folded.add_edge(node_of[source], node_of[target], **data)
    return folded


def _runs(chain: LayerChain) -> list[tuple[int, int]]:
    """[first, end) of every run of equal layers."""
    runs: list[tuple[int, int]] = []
    for index, kind in enumerate(chain.layers):
        if runs and chain.layers[runs[-1][0]] == kind:
            runs[-1] = (runs[-1][0], index + 1)
        else:
            runs.append((index, index + 1))
    return runs


def graph_lines(model: ModelSpec) -> list[str]:
    """The folded graph in lines: every run, and the edges that are not to the next run."""
    folded = folded_graph(model)
    lines = [
        f"{number}: {data['kind']} x {data['count']} ({data['parameters']:,} parameters each)"
        for number, data in folded.nodes(data=True)
    ]
    for source, target in sorted(folded.edges):
        if target != source + 1:
            lines.append(f"{source} -> {target}: cross edge")
    return lines
