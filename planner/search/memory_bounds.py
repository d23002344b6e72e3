"""Lower bounds on bytes: the sum over ranks of what must be kept cannot pass p times the limit.

They hold for every stage split and every recompute choice.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from planner.cost.arrays import Array, IntArray
from planner.cost.layer import RECOMPUTE_MODES, CostTable, LayerCost
from planner.cost.model import CostModel
from planner.cost.row import reserve_bytes, state_bytes_per_parameter
from planner.strategy.decision import SHARDING_OPTIMIZER, SHARDINGS
from planner.strategy.limits import Limits

Rates = tuple[Array, Array]


def layer_counts(table: CostTable) -> Array:
    """How often each kind occurs in the chain."""
    return np.bincount(np.array(table.chain.layers), minlength=len(table.rows)).astype(np.float64)


def memory_lower_bound(model: CostModel, table: CostTable) -> Array:
    """Bytes the fullest rank holds at least: mean static state, one recomputed microbatch, the reserve."""
    total, rates = np.zeros(len(table.candidates)), state_rates(model, table)
    for count, row in zip(layer_counts(table), table.rows, strict=True):
        total = total + count * static_bytes(rates, row)
    static: Array = total / table.candidates.pp + reserve_bytes(model.constants, 1)
    return static + _microbatch_bytes(model, table, lambda mode, row: row.saved_bytes[mode])


def least_memory(model: CostModel, table: CostTable, codes: list[int], limits: Limits) -> tuple[Array, Array]:
    """(static bytes and reserve, bytes of one recomputed microbatch) of each base, deepest sharding."""
    c = table.candidates
    best = np.full(len(c), np.inf)
    for code in codes:
        static, rates = np.zeros(len(c)), _state_rates(model, table, code)
        for count, row in zip(layer_counts(table), table.rows, strict=True):
            static = static + count * static_bytes(rates, row)
        if code > SHARDING_OPTIMIZER and not limits.parameter_sharding_with_pipeline:
            static = np.where(c.pp > 1, np.inf, static)
        best = np.minimum(best, static)
    saved = _microbatch_bytes(model, table, lambda mode, row: row.saved_bytes[mode])
    return best / c.pp + reserve_bytes(model.constants, 1), saved


def _microbatch_bytes(model: CostModel, table: CostTable, saved: Callable[[int, LayerCost], Array]) -> Array:
    """Least activations of one microbatch on the fullest rank: mean saved bytes, and one whole block.

    A rank that recomputes any block needs its working set, one that recomputes none keeps it anyway.
    """
    blocks = [kind.role == "block" for kind in table.chain.kinds]
    total = np.zeros(len(table.candidates))
    whole = np.full(len(table.candidates), np.inf)
    for count, row, is_block in zip(layer_counts(table), table.rows, blocks, strict=True):
        modes = [saved(mode, row) for mode in range(RECOMPUTE_MODES)]
        least = np.minimum.reduce(modes)
        total = total + count * least
        if is_block:
            whole = np.minimum(whole, modes[0] - least)
    result: Array = (total / table.candidates.pp + whole) * (1.0 + model.constants.allocator_slack)
    return result


def largest_microbatch(
    model: CostModel, one: CostTable, two: CostTable, codes: list[int], limits: Limits
) -> IntArray:
    """The largest microbatch size of each mesh that can fit; ``one`` and ``two`` are priced at sizes 1 and 2.

    Saved bytes of a mode are a constant plus a share per sequence; the constants are left out, which only
    makes the size larger.
    """
    double = dict(zip(map(id, one.rows), two.rows, strict=True))
    fixed, _ = least_memory(model, one, codes, limits)
    slope = _microbatch_bytes(
        model, one, lambda mode, row: double[id(row)].saved_bytes[mode] - row.saved_bytes[mode]
    )
    spare = model.problem.memory_limit_bytes - fixed
    with np.errstate(divide="ignore", invalid="ignore"):
        size = np.where(slope > 0.0, np.floor(spare / slope * (1.0 + 1e-12)), np.inf)
    # A size that passes no limit is bounded by the batch itself.
    largest = np.clip(size, 0.0, model.problem.workload.global_batch)
    result: IntArray = np.where(spare < 0.0, 0.0, largest).astype(np.int64)
    return result


def state_rates(model: CostModel, table: CostTable) -> Rates:
    """Bytes that one rank keeps of a (dense, expert) parameter of its own, for every candidate.

    Weights, gradients and optimizer states, as each candidate shards them.
    """
    sharding = table.candidates.sharding
    dense, expert = np.zeros(len(table.candidates)), np.zeros(len(table.candidates))
    for code in np.flatnonzero(np.bincount(sharding, minlength=len(SHARDINGS))).tolist():
        of_dense, of_expert = _state_rates(model, table, code)
        dense = np.where(sharding == code, of_dense, dense)
        expert = np.where(sharding == code, of_expert, expert)
    return dense, expert


def static_bytes(rates: Rates, row: LayerCost) -> Array:
    """Parameters, gradients and optimizer states one rank keeps of a layer; ``rates`` of ``state_rates``."""
    dense, expert = rates
    result: Array = row.dense_parameters * dense + row.expert_parameters * expert
    return result


def _state_rates(model: CostModel, table: CostTable, code: int) -> Rates:
    """The same with one sharding for all."""
    c, groups = table.candidates, table.groups
    # Gradients made in backward may never be there beside all saved tensors.
    is_late = np.zeros(len(c), dtype=bool)
    if model.stack.makes_buffers_when_needed:
        is_late = c.microbatches(model.problem.workload.global_batch) <= c.pp
    found = []
    for size in (groups.shard_size, groups.expert_shard_size):
        weights, gradients, states = state_bytes_per_parameter(
            model.problem, model.stack, code, size, c.pp > 1
        )
        found.append(weights + np.where(is_late, 0.0, gradients) + states)
    return found[0], found[1]
