"""Mixed clusters: the format carries them, and the planner says honestly that it does not plan them yet."""

from __future__ import annotations

import pytest

from planner.catalog import load_device, load_profile
from planner.cluster.spec import ClusterProfile
from planner.cluster.topology import resolve_cluster
from planner.errors import UnsupportedFeature


@pytest.fixture
def mixed():
    one = load_profile("dgx-h100").node_groups[0].model_copy(update={"name": "hopper", "num_nodes": 2})
    two = load_profile("dgx-a100").node_groups[0].model_copy(update={"name": "ampere", "num_nodes": 4})
    link = {
        "between": ["hopper", "ampere"],
        "bandwidth_gb_per_s": {"value": 25.0, "basis": "assumed", "source": "test"},
        "latency_us": {"value": 20.0, "basis": "assumed", "source": "test"},
    }
    groups = [one.model_dump(), two.model_dump()]
    return ClusterProfile.model_validate(
        {"name": "mixed", "node_groups": groups, "inter_group_links": [link]}
    )


def test_the_format_carries_node_groups_of_different_devices_and_their_link(mixed):
    again = ClusterProfile.model_validate_json(mixed.model_dump_json())
    assert again == mixed
    assert [group.device for group in again.node_groups] == ["h100-sxm", "a100-80g-sxm"]
    assert again.inter_group_links[0].bandwidth_gb_per_s.value == 25.0


def test_planning_a_mixed_cluster_is_refused_with_its_groups_and_a_way_on(mixed):
    with pytest.raises(UnsupportedFeature, match="not planned yet") as caught:
        resolve_cluster(mixed, load_device("h100-sxm"))
    assert "2 x 8 h100-sxm" in caught.value.message
    assert "4 x 8 a100-80g-sxm" in caught.value.message
    assert "hopper" in caught.value.hint


def test_a_link_to_a_group_that_does_not_exist_is_refused(mixed):
    document = mixed.model_dump()
    document["inter_group_links"][0]["between"] = ["hopper", "volta"]
    with pytest.raises(ValueError, match="volta"):
        ClusterProfile.model_validate(document)
