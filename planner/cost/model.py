"""The cost model: a problem with its device, constants and stack, which every formula reads."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from planner.cost.compute import Device
from planner.cost.constants import Constants
from planner.cost.offload import on_host
from planner.cost.row import CandidateRow
from planner.cost.stack import STACKS, Stack
from planner.cost.stage import StageModel
from planner.errors import UnknownName
from planner.model.chain import LayerChain, layer_chain
from planner.strategy.candidates import Problem
from planner.strategy.decision import OFFLOAD_OPTIMIZER


@dataclass(frozen=True)
class CostModel:
    """A problem with its device, constants and stack: everything formulas read."""

    problem: Problem
    constants: Constants
    stack: Stack
    device: Device
    chain: LayerChain

    @staticmethod
    def of(
        problem: Problem, constants: Constants, stack: str = "megatron", chain: LayerChain | None = None
    ) -> CostModel:
        """The model of a problem on a stack; ``chain`` saves rebuilding a known layer chain.

        Raises UnsupportedFeature when the device lacks the workload's precision, UnknownName for an
        unknown stack.
        """
        if stack not in STACKS:
            raise UnknownName("training stack", stack, STACKS)
        cluster = problem.cluster
        known = STACKS[stack]
        device = Device.of(cluster.device, problem.workload, constants, cluster.host, known)
        return CostModel(problem, constants, known, device, chain or layer_chain(problem.model))

    def stage_model(self, rows: dict[int, CandidateRow]) -> StageModel:
        """Prices ranks from candidate rows by code (``Decision.row_code``), that of the ends first."""
        return StageModel(rows, self.device, self.stack, self.problem.workload.moment_bytes_per_parameter)

    def placed(self, offload: int) -> CostModel:
        """The model that prices plans with this ``offload`` code; itself where it does already.

        Raises UnsupportedFeature for a stack whose optimizer cannot leave the GPU.
        """
        if self.stack.has_host_optimizer == (offload == OFFLOAD_OPTIMIZER):
            return self
        if offload == OFFLOAD_OPTIMIZER:
            return replace(self, stack=on_host(self.stack))
        return replace(self, stack=replace(self.stack, has_host_optimizer=False))

    @property
    def straggler_factor(self) -> float:
        """1 + c log2(nodes): the slowest of many nodes sets the pace of a synchronous step."""
        nodes = self.problem.cluster.num_nodes
        return 1.0 + self.constants.straggler_per_doubling * math.log2(max(1, nodes))
