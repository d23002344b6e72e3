"""Starts ranks by fork from one process that has imported PyTorch: torchrun's environment, not its start-up.

Reads jobs from stdin, one JSON object a line: world (ranks), port, argv (a script and its arguments) and
folder, where rank r writes r.log. Answers each with one line: the exit status of every rank.
"""

from __future__ import annotations

import importlib
import json
import os
import runpy
import sys
import time
import traceback
from pathlib import Path
from typing import Any

WANTED = (
    "torch.distributed.device_mesh",
    "torch.distributed.fsdp",
    "torch.distributed.pipelining.schedules",
    "torch.distributed.tensor.parallel",
    "torch.optim.optimizer",
    "torch.utils.checkpoint",
)
TIMEOUT_SECONDS = 240


def run_rank(job: dict[str, Any], rank: int) -> None:
    """One rank, in its own process: as torchrun would start it, output into its log."""
    log = os.open(str(Path(job["folder"]) / f"{rank}.log"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": job["world"], "MASTER_PORT": job["port"]}
    os.environ.update({name: str(value) for name, value in names.items()} | {"MASTER_ADDR": "localhost"})
    sys.argv = job["argv"]
    status = 1
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def run(job: dict[str, Any]) -> list[int]:
    """Exit statuses of all ranks; when one fails or time is up, the others are killed."""
    ranks: dict[int, int] = {}
    for rank in range(job["world"]):
        process = os.fork()
        if process == 0:
            run_rank(job, rank)
        ranks[process] = rank
    statuses, deadline = [0] * job["world"], time.monotonic() + TIMEOUT_SECONDS
    alive = set(ranks)
    while alive:
        process, status = os.waitpid(-1, os.WNOHANG)
        if process:
            alive.discard(process)
            statuses[ranks[process]] = status
        else:
            time.sleep(0.02)
        if (process and status) or time.monotonic() > deadline:
            for other in alive:
                os.kill(other, 9)
            deadline = float("inf")
    return statuses


def main() -> None:
    for name in WANTED:
        importlib.import_module(name)
    for line in sys.stdin:
        sys.__stdout__.write(json.dumps(run(json.loads(line))) + "\n")  # type: ignore[union-attr]
        sys.__stdout__.flush()  # type: ignore[union-attr]


if __name__ == "__main__":
    main()
