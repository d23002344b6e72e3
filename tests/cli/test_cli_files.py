"""Files in and out: whole or nothing, read back to the same figures, formats of the user's own."""

from __future__ import annotations

import json
from pathlib import Path
from shlex import split

import jsonschema
import pytest

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 2560,
    "intermediate_size": 6912,
    "num_hidden_layers": 30,
    "num_attention_heads": 20,
    "num_key_value_heads": 4,
    "vocab_size": 50432,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": False,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "torch_dtype": "bfloat16",
}
CLUSTER = """
schema_version: 1
kind: cluster
name: our-machine
sources: {nccl: "NCCL tuning table, ring, Simple protocol"}
node_groups:
  - device: a100-40g-sxm
    devices_per_node: 4
    num_nodes: 6
    tiers:
      - name: nvlink
        technology: nvlink-mesh
        devices: 4
        bandwidth_gb_per_s: {value: 300, basis: datasheet, source: A100 datasheet}
        latency_us: {value: 3.4, basis: assumed, source: nccl}
      - name: network
        technology: infiniband
        bandwidth_gb_per_s: {value: 50, basis: derived, source: ours, note: 2 x 200 Gb/s a node}
        links: 2
        latency_us: {value: 14, basis: assumed, source: nccl}
"""


def test_output_is_the_whole_plan(cli, small, tmp_path):
    path = tmp_path / "plan.json"
    path.write_text("old")
    assert cli("plan", *small, "-o", path).code == 0
    jsonschema.validate(json.loads(path.read_text(encoding="utf-8")), cli("schema", "plan").json())
    assert [entry.name for entry in tmp_path.iterdir()] == ["plan.json"], "no temporary file stays"


@pytest.mark.parametrize("command", ["plan", "estimate"])
def test_output_is_the_whole_file_or_nothing(cli, small, tmp_path, command):
    missing = tmp_path / "no" / "plan.json"
    outcome = cli(command, *small, "-o", missing)
    assert outcome.code == 2
    assert "does not exist" in outcome.err
    folder = tmp_path / "folder"
    folder.mkdir()
    outcome = cli(command, *small, "-o", folder)
    assert outcome.code == 2
    assert "directory" in outcome.err
    assert sorted(entry.name for entry in tmp_path.rglob("*")) == ["folder"]


def test_a_bad_request_leaves_an_old_plan_alone(cli, small, tmp_path):
    path = tmp_path / "plan.json"
    path.write_text("old")
    assert cli("plan", *small, "--tp", "3", "-o", path).code == 2
    assert path.read_text() == "old"


@pytest.mark.parametrize(
    "question",
    [
        "--model llama-3.1-8b --gpu h100-sxm --gpus 16 --seq-len 8192 --global-batch 128",
        "--model qwen3-30b-a3b --cluster dgx-h100 --gpus 16 --seq-len 4096 --global-batch 64",
        "--model t5-large --cluster aws-p3-8xlarge --gpus 8 --global-batch 64",
    ],
)
def test_a_plan_file_is_repriced_to_the_same_figures(cli, tmp_path, question):
    path, again = tmp_path / "plan.json", tmp_path / "again.json"
    assert cli("plan", *question.split(), "-o", path).code == 0
    plan = json.loads(path.read_text(encoding="utf-8"))
    outcome = cli("estimate", "--plan", path, "--json", "-o", again)
    assert outcome.code == 0
    estimate = outcome.json()
    assert estimate["decision"] == plan["decision"]
    assert estimate["prediction"] == plan["prediction"]
    assert json.loads(again.read_text(encoding="utf-8")) == estimate
    assert cli("estimate", "--plan", again).code == 0, "an estimate is a plan file too"


def test_a_plan_file_carries_its_inputs(cli, tmp_path):
    """Nothing but the file is needed to price it again: not the model file, not the cluster file."""
    config, cluster, path = tmp_path / "config.json", tmp_path / "machine.yaml", tmp_path / "plan.json"
    config.write_text(json.dumps(CONFIG), encoding="utf-8")
    cluster.write_text(CLUSTER, encoding="utf-8")
    question = ["--model", config, "--cluster", cluster, "--gpus", "8", "--global-batch", "32"]
    assert cli("plan", *question, "-o", path).code == 0
    config.unlink()
    cluster.unlink()
    assert cli("estimate", "--plan", path).code == 0
    assert cli("explain", path).code == 0


def test_a_config_and_a_machine_of_ones_own(cli, tmp_path):
    config, cluster = tmp_path / "config.json", tmp_path / "machine.yaml"
    config.write_text(json.dumps(CONFIG), encoding="utf-8")
    cluster.write_text(CLUSTER, encoding="utf-8")
    outcome = cli("models", "show", config, "--json")
    assert outcome.code == 0
    assert outcome.json()["hidden_size"] == 2560
    assert cli("models", "show", tmp_path, "--json").out == outcome.out, "the folder of config.json works too"
    outcome = cli("plan", "--model", config, "--cluster", cluster, "--global-batch", "96", "--json")
    assert outcome.code == 0
    plan = outcome.json()
    assert plan["inputs"]["cluster"]["gpus"] == 24
    assert "all 24 GPUs of our-machine (set --gpus for fewer)" in plan["inputs"]["options"]["assumptions"]
    d = plan["decision"]["degrees"]
    assert d["dp"] * d["tp"] * d["pp"] * d["cp"] == 24


def test_hardware_show_reads_a_machine_file(cli, tmp_path):
    path = tmp_path / "machine.yaml"
    path.write_text(CLUSTER, encoding="utf-8")
    assert "our-machine" in cli("hardware", "show", path).out


def test_our_own_model_format(cli, tmp_path):
    path = tmp_path / "model.json"
    path.write_text(cli("models", "show", "llama-3.1-8b", "--json").out, encoding="utf-8")
    question = split("--gpu h100-sxm --gpus 8 --seq-len 4096 --global-batch 64 --json")
    mine = cli("plan", "--model", path, *question).json()
    built_in = cli("plan", "--model", "llama-3.1-8b", *question).json()
    assert mine == built_in


def test_a_gpu_of_ones_own(cli, tmp_path, monkeypatch):
    """A new device is a file: name it where a GPU name goes."""
    device = cli("hardware", "show", "h100-sxm", "--json").json()
    device |= {"name": "our-gpu", "aliases": []}
    device["memory_gib"]["value"] = 120.0
    Path(tmp_path / "our-gpu.json").write_text(json.dumps(device), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    question = split("--gpus 8 --seq-len 4096 --global-batch 64 --json")
    plan = cli("plan", "--model", "llama-3.1-8b", "--gpu", "our-gpu.json", *question).json()
    assert plan["inputs"]["cluster"]["device"]["name"] == "our-gpu"
    assert plan["prediction"]["memory_capacity_bytes"] == 120.0 * 2**30


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("value: 300", "value: -300", ["bandwidth_gb_per_s"]),
        ("value: 300", "value: .nan", ["bandwidth_gb_per_s"]),
        ("devices_per_node: 4", "devices_per_node: four", ["devices_per_node"]),
        ("    num_nodes: 6\n", "", ["num_nodes", "missing"]),
        ("a100-40g-sxm", "a100-40g-smx", ["a100-40g-sxm"]),
        ("technology: nvlink-mesh", "tecnology: nvlink-mesh", ["/node_groups/0/tiers/0", "technology"]),
        pytest.param(
            "devices: 4\n",
            "devices: 5\n",
            ["tiers"],
        ),
        ("name: our-machine", "name: [", ["line"]),
    ],
)
def test_a_wrong_machine_file_is_told_where(cli, tmp_path, old, new, words):
    path = tmp_path / "machine.yaml"
    assert old in CLUSTER
    path.write_text(CLUSTER.replace(old, new), encoding="utf-8")
    outcome = cli("plan", "--model", "llama-3.1-8b", "--cluster", path, "--gpus", "8")
    assert outcome.code == 2
    assert outcome.out == ""
    for word in words:
        assert word in outcome.err
