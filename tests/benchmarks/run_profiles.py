"""Measured profiles: CPU seconds of whole processes, plans against Hetu-Galvatron's space and Piper's own
program.

Run from the repository: python tests/benchmarks/run_profiles.py [galvatron] [space] [piper]; tables go to
stdout.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from pathlib import Path

from planner.catalog import load_model
from planner.cost.layered_table import stage_cost, step_seconds
from planner.errors import InfeasibleError
from planner.profiles.files import read_file, read_files
from planner.profiles.galvatron import read_galvatron
from planner.profiles.galvatron_costs import layered_settings, profiled_model
from planner.profiles.piper import read_piper
from planner.profiles.spaces import even_settings
from planner.search.downsets import search_graph
from planner.search.layered import search_layered
from planner.strategy.layered import LayerChoice
from planner.units import GIB

DATA = Path(__file__).parents[1] / "data"
PROFILE = DATA / "galvatron_profiles"
LIMITS_GIB = (12, 14, 16, 18, 20, 24, 28, 32, 36, 40, 48, 56, 64, 72, 80)
# Loads printed by Piper's own program (C++, commit d7fc8cf, -O3) on this grid, bandwidth 25 GiB/s, and its
# CPU
# seconds; infinite where it finds nothing.
PIPER = {
    ("bert32a100", 128, 1.0, 1920): (0.03887175, 0.23),
    ("bert32a100", 512, 1.0, 1920): (0.00878004035815, 2.27),
    ("bert32a100", 8, 2.0, 1920): (float("inf"), 0.04),
    ("bert32a100", 32, 2.0, 1920): (0.0665495, 0.10),
    ("bert32a100", 64, 2.0, 1920): (0.0320300812349, 0.15),
    ("bert32a100", 128, 2.0, 1920): (0.0151464078563, 0.26),
    ("bert32a100", 512, 2.0, 1920): (0.00366752625994, 2.51),
    ("bert32a100", 8, 8.0, 1920): (0.16585575, 0.04),
    ("bert32a100", 32, 8.0, 1920): (0.0415154504417, 0.11),
    ("bert32a100", 64, 8.0, 1920): (0.0202005502945, 0.19),
    ("bert32a100", 128, 8.0, 1920): (0.0101208803239, 0.33),
    ("bert32a100", 512, 8.0, 1920): (0.00256112784601, 2.89),
    ("bert32a100", 8, 80.0, 1920): (0.12200726935, 0.04),
    ("bert32a100", 32, 80.0, 1920): (0.0308440482088, 0.14),
    ("bert32a100", 64, 80.0, 1920): (0.0156501780186, 0.27),
    ("bert32a100", 128, 80.0, 1920): (0.00805324292352, 0.54),
    ("bert32a100", 512, 80.0, 1920): (0.00227252010888, 4.00),
    ("resnet", 8, 4.0, 7680): (73.4932860001, 2.58),
    ("resnet", 64, 2.0, 7680): (11.3337902938, 7.45),
    ("gnmt", 8, 1.2, 256): (68.5655639758, 346.7),
}


def children_cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def galvatron() -> None:
    """One whole process a memory limit: CPU seconds, step, what is proved."""
    print("| GiB | CPU s | step s | proved | pp | microbatches |\n|---|---|---|---|---|---|")
    for limit in LIMITS_GIB:
        before = children_cpu_seconds()
        done = subprocess.run(
            [sys.executable, "-m", "planner", "plan", "--profile", str(PROFILE), "--gpus", "8",
             "--global-batch", "64", "--memory-limit-gib", str(limit), "--json"],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        spent = children_cpu_seconds() - before
        document = json.loads(done.stdout)
        if "error" in document:
            print(f"| {limit} | {spent:.2f} | {document['error']['message']} | | | |", flush=True)
            continue
        d, s = document["decision"], document["search"]
        print(
            f"| {limit} | {spent:.2f} | {document['prediction']['step_seconds']:.4f} | {s['status']} "
            f"({s['gap']:.2%}) | {d['degrees']['pp']} | {d['microbatches']} |",
            flush=True,
        )


def space() -> None:
    """The best plan of Hetu-Galvatron's own space and its shipped plan, on the same table and timeline."""
    profile = read_galvatron(read_files([str(PROFILE)]), 8)
    model = profiled_model(profile, load_model("llama-2-7b")[0])
    settings = layered_settings(profile, model, 64).settings
    narrow = even_settings(settings)
    print("| GiB | ours, step s | best of its space | ratio |\n|---|---|---|---|")
    for limit in LIMITS_GIB[1:]:
        try:
            ours = search_layered(settings, limit * GIB)
            theirs = search_layered(narrow, limit * GIB)
        except InfeasibleError as error:
            print(f"| {limit} | {error} | | |")
            continue
        print(
            f"| {limit} | {ours.step_seconds:.4f} {ours.status} | {theirs.step_seconds:.4f} {theirs.status} "
            f"| {theirs.step_seconds / ours.step_seconds:.4f} |",
            flush=True,
        )
    name = next(PROFILE.glob("galvatron_config_*.json")).name
    shipped = json.loads((PROFILE / name).read_text())
    batch = shipped["global_bsz"]
    settings = layered_settings(profile, model, batch).settings
    setting = next(s for s in settings if (s.pp, s.microbatches) == (1, shipped["chunks"]))
    modes = [2 if x == "1" else 0 for x in shipped["checkpoint"].split(",")]
    chosen = tuple(setting.strategies.index(LayerChoice(1, 1, 8, 3, mode)) for mode in modes)
    end = setting.ends.index(LayerChoice(1, shipped["vtp"], 8 // shipped["vtp"], 3))
    cost = stage_cost(setting, 0, (0, 32), chosen, end)
    seconds = step_seconds(setting, [cost.forward_seconds], [cost.backward_seconds], [cost.sync_seconds])
    best = search_layered(settings, 36 * GIB)
    print(
        f"\n{name} (global batch {batch}): {seconds:.4f} s a step, {cost.total_bytes / GIB:.1f} GiB by this "
        f"table; "
        f"ours within 36 GiB: {best.step_seconds:.4f} s ({best.status})"
    )


def piper() -> None:
    """Every cell of Piper's grid: our load, Piper's, CPU seconds of both."""
    print(
        "| graph | devices | GiB | our load | gap | Piper's load | our CPU s "
        "| Piper's |\n|---|---|---|---|---|---|---|---|"
    )
    for (name, devices, gib, samples), (load, seconds) in PIPER.items():
        started = time.process_time()
        table = read_piper(
            read_file(str(DATA / "piper" / f"{name}.json")),
            devices=devices, memory_bytes=gib * GIB, samples=samples, bytes_per_s=25.0 * GIB,
        )  # fmt: skip
        try:
            found = search_graph(table)
            ours = f"{found.load_seconds:.9g} | {found.status} {found.gap:.2%}"
        except InfeasibleError:
            ours = "none fits | "
        spent = time.process_time() - started
        print(
            f"| {name} | {devices} | {gib:g} | {ours} | {load:.9g} | {spent:.2f} | {seconds:.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    for part in sys.argv[1:] or ["galvatron", "space", "piper"]:
        {"galvatron": galvatron, "space": space, "piper": piper}[part]()
