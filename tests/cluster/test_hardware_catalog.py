"""Every shipped device and cluster file: it loads, its numbers have sources, and they are plausible."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import pytest

from planner.catalog import (
    data_directory,
    device_names,
    load_device,
    load_profile,
    profile_names,
    read_document,
)
from planner.cluster.spec import ClusterProfile, DeviceSpec, Quantity
from planner.cluster.topology import resolve_cluster

DEVICES = device_names()
PROFILES = profile_names()
LINK_TECHNOLOGIES = {
    *("nvswitch", "nvlink-mesh", "nvlink-bridge", "xgmi", "pcie"),
    *("infiniband", "ethernet", "tcp", "efa", "slingshot", "omni-path"),
}
# Gigabytes in the name the device is sold under; some vendors mean 1e9 bytes, some GiB.
VENDOR_GB = {
    "t4": 16,
    "v100-16g": 16,
    "v100-32g": 32,
    "titan-rtx": 24,
    "rtx-2080-ti": 11,
    "rtx-3090": 24,
    "rtx-4090": 24,
    "l4": 24,
    "l40s": 48,
    "a100-40g-sxm": 40,
    "a100-80g-sxm": 80,
    "a100-40g-pcie": 40,
    "a100-80g-pcie": 80,
    "a800-80g-sxm": 80,
    "h100-sxm": 80,
    "h100-96g-sxm": 96,
    "h100-pcie": 80,
    "h800-sxm": 80,
    "h200-sxm": 141,
    "gh200": 96,
    "b200-sxm": 180,
    "gb200": 186,
    "b300-sxm": 288,
    "gb300": 288,
    "mi250x": 64,
    "mi300x": 192,
    "mi325x": 256,
    "mi355x": 288,
}
# (device, precision) -> dense TFLOP/s as the vendors print it.
PEAKS = {
    ("h100-sxm", "bf16"): 989.4,
    ("h100-sxm", "fp8"): 1978.9,
    ("h200-sxm", "bf16"): 989.4,
    ("a100-80g-sxm", "bf16"): 312,
    ("b200-sxm", "bf16"): 2250,
    ("gb200", "fp8"): 5000,
    ("mi300x", "bf16"): 1307.4,
    ("mi250x", "bf16"): 191.5,
    ("rtx-4090", "bf16"): 165.2,
    ("l40s", "bf16"): 362.05,
    ("v100-32g", "fp16"): 125,
    ("t4", "fp16"): 65,
}
# All links of one device, one direction, GB/s.
FABRIC = {
    "v100-16g": 150,
    "v100-32g": 150,
    "a100-80g-sxm": 300,
    "a800-80g-sxm": 200,
    "h100-sxm": 450,
    "h800-sxm": 200,
    "h200-sxm": 450,
    "gh200": 450,
    "b200-sxm": 900,
    "gb200": 900,
    "gb300": 900,
    "mi300x": 448,
    "mi355x": 537.6,
    "mi250x": 350,
    "rtx-3090": 56.25,
    "t4": None,
    "l4": None,
    "l40s": None,
    "rtx-4090": None,
}


def _quantities(value: Any, path: str = "") -> Iterator[tuple[str, Quantity]]:
    """Every Quantity inside a spec with its place."""
    if isinstance(value, Quantity):
        yield path, value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _quantities(item, f"{path}/{key}")
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield from _quantities(item, f"{path}/{index}")
    elif hasattr(type(value), "model_fields"):
        for key in type(value).model_fields:
            yield from _quantities(getattr(value, key), f"{path}/{key}")


def _assert_sourced(spec: DeviceSpec | ClusterProfile) -> None:
    found = list(_quantities(spec))
    assert found
    for path, quantity in found:
        assert quantity.source in spec.sources, f"{spec.name}{path}: source {quantity.source!r}"
        if quantity.basis in ("derived", "assumed"):
            assert quantity.note, f"{spec.name}{path}: a {quantity.basis} number says how"
    unused = set(spec.sources) - {quantity.source for _, quantity in found}
    assert not unused, f"{spec.name}: sources nothing cites: {unused}"
    assert all(len(text) > 15 for text in spec.sources.values())


@pytest.mark.parametrize("name", DEVICES)
def test_device_loads_and_cites(name: str) -> None:
    device = load_device(name)
    assert device.name == name
    _assert_sourced(device)


@pytest.mark.parametrize("name", PROFILES)
def test_profile_loads_and_cites(name: str) -> None:
    profile = load_profile(name)
    assert profile.name == name
    assert profile.description
    _assert_sourced(profile)


def test_no_workplace_or_address_in_files() -> None:
    root = data_directory("hardware_profiles")
    for path in [*root.glob("*.json"), *root.glob("gpus/*.json")]:
        text = path.read_text(encoding="utf-8")
        assert "http" not in text, path
        assert "TODO" not in text, path
        assert "/work" not in text, path


@pytest.mark.parametrize("name", DEVICES)
def test_memory_is_below_what_is_sold(name: str) -> None:
    device = load_device(name)
    assert device.memory_gib.value <= VENDOR_GB[name]
    assert device.memory_bytes >= 0.93e9 * VENDOR_GB[name]


@pytest.mark.parametrize(("key", "expected"), PEAKS.items())
def test_published_peaks(key: tuple[str, str], expected: float) -> None:
    name, precision = key
    assert load_device(name).peak_flop_per_s(precision) == pytest.approx(expected * 1e12)


@pytest.mark.parametrize("name", DEVICES)
def test_peaks_are_ordered(name: str) -> None:
    device = load_device(name)
    peak = device.peak_flop_per_s
    half = peak("fp16")
    assert half is not None
    assert peak("bf16") in (None, half)
    assert (peak("fp32") or 0) <= (peak("tf32") or half) <= half
    if peak("fp8") is not None:
        assert peak("fp8") == pytest.approx(2 * half, rel=0.02)


@pytest.mark.parametrize("name", DEVICES)
def test_old_generations_lack_new_precisions(name: str) -> None:
    device = load_device(name)
    lacks_bf16 = device.generation in ("volta", "turing")
    assert (device.peak_flop_per_s("bf16") is None) == lacks_bf16
    has_fp8 = device.generation in ("ada", "hopper", "blackwell", "cdna3", "cdna4")
    assert (device.peak_flop_per_s("fp8") is not None) == has_fp8
    assert device.peak_flop_per_s("int8") is None


@pytest.mark.parametrize(("name", "expected"), FABRIC.items())
def test_fabric_is_one_direction(name: str, expected: float | None) -> None:
    link = load_device(name).link_gb_per_s
    assert (link.value if link else None) == expected


@pytest.mark.parametrize("name", DEVICES)
def test_device_is_balanced(name: str) -> None:
    """Flop per byte of memory traffic and multiprocessor rates lie where real devices lie."""
    device = load_device(name)
    half = device.peak_flop_per_s("fp16")
    assert half is not None
    assert 60 < half / device.memory_bytes_per_s < 450
    assert 0.5e12 < half / device.multiprocessors < 20e12
    assert device.host_link_gb_per_s.value in (15.75, 31.5, 36, 63, 450)
    if device.link_gb_per_s is not None:
        assert device.link_gb_per_s.value < device.memory_bandwidth_gb_per_s.value


def test_only_known_aliases_are_shared() -> None:
    shared = {"a100", "nvidia-a100", "a100-sxm", "a100-sxm4", "a100-pcie", "v100", "tesla-v100", "v100-sxm2"}
    shared |= {"a100-40", "a100-40g", "a100-40gb", "a100-80", "a100-80g", "a100-80gb"}
    for folder, expected in (("gpus", shared), (".", {"nvl72"})):
        owners: dict[str, set[str]] = defaultdict(set)
        files = sorted((data_directory("hardware_profiles") / folder).glob("*.json"))
        for path in files:
            for alias in read_document(path)["aliases"]:
                owners[alias.lower().replace(" ", "-").replace("_", "-")].add(path.stem)
        assert {alias for alias, names in owners.items() if len(names) > 1} == expected
        for path in files:
            assert owners.get(path.stem, {path.stem}) == {path.stem}, "an alias must not hide a name"


@pytest.mark.parametrize("name", PROFILES)
def test_profile_describes_its_devices(name: str) -> None:
    for group in load_profile(name).node_groups:
        device = load_device(group.device)
        inner = group.tiers[0]
        fabric = inner.technology in ("nvswitch", "nvlink-mesh", "nvlink-bridge", "xgmi")
        if fabric:
            assert device.link_gb_per_s is not None
            assert inner.bandwidth_gb_per_s.value <= device.link_gb_per_s.value
        else:
            assert inner.bandwidth_gb_per_s.value <= device.host_link_gb_per_s.value
        hopper_or_later = device.generation in ("hopper", "blackwell")
        assert inner.in_network_reduction == (inner.technology == "nvswitch" and hopper_or_later)


@pytest.mark.parametrize("name", PROFILES)
def test_tiers_nest_and_slow_down(name: str) -> None:
    for group in load_profile(name).node_groups:
        child, per_device, latency = 1, float("inf"), 0.0
        for tier in group.tiers:
            assert tier.technology in LINK_TECHNOLOGIES
            share = tier.bytes_per_s / child
            assert share <= per_device * 1.001, f"{name}: {tier.name} gives a device more than the tier below"
            assert tier.latency_seconds >= latency
            assert 1e-6 < tier.latency_seconds < 1e-4
            child, per_device, latency = tier.devices or child, share, tier.latency_seconds
        if group.num_nodes > 1:
            assert group.tiers[-1].devices is None
            assert group.tiers[0].devices is not None


@pytest.mark.parametrize("name", PROFILES)
def test_network_bandwidth_is_links_times_rate(name: str) -> None:
    rates = {10, 25, 50, 100, 200, 400, 800}
    for group in load_profile(name).node_groups:
        for tier in group.tiers:
            if tier.technology in ("infiniband", "ethernet", "efa", "slingshot", "omni-path"):
                assert tier.bandwidth_gb_per_s.value * 8 / tier.links in rates


@pytest.mark.parametrize("name", PROFILES)
def test_profile_resolves(name: str) -> None:
    """The topology accepts every profile, whole and as one node."""
    profile = load_profile(name)
    group = profile.node_groups[0]
    device = load_device(group.device)
    whole = resolve_cluster(profile, device)
    assert whole.num_devices == group.num_nodes * group.devices_per_node
    one = resolve_cluster(profile, device, group.devices_per_node)
    assert one.num_nodes == 1


def test_rack_scale_domain_spans_nodes() -> None:
    group = load_profile("gb200-nvl72").node_groups[0]
    assert (group.devices_per_node, group.num_nodes, group.tiers[0].devices) == (4, 144, 72)
    assert group.tiers[1].bandwidth_gb_per_s.value == 72 * 50


@pytest.mark.parametrize(
    ("name", "leaf", "share"),
    [
        ("hgx-h100-eth-400g-oversub2", 32, 25e9),
        ("hgx-a100-eth-100g-oversub4", 128, 6.25e9 / 4),
        ("meta-llama3-24k", 3072, 50e9 / 7),
    ],
)
def test_oversubscribed_spine(name: str, leaf: int, share: float) -> None:
    tiers = load_profile(name).node_groups[0].tiers
    assert [tier.devices for tier in tiers] == [8, leaf, None]
    assert tiers[2].bytes_per_s / leaf == pytest.approx(share)


@pytest.mark.parametrize(
    ("name", "gigabytes"),
    [("dgx-h100", 400), ("dgx-a100", 200), ("aws-p4d", 50), ("aws-p5", 400), ("frontier", 100)],
)
def test_node_bandwidth(name: str, gigabytes: float) -> None:
    assert load_profile(name).node_groups[0].tiers[-1].bandwidth_gb_per_s.value == gigabytes


def test_files_are_plain_json() -> None:
    for path in data_directory("hardware_profiles").rglob("*.json"):
        assert json.loads(path.read_text(encoding="utf-8"))["schema_version"] == 1
