"""Full evaluations per second and core: complete decisions to step seconds and peak bytes.

    python tests/benchmarks/run_evaluations.py

One decision is a mesh, a sharding, a schedule with its number of microbatches, a stage split and a recompute
mode for every block. ``price_many`` prices 10,000 random ones at once, the schedule replayed operation by
operation; ``price`` one at a time. CPU seconds of one process, best of five.
"""

from __future__ import annotations

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import time

from evaluations import decision_at, random_many

from planner.cost.many import price_many
from planner.cost.model import CostModel
from planner.cost.step import price
from planner.request import Request, resolve

COUNT, RUNS, SINGLES = 10_000, 5, 200
DENSE = Request(model="llama-3.1-8b", gpu="h100-sxm", gpus=64, seq_len=4096, global_batch=256)
EXPERTS = Request(model="mixtral-8x7b", gpu="h100-sxm", gpus=64, seq_len=4096, global_batch=256)
DENSE_MESHES, EXPERT_MESHES = ((1, 1, 1), (2, 1, 1), (2, 2, 1), (4, 1, 1)), ((1, 1, 2), (1, 1, 8), (2, 1, 4))
CASES = (
    ("llama-3.1-8b, 64 GPUs", DENSE, DENSE_MESHES, ("1f1b", 4, 1, 16)),
    ("llama-3.1-8b, 64 GPUs", DENSE, DENSE_MESHES, ("interleaved", 4, 2, 16)),
    ("llama-3.1-8b, 64 GPUs", DENSE, DENSE_MESHES, ("zb-h1", 8, 1, 32)),
    ("mixtral-8x7b, 64 GPUs", EXPERTS, EXPERT_MESHES, ("1f1b", 8, 1, 32)),
)


def main() -> None:
    print("| case | schedule | pp | microbatches | evaluations a second, at once | one by one |")
    print("|---|---|---:|---:|---:|---:|")
    for name, request, meshes, shape in CASES:
        resolved = resolve(request)
        model = CostModel.of(resolved.problem, resolved.constants)
        many = random_many(model, shape, meshes, COUNT)
        price_many(model, many)
        best = min(_seconds(lambda model=model, many=many: price_many(model, many)) for _ in range(RUNS))
        decisions = [decision_at(many, i, request.global_batch) for i in range(SINGLES)]
        single = _seconds(lambda model=model, all=decisions: [price(model, each) for each in all])
        rates = f"{COUNT / best:,.0f} | {SINGLES / single:,.0f}"
        print(f"| {name} | {shape[0]} | {shape[1]} | {shape[3]} | {rates} |", flush=True)


def _seconds(work) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started


if __name__ == "__main__":
    main()
