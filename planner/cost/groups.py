"""Rank groups of candidates: which ranks communicate together, and what a byte among them costs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from planner.cost.arrays import IntArray, Number
from planner.cost.collectives import GroupCosts, group_costs_arrays
from planner.cost.constants import Constants
from planner.strategy.candidates import Candidates, Problem
from planner.strategy.decision import GROUP_ISLAND


@dataclass(frozen=True)
class Groups:
    """Coefficients of the rank groups of every candidate."""

    tp: GroupCosts
    cp: GroupCosts
    ep: GroupCosts
    expert_tp: GroupCosts
    data: GroupCosts
    expert_data: GroupCosts
    data_outer: GroupCosts
    expert_data_outer: GroupCosts
    shard_size: Number
    expert_shard_size: Number

    def take(self, chosen: IntArray) -> Groups:
        """The groups of the candidates at these indices."""

        def one(value: Number) -> Number:
            if isinstance(value, GroupCosts):
                return GroupCosts(*(column[chosen] for column in vars(value).values()))
            return value[chosen]

        return Groups(**{name: one(value) for name, value in vars(self).items()})


def rank_groups(problem: Problem, constants: Constants, c: Candidates) -> Groups:
    """The groups each candidate communicates in, from the rank order tp-cp-dp-pp.

    ``data`` is the group parameters or gradients are sharded over (the whole dp cp group, or its part
    inside one island), ``data_outer`` the group of its replicas.
    """
    cluster = problem.cluster

    def costs(stride: Number, size: Number) -> GroupCosts:
        return group_costs_arrays(cluster, constants, stride, size)

    ones = np.ones_like(c.tp)
    is_island = c.sharding_group == GROUP_ISLAND
    data, expert_data = c.data_ranks(), c.expert_data_ranks()
    inner = np.where(is_island, c.island_shard_size(cluster), data)
    expert_inner = np.where(is_island, c.island_expert_shard_size(cluster), expert_data)
    expert_stride = c.ep * c.expert_tp
    return Groups(
        tp=costs(ones, c.tp),
        cp=costs(c.tp, c.cp),
        ep=costs(c.expert_tp, c.ep),
        expert_tp=costs(ones, c.expert_tp),
        data=costs(c.tp, inner),
        expert_data=costs(expert_stride, expert_inner),
        data_outer=costs(c.tp * inner, data // inner),
        expert_data_outer=costs(expert_stride * expert_inner, expert_data // expert_inner),
        shard_size=inner.astype(np.float64),
        expert_shard_size=expert_inner.astype(np.float64),
    )


def joined_groups(parts: list[tuple[IntArray, Groups]]) -> Groups:
    """One table of groups from several, each with the indices its candidates have in the whole."""
    back = np.argsort(np.concatenate([indices for indices, _ in parts]))

    def one(values: list[Number]) -> Number:
        if isinstance(values[0], GroupCosts):
            columns = zip(*(vars(value).values() for value in values), strict=True)
            return GroupCosts(*(np.concatenate(column)[back] for column in columns))
        return np.concatenate(values)[back]

    tables = [vars(groups) for _, groups in parts]
    return Groups(**{name: one([table[name] for table in tables]) for name in tables[0]})
