"""Laws of rank groups on tiers, and of the collectives priced on them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from planner.cluster.topology import _count_period, _is_aligned, _members
from planner.cost.collectives import (
    all_gather_seconds,
    all_reduce_seconds,
    all_to_all_seconds,
    group_costs,
    group_costs_arrays,
    reduce_scatter_seconds,
    send_seconds,
)
from planner.cost.constants import Constants

SETTINGS = settings(deadline=None, max_examples=120, derandomize=True)
CONSTANTS = Constants()
COLLECTIVES = (all_gather_seconds, reduce_scatter_seconds, all_reduce_seconds, all_to_all_seconds)


def counted(stride, size, below, above, count):
    """(units, members, sharers) from every group of the family, written out rank by rank."""
    groups = {}
    for rank in range(count):
        block, place = divmod(rank, stride * size)
        groups.setdefault((block, place % stride), []).append(rank)
    units, members, through = 1, size, {}
    for ranks in groups.values():
        for outer in {rank // above for rank in ranks}:
            inside = [rank // below for rank in ranks if rank // above == outer]
            touched = sorted(set(inside))
            if len(touched) > 1:
                units = max(units, len(touched))
                members = min(members, *(inside.count(unit) for unit in touched))
                for unit in touched:
                    through[unit] = through.get(unit, 0) + 1
    return units, members, max(through.values(), default=1)


factors = st.sampled_from([1, 2, 3, 4, 6, 8])


@SETTINGS
@given(factors, st.integers(2, 8), factors, st.integers(2, 8))
def test_aligned_groups_cross_links_as_counted_rank_by_rank(stride, size, below, above_over_below):
    above = below * above_over_below
    assume(_is_aligned(stride, size, below) and _is_aligned(stride, size, above))
    count = math.lcm(stride * size, above)
    assume(count <= 4096)
    members = _members(stride, size, below)
    units = _members(stride, size, above) // members
    brute = counted(stride, size, below, above, count)
    assert _count_period(stride, size, below, above, count) == brute
    if units > 1:
        assert (units, members, below // members) == brute
    else:
        assert brute[0] == 1


@SETTINGS
@given(st.integers(1, 9), st.integers(2, 9), st.integers(1, 9), st.integers(2, 5), st.integers(1, 3))
def test_any_groups_cross_links_as_counted_rank_by_rank(stride, size, below, above_over_below, periods):
    above = below * above_over_below
    count = math.lcm(stride * size, above) * periods
    assume(count <= 4096)
    brute = counted(stride, size, below, above, count)
    assert _count_period(stride, size, below, above, count) == brute


@pytest.mark.parametrize("per_node", [2, 4, 8])
@pytest.mark.parametrize("stride", [1, 2, 4, 8])
@pytest.mark.parametrize("size", [2, 4, 8, 16])
def test_crossings_name_the_tiers_a_group_spans(build, per_node, stride, size):
    cluster = build.cluster(128, build.profile(per_node=per_node))
    names = [crossing.link.name for crossing in cluster.crossings(stride, size)]
    expected = ["inside"] if stride < per_node else []
    expected += ["across"] if stride * size > per_node else []
    assert names == expected
    touched = math.prod(crossing.units for crossing in cluster.crossings(stride, size))
    assert touched == size


def test_all_groups_of_a_family_share_an_uplink_fairly(build):
    """Eight data groups of stride 8 leave each 8-device node at once: each gets an eighth of its uplink."""
    cluster = build.cluster(64, build.profile(per_node=8, slow=80, slow_links=8))
    (crossing,) = cluster.crossings(8, 8)
    assert (crossing.units, crossing.members, crossing.sharers) == (8, 1, 8)
    assert crossing.bytes_per_s == pytest.approx(10e9)


@SETTINGS
@given(
    st.sampled_from([1, 2, 4, 8]),
    st.sampled_from([2, 4, 8, 16, 64]),
    st.floats(0, 1e10),
    st.floats(1.0, 10.0),
    st.booleans(),
)
def test_collectives_take_longer_for_more_bytes(build, stride, size, num_bytes, factor, in_network):
    cluster = build.cluster(512, build.profile(per_node=8, in_network=in_network))
    group = group_costs(cluster, CONSTANTS, stride, size)
    for collective in COLLECTIVES:
        small, large = collective(group, num_bytes), collective(group, num_bytes * factor + 1e6)
        assert 0 < small < large


@pytest.mark.parametrize("stride", [1, 4, 16])
def test_a_group_of_one_costs_nothing(build, stride):
    group = group_costs(build.cluster(64), CONSTANTS, stride, 1)
    assert [collective(group, 1e9) for collective in COLLECTIVES] == [0.0] * 4


@SETTINGS
@given(st.floats(1e3, 1e10))
def test_more_ranks_on_one_switch_never_gather_the_same_bytes_faster(build, num_bytes):
    cluster = build.cluster(8, build.profile(per_node=8))
    groups = [group_costs(cluster, CONSTANTS, 1, size) for size in (1, 2, 4, 8)]
    for collective in (all_gather_seconds, all_reduce_seconds):
        times = [float(collective(group, num_bytes)) for group in groups]
        assert times == sorted(times)


@SETTINGS
@given(st.sampled_from([1, 2, 4, 8, 32]), st.sampled_from([2, 4, 8, 16]), st.floats(1e3, 1e10))
def test_no_collective_beats_the_bytes_it_must_move_over_the_fastest_link(build, stride, size, num_bytes):
    cluster = build.cluster(512, build.profile(per_node=8))
    fastest = max(link.bytes_per_s for link in cluster.links)
    group = group_costs(cluster, CONSTANTS, stride, size)
    least = num_bytes * (size - 1) / size / fastest
    assert all_gather_seconds(group, num_bytes) >= least
    assert all_reduce_seconds(group, num_bytes) >= 2 * least


@SETTINGS
@given(st.sampled_from([1, 2, 4, 8]), st.sampled_from([2, 4, 8, 32]), st.floats(1e3, 1e10))
def test_an_all_reduce_costs_at_most_a_reduce_scatter_and_an_all_gather(build, stride, size, num_bytes):
    group = group_costs(build.cluster(512, build.profile(per_node=8)), CONSTANTS, stride, size)
    both = reduce_scatter_seconds(group, num_bytes) + all_gather_seconds(group, num_bytes)
    assert all_reduce_seconds(group, num_bytes) <= both


@SETTINGS
@given(
    st.lists(st.tuples(st.sampled_from([1, 2, 4, 8]), st.sampled_from([1, 2, 4, 8])), min_size=1, max_size=9)
)
def test_group_costs_of_many_candidates_are_those_of_each(build, pairs):
    cluster = build.cluster(64, build.profile(per_node=8, in_network=True))
    strides, sizes = (np.array(column) for column in zip(*pairs, strict=True))
    many = group_costs_arrays(cluster, CONSTANTS, strides, sizes)
    for index, (stride, size) in enumerate(pairs):
        one = group_costs(cluster, CONSTANTS, stride, size)
        assert {name: float(column[index]) for name, column in vars(many).items()} == vars(one)


@SETTINGS
@given(st.sampled_from([1, 2, 4, 8, 16]), st.floats(1e3, 1e9), st.floats(1.1, 20.0))
def test_a_send_takes_longer_over_a_slower_network_and_not_over_one_it_does_not_use(
    build, stride, num_bytes, slower
):
    fast, slow = (build.cluster(64, build.profile(per_node=8, slow=100 / factor)) for factor in (1.0, slower))
    here, there = (send_seconds(cluster, CONSTANTS, 0, stride, num_bytes) for cluster in (fast, slow))
    assert here < there if stride >= 8 else here == there
