"""Layer costs: every kind of layer priced for every candidate at once.

``LayerCost`` is the row of the cost table: seconds of forward and backward for one microbatch by cause,
bytes kept per microbatch by recompute mode, and the parameters one rank holds. The dp terms are the
exposed gathers and reductions of sharded parameters, which depend on the sharding choice.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from planner.cost.arrays import Number, ceil_div
from planner.cost.attention import NUM_PRODUCTS, attention_part
from planner.cost.compute import Device
from planner.cost.data_parallel import layer_moves, moves_seconds, norm_move
from planner.cost.feed_forward import feed_forward_part
from planner.cost.groups import Groups, rank_groups
from planner.cost.part import Move, Part, Setting
from planner.cost.sharded import sharded_seconds
from planner.cost.stack import Stack
from planner.cost.tensor_parallel import parallel_loss_part, tensor_parallel_part
from planner.cost.unused_gradient import loss_bytes, unused_gradient_bytes
from planner.model.chain import LayerChain, LayerKind, kind_parameters
from planner.model.parameters import (
    block_parameters,
    expert_parameters,
    final_norm_parameters,
    norm_parameters,
)
from planner.model.spec import Attention, Block, FeedForward, LatentAttention, MixtureOfExperts
from planner.strategy.candidates import Candidates, Problem
from planner.strategy.decision import SHARDING_PARAMETERS

RECOMPUTE_MODES = 3


@dataclass(frozen=True)
class LayerCost:
    """One layer kind on one rank, one microbatch; arrays over candidates.

    forward and backward hold seconds by cause in the order of CAUSES. recompute[mode] the extra backward
    seconds by cause. saved_bytes[mode] kept per microbatch in flight, working_bytes[mode] needed again
    while the layer is recomputed, transient_bytes and backward_bytes as in Part. dense_parameters and
    expert_parameters: elements on this rank, norm_parameters those of them that are whole on every tp rank.
    weight_seconds: the part of backward that is weight gradients.
    """

    forward: dict[str, Number]
    backward: dict[str, Number]
    recompute: tuple[dict[str, Number], ...]
    saved_bytes: tuple[Number, ...]
    working_bytes: tuple[Number, ...]
    transient_bytes: Number
    backward_bytes: Number
    dense_parameters: Number
    expert_parameters: Number
    weight_seconds: Number
    norm_parameters: Number

    def forward_seconds(self) -> Number:
        """All of forward, exposed communication included."""
        return self._forward_seconds

    def backward_seconds(self, mode: int) -> Number:
        """All of backward with ``mode``'s recomputation."""
        return self._backward_seconds[mode]

    @cached_property
    def _forward_seconds(self) -> Number:
        return sum(self.forward.values())

    @cached_property
    def _backward_seconds(self) -> tuple[Number, ...]:
        plain = sum(self.backward.values())
        return tuple(plain + sum(mode.values()) for mode in self.recompute)


@dataclass(frozen=True)
class LayerPricer:
    """Prices the layer kinds of one problem for a set of candidates."""

    problem: Problem
    device: Device
    stack: Stack
    candidates: Candidates
    groups: Groups

    def price(self, kind: LayerKind) -> LayerCost:
        """The cost row of ``kind`` for every candidate."""
        setting = self.setting(kind)
        return self._finish(kind, self.part(kind, setting), setting, *self.parameters(kind))

    @cached_property
    def _unused_bytes(self) -> Number:
        return unused_gradient_bytes(self.problem.model, self.stack, self.candidates)

    def part(self, kind: LayerKind, setting: Setting) -> Part:
        """Kernels, tensors and collectives of one layer, before sharded parameters and host launches."""
        if kind.role == "block":
            return self._block(kind, setting)
        return self._embedding(kind, setting) if kind.role == "embedding" else self._head(kind, setting)

    def setting(self, kind: LayerKind) -> Setting:
        """Degrees, sizes and groups the layer runs with."""
        c, g = self.candidates, self.groups
        tp = c.tp.astype(np.float64)
        split = np.where((c.sequence_parallel == 1) & (c.tp > 1), tp, 1.0)
        return Setting(
            device=self.device,
            stack=self.stack,
            batch=c.microbatch_size.astype(np.float64),
            sequence=self.problem.workload.sequence_length * kind.stack.sequence_scale,
            tp=tp,
            cp=c.cp.astype(np.float64),
            ep=c.ep.astype(np.float64),
            expert_tp=c.expert_tp.astype(np.float64),
            norm_split=split,
            tp_group=g.tp,
            cp_group=g.cp,
            ep_group=g.ep,
            expert_tp_group=g.expert_tp,
            is_flash=self.problem.workload.attention == "flash",
        )

    def parameters(self, kind: LayerKind) -> tuple[Number, Number]:
        """Elements of the layer on one rank: (dense, experts). The vocabulary is padded."""
        c, model = self.candidates, self.problem.model
        tp = c.tp.astype(np.float64)
        if kind.block is None:
            multiple = self.stack.vocabulary_multiple * tp
            padded = ceil_div(model.vocab_size, multiple) * multiple
            scale = padded / model.vocab_size if model.vocab_size else 1.0
            elements = kind_parameters(model, kind) * np.ones(len(c))
            if kind.role == "head" and model.head.tied:
                # With a pipeline the last stage keeps its own copy of the tied table.
                elements = elements + np.where(c.pp > 1, model.vocab_size * model.hidden_size, 0)
            whole = self.norm_elements(kind)
            return (elements - whole) * scale / tp + whole, np.zeros(len(c))
        total = float(block_parameters(kind.block, model.hidden_size))
        whole = self.norm_elements(kind)
        ff = kind.block.feed_forward
        experts = 0.0
        if isinstance(ff, MixtureOfExperts):
            experts = float(ff.num_experts * expert_parameters(ff, model.hidden_size))
        return (total - experts - whole) / tp + whole, experts / (c.ep * c.expert_tp)

    def norm_elements(self, kind: LayerKind) -> float:
        """Weights of the norms around the layer's matrices, whole on every tp rank."""
        model = self.problem.model
        if kind.block is not None:
            return float(kind.block.num_norms * norm_parameters(kind.block.norm, model.hidden_size))
        return float(final_norm_parameters(model, kind.stack)) if kind.role != "embedding" else 0.0

    def _block(self, kind: LayerKind, s: Setting) -> Part:
        block, h = kind.block, self.problem.model.hidden_size
        if block is None:
            raise ValueError(f"layer kind {kind.name} has no block")
        # A parallel block sums one output; behind a common norm it gathers one input too (PaLM, 2204.02311).
        is_joint = block.parallel and isinstance(block.feed_forward, FeedForward)
        enters = not (is_joint and block.num_norms == 1)
        part = self._self_attention(block, s, leaves=not is_joint)
        if block.cross_attention is not None:
            keys = self._cross_keys(kind)
            part = part + attention_part(block.cross_attention, h, s, dropout=block.dropout, keys=keys)
        part = part + feed_forward_part(block.feed_forward, h, s, NUM_PRODUCTS, enters=enters)
        hidden = s.element_bytes * s.tokens * h / s.norm_split
        norms = float(block.num_norms)
        norm_seconds = self.device.pass_seconds(3.0 * hidden * norms)
        masks = 2.0 * hidden / s.element_bytes if block.dropout else 0.0
        # Each norm keeps its input (parallel: one for all) and its output (gathered where the stack keeps it
        # so). Selective recompute drops the outputs when attention is fused; an operator list drops all but
        # the block's input.
        output = hidden if self.stack.gathers_input_again else s.element_bytes * s.tokens * h
        statistic = self.stack.norm_saved_bytes * s.tokens / s.norm_split
        inputs = hidden * (1.0 if block.parallel else norms)
        kept = inputs + (output + statistic) * norms + masks
        dropped = (output + statistic) * norms if s.is_flash else 0.0
        if self.stack.recomputed_product_period:
            dropped = kept - hidden
        return part + Part(
            forward_compute=norm_seconds,
            backward_compute=1.5 * norm_seconds,
            selective_recompute=norm_seconds if s.is_flash else 0.0,
            saved_bytes=kept,
            selective_bytes=kept - dropped,
            transient_bytes=2.0 * hidden,
            kernels=norms + (2.0 if block.dropout else 0.0),
        )

    def _self_attention(self, block: Block, s: Setting, *, leaves: bool) -> Part:
        """Blocks often differ in their feed-forward alone: this is priced once for all of those."""
        key = block.attention, block.dropout, leaves, s.sequence
        if key not in self._attention_parts:
            self._attention_parts[key] = attention_part(
                block.attention, self.problem.model.hidden_size, s, dropout=block.dropout, leaves=leaves
            )
        return self._attention_parts[key]

    @cached_property
    def _attention_parts(self) -> dict[tuple[Attention | LatentAttention, bool, bool, float], Part]:
        return {}

    def _cross_keys(self, kind: LayerKind) -> float:
        model, workload = self.problem.model, self.problem.workload
        source = next(s for s in model.stacks if s.name == kind.stack.cross_attends_to)
        return workload.sequence_length * source.sequence_scale

    def _embedding(self, kind: LayerKind, s: Setting) -> Part:
        model = self.problem.model
        h, e = model.hidden_size, kind.stack.embedding
        hidden = s.element_bytes * s.tokens * h
        compute = self.device.pass_seconds(2.0 * hidden)
        if e.kind == "patches":
            compute = compute + self.device.matmul_seconds(s.tokens, h, e.patch_features, is_half=True)
        saved = s.tokens * 8.0 + (hidden / s.norm_split / s.element_bytes if self._has_dropout() else 0.0)
        return tensor_parallel_part(s, hidden, enters=False) + Part(
            forward_compute=compute,
            backward_compute=2.0 * compute,
            saved_bytes=saved,
            selective_bytes=saved,
            transient_bytes=2.0 * hidden,
            backward_bytes=self._table_gradient_bytes(kind, s, hidden),
            kernels=2.0,
        )

    def _table_gradient_bytes(self, kind: LayerKind, s: Setting, hidden: Number) -> Number:
        """The embedding's gradient beside the output gradient, or beside its own share once sliced."""
        share = s.element_bytes * self.parameters(kind)[0]
        whole = share * (s.tp if self.stack.has_whole_table_gradient else 1.0)
        has_pipeline = self.candidates.pp > 1
        return whole + np.where((s.tp > 1) & ~has_pipeline, np.maximum(share, hidden), hidden)

    def _has_dropout(self) -> bool:
        return any(block.dropout for block in self.problem.model.block_kinds.values())

    def _head(self, kind: LayerKind, s: Setting) -> Part:
        model, device = self.problem.model, self.device
        h, head = model.hidden_size, model.head
        hidden = s.element_bytes * s.tokens * h / s.norm_split
        norm = device.pass_seconds(3.0 * hidden)
        output = hidden if self.stack.gathers_input_again else s.element_bytes * s.tokens * h
        kept = hidden + output + self.stack.norm_saved_bytes * s.tokens / s.norm_split
        part = Part(
            forward_compute=norm,
            backward_compute=1.5 * norm,
            saved_bytes=kept,
            selective_bytes=kept,
            kernels=2.0,
        )
        if kind.role == "norm" or head.kind == "classifier":
            return part
        width = head.projection_size or h
        multiple = self.stack.vocabulary_multiple * s.tp
        outputs = ceil_div(model.vocab_size, multiple) * multiple / s.tp
        logits = s.tokens * model.vocab_size / s.tp
        product = device.matmul_seconds(s.tokens, outputs, width, is_half=True)
        extra = device.matmul_seconds(s.tokens, h / s.tp, h, is_half=True) if head.transform else 0.0
        input_gradient = device.matmul_seconds(s.tokens, width, outputs, is_half=True)
        weight_gradient = device.matmul_seconds(outputs, width, s.tokens, is_half=True)
        capped = 4.0 if head.soft_cap else 0.0
        loss = device.pass_seconds(logits * (self.stack.loss_forward_bytes + capped))
        loss_backward = device.pass_seconds(logits * (self.stack.loss_backward_bytes + capped / 2.0))
        gathered = s.element_bytes * s.tokens * h
        part = part + tensor_parallel_part(s, gathered, input_gradient, weight_gradient, leaves=False)
        part = part + parallel_loss_part(s)
        stack = self.stack
        saved = logits * stack.logit_saved_bytes
        is_split = s.tp > 1
        in_backward = np.where(is_split, stack.split_logit_backward_bytes, stack.logit_backward_bytes)
        in_pipeline = np.where(self.candidates.pp > 1, stack.pipeline_logit_bytes, 0.0)
        return part + Part(
            forward_compute=product + extra + loss,
            backward_compute=input_gradient + weight_gradient + 2.0 * extra + loss_backward,
            saved_bytes=saved,
            selective_bytes=saved,
            transient_bytes=loss_bytes(stack, logits, outputs * width),
            backward_bytes=logits * (in_backward + in_pipeline),
            kernels=8.0,
            weight_compute=weight_gradient + extra,
        )

    def _finish(self, kind: LayerKind, part: Part, s: Setting, dense: Number, expert: Number) -> LayerCost:
        launch = self.device.constants.launch_seconds
        slowdown = self.device.constants.kernel_slowdown * self.device.constants.site_slowdown
        accumulation = self.device.stream_seconds(self.stack.accumulation_bytes * (dense + expert))
        forward_kernels = part.forward_compute * slowdown
        backward_kernels = (part.backward_compute + accumulation) * slowdown
        sharded = sharded_seconds(
            self.groups,
            self.device.constants.overlap_theft,
            (kind.block, self.problem.model.hidden_size, self.candidates.gather_unit),
            lambda share: self.data_moves(kind, dense * share, expert * share),
            forward_kernels,
            backward_kernels,
        )
        dp_forward, dp_backward = sharded.forward, sharded.backward
        gathers = np.where(self.candidates.sharding == SHARDING_PARAMETERS, sharded.units, 0.0)
        each = self.device.constants.collective_overhead_seconds
        norms = 0.0
        if self.stack.reduces_norms_in_backward:
            norms = moves_seconds(self.groups, (self.norm_move(kind, is_step=False),))
        backward_tp = part.backward_tp + norms
        host = part.kernels * launch + (part.collectives + gathers) * each
        if not self.stack.hides_launches:
            forward_kernels = forward_kernels + host
            backward_kernels = backward_kernels + 2.0 * host
        # The host launches kernels and collectives in one queue: a pass is never shorter than that queue.
        forward_wire = part.forward_tp + part.forward_cp + part.forward_ep + dp_forward
        backward_wire = backward_tp + part.backward_cp + part.backward_ep + dp_backward
        forward_compute = np.maximum(forward_kernels, host - forward_wire)
        backward_compute = np.maximum(backward_kernels, 2.0 * host - backward_wire)
        zero = np.zeros(len(self.candidates))
        forward = {
            "compute": forward_compute,
            "tp": part.forward_tp + zero,
            "cp": part.forward_cp + zero,
            "ep": part.forward_ep + zero,
            "dp": dp_forward,
        }
        backward = {
            "compute": backward_compute,
            "tp": backward_tp + zero,
            "cp": part.backward_cp + zero,
            "ep": part.backward_ep + zero,
            "dp": dp_backward,
        }
        is_block = kind.role == "block"
        boundary = s.element_bytes * s.tokens * self.problem.model.hidden_size / s.norm_split
        full_saved = boundary if is_block else part.saved_bytes
        selective = {"recompute": part.selective_recompute * slowdown + zero, "tp": part.selective_tp + zero}
        again = np.maximum(forward_kernels - part.spared_compute * slowdown, host - forward_wire)
        full = {
            "recompute": again,
            "tp": forward["tp"] - part.spared_tp,
            "cp": forward["cp"],
            "ep": forward["ep"],
        }
        saved = (part.saved_bytes + zero, part.selective_bytes + zero, full_saved + zero)
        needed = (saved[0], saved[1] - part.selective_extra_bytes, saved[2])
        backward_bytes = part.backward_bytes + zero
        if is_block:
            # By its end a unit's backward holds all its weight gradients, and a few hidden states.
            hidden = s.element_bytes * s.tokens * self.problem.model.hidden_size
            ending = (dense + expert) * sharded.largest * self.stack.parameter_bytes
            ending = ending + 3.0 * hidden + 2.0 * boundary
            backward_bytes = np.maximum(backward_bytes, ending - saved[0])
        return LayerCost(
            forward=forward,
            backward=backward,
            recompute=({}, selective, full) if is_block else ({}, {}, {}),
            saved_bytes=saved if is_block else (saved[0],) * RECOMPUTE_MODES,
            working_bytes=tuple(np.maximum(0.0, saved[0] - row) if is_block else zero for row in needed),
            transient_bytes=part.transient_bytes + self._unused_bytes,
            backward_bytes=backward_bytes,
            dense_parameters=dense + zero,
            expert_parameters=expert + zero,
            weight_seconds=np.minimum(part.weight_compute * slowdown, backward_compute) + zero,
            norm_parameters=self.norm_elements(kind) + zero,
        )

    def data_moves(
        self, kind: LayerKind, dense: Number, expert: Number
    ) -> tuple[tuple[Move, ...], tuple[Move, ...]]:
        """(forward, backward) gathers and reductions of sharded weights, per microbatch."""
        c, is_tied = self.candidates, self.problem.model.head.tied
        stays = kind.role == "head" and not is_tied
        if kind.role == "head" and is_tied:
            dense = np.where(c.pp > 1, dense, 0.0)  # one unit with the table: its norm rides with that
        return layer_moves(self.stack, c.sharding, c.pp > 1, dense, expert, stays=stays)

    def norm_move(self, kind: LayerKind, *, is_step: bool) -> Move:
        """The reduction of the layer's norm weights over tp, in a backward or at the end of the step."""
        c, h = self.candidates, self.problem.model.hidden_size
        is_sequence = np.where((c.sequence_parallel == 1) & (c.tp > 1), 1.0, 0.0)
        elements = self.norm_elements(kind)
        return norm_move(self.stack, elements, h, is_sequence, c.pp > 1, is_step=is_step)


@dataclass(frozen=True)
class CostTable:
    """The seam between cost and search: one LayerCost row per kind of the chain, over candidates."""

    chain: LayerChain
    rows: tuple[LayerCost, ...]
    candidates: Candidates
    groups: Groups


def cost_table(
    problem: Problem, chain: LayerChain, candidates: Candidates, device: Device, stack: Stack
) -> CostTable:
    """Price every layer kind of ``chain`` for every candidate."""
    groups = rank_groups(problem, device.constants, candidates)
    pricer = LayerPricer(problem, device, stack, candidates, groups)
    rows = tuple(pricer.price(kind) for kind in chain.kinds)
    return CostTable(chain, rows, candidates, groups)
