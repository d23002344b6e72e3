"""Runs training steps of one rank in fake mode and says what PyTorch kept, sent and computed."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.nn.functional as F
from llama import Shape, Stage, recompute_blocks, shard_weights, split_tensors
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.pipelining import PipelineStage, Schedule1F1B
from torch.distributed.pipelining.stage import InferenceMode
from torch.distributed.tensor.parallel import loss_parallel
from torch.testing._internal.distributed.fake_pg import FakeStore
from tracker import Tracker, num_bytes

AXES = ("pp", "dp", "tp")


@dataclass(frozen=True)
class Run:
    """One rank of one plan. ``blocks`` [first, end) are on it; ``frees_weights`` is sharded parameters."""

    shape: Shape
    sequence: int
    microbatch_size: int
    microbatches: int
    dp: int
    tp: int
    pp: int
    rank: int
    blocks: tuple[int, int]
    frees_weights: bool
    recompute: str
    unit: str = "block"


@dataclass(frozen=True)
class Measured:
    """What PyTorch says of one warm step of the rank; bytes, FLOP, and (axis, operation) -> count, bytes.

    gradient_bytes: what waits for the optimizer, or under a pipeline the whole gradients kept between
    microbatches. saved_bytes: what one block's forward leaves for its backward. peak_split: the peak by
    what made the storages.
    """

    parameter_bytes: int
    gradient_bytes: int
    optimizer_bytes: int
    saved_bytes: int
    peak_bytes: int
    peak_split: dict[str, int]
    collectives: dict[tuple[str, str], tuple[float, float]]
    matmul_flop: int
    attention_flop: int


def measure(run: Run) -> Measured:
    """Two optimizer steps of ``run``: the first warms the optimizer up, the second is measured."""
    world = run.pp * run.dp * run.tp
    dist.init_process_group("fake", rank=run.rank * run.dp * run.tp, world_size=world, store=FakeStore())
    try:
        mesh = init_device_mesh("cpu", (run.pp, run.dp, run.tp), mesh_dim_names=AXES)
        stage = _stage(run, mesh)
        with FakeTensorMode() as fake:
            return _Trainer(run, mesh, stage, fake).measured()
    finally:
        dist.destroy_process_group()


def _stage(run: Run, mesh) -> Stage:
    """The rank's blocks, parallelised; on the meta device, outside the fake mode (meshes need real maths)."""
    with torch.device("meta"):
        stage = Stage(run.shape, *run.blocks, run.sequence)
    if run.tp > 1:
        split_tensors(stage, mesh["tp"])
    recompute_blocks(stage, run.recompute)
    shard_weights(stage, mesh["dp"], frees_weights=run.frees_weights, unit=run.unit)
    return stage


class _Trainer:
    """The rank's tensors, schedule and tracker."""

    def __init__(self, run: Run, mesh, stage: Stage, fake: FakeTensorMode) -> None:
        self.run, self.stage = run, stage
        fake.allow_non_fake_inputs = True
        stage.to_empty(device="cpu")
        fake.allow_non_fake_inputs = False
        self.optimizer = torch.optim.AdamW(stage.parameters(), fused=True)
        batch = run.microbatch_size * run.microbatches
        self.tokens = torch.empty(batch, run.sequence, dtype=torch.long)
        self.labels = torch.empty(batch, run.sequence, dtype=torch.long)
        self.tracker = Tracker(self._axes(mesh))
        self.schedule = self._schedule(mesh) if run.pp > 1 else None
        self.saved: list[int] = []
        self.held = 0
        stage.register_forward_pre_hook(self._note_held)
        for block in stage.blocks:
            block.register_forward_pre_hook(self._before)
            block.register_forward_hook(self._after)

    def _axes(self, mesh) -> dict[str, str]:
        """Group name -> axis, groups of one left out (they may share the name of the whole world)."""
        sizes = dict(zip(AXES, (self.run.pp, self.run.dp, self.run.tp), strict=True))
        return {mesh.get_group(axis).group_name: axis for axis in AXES if sizes[axis] > 1}

    def _schedule(self, mesh) -> Schedule1F1B:
        run = self.run
        is_first, is_last = run.rank == 0, run.rank == run.pp - 1
        rows = run.sequence // run.tp

        def hidden():
            shape = (run.microbatch_size, rows, run.shape.hidden)
            return torch.empty(shape, dtype=torch.bfloat16, requires_grad=True)

        logits = torch.empty(run.microbatch_size, run.sequence, run.shape.vocab, dtype=torch.bfloat16)
        stage = PipelineStage(
            self.stage,
            run.rank,
            run.pp,
            torch.device("cpu"),
            input_args=(self.tokens[: run.microbatch_size] if is_first else hidden(),),
            output_args=(logits if is_last else hidden(),),
            group=mesh.get_group("pp"),
        )
        schedule = Schedule1F1B(stage, run.microbatches, loss_fn=self._loss)

        def shapes_are_known(stages, *_):
            # The ranks would vote with real numbers on whether shapes are static; here they are.
            for one in stages:
                one._inference_mode = InferenceMode.STATIC

        schedule._warmup_p2p = shapes_are_known
        return schedule

    def _loss(self, logits, labels):
        return F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(0, 1))

    def _is_forward(self) -> bool:
        return torch._C._current_graph_task_id() == -1

    def _before(self, block, args) -> None:
        if self._is_forward():
            self.at_entry = self.tracker.alive["forward"]

    def _after(self, block, args, output) -> None:
        if self._is_forward():
            self.saved.append(self.tracker.alive["forward"] - self.at_entry)

    def _note_held(self, stage, args) -> None:
        """The whole gradients that wait for the last microbatch, seen where the next one enters."""
        held = [p for unit in _units(stage) for p in unit.fsdp_params]
        grads = [p.unsharded_accumulated_grad for p in held if p.unsharded_accumulated_grad is not None]
        self.held = max(self.held, sum(num_bytes(g) for g in grads))

    def _step(self) -> None:
        run = self.run
        has_head = run.blocks[1] == run.shape.layers
        with loss_parallel() if run.tp > 1 and has_head else nullcontext():
            if self.schedule is not None:
                target = {"target": self.labels, "losses": []} if has_head else {}
                inputs = [self.tokens] if run.rank == 0 else []
                self.schedule.step(*inputs, return_outputs=False, **target)
            else:
                size = run.microbatch_size
                for start in range(0, size * run.microbatches, size):
                    part = slice(start, start + size)
                    logits = self.stage(self.tokens[part])
                    loss = self._loss(logits, self.labels[part])
                    del logits
                    loss.backward()
        grads = [p.grad for p in self.stage.parameters()]
        self.gradient_bytes = sum(num_bytes(g) for g in grads)
        del grads
        self.optimizer.step()
        self.optimizer.zero_grad()

    def measured(self) -> Measured:
        tracker, parameters = self.tracker, list(self.stage.parameters())
        tracker.adopt([parameters, list(self.stage.buffers()), self.tokens, self.labels], "state")
        with tracker:
            self._step()
            tracker.adopt([list(s.values()) for s in self.optimizer.state.values()], "state")
            tracker.restart()
            self.saved.clear()
            self._step()
        states = [v for s in self.optimizer.state.values() for v in s.values()]
        return Measured(
            parameter_bytes=sum(num_bytes(p) for p in parameters),
            gradient_bytes=self.held if self.run.pp > 1 else self.gradient_bytes,
            optimizer_bytes=sum(num_bytes(v) for v in states),
            saved_bytes=max(set(self.saved), key=self.saved.count),
            peak_bytes=tracker.peak_bytes,
            peak_split=tracker.peak_split,
            collectives={key: tuple(total) for key, total in tracker.collectives.items()},
            matmul_flop=tracker.matmul_flop,
            attention_flop=tracker.attention_flop,
        )


def _units(stage: Stage) -> list:
    """FSDP2's parameter groups under ``stage``."""
    found = {}
    for module in stage.modules():
        if hasattr(module, "_get_fsdp_state"):
            for unit in module._get_fsdp_state()._fsdp_param_groups:
                found[id(unit)] = unit
    return list(found.values())
