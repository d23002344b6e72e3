"""Runs an exported train.py, counting the collectives of its last step: count_collectives.py OUT train.py ...

Each rank writes OUT/<rank>.json: rows of axis, operation, count, bytes of the gathered side. A dispatch mode
under DTensor sees what FSDP2, the tensor-parallel styles, the loss and the pipeline hand to c10d. Groups of
one rank move nothing and are left out, as is what a script does behind the optimizer (the printed loss).
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode

OPERATIONS = {
    "_allgather_base_": "all_gather",
    "allgather_into_tensor": "all_gather",
    "all_gather_into_tensor": "all_gather",
    "all_gather_into_tensor_out": "all_gather",
    "_reduce_scatter_base_": "reduce_scatter",
    "reduce_scatter_tensor": "reduce_scatter",
    "allreduce_": "all_reduce",
    "all_reduce": "all_reduce",
    "all_reduce_": "all_reduce",
    "send": "send",
}
IGNORED = {"wait_tensor", "_wrap_tensor_autograd", "recv_", "barrier"}


class Counter(TorchDispatchMode):
    """Counts collectives by (axis, operation) until told to stop."""

    def __init__(self) -> None:
        super().__init__()
        self.axes: dict[str, str] = {}
        self.is_on = True
        self.totals: dict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0])

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(issubclass(kind, DTensor) for kind in types):
            return NotImplemented  # DTensor first: what it hands to c10d comes back here
        result = func(*args, **(kwargs or {}))
        name = func._schema.name.split("::")[1]
        if func.namespace in ("c10d", "_c10d_functional") and self.is_on and name not in IGNORED:
            self.record(OPERATIONS.get(name, name), args, result)
        return result

    def record(self, operation: str, args: Any, result: Any) -> None:
        axis = next((self.axes[key] for key in map(group_name, args) if key in self.axes), None)
        if axis is None:
            return
        flat = [one for arg in (*args, result) for one in (arg if isinstance(arg, list | tuple) else [arg])]
        sizes = [one.numel() * one.element_size() for one in flat if isinstance(one, torch.Tensor)]
        total = self.totals[axis, operation]
        total[0] += 1
        total[1] += max(sizes)


def group_name(value: Any) -> str | None:
    """The name of a process group argument, as functional (its name) or c10d (boxed) operators take it."""
    if isinstance(value, str):
        return value
    if isinstance(value, torch.ScriptObject) and "ProcessGroup" in value._type().qualified_name():
        return str(dist.ProcessGroup.unbox(value).group_name)
    return None


def main() -> None:
    folder, script = Path(sys.argv[1]), sys.argv[2]
    sys.argv = sys.argv[2:]
    spec = importlib.util.spec_from_file_location("train", script)
    train: Any = importlib.util.module_from_spec(spec)  # type: ignore[arg-type]
    spec.loader.exec_module(train)  # type: ignore[union-attr]
    counter, last = Counter(), {}
    make_mesh, mean_loss = train.init_device_mesh, train.mean_loss

    def named_mesh(*args: Any, **options: Any) -> Any:
        mesh = make_mesh(*args, **options)
        for axis in mesh.mesh_dim_names:
            if mesh[axis].size() > 1:
                counter.axes[mesh[axis].get_group().group_name] = axis
        return mesh

    def quiet(*args: Any) -> Any:
        counter.is_on = False
        result = mean_loss(*args)
        counter.is_on = True
        return result

    def step_is_over(*_: Any) -> None:
        last.clear()
        last.update(counter.totals)
        counter.totals.clear()

    train.init_device_mesh, train.mean_loss = named_mesh, quiet
    hooks = importlib.import_module("torch.optim.optimizer")
    hooks.register_optimizer_step_post_hook(step_is_over)
    with counter:
        train.main()
    rows = [[axis, operation, *total] for (axis, operation), total in sorted(last.items())]
    (folder / f"{os.environ['RANK']}.json").write_text(json.dumps(rows))


if __name__ == "__main__":
    main()
