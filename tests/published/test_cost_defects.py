"""Defects other planners were seen with, one fact each that such a defect would break here."""

from __future__ import annotations

from dataclasses import replace

import pytest

from planner.catalog import load_device, load_model, load_profile
from planner.cluster.topology import resolve_cluster
from planner.cost.attention import mean_context
from planner.cost.collectives import all_gather_seconds, all_reduce_seconds, group_costs
from planner.cost.constants import Constants, default_constants
from planner.cost.decision_rows import decision_rows
from planner.cost.model import CostModel
from planner.cost.step import price
from planner.errors import InputError
from planner.model.flop import attention_score_flop, model_step_flop
from planner.model.parameters import total_parameters
from planner.model.spec import Attention
from planner.search.layout import balanced_chunks
from planner.strategy.candidates import Candidates, Problem
from planner.strategy.decision import Decision, Degrees
from planner.strategy.rules import require_valid
from planner.workload import Workload

BLOCKS = 8
CONSTANTS = Constants()


def decide(blocks=BLOCKS, batch=64, *, sharding=0, schedule="1f1b", v=1, size=1, recompute=0, **degrees):
    """A plain decision: equal stages, one mode, one sharding."""
    d = Degrees(**{"dp": 1, "tp": 1, "pp": 1, **degrees})
    return Decision(
        degrees=d,
        sequence_parallel=d.tp > 1,
        sharding=sharding,
        sharding_group=0,
        schedule=schedule,
        virtual_stages=v,
        microbatch_size=size,
        microbatches=batch // (d.dp * size),
        chunks=balanced_chunks(blocks, d.pp * v),
        recompute=(recompute,) * blocks,
    )


@pytest.fixture
def dense(build):
    """Builds a cost model of a dense decoder on nodes of eight."""

    def of(*, blocks=BLOCKS, sequence=4096, batch=64, tied=False, slow=400.0, attention="flash"):
        block = build.block(hidden=2048, heads=16, ffn=8192)
        model = build.model(blocks, {"block": block}, hidden=2048, vocab=32768, tied=tied)
        cluster = build.cluster(512, build.profile(per_node=8, nodes=64, slow=slow, slow_links=8))
        return build.cost_model(model, cluster, sequence=sequence, batch=batch, attention=attention)

    return of


def test_no_weights_are_gathered_with_sharding_off(dense):
    model = dense()
    plain = price(model, decide(dp=8))
    assert [stage.tail.gather for stage in plain.stages] == [0.0]
    assert [stage.causes["dp"] for stage in plain.stages] == [0.0]
    assert price(model, decide(dp=8, sharding=1)).stages[0].tail.gather > 0.0
    assert price(model, decide(dp=8, sharding=3)).stages[0].causes["dp"] > 0.0


@pytest.mark.parametrize("mode", [1, 2])
def test_recompute_is_paid_once_per_layer_and_microbatch(dense, mode):
    one = price(dense(blocks=1), decide(blocks=1, recompute=mode))
    many = price(dense(), decide(recompute=mode))
    per_layer = one.stages[0].causes["recompute"]
    assert per_layer > 0.0
    assert many.stages[0].causes["recompute"] == pytest.approx(BLOCKS * per_layer)
    assert many.breakdown_seconds["recompute"] == pytest.approx(64 * BLOCKS * per_layer)


def test_selective_recompute_of_unfused_attention_repeats_less_than_a_tenth_of_a_layer_of_compute(dense):
    """Korthikanti et al. (arXiv 2205.05198): few FLOP, much memory; full recompute repeats a forward."""
    model = dense(sequence=2048, attention="unfused")
    none, selective, full = (price(model, decide(recompute=mode)).stages[0] for mode in (0, 1, 2))
    assert selective.memory_bytes["activations"] < 0.7 * none.memory_bytes["activations"]
    assert 0.0 < selective.causes["recompute"] < full.causes["recompute"]
    assert full.causes["recompute"] < none.causes["compute"] / 2


def test_tp_beyond_the_island_pays_the_network_only_for_what_crosses_it(build):
    """16 ranks over two nodes of eight: 15 ring hops of which one crosses, over all eight NICs together."""
    cluster = build.cluster(16, build.profile(per_node=8, fast=250, slow=400, slow_links=8))
    num_bytes = 256e6
    inside, across = (group_costs(cluster, CONSTANTS, 1, size) for size in (8, 16))
    one_nic = 50e9 * CONSTANTS.efficiency_of("infiniband")
    wholly_slow = num_bytes * 15 / 16 / one_nic + 15 * 14e-6
    charged = all_gather_seconds(across, num_bytes)
    assert all_gather_seconds(inside, num_bytes) < charged < 0.5 * wholly_slow
    more_hops = across.ring_latency - inside.ring_latency
    assert more_hops == pytest.approx((14 * 3e-6 + 14e-6) - 7 * 3e-6)


def test_tp_beyond_the_island_is_dearer_than_tp_inside_it(dense):
    model = dense(slow=20)
    inside, across = (price(model, decide(tp=tp)).breakdown_seconds["tp"] for tp in (8, 16))
    assert across > 2 * inside


def test_126_layers_over_16_stages_keep_every_layer():
    """Llama 3.1 405B: flooring 126 / 16 would lose 14 layers."""
    spec, _ = load_model("llama-3.1-405b")
    profile = load_profile("dgx-h100")
    device = load_device("h100-sxm")
    workload = Workload(sequence_length=8192, global_batch=64)
    problem = Problem(spec, resolve_cluster(profile, device, 1024), workload, device.memory_bytes)
    model = CostModel.of(problem, default_constants(device))
    whole, staged = (price(model, decide(126, 64, pp=pp)) for pp in (1, 16))
    sizes = [end - first for first, end in decide(126, 64, pp=16).chunks]
    assert (sum(sizes), min(sizes), max(sizes)) == (126, 7, 8)
    kept = sum(stage.memory_bytes["parameters"] for stage in staged.stages)
    assert kept == pytest.approx(2 * total_parameters(spec), rel=1e-9)
    computed = sum(stage.causes["compute"] for stage in staged.stages)
    assert computed == pytest.approx(whole.stages[0].causes["compute"])


def test_sends_hide_under_compute_when_the_schedule_overlaps_them(dense):
    """On a ten times slower network interleaving sends twice as often and still loses less than 1F1B."""
    growth = {}
    for schedule, v in (("1f1b", 1), ("interleaved", 2)):
        fast, slow = (
            price(dense(slow=slow), decide(pp=4, dp=8, schedule=schedule, v=v, batch=256))
            for slow in (4000.0, 400.0)
        )
        reduced = max(
            abs(a.tail.reduce - b.tail.reduce) for a, b in zip(fast.stages, slow.stages, strict=True)
        )
        growth[schedule] = slow.step_seconds - fast.step_seconds - reduced
        assert (slow.breakdown_seconds["pp"] > 0.0) == (schedule == "1f1b")
    assert 0.0 < growth["interleaved"] < 0.5 * growth["1f1b"]


def test_one_stage_sends_nothing(dense):
    assert price(dense(), decide(dp=8)).breakdown_seconds["pp"] == 0.0


def test_sharded_gradients_and_parameters_change_both_memory_and_traffic(dense):
    model = dense()
    plain, states, gradients, parameters = (price(model, decide(dp=8, sharding=s)) for s in range(4))
    at = [p.stages[0].memory_bytes for p in (plain, states, gradients, parameters)]
    assert at[2]["gradients"] == pytest.approx(at[1]["gradients"] / 8)
    assert at[2]["parameters"] == at[1]["parameters"]
    assert at[3]["parameters"] == pytest.approx(at[1]["parameters"] / 8)
    assert at[3]["buffers"] > at[1]["buffers"]  # layers are gathered whole before use
    moved = [p.stages[0].causes["dp"] for p in (plain, states, gradients, parameters)]
    assert moved[0] == moved[1] == 0.0 < moved[2] < moved[3]


def test_sharded_parameters_move_every_microbatch_and_plain_gradients_once_a_step(dense):
    def dp_seconds(sharding, batch):
        found = price(dense(batch=batch), decide(dp=8, sharding=sharding, batch=batch))
        return found.breakdown_seconds["dp"]

    assert dp_seconds(0, 128) == pytest.approx(dp_seconds(0, 64))
    per_microbatch = dp_seconds(3, 128) - dp_seconds(3, 64)
    assert per_microbatch > 0.5 * dp_seconds(3, 64)


def test_context_parallelism_divides_compute_and_activations(dense):
    model = dense(sequence=65536)
    one, four = (price(model, decide(cp=cp)).stages[0] for cp in (1, 4))
    assert four.causes["compute"] == pytest.approx(one.causes["compute"] / 4, rel=0.05)
    assert four.memory_bytes["activations"] == pytest.approx(one.memory_bytes["activations"] / 4)
    assert four.memory_bytes["parameters"] == one.memory_bytes["parameters"]
    assert one.causes["cp"] == 0.0 < four.causes["cp"]


def test_a_tied_table_exchanges_its_gradient_between_the_first_and_last_stage(dense):
    """V h fp32 elements all-reduced over two ranks, once a step; one replica moves nothing else."""
    tied, untied = dense(tied=True), dense()
    num_bytes = 4 * 32768 * 2048
    group = group_costs(tied.problem.cluster, tied.constants, 3, 2)
    found = price(tied, decide(pp=4)).breakdown_seconds["dp"]
    assert found == pytest.approx(float(all_reduce_seconds(group, num_bytes)))
    assert found > num_bytes / 400e9
    assert price(untied, decide(pp=4)).breakdown_seconds["dp"] == 0.0
    assert price(tied, decide()).breakdown_seconds["dp"] == 0.0


def test_both_end_stages_hold_a_tied_table(dense):
    tied, untied = (price(dense(tied=flag), decide(pp=4)).stages for flag in (True, False))
    for stage in (0, 3):
        assert tied[stage].memory_bytes["parameters"] == untied[stage].memory_bytes["parameters"]


def test_experts_are_not_divided_by_tp_when_their_tensor_degree_is_one(build):
    experts, expert = 8, 3 * 2048 * 2048
    model = build.cost_model(
        build.model(2, {"block": build.block(hidden=2048, heads=16, ffn=2048, experts=experts)}, hidden=2048),
        build.cluster(8, build.profile(per_node=8)),
    )

    def held(**degrees):
        row = decision_rows(model, decide(2, 8, **degrees))[0]
        return max(kind.expert_parameters for kind in row.kinds)

    assert held(tp=4) == experts * expert
    assert held(tp=4, ep=2) == experts * expert / 2
    assert held(tp=4, expert_tp=4) == experts * expert / 4
    assert held(tp=1, dp=4, ep=4) == experts * expert / 4
    dense_part = {
        (tp, etp): max(
            kind.dense_parameters
            for kind in decision_rows(model, decide(2, 8, tp=tp, expert_tp=etp))[0].kinds
        )
        for tp, etp in ((1, 1), (4, 1), (4, 4))
    }
    norms = 2 * 2048  # whole on every tp rank
    assert dense_part[4, 1] == dense_part[4, 4] == (dense_part[1, 1] - norms) / 4 + norms


@pytest.mark.parametrize("window", [None, 1024])
@pytest.mark.parametrize("causal", [True, False])
def test_cost_and_model_flop_count_the_same_share_of_the_score_matrix(causal, window):
    attention = Attention(num_heads=16, num_kv_heads=16, head_dim=128, causal=causal, window=window)
    sequence = 8192
    flop = attention_score_flop(attention, sequence)
    context = flop / (2.0 * sequence * 16 * 2 * 128)
    assert context == pytest.approx(float(mean_context(attention, sequence)))
    if window is None:
        assert context == sequence / (2 if causal else 1)


def test_a_causal_mask_saves_half_of_the_attention_flop_and_nothing_else(build):
    plain, masked = (build.model(4, {"block": build.block(causal=flag)}) for flag in (False, True))
    saved = model_step_flop(plain, 8192, 1) - model_step_flop(masked, 8192, 1)
    assert saved == 3 * 4 * 2 * 8192 * (8192 / 2) * 2 * 1024


def test_mfu_stays_below_the_kernels_own_efficiency(dense):
    """Causal attention halved in one place and not the other would let MFU pass what kernels reach."""
    found = price(dense(sequence=131072), decide(cp=8))
    most = max(CONSTANTS.matmul_efficiency, CONSTANTS.flash_forward_efficiency)
    assert 0.2 < found.mfu * 512 / 8 < most  # eight of the cluster's 512 devices work


def test_a_heavy_middle_stage_sets_the_pace(dense):
    """Stages of 1, 5, 1 and 1 blocks: a formula that reads the ends is blind to the second."""
    chunks = ((0, 1), (1, 6), (6, 7), (7, 8))
    found = price(dense(), replace(decide(pp=4), chunks=chunks))
    slowest = found.stages[1].forward_seconds + found.stages[1].backward_seconds
    assert found.slowest_stage == 1
    assert found.step_seconds > 64 * slowest
    assert found.step_seconds > 1.5 * price(dense(), decide(pp=4)).step_seconds


def test_throughput_is_the_whole_batch_over_the_step(dense):
    found = price(dense(), decide(dp=8, pp=4))
    assert found.tokens_per_second == pytest.approx(64 * 4096 / found.step_seconds)


def test_a_batch_that_does_not_divide_is_refused_and_not_floored(dense):
    problem = dense(batch=10).problem
    candidate = Candidates.single(dp=4, pp=128)
    with pytest.raises(InputError) as caught:
        require_valid(replace(candidate, pp=candidate.pp // 16, tp=candidate.tp * 16), problem)
    assert "batch-identity" in str(caught.value)
    assert "8 or 12" in caught.value.hint
