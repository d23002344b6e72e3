"""A Llama decoder in plain PyTorch, parallelised the way torchtitan does it: the thing that is measured.

Local shapes, saved tensors and collectives are what count here; no value is ever computed. ``F.rms_norm``
breaks into several fp32 operators on the CPU, so the norm is declared as the one kernel CUDA has, with the
tensors that kernel keeps: its input, its weight and one fp32 statistic per token.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    PrepareModuleInput,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts


@dataclass(frozen=True)
class Shape:
    """A dense Llama's sizes."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    ffn: int
    vocab: int
    tied: bool = False

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads


@torch.library.custom_op("reference::norm", mutates_args=())
def fused_norm(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    raise NotImplementedError("shapes only")


@torch.library.custom_op("reference::norm_backward", mutates_args=())
def fused_norm_backward(
    gradient: Tensor, x: Tensor, weight: Tensor, statistic: Tensor
) -> tuple[Tensor, Tensor]:
    raise NotImplementedError("shapes only")


@fused_norm.register_fake
def _(x, weight):
    return torch.empty_like(x), x.new_empty((*x.shape[:-1], 1), dtype=torch.float32)


@fused_norm_backward.register_fake
def _(gradient, x, weight, statistic):
    return torch.empty_like(x), torch.empty_like(weight)


def _keep(ctx, inputs, output):
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs, output[1])


def _norm_gradients(ctx, gradient, _):
    return fused_norm_backward(gradient, *ctx.saved_tensors)


fused_norm.register_autograd(_norm_gradients, setup_context=_keep)


class Norm(nn.Module):
    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(hidden))

    def forward(self, x: Tensor) -> Tensor:
        if not isinstance(x, DTensor):
            return fused_norm(x, self.weight)[0]
        # Each rank norms its own tokens, so its weight gradient is a partial sum over the group.
        weight = self.weight.to_local(grad_placements=[Partial()])
        return DTensor.from_local(fused_norm(x.to_local(), weight)[0], x.device_mesh, x.placements)


class Attention(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.head_dim = shape.head_dim
        kv = shape.kv_heads * shape.head_dim
        self.wq = nn.Linear(shape.hidden, shape.heads * shape.head_dim, bias=False)
        self.wk = nn.Linear(shape.hidden, kv, bias=False)
        self.wv = nn.Linear(shape.hidden, kv, bias=False)
        self.wo = nn.Linear(shape.heads * shape.head_dim, shape.hidden, bias=False)

    def rotate(self, x: Tensor, angles: Tensor) -> Tensor:
        pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
        return torch.view_as_real(pairs * angles[None, :, None]).flatten(3).type_as(x)

    def forward(self, x: Tensor, angles: Tensor) -> Tensor:
        split = [p(x).unflatten(-1, (-1, self.head_dim)) for p in (self.wq, self.wk, self.wv)]
        q, k = (self.rotate(t, angles) for t in split[:2])
        q, k, v = (t.transpose(1, 2) for t in (q, k, split[2]))
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=q.shape[1] != k.shape[1])
        return self.wo(out.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.w1 = nn.Linear(shape.hidden, shape.ffn, bias=False)
        self.w2 = nn.Linear(shape.ffn, shape.hidden, bias=False)
        self.w3 = nn.Linear(shape.hidden, shape.ffn, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


class Block(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.attention_norm, self.attention = Norm(shape.hidden), Attention(shape)
        self.ffn_norm, self.feed_forward = Norm(shape.hidden), FeedForward(shape)

    def forward(self, x: Tensor, angles: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x), angles)
        return x + self.feed_forward(self.ffn_norm(x))


class Stage(nn.Module):
    """Blocks [first, end) of a model; the first stage embeds, the last norms and projects."""

    def __init__(self, shape: Shape, first: int, end: int, sequence: int) -> None:
        super().__init__()
        self.shape = shape
        has_head = end == shape.layers
        self.embedding = nn.Embedding(shape.vocab, shape.hidden) if first == 0 else None
        self.blocks = nn.ModuleList(Block(shape) for _ in range(first, end))
        self.norm = Norm(shape.hidden) if has_head else None
        self.head = nn.Linear(shape.hidden, shape.vocab, bias=False) if has_head else None
        self.register_buffer("angles", torch.empty(sequence, shape.head_dim // 2, dtype=torch.complex64))
        self.tie()

    def tie(self) -> None:
        """Point the head at the embedding's weight where the model shares it and the stage holds both."""
        if self.shape.tied and self.embedding is not None and self.head is not None:
            self.head.weight = self.embedding.weight

    def forward(self, x: Tensor) -> Tensor:
        if self.embedding is not None:
            x = self.embedding(x)
        for block in self.blocks:
            x = block(x, self.angles)
        return x if self.head is None else self.head(self.norm(x))


def split_tensors(stage: Stage, mesh) -> None:
    """Tensor and sequence parallelism with a loss over split logits."""
    rows = {"output_layouts": Shard(1)}
    if stage.embedding is not None:
        style = RowwiseParallel(input_layouts=Replicate(), **rows)
        parallelize_module(stage, mesh, {"embedding": style})
    if stage.head is not None:
        style = ColwiseParallel(input_layouts=Shard(1), output_layouts=Shard(-1), use_local_output=False)
        parallelize_module(stage, mesh, {"norm": SequenceParallel(), "head": style})
    whole = PrepareModuleInput(input_layouts=(Shard(1), None), desired_input_layouts=(Replicate(), None))
    plan = {
        "attention_norm": SequenceParallel(),
        "ffn_norm": SequenceParallel(),
        "attention": whole,
        "feed_forward": PrepareModuleInput(input_layouts=(Shard(1),), desired_input_layouts=(Replicate(),)),
        "attention.wo": RowwiseParallel(**rows),
        "feed_forward.w2": RowwiseParallel(**rows),
    }
    for name in ("attention.wq", "attention.wk", "attention.wv", "feed_forward.w1", "feed_forward.w3"):
        plan[name] = ColwiseParallel()
    for block in stage.blocks:
        parallelize_module(block, mesh, plan)
    stage.tie()  # parallelize_module replaces parameters and so unties them


KEPT = (
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
    torch.ops._c10d_functional.reduce_scatter_tensor.default,
)


def _operator_list():
    """Fresh contexts of torchtitan's selective recompute: attention, sums and every other product kept."""
    products = {False: 0, True: 0}

    def policy(context, operator, *args, **kwargs):
        if operator is torch.ops.aten.mm.default:
            products[context.is_recompute] += 1
            is_kept = products[context.is_recompute] % 2 == 1
        else:
            is_kept = operator in KEPT
        return CheckpointPolicy.MUST_SAVE if is_kept else CheckpointPolicy.PREFER_RECOMPUTE

    return create_selective_checkpoint_contexts(policy)


def recompute_blocks(stage: Stage, mode: str) -> None:
    """Wrap every block for ``mode`` none, selective or full."""
    options = {"preserve_rng_state": False}
    if mode == "selective":
        options["context_fn"] = _operator_list
    for index, block in enumerate(stage.blocks):
        if mode != "none":
            stage.blocks[index] = checkpoint_wrapper(block, **options)


def units_of(block: Block, unit: str) -> list:
    """The modules of a block gathered one at a time: itself, its parts with their norms, or its matrices."""
    if unit == "part":
        return [[block.attention_norm, block.attention], [block.ffn_norm, block.feed_forward]]
    if unit == "matrix":  # the block is left with the norms
        return [*(m for m in block.modules() if isinstance(m, nn.Linear)), block]
    return [block]


def shard_weights(stage: Stage, mesh, *, frees_weights: bool, unit: str = "block") -> None:
    """FSDP2: embedding, each block (or its units), norm with head; a tied table and the norm are one unit."""
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    config = {"mesh": mesh, "mp_policy": policy}
    ends = [m for m in (stage.embedding, stage.norm, stage.head) if m is not None]
    if stage.shape.tied:
        if ends:
            fully_shard(ends, reshard_after_forward=frees_weights, **config)
    else:
        if stage.embedding is not None:
            fully_shard(stage.embedding, reshard_after_forward=frees_weights, **config)
        if stage.head is not None:
            fully_shard([stage.norm, stage.head], reshard_after_forward=False, **config)
    for block in stage.blocks:
        for module in units_of(block, unit):
            fully_shard(module, reshard_after_forward=frees_weights, **config)
    fully_shard(stage, **config)
