"""Facts of two frameworks' code: Megatron's loss and unused gradients, launches that block."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from planner.cost.layer import cost_table
from planner.cost.model import CostModel
from planner.cost.stack import STACKS
from planner.cost.unused_gradient import loss_bytes, unused_gradient_bytes
from planner.strategy.candidates import Candidates

MEGATRON = STACKS["megatron"]


def test_the_loss_keeps_fp32_softmax_and_holds_16_bit_logits_beside_it():
    """Megatron-Core, tensor_parallel/cross_entropy.py: 4 bytes a logit saved, 6 at most."""
    assert MEGATRON.logit_saved_bytes == 4.0
    assert loss_bytes(MEGATRON, 1000.0, weights=10.0) == 2000.0


def test_few_tokens_leave_the_unused_gradient_of_the_vocabulary_as_the_largest():
    """16 bits of the logits' gradient and the weight's: 2 x 1000 + 2 x 9000, 4 x 1000 of them saved."""
    assert 4000.0 + loss_bytes(MEGATRON, 1000.0, weights=9000.0) == 20_000.0


@pytest.mark.parametrize("tp", [1, 2, 4])
def test_one_unused_gradient_of_each_shape_of_a_block(build, tp):
    """h = 1024, gated, f = 4096: 4 h h + 3 h f weights and two norms, 2 bytes each, over tp."""
    model = build.model(4)
    candidates = Candidates.single(tp=tp, dp=1, pp=1, microbatch_size=1)
    weights = 4 * 1024 * 1024 + 3 * 1024 * 4096 + 2 * 1024
    assert unused_gradient_bytes(model, MEGATRON, candidates) == pytest.approx(2.0 * weights / tp)
    plain = replace(MEGATRON, has_unused_gradients=False)
    assert np.all(unused_gradient_bytes(model, plain, candidates) == 0.0)


def test_launches_that_block_are_added_to_every_pass(build):
    """CUDA_LAUNCH_BLOCKING=1: the device waits for each kernel's launch."""
    model = build.cost_model(build.model(4), build.cluster(2), batch=8)
    candidates = Candidates.single(tp=2, dp=1, pp=1, microbatch_size=8)

    def forward(stack: str, launch_seconds: float) -> float:
        constants = replace(model.constants, launch_seconds=launch_seconds)
        priced = CostModel.of(model.problem, constants, stack)
        table = cost_table(priced.problem, priced.chain, candidates, priced.device, priced.stack)
        return float(table.rows[1].forward["compute"][0])

    hidden, blocking = "megatron-deepspeed", "megatron-deepspeed-blocking"
    assert forward(hidden, 1e-6) == forward(hidden, 2e-6)
    one, two, three = (forward(blocking, n * 1e-6) for n in (1, 2, 3))
    assert two - one == pytest.approx(three - two)
    assert two > one > forward(hidden, 1e-6)
