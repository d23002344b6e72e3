"""How the CPU seconds of a whole ``planner plan`` grow with GPUs, layers and strategies.

    python tests/benchmarks/run_growth.py [runs] [README.md]

One axis at a time, the others fixed; the exponent is the slope of log(seconds) over log(size) between the two
largest sizes, start-up included. Prints a Markdown table, and writes it between the
growth marks of the file given. Nothing is asserted.
"""

from __future__ import annotations

import json
import math
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from run_speed import fill, measure
from search_cases import deep, irregular, mixture_2t, write

COMMON = ("plan", "--gpu", "h100-sxm")
GPUS = (8, 64, 512, 4096, 65536)
LAYERS = (8, 32, 128, 400)
UNLIKE = (10, 40, 200)
BATCHES = (64, 512, 4096, 32768)
Cases = dict[str, tuple[float, tuple[str, ...]]]


def bases(arguments: tuple[str, ...]) -> float:
    """Meshes with a microbatch size that a plan's search starts from."""
    command = [sys.executable, "-m", "planner", *arguments, "--json"]
    found = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    return float(next(s["candidates"] for s in found["search"]["funnel"] if s["step"] == "microbatch"))


def lines(axis: str, cases: Cases, runs: int) -> list[str]:
    """A table row a case: median CPU seconds and peak MiB; the exponent on the first one."""
    measured = []
    for name, (size, arguments) in cases.items():
        with tempfile.TemporaryDirectory() as bytecode:
            measure(arguments, bytecode)
            found = [measure(arguments, bytecode) for _ in range(runs)]
        seconds = statistics.median(cpu for cpu, _ in found)
        measured.append((name, size, seconds, max(mib for _, mib in found)))
        print(name, round(seconds, 2), file=sys.stderr, flush=True)
    slope = ""
    if len(measured) > 1:
        (_, size, seconds, _), (_, most, longest, _) = sorted(measured, key=lambda row: row[1])[-2:]
        slope = f"{math.log(longest / seconds) / math.log(most / size):.2f}"
    rows = []
    for name, _, seconds, mib in measured:
        rows.append(f"| {axis} | {name} | {seconds:.2f} | {mib:.0f} | {slope} |")
        axis = slope = ""
    return rows


def main() -> None:
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    rows = ["| axis | case | CPU s | peak MiB | exponent |", "|---|---|---:|---:|---:|"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        small = {
            f"8B model, {n} GPUs": (n, (*COMMON, "--model", "llama-3.1-8b", "--gpus", str(n))) for n in GPUS
        }
        rows += lines("GPUs", small, runs)
        depth = {
            f"{n} equal layers, 64 GPUs": (n, (*COMMON, "--model", write(deep(n), folder), "--gpus", "64"))
            for n in LAYERS
        }
        rows += lines("layers", depth, runs)
        unlike = {
            f"{n} layers, no two alike, 64 GPUs": (
                n,
                (*COMMON, "--model", write(irregular(n), folder), "--gpus", "64"),
            )
            for n in UNLIKE
        }
        rows += lines("layer kinds", unlike, runs)
        wide: Cases = {}
        for batch in BATCHES:
            question = (*COMMON, "--model", "llama-3.1-70b", "--gpus", "64", "--seq-len", "4096")
            arguments = (*question, "--global-batch", str(batch))
            count = bases(arguments)
            wide[f"70B model, 64 GPUs, batch {batch}: {count:,.0f} bases"] = (count, arguments)
        rows += lines("strategies", wide, runs)
        large: Cases = {
            "2.0e12 parameters, 256 experts, 65536 GPUs": (
                1.0,
                (*COMMON, "--model", write(mixture_2t(), folder), "--gpus", "65536"),
            )
        }
        rows += lines("large", large, runs)
    print("\n".join(rows))
    if len(sys.argv) > 2:
        fill(Path(sys.argv[2]), "growth", rows)


if __name__ == "__main__":
    main()
