"""The machine of a measured run, from its GPU name and its printed links."""

from __future__ import annotations

import re
from functools import lru_cache

from planner.calibration.case import Case, Unsupported
from planner.catalog import load_device
from planner.cluster.default_profile import default_profile
from planner.cluster.spec import DeviceSpec
from planner.cluster.topology import Cluster, resolve_cluster
from planner.errors import InputError
from planner.units import BITS_PER_BYTE

# (pattern on the printed GPU name, device). The first that matches wins; memory decides between sizes.
DEVICES: tuple[tuple[str, str], ...] = (
    (r"gh200", "gh200"),
    (r"gb300", "gb300"),
    (r"gb200", "gb200"),
    (r"b300", "b300-sxm"),
    (r"b200", "b200-sxm"),
    (r"h200", "h200-sxm"),
    (r"h100.*96", "h100-96g-sxm"),
    (r"h100.*pcie", "h100-pcie"),
    (r"h100", "h100-sxm"),
    (r"h800", "h800-sxm"),
    (r"a800", "a800-80g-sxm"),
    (r"a100.*40", "a100-40g-sxm"),
    (r"a100", "a100-80g-sxm"),
    (r"mi300x", "mi300x"),
    (r"mi325x", "mi325x"),
    (r"mi355x", "mi355x"),
    (r"mi250x", "mi250x"),
    (r"v100.*32", "v100-32g"),
    (r"v100", "v100-16g"),
    (r"l40s", "l40s"),
    (r"\bl4\b", "l4"),
    (r"titan", "titan-rtx"),
    (r"4090", "rtx-4090"),
    (r"3090", "rtx-3090"),
    (r"2080", "rtx-2080-ti"),
    (r"\bt4\b", "t4"),
)
OMNI_PATH_GBIT = 100.0
SLINGSHOT_GBIT = 200.0
# By a word of ``inter_node_link``; Ethernet with RDMA is printed as RoCE and read as InfiniBand's like.
TECHNOLOGIES = (("omni-path", "omni-path"), ("slingshot", "slingshot"), ("ethernet", "tcp"))


@lru_cache(maxsize=256)
def _device(name: str) -> DeviceSpec:
    return load_device(name)


def case_device(case: Case) -> DeviceSpec:
    """The run's GPU. Raises Unsupported for mixed machines and unknown names."""
    text = case.text("gpu_name").lower()
    kinds = len(re.findall(r"x\s*\d+\b", text))
    if kinds > 1 or "+" in text:
        raise Unsupported(f"mixed GPUs ({case.text('gpu_name')}) are not planned yet")
    for pattern, name in DEVICES:
        # "h1000" is another GPU than "h100".
        if re.search(rf"{pattern}(?!\d)", text):
            return _device(name)
    try:
        return _device(text)
    except InputError as error:
        raise Unsupported(error.message) from None


def case_cluster(case: Case) -> Cluster:
    """The run's machine: the device's own fabric inside a node, the printed network between nodes."""
    device = case_device(case)
    gpus = case.count("gpus")
    per_node = min(gpus, case.count("gpus_per_node", 8))
    if gpus % per_node:
        raise Unsupported(f"{gpus} GPUs do not fill nodes of {per_node}")
    gbit = _network_gbit_per_node(case) if gpus > per_node else None
    return _cluster(device.name, gpus, per_node, gbit, _technology(case), _pcie_gbit(case))


def _pcie_gbit(case: Case) -> float | None:
    """Gb/s that a row prints for the PCIe links inside its nodes."""
    printed = re.search(r"PCIe.*?(\d+(?:\.\d+)?) Gb/s", case.text("intra_node_link"))
    return float(printed[1]) if printed else None


@lru_cache(maxsize=1024)
def _cluster(
    device: str,
    gpus: int,
    per_node: int,
    gbit_per_node: float | None,
    technology: str,
    pcie_gbit: float | None,
) -> Cluster:
    spec = _device(device)
    per_gpu = None if gbit_per_node is None else gbit_per_node / per_node
    profile, _ = default_profile(spec, gpus, per_node, per_gpu)
    group = profile.node_groups[0]
    tiers = [
        tier.model_copy(update={"technology": technology}) if tier.devices is None else tier
        for tier in group.tiers
    ]
    if pcie_gbit is not None and tiers[0].technology == "pcie":
        rate = tiers[0].bandwidth_gb_per_s.model_copy(update={"value": pcie_gbit / BITS_PER_BYTE})
        tiers[0] = tiers[0].model_copy(update={"bandwidth_gb_per_s": rate})
    changed = profile.model_copy(update={"node_groups": [group.model_copy(update={"tiers": tiers})]})
    return resolve_cluster(changed, spec)


def _technology(case: Case) -> str:
    text = case.text("inter_node_link").lower()
    return next((name for word, name in TECHNOLOGIES if word in text), "infiniband")


def _network_gbit_per_node(case: Case) -> float | None:
    """Gb/s of one node: "8x400Gb/s", "1600 Gb/s", "4x Omni-Path links"; None = the device's usual."""
    text = case.text("inter_node_link").lower()
    many = re.search(r"(\d+)\s*x\s*(\d+(?:\.\d+)?)\s*gb/s", text)
    if many:
        return float(many[1]) * float(many[2])
    links = re.search(r"(\d+)\s*x\s*omni-path", text)
    if links:
        return float(links[1]) * OMNI_PATH_GBIT
    one = re.search(r"(\d+(?:\.\d+)?)\s*gb/s", text)
    if one:
        return float(one[1])
    if "slingshot" in text:
        case.assume("Slingshot at 200 Gb/s per GPU")
        return SLINGSHOT_GBIT * case.count("gpus_per_node", 4)
    case.assume("network not printed: the usual one for this GPU")
    return None
