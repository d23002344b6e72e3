"""Exported scripts really train, on CPU processes: every way of splitting the work gives the same losses.

Losses of single-process training are the reference. The optimizer is SGD with a large step as well as AdamW:
AdamW hides gradients that are wrong by a factor, SGD does not. A second test counts the collectives of every
rank and compares operations, counts and bytes with those the plan predicts (``planner.cost.traffic``).
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from planner.catalog import load_device, load_profile
from planner.cluster.topology import resolve_cluster
from planner.cost.constants import default_constants
from planner.cost.model import CostModel
from planner.cost.row import reserve_bytes
from planner.cost.traffic import rank_traffic
from planner.errors import InfeasibleError
from planner.launchers.pytorch import PYTORCH, PYTORCH_LIMITS
from planner.model.spec import ModelSpec
from planner.plan_file.build import build_decision
from planner.plan_file.read import read_cost_model, read_decision
from planner.plan_file.schema import Plan
from planner.search.engine import search
from planner.search.tree import Pins
from planner.strategy.candidates import Problem
from planner.strategy.decision import rank_of_stage
from planner.units import MIB
from planner.workload import Workload

pytestmark = pytest.mark.heavy

BATCH, LENGTH, LAYERS, STEPS = 16, 32, 4, 5
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Run:
    """A tiny decision. layers: blocks of every virtual stage; recompute: mode of every block."""

    tp: int = 1
    pp: int = 1
    dp: int = 1
    sharding: str = "none"
    group: str = "global"
    schedule: str = "1f1b"
    layers: tuple[int, ...] = (LAYERS,)
    recompute: tuple[str, ...] = ("none",) * LAYERS
    sequence_parallel: bool = False
    optimizer: str = "sgd-momentum"
    model: dict[str, Any] = field(default_factory=dict)
    vocabulary: int = 257
    units: tuple[str, ...] = ("block",) * LAYERS


@dataclass(frozen=True)
class Chosen:
    """What is pinned while the search chooses for ``gpus`` with the least memory that still has a plan."""

    gpus: int
    pins: dict[str, int]


HARNESS, FORK = (Path(__file__).parent / name for name in ("count_collectives.py", "fork_ranks.py"))
MIXED = ("full", "none", "selective", "selective")
SELECTIVE, FULL = ("selective",) * LAYERS, ("full",) * LAYERS
GPT = {"is_gpt": True}
PART, MATRIX = ("part",) * LAYERS, ("matrix",) * LAYERS
RUNS = {
    "dp4 parameters": Run(dp=4, sharding="parameters"),
    "dp4 gradients, selective": Run(dp=4, sharding="gradients", recompute=SELECTIVE),
    "dp4 islands, optimizer": Run(dp=4, sharding="optimizer", group="island"),
    "dp4 islands, parameters": Run(dp=4, sharding="parameters", group="island"),
    "tp2 dp2, sequence split, full": Run(
        tp=2, dp=2, sharding="parameters", recompute=FULL, sequence_parallel=True
    ),
    "pp2 dp2 1f1b, mixed": Run(pp=2, dp=2, sharding="parameters", layers=(2, 2), recompute=MIXED),
    "pp2 dp2 uneven gpipe": Run(pp=2, dp=2, sharding="gradients", layers=(1, 3), schedule="gpipe"),
    "pp2 x 2 dp2 interleaved": Run(
        pp=2, dp=2, sharding="optimizer", layers=(1, 1, 1, 1), schedule="interleaved"
    ),
    "pp2 tp2": Run(tp=2, pp=2, layers=(2, 2), sequence_parallel=True),
    "dp4 parameters, AdamW": Run(dp=4, sharding="parameters", optimizer="adamw"),
    "gpt tp2 dp2": Run(tp=2, dp=2, sharding="optimizer", model=GPT),
    "gpt dp4, AdamW": Run(dp=4, sharding="gradients", optimizer="adamw", model=GPT),
    "8: dp8 parameters, full": Run(dp=8, sharding="parameters", recompute=FULL),
    "8: dp2 tp2 pp2 1f1b": Run(
        dp=2, tp=2, pp=2, sharding="parameters", layers=(1, 3), recompute=MIXED, sequence_parallel=True
    ),
    "8: dp2 tp2 pp2 x 2 interleaved": Run(
        dp=2,
        tp=2,
        pp=2,
        sharding="optimizer",
        layers=(1, 1, 1, 1),
        schedule="interleaved",
        sequence_parallel=True,
    ),
    "8: pp2 dp4 islands": Run(pp=2, dp=4, sharding="gradients", group="island", layers=(2, 2)),
    "pp2 x 2 dp2 in a V": Run(pp=2, dp=2, sharding="optimizer", layers=(1, 1, 1, 1), schedule="zb-v"),
    "pp2 x 2 dp2 full in a V": Run(
        pp=2, dp=2, sharding="optimizer", layers=(1, 1, 1, 1), schedule="zb-v", recompute=FULL
    ),
    "dp4 parameters by matrix": Run(dp=4, sharding="parameters", units=MATRIX),
    "dp4 parameters by part": Run(dp=4, sharding="parameters", units=PART),
    "dp4 by part, full": Run(dp=4, sharding="parameters", units=PART, recompute=FULL),
    "dp4 by part, selective": Run(dp=4, sharding="parameters", units=PART, recompute=SELECTIVE),
    "dp4 by matrix, full": Run(dp=4, sharding="parameters", units=MATRIX, recompute=FULL),
    "dp4 by matrix, selective": Run(dp=4, sharding="parameters", units=MATRIX, recompute=SELECTIVE),
    "tp2 dp2 by matrix, mixed units": Run(
        tp=2, dp=2, sharding="parameters", units=("matrix", "part", "block", "matrix")
    ),
    "pp2 dp2 by matrix": Run(pp=2, dp=2, sharding="parameters", layers=(2, 2), units=MATRIX, recompute=MIXED),
    "gpt dp4 by matrix": Run(dp=4, sharding="parameters", units=MATRIX, model=GPT),
    "pp2 dp2 split backward": Run(pp=2, dp=2, layers=(2, 2), schedule="zb-h1"),
    "8: pp4 dp2": Run(pp=4, dp=2, layers=(1, 1, 1, 1), optimizer="adamw"),
}
CHOSEN = {
    "4: chosen": Chosen(4, {}),
    "8: chosen with pp2": Chosen(8, {"pp": 2}),
    "8: chosen with tp2 pp2": Chosen(8, {"tp": 2, "pp": 2}),
}
BY_TORCHRUN = ("pp2 dp2 1f1b, mixed", "8: dp2 tp2 pp2 1f1b")
# Runs whose collectives are counted: none recomputes selectively with tp, whose gather no formula repeats.
COUNTED = (
    "dp4 parameters",
    "dp4 islands, optimizer",
    "tp2 dp2, sequence split, full",
    "pp2 dp2 uneven gpipe",
    "pp2 x 2 dp2 interleaved",
    "pp2 tp2",
    "8: dp8 parameters, full",
    "8: dp2 tp2 pp2 x 2 interleaved",
    "8: pp2 dp4 islands",
    "8: pp4 dp2",
    "dp4 parameters by matrix",
    "dp4 parameters by part",
    "dp4 by part, full",
    "dp4 by part, selective",
    "dp4 by matrix, full",
    "dp4 by matrix, selective",
    "tp2 dp2 by matrix, mixed units",
    "pp2 dp2 by matrix",
    *CHOSEN,
)


def tiny_model(model: dict[str, Any], vocabulary: int = 257, is_gpt: bool = False) -> dict[str, Any]:
    """A Llama (or GPT: layernorm, GELU, learned positions, biases, tied) of 4 blocks, 64 wide."""
    kv, bias = (4, True) if is_gpt else (2, False)
    block = {
        "attention": {
            "kind": "gqa",
            "num_heads": 4,
            "num_kv_heads": kv,
            "head_dim": 16,
            "qkv_bias": bias,
            "out_bias": bias,
        },
        "feed_forward": {"kind": "dense", "ffn_size": 128, "gated": not is_gpt, "bias": bias},
        "norm": {"kind": "layernorm" if is_gpt else "rmsnorm", "bias": bias},
    }
    embedding = {"kind": "tokens", "num_positions": LENGTH if is_gpt else 0}
    return model | {
        "name": "tiny",
        "family": "",
        "hidden_size": 64,
        "vocab_size": vocabulary,
        "block_kinds": {"block": block},
        "stacks": [
            {
                "name": "decoder",
                "embedding": embedding,
                "layout": [{"kinds": ["block"], "repeat": LAYERS}],
            }
        ],
        "head": {"kind": "language_model", "tied": is_gpt},
    }


def chosen_plan(base: Plan, changed: Callable[..., Plan], chosen: Chosen) -> Plan:
    """The plan file the search finds for the tiny Llama in the least memory that still has a plan."""
    description = tiny_model(base.inputs.model.model_dump(mode="json"), vocabulary=256)
    profile = load_profile("dgx-a100")
    device = load_device(profile.node_groups[0].device)
    constants, cluster = default_constants(device), resolve_cluster(profile, device, chosen.gpus)
    workload = Workload(sequence_length=LENGTH, global_batch=BATCH)
    spec = ModelSpec.model_validate(description)
    for attempt in range(200):
        limit = reserve_bytes(constants, 2) + 1.1**attempt * MIB / 8
        model = CostModel.of(Problem(spec, cluster, workload, limit), constants, PYTORCH_LIMITS.stack)
        try:
            found = search(model, PYTORCH_LIMITS, Pins(**chosen.pins), top=1)
        except InfeasibleError:
            continue
        return changed(
            base,
            decision=build_decision(found.best.decision).model_dump(mode="json"),
            inputs__model=description,
            inputs__workload__sequence_length=LENGTH,
            inputs__workload__global_batch=BATCH,
            inputs__workload__optimizer="sgd-momentum",
            inputs__cluster__gpus=chosen.gpus,
        )
    raise RuntimeError("no plan in any memory")


def plan_named(base: Plan, changed: Callable[..., Plan], name: str) -> Plan:
    """The plan of a run, or the one the search chooses."""
    if name in CHOSEN:
        return chosen_plan(base, changed, CHOSEN[name])
    return tiny_plan(base, changed, RUNS[name])


def tiny_plan(base: Plan, changed: Callable[..., Plan], run: Run) -> Plan:
    """The plan file of a tiny run."""
    degrees = {"dp": run.dp, "tp": run.tp, "pp": run.pp, "cp": 1, "ep": 1, "expert_tp": 1}
    axes = {name: degrees[name] for name in ("tp", "cp", "ep", "dp")}
    stages, first = [], 0
    for index, count in enumerate(run.layers):
        span = range(first, first + count)
        common = axes | {"sharding": run.sharding, "sequence_parallel": run.sequence_parallel}
        strategies = [
            common | {"layers": (at, at), "recompute": run.recompute[at], "gather_unit": run.units[at]}
            for at in span
        ]
        stages.append(
            {
                "index": index,
                "rank": rank_of_stage(run.schedule, index, run.pp),
                "layers": (first, first + count - 1),
                "devices": (0, 0),
                "has_embedding": index == 0,
                "has_head": index == len(run.layers) - 1,
                "layer_strategies": strategies,
            }
        )
        first += count
    decision = base.decision.model_dump(mode="json") | {
        "degrees": degrees,
        "sequence_parallel": run.sequence_parallel,
        "sharding": run.sharding,
        "sharding_group": run.group,
        "recompute": "mixed",
        "schedule": run.schedule,
        "virtual_stages": len(run.layers) // run.pp,
        "microbatch_size": 1,
        "microbatches": BATCH // run.dp,
        "global_batch": BATCH,
        "stages": stages,
    }
    plan = changed(
        base,
        decision=decision,
        inputs__model=tiny_model(base.inputs.model.model_dump(mode="json"), run.vocabulary, **run.model),
        inputs__workload__sequence_length=LENGTH,
        inputs__workload__global_batch=BATCH,
        inputs__workload__optimizer=run.optimizer,
        inputs__cluster__gpus=run.tp * run.pp * run.dp,
        inputs__cluster__profile__node_groups__0__tiers__0__devices=2,
    )
    assert PYTORCH.reasons(plan) == []
    return plan


class Ranks:
    """Runs programs on CPU ranks: by torchrun, or forked from one process that has imported PyTorch."""

    def __init__(self) -> None:
        environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
        self.options: dict[str, Any] = {"env": environment, "text": True}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self.server = subprocess.Popen([sys.executable, str(FORK)], **pipes, **self.options)

    def forked(self, world: int, port: int, argv: list[str], folder: Path) -> tuple[int, str]:
        """(0 when every rank ended well, all their output)."""
        job = {"world": world, "port": port, "argv": argv, "folder": str(folder)}
        assert self.server.stdin is not None
        assert self.server.stdout is not None
        self.server.stdin.write(json.dumps(job) + "\n")
        self.server.stdin.flush()
        statuses = json.loads(self.server.stdout.readline())
        return max(map(abs, statuses)), "".join((folder / f"{r}.log").read_text() for r in range(world))

    def torchrun(self, world: int, port: int, argv: list[str], folder: Path) -> tuple[int, str]:
        """The same by torchrun."""
        command = [sys.executable, "-m", "torch.distributed.run", "--master-addr=localhost"]
        command += [f"--master-port={port}", f"--nproc-per-node={world}", *argv]
        done = subprocess.run(command, capture_output=True, check=False, timeout=300, **self.options)
        return done.returncode, done.stdout + done.stderr


@pytest.fixture(scope="module")
def ranks() -> Iterator[Ranks]:
    pytest.importorskip("torch")
    started = Ranks()
    yield started
    started.server.communicate()  # the end of its input ends it


def losses(
    ranks: Ranks, plan: Plan, folder: Path, dtype: str = "fp32", steps: int = STEPS, by_torchrun: bool = False
) -> list[float]:
    """Train the exported script on CPU processes, which count their collectives into ``folder``."""
    script = folder / "train.py"
    script.write_text(PYTORCH.export(plan)["train.py"])
    rate = "3e-3" if plan.inputs.workload.optimizer == "adamw" else "0.5"
    argv = [str(HARNESS), str(folder), str(script), "--device=cpu", f"--dtype={dtype}", f"--steps={steps}"]
    start = ranks.torchrun if by_torchrun else ranks.forked
    for attempt in range(2):
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        status, output = start(plan.inputs.cluster.gpus, port, [*argv, f"--lr={rate}"], folder)
        # On a busy machine gloo now and then aborts a process between steps; an error of ours does not.
        if status == 0 or attempt or "Traceback" in output:
            break
    assert status == 0, output[-4000:]
    lines = [line.split() for line in output.splitlines() if line.startswith("step ")]
    assert [int(words[1]) for words in lines] == list(range(steps))
    assert all(words[4] == "seconds" and float(words[5]) > 0 for words in lines)
    return [float(words[3]) for words in lines]


@pytest.fixture(scope="module")
def base(planned: Callable[..., Plan]) -> Plan:
    pytest.importorskip("torch")
    return planned("pytorch", "llama-2-7b", "dgx-a100", 8, 4096, 64)


@pytest.fixture(scope="module")
def reference(
    ranks: Ranks, base: Plan, changed: Callable[..., Plan], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[Run], list[float]]:
    """Losses of one process that accumulates all microbatches, for a run's model and optimizer."""
    known: dict[str, list[float]] = {}

    def find(run: Run) -> list[float]:
        key = f"{run.optimizer} {run.model} {run.vocabulary}"
        if key not in known:
            single = Run(optimizer=run.optimizer, model=run.model, vocabulary=run.vocabulary)
            known[key] = losses(ranks, tiny_plan(base, changed, single), tmp_path_factory.mktemp("single"))
        return known[key]

    return find


@pytest.mark.parametrize("name", [*RUNS, *CHOSEN])
def test_every_split_trains_alike(
    ranks: Ranks,
    base: Plan,
    changed: Callable[..., Plan],
    reference: Callable[[Run], list[float]],
    tmp_path: Path,
    name: str,
) -> None:
    run = RUNS.get(name, Run(vocabulary=256))
    wanted = reference(run)
    found = losses(ranks, plan_named(base, changed, name), tmp_path, by_torchrun=name in BY_TORCHRUN)
    assert found == pytest.approx(wanted, abs=TOLERANCE)
    if run.optimizer == "adamw" or not run.model:  # SGD alone does not train the GPT in so few steps
        assert found[-1] < found[0] - 0.05


def predicted(plan: Plan, stage: int) -> dict[tuple[str, str], tuple[float, float]]:
    """(axis of the script's mesh, operation): (count, bytes) of one rank of a stage in one step."""
    model, decision = read_cost_model(plan.inputs), read_decision(plan.decision)
    inner = "dp_replicate" if plan.decision.sharding == "none" else "dp_shard"
    axes = {"dp": inner, "dp_outer": "dp_replicate", "tp": "tp", "pp": "pp"}
    traffic = rank_traffic(model, decision, stage).collectives
    return {(axes[one.axis], one.operation): (one.count, one.whole_bytes) for one in traffic}


def norm_reductions(plan: Plan, stage: int) -> int:
    """All-reduces over tp of norm weights' gradients beyond the one a weight and step that is predicted.

    Under a split sequence every tp rank has the gradient of its part, reduced whenever gradients are: each
    microbatch where they are sharded. Too small to be priced each time.
    """
    q = plan.decision
    if q.degrees.tp == 1 or not q.sequence_parallel:
        return 0
    mine = [one for one in q.stages if one.rank == stage]
    norms = sum(2 * (one.layers[1] - one.layers[0] + 1) + one.has_head for one in mine)
    weights = 2 if plan.inputs.model.block_kinds["block"].norm.bias else 1
    return norms * weights * (q.microbatches - 1 if q.sharding in ("gradients", "parameters") else 0)


@pytest.mark.parametrize("name", COUNTED)
def test_every_rank_sends_what_the_plan_predicts(
    ranks: Ranks, base: Plan, changed: Callable[..., Plan], tmp_path: Path, name: str
) -> None:
    """Operations, counts and bytes, in bf16. Bytes may differ by the norms, which tp does not split."""
    named = plan_named(base, changed, name)
    plan = changed(named, inputs__model__vocab_size=256, inputs__options__stack="pytorch")
    found = losses(ranks, plan, tmp_path, "bf16", 3)
    assert found[-1] < found[0]
    d = plan.decision.degrees
    for rank in range(plan.inputs.cluster.gpus):
        stage = rank // (d.dp * d.tp)
        rows = json.loads((tmp_path / f"{rank}.json").read_text())
        seen = {(axis, operation): (count, size) for axis, operation, count, size in rows}
        wanted, norms = predicted(plan, stage), norm_reductions(plan, stage)
        if norms:
            count, size = wanted.get(("tp", "all_reduce"), (0.0, 0.0))
            wanted["tp", "all_reduce"] = (count + norms, size)
        assert seen.keys() == wanted.keys()
        for key, (count, size) in wanted.items():
            assert seen[key][0] == count, (rank, key)
            if key != ("tp", "all_reduce"):
                assert seen[key][1] == pytest.approx(size, rel=0.005 if d.tp > 1 else 1e-12), (rank, key)
