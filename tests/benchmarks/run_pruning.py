"""Pruned against unpruned: candidates, solves and seconds of the search, and whether the optimum stays.

    python tests/benchmarks/run_pruning.py

Every case small enough to run without cuts. Prints a Markdown table; fails when a cut loses the optimum.
"""

from __future__ import annotations

import sys
import time
from dataclasses import replace

from unpruned import enumerate_all

from planner.cost.model import CostModel
from planner.request import Request, resolve
from planner.search.engine import search
from planner.search.tree import Pins
from planner.strategy.limits import ANY

SAME = 1e-9
# Without the integer program, whose plans mix shardings, and with every interleaving degree.
SPACE = replace(ANY, has_layer_sharding=False, is_exact=True)
CASES = {
    "bert-large, 8 H100": Request(model="bert-large", gpu="h100-sxm", gpus=8, global_batch=32),
    "gpt2-xl, 8 H100": Request(model="gpt2-xl", gpu="h100-sxm", gpus=8, seq_len=1024, global_batch=16),
    "llama-3.1-8b, 8 A100-40": Request(
        model="llama-3.1-8b", gpu="a100-40g-sxm", gpus=8, seq_len=4096, global_batch=16
    ),
    "llama-3.1-8b, 16 H100": Request(
        model="llama-3.1-8b", gpu="h100-sxm", gpus=16, seq_len=8192, global_batch=32
    ),
    "mixtral-8x7b, 16 H100": Request(
        model="mixtral-8x7b", gpu="h100-sxm", gpus=16, seq_len=4096, global_batch=8
    ),
}


def main() -> None:
    head = "case | combinations | valid | fit | solved | share | search, s | unpruned, s | status"
    print(f"| {head} |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|---|")
    wrong = []
    for name, request in CASES.items():
        resolved = resolve(request)
        model = CostModel.of(resolved.problem, resolved.constants)
        started = time.process_time()
        result = search(model, SPACE, Pins(), top=1)
        pruned = time.process_time() - started
        started = time.process_time()
        every = enumerate_all(model)
        whole = time.process_time() - started
        solved = next(int(str(s["candidates"])) for s in result.funnel.steps if s["step"] == "solved")
        print(
            f"| {name} | {every.combinations:,} | {every.valid:,} | {every.fitting:,} | {solved:,} "
            f"| {solved / every.valid:.2%} | {pruned:.2f} | {whole:.1f} | {result.status} |",
            flush=True,
        )
        # It may be faster: bounds that are left are looked at again, single solves are not.
        if result.best.seconds > every.best_seconds * (1.0 + SAME):
            wrong.append(f"{name}: {result.best.seconds} with cuts, {every.best_seconds} without")
    if wrong:
        sys.exit("\n".join(wrong))


if __name__ == "__main__":
    main()
