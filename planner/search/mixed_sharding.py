"""Mixed shardings without a pipeline, looked for whether or not memory binds.

Sharded weights pay for themselves where the network is slow: what they gather and reduce is hidden behind
every microbatch, what the other shardings reduce only behind the last. So a plan that shards some blocks'
weights can be faster than any with one sharding for all, however much memory there is; a search that asked
the integer program under a tight limit alone would find slower plans with more memory. Here it is asked for
every mesh without a pipeline that a floor leaves: then the plans of a smaller limit are among those of a
larger.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import permutations, product

import numpy as np

from planner.cost.arrays import Array
from planner.cost.layer import RECOMPUTE_MODES, CostTable, cost_table
from planner.cost.model import CostModel
from planner.cost.row import candidate_row, reserve_bytes
from planner.cost.step import Prediction
from planner.search.integer_program import MIN_GAIN
from planner.search.kind_values import by_code, synchronised, taken_groups
from planner.search.memory_bounds import layer_counts, state_rates, static_bytes
from planner.search.nearest_miss import ONE_F_ONE_B, recomputed
from planner.search.policy import offered_modes
from planner.search.refinement import refine, strategies_of
from planner.search.tree import Funnel, Pins, expand_shardings
from planner.strategy.candidates import Candidates
from planner.strategy.decision import SHARDING_PARAMETERS, SHARDINGS, Decision
from planner.strategy.limits import Limits

# Which of two sums stands for the exposed reduction, and which for the exposed gather.
CORNERS = 4
# Kinds of layers beyond which not every price of a byte is tried, and which of the others' prices then are.
MOST_PRICED_KINDS = 8
PRICE_SHARES = np.linspace(0.0, 1.0, 17)


@dataclass(frozen=True)
class Mixed:
    """A plan with mixed shardings faster than a known one, a bound on all of them, and the solver's data."""

    decision: Decision
    prediction: Prediction
    bound_seconds: float
    solver: dict[str, object]


def may_mix(limits: Limits, pins: Pins) -> bool:
    """Whether blocks may differ in their sharding, and nothing pinned decides it."""
    is_free = pins.recompute is None and pins.sharding is None and limits.recompute_granularity == "layer"
    is_free &= limits.has_layer_sharding and bool(limits.layer_sharding_bases)
    return is_free and pins.schedule in (None, "1f1b") and "parameters" in limits.shardings


def mixed_without_pipeline(
    model: CostModel, limits: Limits, pins: Pins, bases: Candidates, than_seconds: float
) -> Mixed | None:
    """The fastest mixed plan on ``bases`` (meshes with pp = 1 and microbatch sizes) below ``than_seconds``.

    Meshes are asked in the order of their floor, until it passes the best plan. What the program says of the
    meshes asked and the floor of the next bound every mixed plan.
    """
    best: Mixed | None = None
    table, floors = _promising(model, limits, pins, bases, than_seconds)
    bound = math.inf
    for index in np.argsort(floors, kind="stable").tolist():
        known = than_seconds if best is None else best.prediction.step_seconds
        floor = float(floors[index])
        if floor >= known * (1.0 - MIN_GAIN):
            bound = min(bound, floor)
            break
        row = candidate_row(model.problem, table, model.stack, index, ONE_F_ONE_B, 1)
        decision = recomputed(model, row)
        found = refine(model, decision, known, strategies_of(model, decision, limits), offered_modes(limits))
        stated = found.solver.get("bound_seconds")
        bound = min(bound, max(floor, stated) if isinstance(stated, float) else floor)
        if found.decision is not None and found.prediction is not None:
            best = Mixed(found.decision, found.prediction, floor, found.solver)
    return best if best is None else replace(best, bound_seconds=min(bound, best.prediction.step_seconds))


def _promising(
    model: CostModel, limits: Limits, pins: Pins, bases: Candidates, than_seconds: float
) -> tuple[CostTable, Array]:
    """The bases with the shardings that may be mixed, priced, and their floors: those that may beat a plan.

    Sharding only adds to the work, so bases go first whose work alone takes as long as that plan.
    """
    may_beat = _work_seconds(model, bases) < than_seconds * (1.0 - MIN_GAIN)
    expanded, _ = expand_shardings(bases.take(may_beat), model.problem, limits, pins, Funnel())
    codes = [SHARDINGS.index(name) for name in limits.layer_sharding_bases]
    c = expanded.take(np.isin(expanded.sharding, codes) & (expanded.data_ranks() > 1))
    for is_priced in (False, True):
        plain = cost_table(model.problem, model.chain, c, model.device, model.stack)
        deep = c.replace(sharding=c.sharding * 0 + SHARDING_PARAMETERS)
        sharded = cost_table(model.problem, model.chain, deep, model.device, model.stack)
        floors = mixed_floor(model, plain, sharded, is_priced=is_priced)
        if not is_priced:
            c = c.take(floors < than_seconds * (1.0 - MIN_GAIN))
    return plain, floors


def _work_seconds(model: CostModel, bases: Candidates) -> Array:
    """Seconds of every microbatch's passes, without sharding and recomputation."""
    table = cost_table(model.problem, model.chain, bases, model.device, model.stack)
    total = np.zeros(len(bases))
    for count, row in zip(layer_counts(table), table.rows, strict=True):
        total = total + count * (row.forward_seconds() + row.backward_seconds(0))
    return total * model.straggler_factor * bases.microbatches(model.problem.workload.global_batch)


def mixed_floor(model: CostModel, plain: CostTable, sharded: CostTable, *, is_priced: bool = True) -> Array:
    """Seconds no plan without a pipeline can beat whose blocks take either table's sharding.

    Exposed reduction and gather are each the larger of two sums over layers (``tail.exposed_tail``), and the
    bytes of all layers stay within the limit. For either of two sums, and any price u >= 0 of a byte, every
    layer may choose for itself what costs it least: seconds + u bytes, less u times the limit, is a floor
    (the Lagrangian relaxation), and the largest of them stands. Latencies, norm weights and buffers are
    left out; bytes too unless ``is_priced``.
    """
    m = plain.candidates.microbatches(model.problem.workload.global_batch).astype(np.float64)
    layers = list[_Layer]()
    for kind, count in enumerate(layer_counts(plain).tolist()):
        tables = (plain, sharded) if plain.chain.kinds[kind].role == "block" else (plain,)
        layers.append((count, [_choices(model, table, kind, m) for table in tables]))
    spare = model.problem.memory_limit_bytes - reserve_bytes(model.constants, 1)
    best = np.zeros(len(m))
    # Walked memory (``cost.moments``) is not this sum.
    prices = _prices(layers) if is_priced and not model.stack.makes_buffers_when_needed else []
    for price in (np.zeros(1), *prices):
        for corner in range(CORNERS):
            total = -price * spare
            for count, choices in layers:
                each = [
                    seconds + price * kept
                    for choice in choices
                    for seconds, kept in zip(choice.seconds[corner], choice.bytes, strict=True)
                ]
                total = total + count * np.minimum.reduce(each)
            best = np.maximum(best, total)
    result: Array = best + model.constants.step_overhead_seconds
    return result


@dataclass(frozen=True)
class _Choices:
    """One layer under one sharding: seconds[corner][mode] it adds to the step, bytes[mode] it keeps."""

    seconds: list[list[Array]]
    bytes: list[Array]


# How many layers of a kind there are, and their choices, by sharding.
_Layer = tuple[float, list[_Choices]]


def _choices(model: CostModel, table: CostTable, kind: int, m: Array) -> _Choices:
    row, c, stack = table.rows[kind], table.candidates, model.stack
    reduce, gather, update = (np.zeros(len(c)) for _ in range(3))
    for code, where in by_code(c.sharding):
        groups = taken_groups(table.groups, where)
        one, two = (
            synchronised(
                model, groups, code, False, n * row.dense_parameters[where], n * row.expert_parameters[where]
            )
            for n in (1.0, 2.0)
        )
        reduce[where] = two.reduce - one.reduce
        gather[where] = two.gather - one.gather
        update[where] = model.device.stream_seconds(two.traffic - one.traffic)
    update = update * model.constants.optimizer_bytes_factor
    forward = row.forward_seconds()
    backwards = [row.backward_seconds(mode) for mode in range(RECOMPUTE_MODES)]
    seconds = [
        [
            model.straggler_factor * m * (forward + backward)
            + update
            + _exposed(model, stack.hides_gradient_reduction, is_late, reduce, backward)
            + _exposed(model, stack.hides_parameter_gather, is_ahead, gather, forward)
            for backward in backwards
        ]
        for is_late, is_ahead in product((False, True), repeat=2)
    ]
    slack = 1.0 + model.constants.allocator_slack
    static = static_bytes(state_rates(model, table), row)
    return _Choices(seconds, [static + slack * saved for saved in row.saved_bytes])


def _exposed(model: CostModel, is_hidden: bool, is_behind: bool, whole: Array, window: Array) -> Array:
    """What a layer adds to an exposed collective: its theft, or what is left behind its window."""
    theft = model.constants.overlap_theft
    if not is_hidden:
        return whole
    return whole - (1.0 - theft) * window if is_behind else theft * whole


def _prices(layers: list[_Layer]) -> list[Array]:
    """Prices of a byte at which two choices of a block cost the same, where one is slower and smaller.

    Of some kinds, and some of those prices, where there are many: any price gives a floor.
    """
    prices = list[Array]()
    for _, choices in layers[:: -(-len(layers) // MOST_PRICED_KINDS)]:
        for corner in range(CORNERS):
            options = [pair for one in choices for pair in zip(one.seconds[corner], one.bytes, strict=True)]
            for (fast, more), (slow, less) in permutations(options, 2):
                with np.errstate(divide="ignore", invalid="ignore"):
                    price = (slow - fast) / (more - less)
                prices.append(np.where((more > less) & (slow > fast), price, 0.0))
    every = len(layers) <= MOST_PRICED_KINDS
    return prices if every else list(np.quantile(np.stack(prices), PRICE_SHARES, axis=0))
