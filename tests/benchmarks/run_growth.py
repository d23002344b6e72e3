"""How the CPU seconds of a whole ``planner plan`` grow with GPUs, layers and strategies.

    python tests/benchmarks/run_growth.py [runs]

One axis at a time, the others fixed; the exponent is the slope of log(seconds) over log(size), least squares,
the start-up of the process (``planner --help``) taken off. Prints Markdown tables. Nothing is asserted.
"""

from __future__ import annotations

import math
import statistics
import sys
import tempfile
from pathlib import Path

from run_speed import measure
from search_cases import deep, irregular, mixture_2t, write

COMMON = ("plan", "--gpu", "h100-sxm")
GPUS = (8, 64, 512, 4096, 65536)
LAYERS = (8, 32, 128, 400)
TARGETS = ("deepspeed", "accelerate", "megatron", "any")


def table(title: str, cases: dict[str, tuple[float, tuple[str, ...]]], runs: int, start: float) -> None:
    """Median CPU seconds and peak MiB of each case, and the exponent over the cases' sizes."""
    print(f"\n| {title} | CPU s | peak MiB |\n|---|---:|---:|")
    points = []
    for name, (size, arguments) in cases.items():
        measure(arguments)
        found = [measure(arguments) for _ in range(runs)]
        seconds = statistics.median(cpu for cpu, _ in found)
        print(f"| {name} | {seconds:.2f} | {max(mib for _, mib in found):.0f} |", flush=True)
        points.append((math.log(size), math.log(max(1e-3, seconds - start))))
    if len({x for x, _ in points}) > 1:
        mean_x, mean_y = (statistics.mean(values) for values in zip(*points, strict=True))
        spread = sum((x - mean_x) ** 2 for x, _ in points)
        slope = sum((x - mean_x) * (y - mean_y) for x, y in points) / spread
        print(f"\nexponent {slope:.2f}")


def main() -> None:
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    start = measure(("--help",))[0]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        small = {
            f"8B model, {n} GPUs": (n, (*COMMON, "--model", "llama-3.1-8b", "--gpus", str(n))) for n in GPUS
        }
        table("GPUs", small, runs, start)
        depth = {
            f"{n} equal layers, 64 GPUs": (n, (*COMMON, "--model", write(deep(n), folder), "--gpus", "64"))
            for n in LAYERS
        }
        table("layers", depth, runs, start)
        wide = {
            f"llama-3.1-70b on 64 GPUs, {t}": (
                1.0,
                (*COMMON, "--model", "llama-3.1-70b", "--gpus", "64", "--seq-len", "8192", "--target", t),
            )
            for t in TARGETS
        }
        table("strategies", wide, runs, start)
        large = {
            "2.0e12 parameters, 256 experts, 65536 GPUs": (
                1.0,
                (*COMMON, "--model", write(mixture_2t(), folder), "--gpus", "65536"),
            ),
            "40 layers, no two alike, 64 GPUs": (
                1.0,
                (*COMMON, "--model", write(irregular(40), folder), "--gpus", "64"),
            ),
        }
        table("large", large, runs, start)


if __name__ == "__main__":
    main()
