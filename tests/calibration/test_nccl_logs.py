"""Logs of nccl-tests: known alpha and beta are found again, the planner uses them, broken logs name the line.

Logs are made here in the format of nccl-tests' README and doc/PERFORMANCE.md.
"""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

import planner
from planner.calibration.fitted import read_fitted
from planner.calibration.link_fit import fit_run, measured_links
from planner.calibration.nccl_log import COLLECTIVES, read_nccl_log
from planner.calibration.shipped import shipped
from planner.cli.app import run as run_planner
from planner.cost.collectives import (
    all_gather_seconds,
    all_reduce_seconds,
    all_to_all_seconds,
    group_costs,
    send_seconds,
)
from planner.cost.constants import default_constants
from planner.errors import InputError
from planner.request import Request, choose_cluster

FACTORS = {
    "all_reduce": lambda n: 2.0 * (n - 1) / n,
    "all_gather": lambda n: (n - 1) / n,
    "reduce_scatter": lambda n: (n - 1) / n,
    "alltoall": lambda n: (n - 1) / n,
    "sendrecv": lambda n: 1.0,
}


def nccl_text(collective, ranks, alpha_seconds, beta_seconds_per_byte, *, per_node=8, named=True):
    """The output of ``<collective>_perf -b 8K -e 1G -f 4`` on a machine that obeys t = alpha + beta x."""
    lines = ["# nThread 1 nGpus 1 minBytes 8192 maxBytes 1073741824 step: 4(factor) warmup iters: 5"]
    lines += ["#", "# Using devices"]
    for rank in range(ranks):
        node, device = divmod(rank, per_node)
        lines.append(
            f"#  Rank {rank:2d} Group  0 Pid {4000 + rank:6d} on node{node:03d} device {device:2d} "
            f"[0x{device + 16:02x}] NVIDIA H100 80GB HBM3"
        )
    if named:
        lines.append(f"# Collective test starting: {collective}_perf")
    lines += [
        "#",
        "#                                                              out-of-place               in-place",
        "#       size         count      type   redop    root     time   algbw   busbw #wrong     time  ...",
        "#        (B)    (elements)                               (us)  (GB/s)  (GB/s)            (us)  ...",
    ]
    factor = FACTORS[collective](ranks)
    redop = "sum" if "reduce" in collective else "none"
    for size in [8192 * 4**k for k in range(9)]:
        seconds = alpha_seconds + beta_seconds_per_byte * size * factor
        algbw = size / seconds / 1e9
        cells = f"{seconds * 1e6:8.2f} {algbw:7.2f} {algbw * factor:7.2f} {0:6d}"
        lines.append(f"{size:12d} {size // 4:13d} {'float':>9} {redop:>7} {-1:7d} {cells} {cells}")
    lines += ["# Out of bounds values : 0 OK", "# Avg bus bandwidth    : 123.4", "#"]
    return "\n".join(lines) + "\n"


def write(folder, name, text):
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return str(path)


def machine(gpu="a100-80g-sxm", gpus=8):
    return choose_cluster(Request(model="", gpu=gpu, gpus=gpus)).cluster


@pytest.mark.parametrize("collective", COLLECTIVES)
@pytest.mark.parametrize("ranks", [2, 8, 16])
def test_known_alpha_and_beta_are_found_again(tmp_path, collective, ranks):
    text = nccl_text(collective, ranks, 30e-6, 1.0 / 180e9)
    [run] = read_nccl_log(write(tmp_path, "log.txt", text))
    assert (run.collective, run.ranks, run.nodes) == (collective, ranks, -(-ranks // 8))
    found = fit_run(run)
    assert found.alpha_seconds == pytest.approx(30e-6, rel=0.02)
    assert found.beta_seconds_per_byte == pytest.approx(1.0 / 180e9, rel=0.01)
    assert found.points == 9
    assert found.residual < 0.01


def test_an_older_log_is_read_by_its_file_name(tmp_path):
    text = nccl_text("all_gather", 8, 1e-5, 1e-11, named=False)
    [run] = read_nccl_log(write(tmp_path, "all_gather_perf.txt", text))
    assert run.collective == "all_gather"
    with pytest.raises(InputError, match="does not say which collective"):
        read_nccl_log(write(tmp_path, "log.txt", text))


def test_a_launcher_s_prefixes_and_info_lines_are_passed_over(tmp_path):
    lines = nccl_text("all_reduce", 8, 1e-5, 1e-11).splitlines()
    lines = [f"[1,0]<stdout>: {line}" for line in lines]
    lines.insert(4, "node000:4000:4000 [0] NCCL INFO Bootstrap : Using eth0")
    [run] = read_nccl_log(write(tmp_path, "log.txt", "\n".join(lines)))
    assert len(run.size_bytes) == 9


def spoil(text, change):
    lines = text.splitlines()
    change(lines)
    return "\n".join(lines)


def first_size(lines):
    return next(i for i, line in enumerate(lines) if line[:1] == " ")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda x: x.__delitem__(slice(-3, None)), "line 25: the log ends before"),
        (lambda x: x.__setitem__(first_size(x) + 2, x[first_size(x) + 2][:70]), "line 19: .* cells"),
        (lambda x: x.__setitem__(first_size(x), x[first_size(x)].replace(" 0 ", " 7 ", 1)), "7 wrong"),
        (lambda x: x.__delitem__(slice(3, 11)), "line 9: a size before any"),
        (lambda x: x.__delitem__(slice(4, 11)), "busbw"),
        (lambda x: x.__delitem__(slice(first_size(x) + 3, first_size(x) + 9)), "3 sizes"),
        (lambda x: x.__setitem__(4, x[4].replace("Group  0", "Group  1")), "line 5: .*group 1"),
        (lambda x: x.clear(), "no nccl-tests result"),
    ],
)
def test_a_wrong_or_cut_log_names_the_line(tmp_path, change, words):
    text = spoil(nccl_text("all_reduce", 8, 1e-5, 1e-11), change)
    with pytest.raises(InputError, match=words):
        read_nccl_log(write(tmp_path, "log.txt", text))


def test_times_that_do_not_grow_give_no_bandwidth(tmp_path):
    text = nccl_text("all_reduce", 8, 1e-3, 0.0)
    [run] = read_nccl_log(write(tmp_path, "log.txt", text))
    run.seconds = [1e-3 - 1e-14 * size for size in run.size_bytes]
    with pytest.raises(InputError, match="do not grow"):
        fit_run(run)


def model_seconds(cluster, constants, collective, ranks, size):
    """What the cost model says of one collective of ``size`` bytes as nccl-tests counts them."""
    if collective == "sendrecv":
        return send_seconds(cluster, constants, min(ranks, cluster.devices_per_node) - 1, 1, size)
    group = group_costs(cluster, constants, 1, ranks)
    price = {"all_reduce": all_reduce_seconds, "alltoall": all_to_all_seconds}.get(
        collective, all_gather_seconds
    )
    return float(price(group, size))


@pytest.mark.parametrize("collective", ["all_gather", "reduce_scatter", "alltoall", "sendrecv"])
@pytest.mark.parametrize("ranks", [8, 32])
def test_the_cost_model_with_the_measured_link_repeats_the_log(tmp_path, collective, ranks):
    """A log made by the cost model at 60 % of the printed rate gives that model back."""
    cluster = machine(gpus=ranks)
    tier = cluster.links[0 if ranks == 8 else 1].technology
    slow = dict(default_constants(cluster.device).link_efficiency)
    slow[tier] = 0.6
    truth = replace(default_constants(cluster.device), link_efficiency=tuple(slow.items()))
    seconds = [model_seconds(cluster, truth, collective, ranks, float(s)) for s in (0, 1 << 30)]
    beta = (seconds[1] - seconds[0]) / (2**30 * FACTORS[collective](ranks))
    text = nccl_text(collective, ranks, seconds[0], beta)
    links = measured_links(read_nccl_log(write(tmp_path, "log.txt", text)), cluster)
    assert set(links) == {tier}
    assert links[tier].efficiency == pytest.approx(0.6, rel=0.01)
    assert links[tier].latency_seconds == pytest.approx(
        next(link.latency_seconds for link in cluster.links if link.technology == tier), rel=0.05
    )


def test_all_reduce_in_the_switch_gives_the_in_network_efficiency(tmp_path):
    text = nccl_text("all_reduce", 8, 2e-5, 1.0 / 470e9)
    links = measured_links(read_nccl_log(write(tmp_path, "log.txt", text)), machine("h100-sxm"))
    measured = links["nvswitch"]
    ring = 450e9 * measured.efficiency
    assert 1.0 / (ring * measured.in_network_efficiency) == pytest.approx(2 * 7 / 8 / 470e9, rel=0.01)
    assert measured.latency_seconds is None


def test_a_log_of_another_machine_is_refused(tmp_path):
    text = nccl_text("all_reduce", 16, 1e-5, 1e-11, per_node=4)
    with pytest.raises(InputError, match="4 hosts"):
        measured_links(read_nccl_log(write(tmp_path, "log.txt", text)), machine(gpus=16))


def test_the_planner_uses_the_measured_links(tmp_path, capsys):
    log = write(tmp_path, "ag.txt", nccl_text("all_gather", 16, 5e-4, 1.0 / 5e9))
    file = tmp_path / "mine.json"
    assert run_planner(["calibrate", "--nccl-log", log, "--gpu", "h100-sxm", "-o", str(file)]) == 0
    assert "infiniband" in capsys.readouterr().out
    document = json.loads(file.read_text(encoding="utf-8"))
    assert document["links"]["infiniband"]["fits"][0]["points"] == 9
    assert read_fitted(document, str(file)).values == shipped().values

    question = {"gpu": "h100-sxm", "gpus": 16, "seq_len": 4096, "global_batch": 64}
    before = planner.estimate("llama-3.1-8b", **question, tp=1)
    after = planner.estimate("llama-3.1-8b", **question, tp=1, calibration=str(file))
    assert after.prediction.step_seconds > before.prediction.step_seconds
    assert after.inputs.cluster.profile.node_groups[0].tiers[1].latency_us.basis == "measured"
    assert "measured by you" in after.inputs.constant_origins["link_efficiency.infiniband"]


def test_a_log_without_its_machine_is_refused(tmp_path, capsys):
    log = write(tmp_path, "ag.txt", nccl_text("all_gather", 8, 1e-5, 1e-11))
    assert run_planner(["calibrate", "--nccl-log", log, "-o", str(tmp_path / "mine.json")]) == 2
    assert "--gpu" in capsys.readouterr().err
