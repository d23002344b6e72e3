"""Every term of a prediction: which formulas give it and which constants and printed figures they read.

The table is data, held to the code by tests: each formula is a function that exists, each constant a field of
``Constants``, and every cause of the breakdown and every memory category has its entry.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Formula:
    """A formula's name, the function that holds it, and where it was published."""

    name: str
    function: str
    source: str = ""


@dataclass(frozen=True)
class Term:
    """One cause of seconds or one category of bytes.

    constants: fields of ``Constants`` (a term with an exposed part also follows the kernels it hides behind);
    facts: printed figures of the machine ("peak", "memory bandwidth",
    "links"); axis: the mesh axis whose links it crosses.
    """

    name: str
    formulas: tuple[Formula, ...]
    constants: tuple[str, ...] = ()
    facts: tuple[str, ...] = ()
    axis: str = ""


_COMPUTE = "planner.cost.compute.Device."
_COLLECTIVES = "planner.cost.collectives."
_STAGE = "planner.cost.stage.StageModel."
_KERNELS = (
    Formula("roofline of a matrix product", f"{_COMPUTE}matmul_seconds", "Williams et al. 2009"),
    Formula("fused attention", f"{_COMPUTE}flash_seconds", "Dao 2307.08691"),
    Formula("streaming kernel", f"{_COMPUTE}pass_seconds"),
)
_KERNEL_CONSTANTS = (
    "matmul_efficiency",
    "matmul_overhead_seconds",
    "matmul_depth",
    "misaligned_slowdown",
    "flash_forward_efficiency",
    "flash_backward_efficiency",
    "bandwidth_efficiency",
    "pass_factor",
    "launch_seconds",
    "kernel_slowdown",
    "attention_slowdown",
    "site_slowdown",
    "expert_imbalance",
)
_KERNEL_FACTS = ("peak", "memory bandwidth")
_GATHER = Formula("ring all-gather", f"{_COLLECTIVES}all_gather_seconds", "Thakur et al. 2005")
_REDUCE = Formula(
    "fastest of ring, tree and in-switch all-reduce",
    f"{_COLLECTIVES}all_reduce_seconds",
    "Thakur et al. 2005",
)
_EXPOSED = Formula("exposed part of a collective", f"{_COLLECTIVES}exposed_seconds")
_COLLECTIVE_CONSTANTS = (
    "link_efficiency",
    "fabric_efficiency",
    "site_network",
    "in_network_efficiency",
    "collective_overhead_seconds",
    "overlap_theft",
)
_STATES = Formula(
    "states under sharding", "planner.cost.row.state_bytes_per_parameter", "Rajbhandari et al. 1910.02054"
)
_FULLEST = Formula("fullest moment of a rank", f"{_STAGE}memory", "Korthikanti et al. 2205.05198")

SECONDS: tuple[Term, ...] = (
    Term("compute", _KERNELS, _KERNEL_CONSTANTS, _KERNEL_FACTS),
    Term("recompute", _KERNELS, _KERNEL_CONSTANTS, _KERNEL_FACTS),
    Term(
        "bubble",
        (Formula("replay of the schedule", "planner.schedule.timeline.replay", "Narayanan 2104.04473"),),
    ),
    Term("tp", (_GATHER, _REDUCE, _EXPOSED), _COLLECTIVE_CONSTANTS, ("links",), "tp"),
    Term("cp", (_GATHER, _EXPOSED), _COLLECTIVE_CONSTANTS, ("links",), "cp"),
    Term(
        "ep",
        (Formula("all-to-all", f"{_COLLECTIVES}all_to_all_seconds"), _EXPOSED),
        (*_COLLECTIVE_CONSTANTS, "expert_imbalance"),
        ("links",),
        "ep",
    ),
    Term(
        "pp",
        (Formula("pipeline send", f"{_COLLECTIVES}send_seconds"),),
        ("link_efficiency", "fabric_efficiency", "site_network"),
        ("links",),
        "pp",
    ),
    Term("dp", (_GATHER, _REDUCE, _EXPOSED), _COLLECTIVE_CONSTANTS, ("links",), "dp"),
    Term(
        "optimizer",
        (Formula("streaming update", f"{_STAGE}tail"),),
        ("bandwidth_efficiency", "optimizer_bytes_factor"),
        ("memory bandwidth",),
    ),
    Term(
        "other",
        (Formula("stragglers and host work", "planner.cost.model.CostModel.straggler_factor"),),
        ("straggler_per_doubling", "step_overhead_seconds"),
    ),
)
# The optimizer's cause where the plan puts it on the host.
HOST_OPTIMIZER = Term(
    "optimizer",
    (
        Formula("streaming norm and copies", f"{_STAGE}tail"),
        Formula("link and Adam on the host", "planner.cost.offload.host_update_seconds", "Ren 2101.06840"),
    ),
    (
        "bandwidth_efficiency",
        "optimizer_bytes_factor",
        "host_adam_efficiency",
        "link_efficiency",
        "site_network",
    ),
    ("memory bandwidth", "host"),
)
BYTES: tuple[Term, ...] = (
    Term("parameters", (_STATES,)),
    Term("gradients", (_STATES,)),
    Term("optimizer", (_STATES,)),
    Term("activations", (_FULLEST,), ("allocator_slack", "expert_imbalance")),
    Term("buffers", (_FULLEST,), ("allocator_slack", "expert_imbalance")),
    Term(
        "reserve",
        (Formula("driver and communicators", "planner.cost.row.reserve_bytes"),),
        ("context_bytes", "communicator_bytes"),
    ),
)
