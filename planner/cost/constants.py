"""Constants that datasheets do not give, each with its meaning and source.

Every value below is a prior from the literature, not a fit: ``basis`` says so, and the accuracy table in
the README is computed with exactly these. A calibration replaces values, never formulas.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any

from planner.cluster.spec import DeviceSpec

# Highest share of the dense peak that large matrix products reach, by architecture. Read from public GEMM
# benchmarks: cuBLAS on A100 reaches 0.80-0.85 of 312 TFLOP/s, on H100 SXM 0.70-0.75 of 989 (power limit),
# hipBLASLt on MI300X about 0.5-0.55 of 1307. Blackwell is assumed, between what its
# best kernels are said to reach (0.77 of 2250, not checked) and the 0.48 of training at 1.55 times an H200
# where the peaks promise 2.27 (GPT-1.3B on B200, arXiv 2512.02189).
MATMUL_EFFICIENCY: dict[str, float] = {
    "volta": 0.75,
    "turing": 0.70,
    "ampere": 0.80,
    "ada": 0.80,
    "hopper": 0.70,
    "blackwell": 0.60,
    "cdna2": 0.65,
    "cdna3": 0.55,
    "cdna4": 0.55,
}
# Flash attention forward and backward, share of the dense peak at head dimension 128: FlashAttention-2
# (arXiv 2307.08691, figures 4 to 6) on A100; FlashAttention-3 (arXiv 2407.08608) on H100. Blackwell
# forward between FlashAttention-4's 0.71 (1,605 of 2,250 TFLOP/s on B200) and cuDNN 9.13's, up to 1.3 times
# less; its backward is assumed.
FLASH_EFFICIENCY: dict[str, tuple[float, float]] = {
    "volta": (0.35, 0.25),
    "turing": (0.35, 0.25),
    "ampere": (0.60, 0.50),
    "ada": (0.60, 0.50),
    "hopper": (0.55, 0.45),
    "blackwell": (0.65, 0.50),
    "cdna2": (0.35, 0.25),
    "cdna3": (0.35, 0.25),
    "cdna4": (0.35, 0.25),
}
# FlashAttention-2, written for Ampere, against newer kernels: on H100 at head dimension 128 it reaches 370
# TFLOP/s forward, cuDNN 600 and FlashAttention-3 646 (arXiv 2407.08608, figure 5).
FLASH2_SLOWDOWN: dict[str, float] = {"hopper": 1.6}
# Share of a memory's printed bandwidth that copies reach where it is not the usual 0.80: 220 of 320 GB/s on
# T4 (Jia et al., arXiv 1903.07486).
BANDWIDTH_EFFICIENCY: dict[str, float] = {"turing": 0.69}
# Shares of the printed rate. tcp: Ethernet through the kernel's sockets, without RDMA; NCCL reached 4.7 of
# 12.5 GB/s between two nodes of Amazon EC2 (NVIDIA/nccl issue 398); 0.50 is assumed, for slower links load
# the host less.
LINK_EFFICIENCY: dict[str, float] = {
    "nvswitch": 0.80,
    "nvlink": 0.80,
    "nvlink-mesh": 0.75,
    "nvlink-bridge": 0.80,
    "xgmi": 0.75,
    "pcie": 0.75,
    "infiniband": 0.85,
    "ethernet": 0.75,
    "tcp": 0.50,
    "efa": 0.70,
    "slingshot": 0.75,
    "omni-path": 0.75,
}


# Links of the accelerators themselves; all others are the installation's own.
ACCELERATOR_LINKS = ("nvswitch", "nvlink", "nvlink-mesh", "nvlink-bridge", "xgmi")


def _constant(default: float, meaning: str, source: str) -> Any:
    return field(default=default, metadata={"meaning": meaning, "source": source})


@dataclass(frozen=True)
class Constants:
    """The cost model's free constants, in base units. ``basis`` names where the set came from."""

    basis: str = "prior"
    matmul_efficiency: float = _constant(
        0.75, "share of dense peak of a large matrix product", "cuBLAS benchmarks, by architecture"
    )
    flash_forward_efficiency: float = _constant(
        0.55, "share of dense peak, flash attention forward", "arXiv 2307.08691, 2407.08608"
    )
    flash_backward_efficiency: float = _constant(
        0.45, "share of dense peak, flash attention backward", "arXiv 2307.08691, 2407.08608"
    )
    launch_seconds: float = _constant(
        2e-5, "host seconds to launch one kernel", "PyTorch dispatch with autograd, 10-30 us"
    )
    matmul_overhead_seconds: float = _constant(
        6e-6, "time constant of matmul saturation: half of emax at peak x this FLOP", "F0 = peak x launch"
    )
    matmul_depth: float = _constant(
        64.0,
        "inner length of a product that costs as much as starting and storing a tile",
        "guessed: a tile's depth or two",
    )
    bandwidth_efficiency: float = _constant(
        0.80, "share of HBM bandwidth of streaming kernels", "STREAM-like kernels on HBM"
    )
    pass_factor: float = _constant(
        1.0, "bytes that norms, activations and masks move over the fused minimum", "1 fused; eager 2-3"
    )
    kernel_slowdown: float = _constant(
        1.0, "all kernels of a stack over the architecture's own", "clocks, power caps, kernel choice"
    )
    misaligned_slowdown: float = _constant(
        1.15, "products with a dimension that is no multiple of 32", "guessed; 1.16 fitted on A100"
    )
    attention_slowdown: float = _constant(
        1.0, "a stack's fused attention over the architecture's own", "FlashAttention-2 and 3, cuDNN"
    )
    fabric_efficiency: float = _constant(
        1.0, "a generation's own links over their technology's usual share", "nccl-tests at tens of MB"
    )
    site_slowdown: float = _constant(
        1.0, "all kernels of one installation over its stack's usual", "clocks, cooling, drivers, libraries"
    )
    site_network: float = _constant(
        1.0, "an installation's network and PCIe over their technology's usual", "fabric, routing, drivers"
    )
    collective_overhead_seconds: float = _constant(
        2e-5, "host seconds to launch one collective and its stream waits", "torch.distributed on NCCL"
    )
    overlap_theft: float = _constant(
        0.10, "share of the hiding window lost to multiprocessors and HBM used by the collective", "2-15 %"
    )
    in_network_efficiency: float = _constant(
        0.76, "in-switch all-reduce: achieved over the same link's ring rate", "NVLink SHARP, nccl-tests H100"
    )
    expert_imbalance: float = _constant(1.1, "busiest rank's tokens over the mean", "1.0-1.3")
    straggler_per_doubling: float = _constant(
        0.01, "extra step time per doubling of nodes", "1 + c log2(nodes), c 0.01-0.02"
    )
    step_overhead_seconds: float = _constant(
        2e-3, "data loading, logging and host work per step", "Megatron-LM timers"
    )
    optimizer_bytes_factor: float = _constant(
        1.0, "multiplier of optimizer traffic", "multi-tensor Adam is a streaming kernel"
    )
    host_adam_efficiency: float = _constant(
        0.30,
        "share of host memory bandwidth that Adam on the host reaches",
        "0.46 on a DGX-2 in arXiv 2101.06840, table 4; about 0.15 in reports (DeepSpeed 735, slime 1139)",
    )
    context_bytes: float = _constant(
        1.0 * 1024**3, "driver context and workspaces of one rank", "nvidia-smi of an idle PyTorch process"
    )
    communicator_bytes: float = _constant(
        0.2 * 1024**3, "buffers of one communicator", "NCCL buffers, 1-2 GiB for about 8 groups"
    )
    allocator_slack: float = _constant(
        0.03,
        "reserved but unusable share of activations and buffers",
        "caching allocator, expandable segments",
    )
    link_efficiency: tuple[tuple[str, float], ...] = tuple(LINK_EFFICIENCY.items())

    def efficiency_of(self, technology: str) -> float:
        """Achieved share of a link's printed bandwidth, by technology; 0.75 for one not in the table."""
        scale = self.fabric_efficiency if technology in ACCELERATOR_LINKS else self.site_network
        return dict(self.link_efficiency).get(technology, 0.75) * scale

    def rows(self) -> list[tuple[str, float, str, str]]:
        """(name, value, meaning, source) of every scalar constant, for explain and the README."""
        return [
            (f.name, getattr(self, f.name), f.metadata["meaning"], f.metadata["source"])
            for f in fields(self)
            if f.metadata
        ]


def default_constants(device: DeviceSpec) -> Constants:
    """The prior for a device's architecture; unknown architectures get the dataclass defaults."""
    base = Constants()
    forward, backward = FLASH_EFFICIENCY.get(
        device.generation, (base.flash_forward_efficiency, base.flash_backward_efficiency)
    )
    return replace(
        base,
        matmul_efficiency=MATMUL_EFFICIENCY.get(device.generation, base.matmul_efficiency),
        bandwidth_efficiency=BANDWIDTH_EFFICIENCY.get(device.generation, base.bandwidth_efficiency),
        flash_forward_efficiency=forward,
        flash_backward_efficiency=backward,
    )
