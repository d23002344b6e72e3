"""Gradients that nobody reads: of products that have added theirs to the buffer themselves.

A product that accumulates its weight gradient in fp32 still owes autograd a tensor: one in 16 bits of the
weight's shape, of no content. Transformer Engine keeps one of each shape for all layers (get_dummy_wgrad);
the vocabulary's is made anew in every backward (Megatron-Core, tensor_parallel/layers.py).
"""

from __future__ import annotations

import numpy as np

from planner.cost.arrays import Array, Number
from planner.cost.compute import ELEMENT_BYTES
from planner.cost.stack import Stack
from planner.model.parameters import block_parameters, expert_parameters
from planner.model.spec import MixtureOfExperts, ModelSpec
from planner.strategy.candidates import Candidates


def unused_gradient_bytes(model: ModelSpec, stack: Stack, candidates: Candidates) -> Array:
    """Bytes of one unused gradient of each shape of the widest block on a rank, of its experts one's."""
    widest = np.zeros(len(candidates))
    if not stack.has_unused_gradients:
        return widest
    for block in model.block_kinds.values():
        ff, h = block.feed_forward, model.hidden_size
        one = float(expert_parameters(ff, h)) if isinstance(ff, MixtureOfExperts) else 0.0
        experts = one * ff.num_experts if isinstance(ff, MixtureOfExperts) else 0.0
        dense = float(block_parameters(block, h)) - experts
        widest = np.maximum(widest, dense / candidates.tp + one / candidates.expert_tp)
    return ELEMENT_BYTES * widest


def loss_bytes(stack: Stack, logits: Number, weights: Number) -> Number:
    """Short-lived bytes beside the saved ``logits`` (elements) at the fuller of two moments.

    While the loss is taken; or while the unused gradient of the vocabulary's ``weights`` (elements) is made,
    when the loss's gradient, as wide as what was saved, has become a 16-bit one.
    """
    loss = logits * stack.logit_transient_bytes
    if not stack.has_unused_gradients:
        return loss
    freed = logits * (stack.logit_saved_bytes - ELEMENT_BYTES)
    return np.maximum(loss, ELEMENT_BYTES * weights - freed)
