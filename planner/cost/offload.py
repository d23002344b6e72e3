"""The optimizer on the host: what leaves the GPU, what the host must hold, the seconds of an update there.

Ren et al., ZeRO-Offload, arXiv 2101.06840: a rank keeps 16-bit weights and its gradients; fp32 weights and
both moments live in host memory, and the host runs Adam. Legend: K elements a rank updates (its shard under
sharding), g, w, s, v bytes an element of gradient, weight, fp32 weight and moments, n ranks of a node.

    link    K g down, K w up                           over one device's host link
    memory  K (4 + 2 s + 2 v + w)                      gradient read, states both ways, new weights written
    seconds link / (PCIe rate x e) + memory / (host memory rate / n x e_adam)
    held    K (s + v + 4 + w)                          states, gradient received, weights to be sent

Assumed, so that no plan is promised what a launcher may not do: nothing of it overlaps with the backward or
with each other (Megatron-LM's --overlap-cpu-optimizer-d2h-h2d and DeepSpeed's streams hide part), all ranks
of a node update at once, and gradients stay on the GPU until the step ends (DeepSpeed frees them earlier).
Left out: devices that share a PCIe switch, and sockets whose memory is far from a device.
"""

from __future__ import annotations

from dataclasses import replace

from planner.cluster.host import Host
from planner.cost.arrays import Number
from planner.cost.compute import Device
from planner.cost.stack import Stack
from planner.errors import UnsupportedFeature

GRADIENT_BYTES = 4.0
# The rest of host memory is the system's and the training processes' own.
USABLE_SHARE = 0.9


def on_host(stack: Stack) -> Stack:
    """The stack with its optimizer on the host.

    Raises UnsupportedFeature for stacks whose fp32 weights are the ones the model computes with: there the
    states cannot leave alone.
    """
    if not stack.keeps_master_apart:
        raise UnsupportedFeature(
            f"stack {stack.name} keeps no 16-bit weights beside its fp32 ones: the states cannot leave alone",
            hint="use --offload none, or a target that keeps both",
        )
    return replace(stack, has_host_optimizer=True)


def host_bytes(stack: Stack, moment_bytes: float) -> tuple[float, float, float]:
    """Bytes per element of one update (over the link, through host memory, held there); 0 on the GPU."""
    if not stack.has_host_optimizer:
        return 0.0, 0.0, 0.0
    link = stack.gradient_bytes + stack.parameter_bytes
    states = stack.master_bytes + moment_bytes
    ends = GRADIENT_BYTES + stack.parameter_bytes
    return link, ends + 2.0 * states, ends + states


def host_update_seconds(device: Device, link_bytes: Number, host_bytes: Number) -> Number:
    """Seconds of gradients down, Adam on the host and weights up, one after the other."""
    host, constants = device.host, device.constants
    link = link_bytes / (host.link_bytes_per_s * constants.efficiency_of("pcie"))
    return link + host_bytes / (host.device_bytes_per_s * constants.host_adam_efficiency)


def usable_bytes(host: Host) -> float:
    """Bytes of one node's host memory that plans may use."""
    return USABLE_SHARE * host.memory_bytes


def fullest_node_bytes(rank_bytes: list[float], stage_stride: int, node_devices: int) -> float:
    """Bytes on the fullest node: ``rank_bytes`` of each pipeline rank, ``stage_stride`` ranks a stage.

    Ranks are numbered so that a stage's are consecutive; nodes hold ``node_devices`` of them in order.
    """
    total, fullest, first = len(rank_bytes) * stage_stride, 0.0, 0
    while first < total:
        end, held, at = min(first + node_devices, total), 0.0, first
        while at < end:
            stage = at // stage_stride
            until = min(end, (stage + 1) * stage_stride)
            held, at = held + (until - at) * rank_bytes[stage], until
        fullest, first = max(fullest, held), end
    return fullest
