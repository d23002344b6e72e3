"""Training stacks as data: what a framework keeps, reduces and hides.

A stack is not a branch in a formula; it is the numbers the formulas ask for. ``megatron`` follows
Megatron-Core with its distributed optimizer (bf16 weights, fp32 gradient buffer, fp32 master copy) and is
what plans without a target are priced on.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Stack:
    """Bytes per element and what overlaps.

    parameter_bytes: the weights compute reads. gradient_bytes: the gradient buffer. master_bytes: the fp32
    copy the optimizer updates. gradient_reduce_bytes: width of the gradient reduction. logit_saved_bytes
    and logit_transient_bytes: per logit, kept and short-lived. hides_gradient_reduction and
    hides_parameter_gather: overlap with the last backward and the next forward. bucket_parameters: elements
    per gradient bucket (Megatron-LM: max(40M, 1M x dp)). prefetch_layers: sharded layers gathered at once.
    gradients_gathers: weight gathers per microbatch when gradients are sharded: 0 keeps gathered weights
    until the update (one gather a step), 1 drops them behind every backward (FSDP's SHARD_GRAD_OP, FSDP2
    with reshard_after_forward False).
    """

    name: str
    parameter_bytes: float = 2.0
    gradient_bytes: float = 4.0
    master_bytes: float = 4.0
    gradient_reduce_bytes: float = 4.0
    logit_saved_bytes: float = 6.0
    logit_transient_bytes: float = 4.0
    hides_gradient_reduction: bool = True
    hides_parameter_gather: bool = True
    bucket_parameters: float = 40e6
    bucket_parameters_per_rank: float = 1e6
    prefetch_layers: float = 2.0
    fp8_weight_bytes: float = 2.0
    gradients_gathers: float = 0.0


STACKS: dict[str, Stack] = {
    "megatron": Stack("megatron"),
    # Megatron-DeepSpeed: gradient reduction after the last backward, half-precision gradients on the wire.
    "megatron-deepspeed": Stack(
        "megatron-deepspeed",
        gradient_bytes=4.0,
        gradient_reduce_bytes=2.0,
        hides_gradient_reduction=False,
        hides_parameter_gather=False,
    ),
    # FSDP FULL_SHARD: bf16 gathers and reductions of fp32 shards.
    "pytorch-fsdp": Stack("pytorch-fsdp", parameter_bytes=2.0, gradient_bytes=4.0, gradient_reduce_bytes=2.0),
    "torchtitan": Stack("torchtitan", gradients_gathers=1.0),
    # Accelerate with FSDP2: its mixed precision policy reduces in the precision of the products.
    "accelerate": Stack("accelerate", gradient_reduce_bytes=2.0, gradients_gathers=1.0),
    # Hetu-Galvatron: FSDP1 per layer, reduce_in_fp32.
    "galvatron": Stack("galvatron", gradients_gathers=1.0),
    "internevo": Stack("internevo", gradient_reduce_bytes=2.0),
    "mist": Stack("mist", gradient_bytes=2.0, gradient_reduce_bytes=2.0),
}
