"""A default machine from a device name and a count, with every assumption in words.

Used by ``--gpu NAME --gpus N``: the user has no profile file, so the node size, the fabric between devices
and the network are the usual ones for that device, and each is printed.
"""

from __future__ import annotations

from planner.cluster.spec import ClusterProfile, DeviceSpec
from planner.errors import InputError
from planner.units import BITS_PER_BYTE

# Network per device in Gb/s of the usual reference systems: DGX A100 8 x 200, DGX H100/B200 8 x 400,
# HGX B300 and MI355X nodes 8 x 800 / 400.
NETWORK_GBIT = {
    "volta": 50.0,
    "turing": 25.0,
    "ampere": 200.0,
    "ada": 100.0,
    "hopper": 400.0,
    "blackwell": 400.0,
    "cdna2": 100.0,
    "cdna3": 400.0,
    "cdna4": 400.0,
}
# Rack-scale NVLink domains: devices joined by one NVLink fabric, and devices per node.
RACK_SCALE = {"gb200": (72, 4), "gb300": (72, 4)}
SHARP_GENERATIONS = ("hopper", "blackwell")
SWITCHED_LINK_GB_PER_S = 100.0
LATENCY_US = {"nvswitch": 3.4, "nvlink-bridge": 3.4, "xgmi": 5.0, "pcie": 5.7, "infiniband": 14.0}


def node_size(device: DeviceSpec, gpus: int, gpus_per_node: int | None = None) -> int:
    """GPUs in a node of the default machine: as asked for, else the usual number, at most all."""
    return gpus_per_node or min(RACK_SCALE.get(device.name, (None, 8))[1], gpus)


def default_profile(
    device: DeviceSpec, gpus: int, gpus_per_node: int | None, network_gbit: float | None
) -> tuple[ClusterProfile, list[str]]:
    """(profile, assumptions in words) for ``gpus`` devices of one type.

    ``gpus_per_node`` defaults to 8 (or the rack's node size), ``network_gbit`` per device to the usual
    reference system's. Raises InputError when the devices do not fill whole nodes.
    """
    notes: list[str] = []
    island, _ = RACK_SCALE.get(device.name, (None, 8))
    per_node = node_size(device, gpus, gpus_per_node)
    if gpus_per_node is None:
        notes.append(f"{per_node} GPU{'s' * (per_node > 1)} per node (set --gpus-per-node)")
    if gpus > per_node and gpus % per_node:
        low = gpus // per_node * per_node
        raise InputError(
            f"{gpus} GPUs do not fill nodes of {per_node}: {gpus} % {per_node} = {gpus % per_node}",
            allowed=[low, low + per_node],
            hint=f"use --gpus {low} or --gpus {low + per_node}, or another --gpus-per-node; "
            f"plan --allow-idle leaves some idle",
        )
    nodes = -(-gpus // per_node)
    gbit = network_gbit if network_gbit is not None else NETWORK_GBIT.get(device.generation, 100.0)
    inside, technology = _inside_tier(device, island or per_node)
    notes.append(f"{technology} inside {island or per_node} GPUs at {inside} GB/s per GPU, one direction")
    tiers = [_tier(technology, technology, island or per_node, inside, 1, device)]
    if gpus > (island or per_node):
        origin = "set" if network_gbit is not None else "assumed; set --network"
        notes.append(f"network of {gbit:g} Gb/s per GPU, one NIC each, no oversubscription ({origin})")
        unit = island or per_node
        total = gbit / BITS_PER_BYTE * unit
        tiers.append(_tier("network", "infiniband", None, total, unit, device))
    profile = ClusterProfile.model_validate(
        {
            "name": f"{gpus}x-{device.name}",
            "description": "; ".join(notes),
            "node_groups": [
                {
                    "device": device.name,
                    "devices_per_node": per_node,
                    "num_nodes": nodes,
                    "tiers": tiers,
                }
            ],
        }
    )
    return profile, notes


def _inside_tier(device: DeviceSpec, size: int) -> tuple[float, str]:
    """(GB/s per device one direction, technology) of the fabric inside a node."""
    if device.link_gb_per_s is None or size == 1:
        return device.host_link_gb_per_s.value, "pcie"
    rate = device.link_gb_per_s.value
    if device.vendor.lower() == "amd":
        return rate, "xgmi"
    return rate, "nvswitch" if rate >= SWITCHED_LINK_GB_PER_S else "nvlink-bridge"


def _tier(
    name: str, technology: str, devices: int | None, rate: float, links: int, device: DeviceSpec
) -> dict[str, object]:
    note = "default profile; replace it by a cluster file for an exact machine"
    return {
        "name": name,
        "technology": technology,
        "devices": devices,
        "bandwidth_gb_per_s": {
            "value": rate,
            "basis": "assumed",
            "source": "device file or usual system",
            "note": note,
        },
        "links": links,
        "latency_us": {
            "value": LATENCY_US[technology],
            "basis": "measured",
            "source": "NCCL tuning constants, ring with the Simple protocol",
        },
        "in_network_reduction": technology == "nvswitch" and device.generation in SHARP_GENERATIONS,
    }
