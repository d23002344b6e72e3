"""Follows every storage, collective and FLOP of one rank below DTensor, on tensors without data.

A storage is known by what made it: state (weights, optimizer, inputs), gathered weights, gradients on their
way into a reduction, or a pass (forward, backward). Bytes are rounded up to the 512 of CUDA's caching
allocator. DTensor infers output shapes by running operators on whole shapes: those are not memory.
"""

from __future__ import annotations

import weakref
from collections import Counter

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._sharding_prop import ShardingPropagator
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

BLOCK = 512
aten, c10d, functional = torch.ops.aten, torch.ops.c10d, torch.ops._c10d_functional
COLLECTIVES = {
    c10d._allgather_base_.default: "all_gather",
    c10d._reduce_scatter_base_.default: "reduce_scatter",
    c10d.allreduce_.default: "all_reduce",
    c10d.send.default: "send",
    functional.all_gather_into_tensor.default: "all_gather",
    functional.reduce_scatter_tensor.default: "reduce_scatter",
    functional.all_reduce.default: "all_reduce",
}
ATTENTION = aten._scaled_dot_product_flash_attention_for_cpu.default
ATTENTION_BACKWARD = aten._scaled_dot_product_flash_attention_for_cpu_backward.default


def tensors(tree):
    """The tensors in a tree of arguments or results."""
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def local(tensor):
    """The rank's own tensor of a DTensor or of a pending collective."""
    if isinstance(tensor, DTensor):
        tensor = tensor._local_tensor
    return getattr(tensor, "elem", tensor)


def num_bytes(tensor) -> int:
    tensor = local(tensor)
    return tensor.numel() * tensor.element_size()


class Tracker(TorchDispatchMode):
    """Live bytes by what made them, the highest total, collectives by axis, FLOP by kind.

    axes: process group name -> axis. Use as a context manager around steps; ``restart`` forgets the counts
    and the peak but not what is alive.
    """

    def __init__(self, axes: dict[str, str]) -> None:
        super().__init__()
        self.axes = axes
        self.known: dict[int, list] = {}
        self.alive: Counter[str] = Counter()
        self.is_inferring = 0
        self.restart()

    def restart(self) -> None:
        self.peak_bytes, self.peak_split = 0, {}
        self.collectives: dict[tuple[str, str], list[float]] = {}
        self.matmul_flop = self.attention_flop = 0

    @property
    def total(self) -> int:
        return sum(self.alive.values())

    def adopt(self, tree, label: str) -> None:
        """Call the storages of ``tree`` ``label`` from now on."""
        for tensor in tensors(tree):
            storage = local(tensor).untyped_storage()
            self._watch(storage, label)
            entry = self.known[storage._cdata]
            self.alive[entry[1]] -= entry[0]
            entry[1] = label
            self.alive[label] += entry[0]

    def _watch(self, storage, label: str) -> None:
        key, size = storage._cdata, -(-storage.nbytes() // BLOCK) * BLOCK
        entry = self.known.get(key)
        if entry is None:

            def forget(_, key=key):
                size, label, _ = self.known.pop(key)
                self.alive[label] -= size

            self.known[key] = [size, label, weakref.ref(storage, forget)]
            self.alive[label] += size
        elif entry[0] != size:
            self.alive[entry[1]] += size - entry[0]
            entry[0] = size

    def _note_peak(self) -> None:
        total = self.total
        if total > self.peak_bytes:
            self.peak_bytes, self.peak_split = total, dict(self.alive)

    def __enter__(self):
        # FSDP2 frees and refills gathered weights by resizing their storage, below any operator.
        self._resize = torch.UntypedStorage.resize_
        self._infer = ShardingPropagator._propagate_tensor_meta_non_cached

        def resize(storage, size):
            result = self._resize(storage, size)
            if storage._cdata in self.known:
                entry = self.known[storage._cdata]
                self.alive[entry[1]] -= entry[0]
                entry[1] = "gathered"
                self.alive["gathered"] += entry[0]
                self._watch(storage, "gathered")
                self._note_peak()
            return result

        def infer(propagator, *args, **kwargs):
            self.is_inferring += 1
            try:
                return self._infer(propagator, *args, **kwargs)
            finally:
                self.is_inferring -= 1

        torch.UntypedStorage.resize_ = resize
        ShardingPropagator._propagate_tensor_meta_non_cached = infer
        return super().__enter__()

    def __exit__(self, *error):
        torch.UntypedStorage.resize_ = self._resize
        ShardingPropagator._propagate_tensor_meta_non_cached = self._infer
        return super().__exit__(*error)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if any(t is DTensor or t.__name__ == "AsyncCollectiveTensor" for t in types):
            return NotImplemented  # their own dispatch runs first and comes back with local tensors
        if func is functional.wait_tensor.default:
            return args[0]  # waiting gives the same storage; the fake kernel would make a new one
        result = func(*args, **kwargs)
        if self.is_inferring:
            return result
        is_backward = torch._C._current_graph_task_id() != -1
        label = "backward" if is_backward and not torch.is_grad_enabled() else "forward"
        for tensor in tensors(result):
            self._watch(tensor.untyped_storage(), label)
        if func in COLLECTIVES:
            self._count(func, args, result)
        self._add_flop(func, args, result)
        self._note_peak()
        return result

    def _count(self, func, args, result) -> None:
        operation = COLLECTIVES[func]
        if func is c10d._allgather_base_.default:
            self.adopt(args[0], "gathered")
        elif func is c10d._reduce_scatter_base_.default:
            self.adopt(args[1], "reducing")
        axis = next(self.axes[name] for name in map(_group_name, args) if name in self.axes)
        total = self.collectives.setdefault((axis, operation), [0, 0])
        total[0] += 1
        total[1] += max(num_bytes(t) for t in tensors((args, result)))

    def _add_flop(self, func, args, result) -> None:
        if func in (aten.mm.default, aten.addmm.default):
            left, right = args[-2:]
            self.matmul_flop += 2 * left.shape[0] * left.shape[1] * right.shape[1]
        elif func in (aten.bmm.default, aten.baddbmm.default):
            left, right = args[-2:]
            self.matmul_flop += 2 * left.shape[0] * left.shape[1] * left.shape[2] * right.shape[2]
        elif func in (ATTENTION, ATTENTION_BACKWARD):
            # Two products of the whole score matrix forward, five backward (one of them the scores again).
            query, key = args[:2] if func is ATTENTION else args[1:3]
            batch, heads, rows, width = query.shape
            passes = 2 if func is ATTENTION else 5
            self.attention_flop += passes * 2 * batch * heads * rows * key.shape[2] * width


def _group_name(value) -> str:
    """The process group an operator's argument names or is; empty for any other argument."""
    if isinstance(value, torch.ScriptObject) and "ProcessGroup" in value._type().qualified_name():
        return dist.ProcessGroup.unbox(value).group_name
    return value if isinstance(value, str) else ""
