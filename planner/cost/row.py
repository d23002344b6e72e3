"""One candidate's slice of the cost table as plain floats: what stages are priced from.

Arrays are fast over many candidates; stages of one candidate are faster on floats. A row is the table
read at one index, nothing is computed twice.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from planner.cost.arrays import Number
from planner.cost.collectives import GroupCosts
from planner.cost.constants import Constants
from planner.cost.gather_units import held_shares
from planner.cost.groups import Groups
from planner.cost.layer import RECOMPUTE_MODES, CostTable, LayerCost
from planner.cost.stack import Stack
from planner.strategy.candidates import Candidates, Problem
from planner.strategy.decision import (
    GROUP_ISLAND,
    SCHEDULES,
    SHARDING_GRADIENTS,
    SHARDING_OPTIMIZER,
    SHARDING_PARAMETERS,
    Degrees,
)


@dataclass(frozen=True)
class KindCost:
    """One layer kind on one rank, floats; role as in LayerKind, the other fields as in LayerCost.

    gathered_bytes are by recompute mode, as are held_shares (``gather_units.held_shares``). ``priced`` at
    ``index`` is where they were read.
    """

    role: str
    priced: LayerCost = field(compare=False, repr=False)
    index: int = field(compare=False, repr=False)
    forward_seconds: float
    backward_seconds: tuple[float, ...]
    saved_bytes: tuple[float, ...]
    working_bytes: tuple[float, ...]
    transient_bytes: float
    backward_bytes: float
    dense_parameters: float
    expert_parameters: float
    norm_parameters: float
    state_bytes: tuple[float, float, float]
    gathered_bytes: tuple[float, float, float]
    weight_seconds: float
    held_shares: tuple[float, float, float] = (1.0, 1.0, 1.0)

    @property
    def forward(self) -> dict[str, float]:
        """Seconds of forward by cause."""
        return {cause: float(value[self.index]) for cause, value in self.priced.forward.items()}

    @property
    def backward(self) -> dict[str, float]:
        """Seconds of backward by cause, without recomputation."""
        return {cause: float(value[self.index]) for cause, value in self.priced.backward.items()}

    def recompute(self, mode: int) -> dict[str, float]:
        """Seconds of ``mode``'s recomputation by cause."""
        return {cause: float(value[self.index]) for cause, value in self.priced.recompute[mode].items()}

    @property
    def static_bytes(self) -> float:
        """Parameters, gradients and optimizer states this rank keeps for one such layer."""
        return sum(self.state_bytes)


@dataclass(frozen=True)
class CandidateRow:
    """Everything about one candidate that stages need, for one sharding choice."""

    degrees: Degrees
    sharding: int
    sharding_group: int
    sequence_parallel: bool
    schedule: str
    virtual_stages: int
    microbatch_size: int
    microbatches: int
    kinds: tuple[KindCost, ...]
    groups: Groups
    boundary_bytes: float
    num_communicators: int
    hidden_size: int
    is_tied: bool

    @property
    def is_island(self) -> bool:
        return self.sharding_group == GROUP_ISLAND


def state_bytes_per_parameter(
    problem: Problem, stack: Stack, sharding: int, shard_size: Number, has_pipeline: Number
) -> tuple[Number, Number, Number]:
    """(parameters, gradients, optimizer) bytes one rank keeps per element it computes with.

    ZeRO (Rajbhandari et al., arXiv 1910.02054): optimizer divides the states by the group, gradients also
    the gradients, parameters also the weights. fp8 keeps a cast copy of the weights and its transpose. A
    stack without weights beside its fp32 ones keeps those, sharded in every mode; one that holds whole
    gradients under a pipeline divides none of them there. An optimizer on the host leaves none of its states.
    """
    states_group = shard_size if sharding >= SHARDING_OPTIMIZER else 1.0
    moments = problem.workload.moment_bytes_per_parameter
    is_whole = has_pipeline if stack.holds_pipeline_gradients else False
    group = np.where(is_whole, 1.0, shard_size if sharding >= SHARDING_GRADIENTS else 1.0)
    gradients = stack.gradient_bytes / group
    if not stack.keeps_master_apart:
        return stack.master_bytes / states_group, gradients, moments / states_group
    weights = stack.parameter_bytes
    if problem.workload.precision == "fp8":
        weights += stack.fp8_weight_bytes
    parameters = weights / (shard_size if sharding >= SHARDING_PARAMETERS else 1.0)
    if stack.has_host_optimizer:
        return parameters, gradients, 0.0
    return parameters, gradients, (stack.master_bytes + moments) / states_group


def candidate_row(
    problem: Problem, table: CostTable, stack: Stack, index: int, schedule: int, virtual_stages: int
) -> CandidateRow:
    """The table read at ``index``, run with a ``schedule`` (code) and a number of virtual stages."""
    c = table.candidates
    degrees = Degrees(
        dp=int(c.dp[index]),
        tp=int(c.tp[index]),
        pp=int(c.pp[index]),
        cp=int(c.cp[index]),
        ep=int(c.ep[index]),
        expert_tp=int(c.expert_tp[index]),
    )
    sharding = int(c.sharding[index])
    groups = _groups_at(table.groups, index)
    has_pipeline = degrees.pp > 1
    states = [
        tuple(map(float, state_bytes_per_parameter(problem, stack, sharding, size, has_pipeline)))
        for size in (groups.shard_size, groups.expert_shard_size)
    ]
    kinds = []
    for kind, row in zip(table.chain.kinds, table.rows, strict=True):
        dense, expert = float(row.dense_parameters[index]), float(row.expert_parameters[index])
        held = held_shares(kind.block, problem.model.hidden_size, int(c.gather_unit[index]))
        kept = [dense * one + expert * two for one, two in zip(*states, strict=True)]
        if kind.role == "embedding" and has_pipeline and stack.has_whole_table_gradient:
            kept[1] *= degrees.tp
        kinds.append(
            KindCost(
                role=kind.role,
                priced=row,
                index=index,
                forward_seconds=float(row.forward_seconds()[index]),
                backward_seconds=tuple(
                    float(row.backward_seconds(mode)[index]) for mode in range(RECOMPUTE_MODES)
                ),
                saved_bytes=tuple(float(row.saved_bytes[mode][index]) for mode in range(RECOMPUTE_MODES)),
                working_bytes=tuple(float(row.working_bytes[mode][index]) for mode in range(RECOMPUTE_MODES)),
                transient_bytes=float(row.transient_bytes[index]),
                backward_bytes=float(row.backward_bytes[index]),
                dense_parameters=dense,
                expert_parameters=expert,
                norm_parameters=float(row.norm_parameters[index]),
                state_bytes=(kept[0], kept[1], kept[2]),
                gathered_bytes=_gathered_bytes(stack, sharding, dense + expert, held),
                weight_seconds=float(row.weight_seconds[index]),
                held_shares=held,
            )
        )
    return CandidateRow(
        degrees=degrees,
        sharding=sharding,
        sharding_group=int(c.sharding_group[index]),
        sequence_parallel=bool(c.sequence_parallel[index]),
        schedule=SCHEDULES[schedule],
        virtual_stages=virtual_stages,
        microbatch_size=int(c.microbatch_size[index]),
        microbatches=problem.workload.global_batch // (degrees.dp * int(c.microbatch_size[index])),
        kinds=tuple(kinds),
        groups=groups,
        boundary_bytes=boundary_bytes(problem, stack, c, index),
        num_communicators=num_communicators(degrees),
        hidden_size=problem.model.hidden_size,
        is_tied=problem.model.head.tied,
    )


def _gathered_bytes(
    stack: Stack, sharding: int, parameters: float, held: tuple[float, float, float]
) -> tuple[float, float, float]:
    """Short-lived whole copies of a layer, by recompute mode: gathered weights and unreduced gradients.

    held: the share whole at once; prefetched and reduced is one gather unit at a time, the first of them.
    """
    if sharding == SHARDING_PARAMETERS:
        ahead = (stack.prefetch_layers - 1.0) * held[0]
        reduced = held[0] * stack.gradient_reduce_bytes
        first, second, third = (
            parameters * ((share + ahead) * stack.parameter_bytes + reduced) for share in held
        )
        return first, second, third
    gradients = parameters * stack.gradient_reduce_bytes if sharding == SHARDING_GRADIENTS else 0.0
    return gradients, gradients, gradients


def boundary_bytes(problem: Problem, stack: Stack, c: Candidates, index: int) -> float:
    """Hidden states of one microbatch at a stage boundary on one rank, for one sequence length of 1.0."""
    tp, cp = int(c.tp[index]), int(c.cp[index])
    split = tp if tp > 1 and int(c.sequence_parallel[index]) else 1
    tokens = int(c.microbatch_size[index]) * problem.workload.sequence_length / cp
    return stack.element_bytes * tokens * problem.model.hidden_size / split


def communicators(d: Degrees) -> set[tuple[str, int]]:
    """(axis, ranks) of the groups with more than one rank that a rank belongs to, all ranks' aside."""
    sizes = {"tp": d.tp, "cp": d.cp, "pp": d.pp, "dp": d.dp * d.cp, "ep": d.ep, "expert_tp": d.expert_tp}
    return {(axis, size) for axis, size in sizes.items() if size > 1}


def num_communicators(d: Degrees) -> int:
    """Process groups a rank belongs to."""
    return 1 + len(communicators(d))


def _groups_at(groups: Groups, index: int) -> Groups:
    values: dict[str, Any] = {}
    for name, value in groups.__dict__.items():
        if isinstance(value, GroupCosts):
            fields = value.__dict__.items()
            values[name] = GroupCosts(**{key: float(column[index]) for key, column in fields})
        else:
            values[name] = float(value[index])
    return Groups(**values)


def reserve_bytes(constants: Constants, communicators: int) -> float:
    """Driver context plus communicator buffers: memory no tensor of ours uses."""
    return constants.context_bytes + communicators * constants.communicator_bytes
