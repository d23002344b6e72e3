"""The host of a node: its memory, how fast that is, and the link of one device to it.

A profile that does not state the host gets a stated assumption, used by plans that put the optimizer there.
"""

from __future__ import annotations

from dataclasses import dataclass

from planner.cluster.spec import DeviceSpec, NodeGroup
from planner.units import GIB, GIGA

# Host memory over device memory of a node: 0.8 to 3.8 in the 18 profiles that state it, at least 2 in 11.
ASSUMED_MEMORY_FACTOR = 2.0
# One DDR4-3200 channel a device, two at least. Per device a DGX-1 has 19, a DGX A100 51, a DGX H100 77 GB/s.
CHANNEL_GB_PER_S = 25.6
LEAST_CHANNELS = 2


@dataclass(frozen=True)
class Host:
    """One node's host. memory_bytes and bytes_per_s of its memory; link_bytes_per_s of one device to it, one
    direction; devices that share it; ``assumed`` says in words what no file stated.
    """

    memory_bytes: float
    bytes_per_s: float
    link_bytes_per_s: float
    devices: int
    assumed: tuple[str, ...] = ()

    @property
    def device_bytes_per_s(self) -> float:
        """Host memory bandwidth for one device when all of the node use it, bytes/s."""
        return self.bytes_per_s / self.devices


def host_of(group: NodeGroup, device: DeviceSpec, devices: int) -> Host:
    """The host of nodes of ``group`` of which ``devices`` devices are used."""
    assumed = []
    if group.host_memory_gib is not None:
        memory = group.host_memory_gib.value * GIB
    else:
        memory = ASSUMED_MEMORY_FACTOR * device.memory_bytes * group.devices_per_node
        assumed.append(
            f"host memory of {memory / GIB:.0f} GiB a node, {ASSUMED_MEMORY_FACTOR:g} times its GPUs' (set "
            f"--host-memory-gib, or host_memory_gib in a cluster file)"
        )
    if group.host_memory_bandwidth_gb_per_s is not None:
        rate = group.host_memory_bandwidth_gb_per_s.value * GIGA
    else:
        channels = max(LEAST_CHANNELS, group.devices_per_node)
        rate = CHANNEL_GB_PER_S * channels * GIGA
        assumed.append(
            f"host memory bandwidth of {rate / GIGA:.0f} GB/s a node, {channels} DDR4-3200 channels (set "
            f"host_memory_bandwidth_gb_per_s in a cluster file)"
        )
    return Host(memory, rate, device.host_link_gb_per_s.value * GIGA, devices, tuple(assumed))
