"""The exhaustive planner itself, on cases small enough to count and to price by hand."""

from __future__ import annotations

from dataclasses import replace
from math import comb

import pytest

from planner.cost.step import price
from planner.strategy.decision import GROUP_ISLAND

ODD_SEQUENCE = 255  # 2 cp never divides it, so context parallelism is out


@pytest.fixture(scope="module")
def lone(build):
    """Three equal blocks, one device, one sequence: only recompute is left to choose."""
    return build.cost_model(build.model(3), build.cluster(1), batch=1)


@pytest.fixture(scope="module")
def pair(build):
    """Two equal blocks with one head on two devices: a replica each or a stage each."""
    blocks = {"block": build.block(heads=1, ffn=4095)}
    model = build.model(2, blocks)
    return build.cost_model(model, build.cluster(2), sequence=ODD_SEQUENCE, batch=2)


def test_one_device_leaves_every_recompute_assignment_and_nothing_else(oracle, lone):
    assert len(list(oracle.Exhaustive(lone, is_folded=False).decisions())) == 3**3
    # Equal layers on one stage: only how many run in each of three modes matters.
    assert len(list(oracle.Exhaustive(lone).decisions())) == comb(3 + 2, 2)


def test_two_devices_give_the_decisions_counted_by_hand(oracle, pair):
    """dp 2: none and three shardings, size 1, six mode counts. pp 2: size 1 or 2, whole or split."""
    found = list(oracle.Exhaustive(pair).decisions())
    replicas = [d for d in found if d.degrees.dp == 2]
    stages = [d for d in found if d.degrees.pp == 2]
    assert len(replicas) == 4 * 1 * 6
    assert len(stages) == 2 * (9 + 4)  # whole backwards, and split ones without selective recompute
    assert len(found) == len(replicas) + len(stages)
    assert len(set(found)) == len(found)


def test_gpipe_doubles_the_plain_pipelines(oracle, pair):
    plain = list(oracle.Exhaustive(pair, ("1f1b",)).decisions())
    both = list(oracle.Exhaustive(pair, ("1f1b", "gpipe")).decisions())
    assert [replace(d, schedule="1f1b") for d in both if d.schedule == "gpipe"] == plain


def test_four_devices_interleave_balanced_chunks_and_shard_inside_islands(build, oracle):
    model = build.model(4, {"block": build.block(heads=1, ffn=4095)}, vocab=128)
    cluster = build.cluster(4, build.profile(per_node=2))
    exhaustive = oracle.Exhaustive(build.cost_model(model, cluster, sequence=ODD_SEQUENCE, batch=4))
    found = list(exhaustive.decisions())
    islands = {(d.degrees.dp, d.degrees.pp) for d in found if d.sharding_group == GROUP_ISLAND}
    assert islands == {(4, 1)}  # two replicas of a dp 2, pp 2 mesh fill one island: no part of them to shard
    interleaved = {(d.degrees.pp, d.virtual_stages, d.chunks) for d in found if d.virtual_stages > 1}
    assert interleaved == {(2, 2, ((0, 1), (1, 2), (2, 3), (3, 4)))}
    assert {len(d.chunks) for d in found if d.degrees.pp == 4} == {4}
    splits = {d.chunks for d in found if d.degrees.pp == 2 and d.virtual_stages == 1}
    assert splits == {((0, 1), (1, 4)), ((0, 2), (2, 4)), ((0, 3), (3, 4))}


@pytest.mark.parametrize(("total", "parts"), [(1, 1), (5, 2), (6, 3), (6, 6)])
def test_compositions_number_as_stars_and_bars(oracle, total, parts):
    found = list(oracle.compositions(total, parts))
    assert len(found) == len(set(found)) == comb(total - 1, parts - 1)
    assert all(sum(sizes) == total and min(sizes) >= 1 for sizes in found)


def test_experts_divide_inside_the_ranks_that_hold_them(build, oracle):
    model = build.model(2, {"block": build.block(heads=2, ffn=512, experts=2)})
    cost = build.cost_model(model, build.cluster(2), sequence=6, batch=2)
    meshes = {(d.tp, d.cp, d.pp, d.dp, d.ep, d.expert_tp) for d in oracle.Exhaustive(cost).meshes()}
    assert meshes == {
        (2, 1, 1, 1, 1, 1),
        (2, 1, 1, 1, 2, 1),
        (2, 1, 1, 1, 1, 2),
        (1, 1, 2, 1, 1, 1),
        (1, 1, 1, 2, 1, 1),
        (1, 1, 1, 2, 2, 1),
    }


def test_a_shortage_of_less_than_one_layer_costs_two_layers_of_selective_recompute(oracle, lone):
    """By hand: n recomputed layers cost n thirds of what all three cost, and free (n - 1) thirds of a saving.

    The first one frees nothing: what it no longer keeps comes back as the working set of recomputing it.
    """
    priced = oracle.Exhaustive(lone).price_all()
    by_modes = {tuple(sorted(p.decision.recompute)): p for p in priced}
    plain, one, two, all_three = (by_modes[modes] for modes in ((0, 0, 0), (0, 0, 1), (0, 1, 1), (1, 1, 1)))
    extra = all_three.seconds - plain.seconds
    assert one.seconds - plain.seconds == pytest.approx(extra / 3, rel=1e-6)
    assert two.seconds - plain.seconds == pytest.approx(2 * extra / 3, rel=1e-6)
    assert one.peak_bytes == pytest.approx(plain.peak_bytes, rel=1e-12)
    freed = plain.peak_bytes - all_three.peak_bytes
    assert plain.peak_bytes - two.peak_bytes == pytest.approx(freed / 2, rel=1e-6)
    assert oracle.optimum(priced, plain.peak_bytes).decision.recompute == (0, 0, 0)
    assert sorted(oracle.optimum(priced, plain.peak_bytes - freed / 4).decision.recompute) == [0, 1, 1]
    assert oracle.optimum(priced, min(p.peak_bytes for p in priced) - 1.0) is None


def test_equal_layers_of_a_stage_may_swap_modes_without_changing_time_or_memory(build, oracle):
    cost = build.cost_model(build.model(["a", "b", "a"], {"a": build.block(), "b": build.block(ffn=512)}),
                            build.cluster(2), batch=2)  # fmt: skip
    whole, folded = (
        {
            (p.decision.label(), p.decision.chunks, round(p.seconds, 12), round(p.peak_bytes, 3))
            for p in oracle.Exhaustive(cost, is_folded=flag).price_all()
        }
        for flag in (False, True)
    )
    assert whole == folded


def test_pricing_together_changes_no_price(build, oracle):
    for stack in ("megatron", "torchtitan"):
        cost = build.cost_model(build.model(4), build.cluster(4), batch=2, stack=stack)
        priced = oracle.Exhaustive(cost).price_all()
        for each in priced[:: len(priced) // 60]:
            fresh = price(cost, each.decision)
            assert each.seconds == pytest.approx(fresh.step_seconds, rel=1e-12)
            assert each.peak_bytes == pytest.approx(fresh.peak_memory_bytes, rel=1e-12)
