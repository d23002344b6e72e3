"""Whole-process CPU seconds and peak memory of the plans the project promises a speed for.

    python tests/benchmarks/run_speed.py [runs]

Each case runs ``python -m planner`` ``runs`` times (default 5) after one warm-up; the operating system's own
accounting of the finished process gives CPU seconds and peak resident memory. Prints a Markdown table of
medians. Nothing is asserted: machines differ.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys

BIG = ("--gpu", "h100-sxm", "--gpus", "16384", "--seq-len", "8192", "--global-batch", "2048")
SMALL = ("--gpu", "h100-sxm", "--gpus", "64", "--seq-len", "8192", "--global-batch", "512")
GPT3 = ("--gpu", "a100-80g-sxm", "--gpus", "1024", "--seq-len", "2048", "--global-batch", "1536")
SPARSE = ("--gpu", "h800-sxm", "--gpus", "2048", "--seq-len", "4096", "--global-batch", "15360")
CASES: dict[str, tuple[str, ...]] = {
    "planner --help": ("--help",),
    "llama-3.1-70b, 64 H100, sequence 8192, batch 512": ("plan", "--model", "llama-3.1-70b", *SMALL),
    "gpt3-175b, 1024 A100-80": ("plan", "--model", "gpt3-175b", *GPT3),
    "the same for Megatron-LM": ("plan", "--model", "gpt3-175b", *GPT3, "--target", "megatron"),
    "llama-3.1-405b, 16384 H100, sequence 8192": ("plan", "--model", "llama-3.1-405b", *BIG),
    "deepseek-v3, 2048 H800": ("plan", "--model", "deepseek-v3", *SPARSE),
    "validate, 711 rows": ("validate", "tests/published/measurements.csv"),
}


def measure(arguments: tuple[str, ...]) -> tuple[float, float]:
    """(CPU seconds, peak MiB) of one run; raises CalledProcessError when it fails."""
    process = subprocess.Popen(
        [sys.executable, "-m", "planner", *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise subprocess.CalledProcessError(os.waitstatus_to_exitcode(status), arguments)
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def main() -> None:
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    print("| case | CPU s, median | min | max | peak MiB |\n|---|---:|---:|---:|---:|")
    for name, arguments in CASES.items():
        measure(arguments)
        found = [measure(arguments) for _ in range(runs)]
        seconds = sorted(cpu for cpu, _ in found)
        peak = max(memory for _, memory in found)
        middle = statistics.median(seconds)
        print(f"| {name} | {middle:.2f} | {seconds[0]:.2f} | {seconds[-1]:.2f} | {peak:.0f} |", flush=True)


if __name__ == "__main__":
    main()
