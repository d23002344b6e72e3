"""Whole-process CPU seconds and peak memory of the plans the project promises a speed for.

    python tests/benchmarks/run_speed.py [runs] [README.md]

Each case runs ``python -m planner`` ``runs`` times (default 5) after one warm-up, which leaves the bytecode
an installed package has, whatever the environment says about writing it; the operating system's own
accounting of the finished process gives CPU seconds and peak resident memory. Prints a Markdown table of
medians, and writes it between the speed marks of the file given. Nothing is asserted: machines differ.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from search_cases import irregular, mixture_2t, write

BIG = ("--gpu", "h100-sxm", "--gpus", "16384", "--seq-len", "8192", "--global-batch", "2048")
SMALL = ("--gpu", "h100-sxm", "--gpus", "64", "--seq-len", "8192", "--global-batch", "512")
GPT3 = ("--gpu", "a100-80g-sxm", "--gpus", "1024", "--seq-len", "2048", "--global-batch", "1536")
LONG = ("--gpu", "h100-sxm", "--gpus", "16384", "--seq-len", "131072", "--global-batch", "128")
SPARSE = ("--gpu", "h800-sxm", "--gpus", "2048", "--seq-len", "4096", "--global-batch", "15360")
CASES: dict[str, tuple[str, ...]] = {
    "planner --help": ("--help",),
    "llama-3.1-70b, 64 H100, sequence 8192, batch 512": ("plan", "--model", "llama-3.1-70b", *SMALL),
    "gpt3-175b, 1024 A100-80": ("plan", "--model", "gpt3-175b", *GPT3),
    "the same for Megatron-LM": ("plan", "--model", "gpt3-175b", *GPT3, "--target", "megatron"),
    "llama-3.1-405b, 16384 H100, sequence 8192": ("plan", "--model", "llama-3.1-405b", *BIG),
    "the same, sequence 131072, batch 128": ("plan", "--model", "llama-3.1-405b", *LONG),
    "deepseek-v3, 2048 H800": ("plan", "--model", "deepseek-v3", *SPARSE),
    "2.0e12 parameters, 256 experts, 65536 H100": (
        "plan",
        "--gpu",
        "h100-sxm",
        "--gpus",
        "65536",
        "--model",
        "moe-2t",
    ),
    "200 layers, no two alike, 64 H100": (
        "plan",
        "--gpu",
        "h100-sxm",
        "--gpus",
        "64",
        "--model",
        "irregular-200",
    ),
    "validate, 711 rows": ("validate", "tests/published/measurements.csv"),
}


def measure(arguments: tuple[str, ...], folder: str) -> tuple[float, float]:
    """(CPU seconds, peak MiB) of one run, bytecode in ``folder``; raises CalledProcessError when it fails."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    process = subprocess.Popen(
        [sys.executable, "-m", "planner", *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**environment, "PYTHONPYCACHEPREFIX": folder},
    )
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise subprocess.CalledProcessError(os.waitstatus_to_exitcode(status), arguments)
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def main() -> None:
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    rows = ["| case | CPU s, median | min | max | peak MiB |", "|---|---:|---:|---:|---:|"]
    with tempfile.TemporaryDirectory() as name:
        made = {model["name"]: write(model, Path(name)) for model in (mixture_2t(), irregular(200))}
        for case, arguments in CASES.items():
            asked = tuple(made.get(word, word) for word in arguments)
            measure(asked, name)
            found = [measure(asked, name) for _ in range(runs)]
            seconds, peak = sorted(cpu for cpu, _ in found), max(memory for _, memory in found)
            middle = statistics.median(seconds)
            rows.append(f"| {case} | {middle:.2f} | {seconds[0]:.2f} | {seconds[-1]:.2f} | {peak:.0f} |")
            print(rows[-1], flush=True)
    if len(sys.argv) > 2:
        fill(Path(sys.argv[2]), "speed", rows)


def fill(page: Path, mark: str, rows: list[str]) -> None:
    """Put the rows between the marks of that name."""
    begin, end = f"<!-- {mark}:begin -->", f"<!-- {mark}:end -->"
    head, rest = page.read_text(encoding="utf-8").split(begin)
    page.write_text("\n".join([head + begin, *rows, end + rest.split(end)[1]]), encoding="utf-8")


if __name__ == "__main__":
    main()
