"""Zero-bubble orders are PyTorch's own, operation by operation."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from acceptance import fake_ranks

from planner.schedule.orders import BACKWARD, FORWARD, INPUT_GRADIENT, WEIGHT_GRADIENT, operation_order

pytestmark = pytest.mark.heavy

KINDS = {
    "FORWARD": FORWARD,
    "FULL_BACKWARD": BACKWARD,
    "BACKWARD_INPUT": INPUT_GRADIENT,
    "BACKWARD_WEIGHT": WEIGHT_GRADIENT,
}
CLASSES = {"zb-h1": "ScheduleInterleavedZeroBubble", "zb-v": "ScheduleZBVZeroBubble"}


@pytest.mark.parametrize("microbatches", [2, 4, 8, 16])
@pytest.mark.parametrize("pp", [2, 4])
@pytest.mark.parametrize("schedule", CLASSES)
def test_orders_are_pytorchs(schedule: str, pp: int, microbatches: int) -> None:
    torch = pytest.importorskip("torch")
    schedules = pytest.importorskip("torch.distributed.pipelining.schedules")
    indices = [0] if schedule == "zb-h1" else [0, 2 * pp - 1]
    with fake_ranks(pp):
        stages = [
            SimpleNamespace(
                stage_index=index,
                num_stages=pp * len(indices),
                group_size=pp,
                group_rank=0,
                group=torch.distributed.group.WORLD,
                has_backward=True,
                submod=torch.nn.Linear(1, 1),
                is_first=index == 0,
                is_last=index == pp * len(indices) - 1,
                stage_index_to_group_rank={},
            )
            for index in indices
        ]
        kind = getattr(schedules, CLASSES[schedule])
        theirs = kind(stages, microbatches, loss_fn=lambda *_: None).pipeline_order
    found = [
        [
            (KINDS[action.computation_type.name], action.microbatch_index, int(action.stage_index >= pp))
            for action in theirs[rank]
            if action is not None
        ]
        for rank in range(pp)
    ]
    ours = operation_order(schedule, pp, microbatches, len(indices))
    assert found == [[tuple(operation) for operation in rank] for rank in ours]
