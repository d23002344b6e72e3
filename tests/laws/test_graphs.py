"""The networkx graphs say what the arithmetic says."""

from __future__ import annotations

import networkx as nx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.catalog import load_device, load_model, load_profile, model_names
from planner.cluster.graph import family_sharers, group_uplinks, rank_groups, topology_graph
from planner.cluster.topology import resolve_cluster
from planner.model.chain import layer_chain
from planner.model.graph import cut_sequences, folded_graph, layer_graph
from planner.model.parameters import total_parameters

MACHINES = ("dgx-h100", "gb200-nvl72", "frontier", "hgx-h100-eth-400g-oversub2", "pcie-4090x8", "mi300x-8")


@pytest.fixture(scope="module", params=MACHINES)
def cluster(request):
    profile = load_profile(request.param)
    group = profile.node_groups[0]
    count = min(group.num_nodes, 36) * group.devices_per_node
    return resolve_cluster(profile, load_device(group.device), count)


@settings(deadline=None, max_examples=25, derandomize=True)
@given(data=st.data())
def test_group_crossings_agree_with_paths_on_the_graph(cluster, data):
    graph = topology_graph(cluster)
    world = cluster.num_devices
    size = data.draw(st.sampled_from([n for n in range(2, world + 1) if world % n == 0]), "size")
    strides = [s for s in range(1, world // size + 1) if world % (s * size) == 0]
    stride = data.draw(st.sampled_from(strides), "stride")
    crossings = cluster.crossings(stride, size)
    groups = rank_groups(world, stride, size)
    sharers = family_sharers(graph, groups)
    names = [link.name for link in cluster.links]
    assert {names.index(c.link.name) for c in crossings} == set(sharers)
    for crossing in crossings:
        tier = names.index(crossing.link.name)
        assert crossing.sharers == sharers[tier]
        uplinks = [u[tier] for ranks in groups if tier in (u := group_uplinks(graph, ranks))]
        assert crossing.members == min(min(children.values()) for children in uplinks)


def test_topology_graph_is_a_tree_over_all_devices(cluster):
    graph = topology_graph(cluster)
    assert nx.is_forest(graph.to_undirected())
    assert sum(1 for node in graph if node[0] == "device") == cluster.num_devices


@pytest.mark.parametrize("name", model_names())
def test_layer_graph_holds_every_parameter_and_runs_forward_only(name):
    model = load_model(name)[0]
    graph = layer_graph(model)
    assert nx.is_directed_acyclic_graph(graph)
    assert sum(data["parameters"] for _, data in graph.nodes(data=True)) == total_parameters(model)
    folded = folded_graph(model)
    counted = sum(data["count"] * data["parameters"] for _, data in folded.nodes(data=True))
    assert counted == total_parameters(model)


@pytest.mark.parametrize("name", ["llama-3.1-8b", "t5-large", "gemma-2-27b", "deepseek-v3"])
def test_what_crosses_a_cut_is_read_off_the_graph(name):
    model = load_model(name)[0]
    graph, chain = layer_graph(model), layer_chain(model)
    for block in range(1, chain.num_blocks):
        position = chain.layer_range(block, block + 1)[0]
        assert chain.cut_scale(model, block) == pytest.approx(cut_sequences(graph, position))


def test_decoder_of_an_encoder_decoder_has_cross_edges():
    model = load_model("t5-large")[0]
    graph = layer_graph(model)
    encoder_end = max(node for node, data in graph.nodes(data=True) if data["stack"] == "encoder")
    blocks = [node for node, data in graph.nodes(data=True) if data["role"] == "block"]
    decoder_blocks = [node for node in blocks if graph.nodes[node]["stack"] == "decoder"]
    assert len(decoder_blocks) == 24
    assert all(graph.has_edge(encoder_end, block) for block in decoder_blocks)
