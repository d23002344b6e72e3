"""Device and cluster descriptions: the file formats of ``hardware_profiles/``.

Numbers in files carry their basis and source: ``{"value": 989.4, "basis": "datasheet", "source": "..."}``.
``source`` is a key of the file's ``sources`` table or a citation in full. Links state one direction,
per child unit of the tier that owns them; compute peaks are dense, never sparse. Conversion to bytes,
seconds and FLOP/s happens here, once, in the properties.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from planner.units import GIB, GIGA, MICRO, TERA

Count = Annotated[int, Field(gt=0, le=10**7)]
Basis = Literal["datasheet", "measured", "derived", "assumed"]


class _Facts(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Quantity(_Facts):
    """A number with where it comes from.

    basis: datasheet (the vendor prints it), measured (somebody ran it), derived (arithmetic on
    printed numbers, said in ``note``), assumed (nobody prints it; ``note`` says why this value).
    """

    value: float = Field(gt=0, le=1e12)
    basis: Basis
    source: str
    note: str = ""


class DeviceSpec(_Facts):
    """One accelerator as a rank sees it (an MI250X file describes one of its two dies)."""

    schema_version: Literal[1] = 1
    kind: Literal["device"] = "device"
    name: str
    aliases: list[str] = []
    vendor: str
    generation: str = Field(
        description="architecture: volta, turing, ampere, ada, hopper, blackwell, cdna2, ..."
    )
    memory_gib: Quantity = Field(description="memory the driver reports, GiB")
    memory_bandwidth_gb_per_s: Quantity
    peak_tflop_per_s: dict[Literal["fp32", "tf32", "fp16", "bf16", "fp8"], Quantity] = Field(
        description="dense matrix peaks by precision; a missing precision is not supported"
    )
    sustained_tflop_per_s: Quantity | None = Field(
        None, description="16-bit matrix products a power-limited board holds; absent where no limit binds"
    )
    num_multiprocessors: Quantity
    link_gb_per_s: Quantity | None = Field(
        None, description="device-to-device fabric (NVLink, xGMI), all links of one device, one direction"
    )
    host_link_gb_per_s: Quantity = Field(description="PCIe or C2C to the host, one direction")
    sources: dict[str, str] = {}
    notes: list[str] = []

    @property
    def memory_bytes(self) -> float:
        return self.memory_gib.value * GIB

    @property
    def memory_bytes_per_s(self) -> float:
        return self.memory_bandwidth_gb_per_s.value * GIGA

    @property
    def multiprocessors(self) -> int:
        return int(self.num_multiprocessors.value)

    def peak_flop_per_s(self, precision: str) -> float | None:
        """Dense peak in FLOP/s for ``precision``, None when the device does not support it."""
        quantity = {str(key): value for key, value in self.peak_tflop_per_s.items()}.get(precision)
        return None if quantity is None else quantity.value * TERA

    @property
    def sustained_flop_per_s(self) -> float:
        """What large 16-bit products reach under the board's power limit, infinite where none binds."""
        return math.inf if self.sustained_tflop_per_s is None else self.sustained_tflop_per_s.value * TERA


class Tier(_Facts):
    """One level of the interconnect, joining child units into larger units.

    Tier 0 joins single devices; tier k joins the units of tier k-1. ``devices`` is how many devices one
    unit of this tier holds (null = the rest of the cluster). ``bandwidth_gb_per_s`` is what one child
    unit can send into this tier in one direction, all its links together; ``links`` says how many links
    that is (8 NICs), and one flow from one device uses at most one of them per device taking part.
    """

    name: str
    technology: str = Field(
        description="nvswitch, nvlink-mesh, xgmi, pcie, infiniband, ethernet, slingshot, ..."
    )
    devices: Count | None = None
    bandwidth_gb_per_s: Quantity
    links: Count = 1
    latency_us: Quantity = Field(description="one hop, device to device, small message")
    in_network_reduction: bool = Field(False, description="the switch adds (NVLink SHARP, SHARP)")
    oversubscription: float = Field(
        1.0, ge=1, le=64, description="child bandwidth over what this tier's switches carry upward"
    )

    @property
    def bytes_per_s(self) -> float:
        """One child unit into this tier, one direction, after oversubscription."""
        return self.bandwidth_gb_per_s.value * GIGA / self.oversubscription

    @property
    def latency_seconds(self) -> float:
        return self.latency_us.value * MICRO


class NodeGroup(_Facts):
    """Equal nodes: a device type, how many a node holds, how many nodes."""

    name: str = "nodes"
    device: str = Field(description="name of a device file")
    devices_per_node: Count
    num_nodes: Count
    tiers: list[Tier] = Field(min_length=1, description="innermost first")
    host_memory_gib: Quantity | None = Field(None, description="memory of one node's host, all sockets")
    host_memory_bandwidth_gb_per_s: Quantity | None = Field(
        None, description="host memory of one node, all channels of all sockets together"
    )
    price_dollars_per_device_hour: Quantity | None = None


class InterGroupLink(_Facts):
    """Bandwidth between two node groups of a mixed cluster."""

    between: tuple[str, str]
    bandwidth_gb_per_s: Quantity = Field(description="per node, one direction")
    latency_us: Quantity


class ClusterProfile(_Facts):
    """A cluster file. Several node groups describe a mixed cluster (stated, not planned yet)."""

    schema_version: Literal[1] = 1
    kind: Literal["cluster"] = "cluster"
    name: str
    aliases: list[str] = []
    description: str = ""
    node_groups: list[NodeGroup] = Field(min_length=1)
    inter_group_links: list[InterGroupLink] = []
    sources: dict[str, str] = {}
    notes: list[str] = []

    @model_validator(mode="after")
    def _tiers_nest(self) -> ClusterProfile:
        for group in self.node_groups:
            size = 1
            for index, tier in enumerate(group.tiers):
                if tier.devices is None:
                    if index + 1 != len(group.tiers):
                        raise ValueError(
                            f"tier {tier.name!r}: only the last tier may leave devices null (the rest)"
                        )
                    continue
                if tier.devices % size or (tier.devices <= size and index):
                    raise ValueError(
                        f"tier {tier.name!r} joins {tier.devices} devices, which must be a larger "
                        f"multiple of the tier below ({size})"
                    )
                size = tier.devices
                node = group.devices_per_node
                if size % node and node % size:
                    raise ValueError(
                        f"tiers: {tier.name!r} joins {size} devices, which neither divide a node of {node} "
                        f"nor fill whole nodes; use {node} or a multiple of it"
                    )
            total = group.num_nodes * group.devices_per_node
            last = group.tiers[-1].devices
            if last is not None and last < total:
                raise ValueError(
                    f"node group {group.name!r} has {total} devices but its tiers join only {last}; add "
                    f"a tier with devices null for the network between nodes"
                )
        names = [group.name for group in self.node_groups]
        if len(set(names)) != len(names):
            raise ValueError(f"node group names must differ: {names}")
        for link in self.inter_group_links:
            for end in link.between:
                if end not in names:
                    raise ValueError(f"inter_group_links names {end!r}; node groups are {names}")
        return self
