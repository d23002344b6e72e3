"""The optimizer on the host: what launchers are told, what they make of it, what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from file_checks import DEEPSPEED as DEEPSPEED_FILE
from file_checks import json_file, megatron_file
from round_trip import round_trip

from planner.api import make_plan
from planner.checking import check_file, check_plan
from planner.errors import UnsupportedByTarget
from planner.importing import Answers, import_plan
from planner.launchers.deepspeed import ds_config
from planner.launchers.megatron import all_flags
from planner.launchers.megatron_bridge import overrides
from planner.launchers.registry import launcher, launcher_names
from planner.plan_file.schema import Plan
from planner.request import Request

TIGHT = Request("llama-3.1-8b", gpu="a100-40g-sxm", seq_len=2048, global_batch=16, host_memory_gib=512)
ABLE = ("deepspeed", "megatron", "megatron-bridge")
ONLY_HOST = {"--optimizer-cpu-offload": "", "--use-precision-aware-optimizer": ""}


def tight(target: str, gpus: int) -> Plan:
    return make_plan(TIGHT.changed(gpus=gpus), target=target, suggest=False)


@pytest.mark.parametrize(("target", "gpus"), [("deepspeed", 2), ("deepspeed", 4), ("megatron", 2)])
def test_a_plan_on_the_host_goes_out_and_comes_back(tmp_path: Path, target: str, gpus: int) -> None:
    plan = tight(target, gpus)
    assert plan.decision.offload == "optimizer"
    assert launcher(target).reasons(plan) == []
    assert round_trip(plan, target, tmp_path) == []
    assert all(finding.holds for finding in check_plan(plan, target))


def test_launchers_without_it_refuse_and_say_why() -> None:
    plan = tight("any", 2)
    for name in launcher_names():
        rules = [reason.rule for reason in launcher(name).reasons(plan)]
        assert ("offload" in rules) == (name not in ABLE), name
    with pytest.raises(UnsupportedByTarget, match="alone on the host"):
        launcher("pytorch").export(plan)


def test_megatron_gets_the_whole_optimizer_and_what_it_asks_for() -> None:
    flags = all_flags(tight("megatron", 2))
    assert flags["--optimizer-offload-fraction"] == ["1.0"]
    wanted = {"--optimizer-cpu-offload", "--use-precision-aware-optimizer", "--use-distributed-optimizer"}
    assert wanted <= set(flags)
    found = overrides(tight("megatron-bridge", 2))
    assert found["optimizer.optimizer_cpu_offload"] == "true"
    assert found["optimizer.optimizer_offload_fraction"] == "1.0"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"--optimizer-cpu-offload": ""}, "without --use-precision-aware-optimizer"),
        ({**ONLY_HOST, "--use-distributed-optimizer": None}, "without --use-distributed-optimizer"),
        ({**ONLY_HOST, "--optimizer": "sgd"}, "with --optimizer sgd"),
        ({**ONLY_HOST, "--optimizer-offload-fraction": "0"}, "leaves the optimizer on the GPUs"),
        ({**ONLY_HOST, "--optimizer-offload-fraction": "all"}, "is no number"),
    ],
)
def test_megatron_files_that_offload_wrongly_are_caught(tmp_path: Path, changes: dict, words: str) -> None:
    path = tmp_path / "train.sh"
    path.write_text(megatron_file(changes))
    found = {f.name: f.numbers for f in check_file(str(path), "megatron") if not f.holds}
    assert words in found.get("offload", ""), found


def test_a_stage_without_sharding_passes_offload_over(tmp_path: Path) -> None:
    path = tmp_path / "ds.json"
    zero = {"stage": 0, "offload_optimizer": {"device": "cpu"}}
    path.write_text(json_file(DEEPSPEED_FILE, {"zero_optimization": zero}))
    found = {f.name: f.numbers for f in check_file(str(path), "deepspeed", gpus=64) if not f.holds}
    assert "with stage 0 does nothing" in found["offload"]


def test_files_that_offload_are_priced_on_the_host(tmp_path: Path) -> None:
    path = tmp_path / "ds.json"
    machine = TIGHT.changed(gpu=None, cluster="dgx-h100", gpus=64, global_batch=None, attention=None)
    machine = machine.changed(optimizer=None, seq_len=4096)
    plans = []
    for place in ("none", "cpu"):
        zero = {"stage": 2, "offload_optimizer": {"device": place}}
        path.write_text(json_file(DEEPSPEED_FILE, {"zero_optimization": zero}))
        plans.append(import_plan("deepspeed", str(path), machine, Answers()).plan)
    on_gpu, on_host = (plan.prediction for plan in plans)
    assert [plan.decision.offload for plan in plans] == ["none", "optimizer"]
    assert all(stage.memory_bytes["optimizer"] == 0.0 for stage in on_host.stages)
    assert on_host.peak_memory_bytes < on_gpu.peak_memory_bytes
    assert on_host.step_seconds > on_gpu.step_seconds
    assert on_gpu.host_memory_bytes is None


@pytest.mark.heavy
def test_megatron_core_takes_the_optimizer_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    module = pytest.importorskip("megatron.core.optimizer.optimizer_config")
    monkeypatch.setattr(module, "is_te_min_version", lambda *_: True)  # TransformerEngine needs a GPU
    flags = all_flags(tight("megatron", 2))
    switches = {
        "--use-distributed-optimizer": "use_distributed_optimizer",
        "--use-precision-aware-optimizer": "use_precision_aware_optimizer",
        "--optimizer-cpu-offload": "optimizer_cpu_offload",
        "--bf16": "bf16",
    }
    fields = {field: True for flag, field in switches.items() if flag in flags}
    assert len(fields) == len(switches)
    fraction = float(flags["--optimizer-offload-fraction"][0])
    config = module.OptimizerConfig(
        optimizer=flags["--optimizer"][0], optimizer_offload_fraction=fraction, **fields
    )
    assert config.optimizer_cpu_offload
    assert config.optimizer_offload_fraction == 1.0
    with pytest.raises(AssertionError, match="distributed optimizer"):
        module.OptimizerConfig(
            optimizer="adam", use_precision_aware_optimizer=True, optimizer_cpu_offload=True, bf16=True
        )


@pytest.mark.heavy
@pytest.mark.parametrize("gpus", [2, 4])
def test_deepspeed_reads_the_host(gpus: int, monkeypatch: pytest.MonkeyPatch) -> None:
    module = pytest.importorskip("deepspeed.runtime.config")
    monkeypatch.setattr(module.dist, "get_rank", lambda *_: 0)
    monkeypatch.setattr(module.dist, "get_world_size", lambda *_: gpus)
    plan = tight("deepspeed", gpus)
    config = module.DeepSpeedConfig(json.loads(json.dumps(ds_config(plan))))
    assert config.zero_enabled
    assert config.zero_config.offload_optimizer.device == "cpu"
    assert config.zero_config.offload_optimizer.ratio == 1.0
    assert config.zero_config.offload_param is None
    assert int(config.zero_optimization_stage) >= 1
