"""Process groups at full world size, in one process: PyTorch's fake backend under PyTorch and Megatron-Core.

What a rank of the exported plan is told to be (its stage, its data rank, the sizes of its groups) is compared
with the plan.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from planner.launchers.megatron import MEGATRON
from planner.launchers.megatron_groups import expert_data_ranks
from planner.launchers.pytorch import constants
from planner.plan_file.schema import Plan

pytestmark = pytest.mark.heavy


@contextmanager
def rank_of(world: int, rank: int) -> Iterator[Any]:
    """torch.distributed as rank ``rank`` of ``world`` sees it; nothing is sent."""
    dist = importlib.import_module("torch.distributed")
    dist.init_process_group("fake", rank=rank, world_size=world)
    try:
        yield dist
    finally:
        dist.destroy_process_group()


def some_ranks(world: int) -> list[int]:
    """The first, the last and two between."""
    return sorted({0, world // 3, world // 2, world - 1})


@pytest.mark.parametrize("gpus", [64, 512])
def test_the_script_forms_the_plans_mesh(planned: Callable[..., Plan], gpus: int) -> None:
    pytest.importorskip("torch")
    meshes = importlib.import_module("torch.distributed.device_mesh")
    plan = planned("pytorch", "llama-3.1-405b" if gpus > 64 else "llama-3-70b", "dgx-h100", gpus, 8192, 512)
    d, sizes = plan.decision.degrees, constants(plan)["MESH"]
    for rank in some_ranks(gpus):
        with rank_of(gpus, rank):
            mesh = meshes.init_device_mesh("cpu", tuple(sizes.values()), mesh_dim_names=tuple(sizes))
            (stage,) = {s.rank for s in plan.decision.stages if s.devices[0] <= rank <= s.devices[1]}
            assert mesh["pp"].get_local_rank() == stage
            assert mesh["pp"].size() == d.pp
            data = mesh["dp_replicate"].get_local_rank() * sizes["dp_shard"]
            assert data + mesh["dp_shard"].get_local_rank() == rank // d.tp % d.dp
            assert mesh["dp_replicate"].size() * mesh["dp_shard"].size() == d.dp
            assert mesh["tp"].get_local_rank() == rank % d.tp
            assert mesh["tp"].size() == d.tp


def test_megatron_forms_the_plans_groups(plans: Callable[[str], Plan], case: str) -> None:
    pytest.importorskip("torch")
    state = pytest.importorskip("megatron.core.parallel_state")
    plan = plans(case)
    d, gpus = plan.decision.degrees, plan.inputs.cluster.gpus
    flags = json.loads(MEGATRON.export(plan)["flags.json"])["flags"]

    def number(name: str, default: int = 1) -> int:
        return int(flags.get(name, [default])[0])

    for rank in some_ranks(gpus):
        with rank_of(gpus, rank):
            try:
                state.initialize_model_parallel(
                    tensor_model_parallel_size=number("--tensor-model-parallel-size"),
                    pipeline_model_parallel_size=number("--pipeline-model-parallel-size"),
                    context_parallel_size=number("--context-parallel-size"),
                    expert_model_parallel_size=number("--expert-model-parallel-size"),
                    expert_tensor_parallel_size=number("--expert-tensor-parallel-size", d.tp),
                    num_distributed_optimizer_instances=number("--num-distributed-optimizer-instances"),
                    create_gloo_process_groups=False,
                )
                (stage,) = {s.rank for s in plan.decision.stages if s.devices[0] <= rank <= s.devices[1]}
                assert state.get_pipeline_model_parallel_rank() == stage
                assert state.get_data_parallel_world_size() == d.dp
                assert state.get_data_parallel_world_size(with_context_parallel=True) == d.dp * d.cp
                assert state.get_tensor_model_parallel_rank() == rank % d.tp
                assert state.get_context_parallel_world_size() == d.cp
                if plan.inputs.model.is_moe:
                    assert state.get_expert_model_parallel_world_size() == d.ep
                    assert state.get_expert_tensor_parallel_world_size() == d.expert_tp
                    assert state.get_expert_data_parallel_world_size() == expert_data_ranks(plan)
            finally:
                state.destroy_model_parallel()
