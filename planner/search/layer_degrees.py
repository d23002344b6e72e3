"""Per-layer strategies on the analytical model: tensor degree, sharding and recompute of every layer its own.

For launchers that run them (``Limits.has_layer_degrees``). The uniform search comes first; its best plan is
what a per-layer plan has to beat. Settings are (pp, cp, ep, microbatches, shardings that may stand beside
each other); one whose layers, each at its fastest and memory aside, are no faster than the known plan is left
out; the others are searched on their tables (``cost.layered_fill``), which bound the price, and every plan
found is priced by ``price``. So the result is never slower than the uniform plan, and its bound covers both
spaces.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import numpy as np

from planner.cost.arrays import Array
from planner.cost.layer import CostTable, cost_table
from planner.cost.layered_fill import fill_setting, is_one_chain
from planner.cost.layered_table import LayeredSetting
from planner.cost.model import CostModel
from planner.cost.row import CandidateRow, candidate_row
from planner.cost.step import price
from planner.search.engine import PROVED_GAP, SearchResult
from planner.search.layered import Improvement, improve_layered
from planner.search.policy import offered_modes
from planner.search.row_decision import row_decision
from planner.search.solution import Solution
from planner.search.tree import (
    Funnel,
    Pins,
    enumerate_meshes,
    expand_microbatch_sizes,
    expand_shardings,
)
from planner.search.words import describe_space
from planner.strategy.candidates import Candidates, IntArray
from planner.strategy.decision import (
    RECOMPUTE_NONE,
    RECOMPUTES,
    SCHEDULES,
    SHARDING_NONE,
    SHARDING_PARAMETERS,
    SHARDINGS,
    Decision,
)
from planner.strategy.limits import Limits

# Share of the step that is worth solving a setting to the last layer for; less is stated as the gap.
WORTH = 5e-4
ONE_F_ONE_B = SCHEDULES.index("1f1b")


@dataclass(frozen=True)
class Setting:
    """One setting of the space: its rows (a tensor degree and a sharding each), its table, its least step."""

    rows: list[CandidateRow]
    table: LayeredSetting
    bound_seconds: float


def has_layer_degrees(model: CostModel, limits: Limits, pins: Pins) -> bool:
    """Whether per-layer tensor degrees are in the space: launcher, model and pins allow them."""
    pinned = (pins.tp, pins.dp, pins.microbatch_size)
    return (
        limits.has_layer_degrees
        and is_one_chain(model.chain)
        and all(pin is None for pin in pinned)
        and pins.schedule in (None, "1f1b")
        and pins.virtual_stages in (None, 1)
    )


def with_layer_degrees(
    model: CostModel,
    limits: Limits,
    pins: Pins,
    uniform: SearchResult,
    *,
    top: int = 4,
    time_budget_seconds: float = math.inf,
) -> SearchResult:
    """The uniform result, or a faster per-layer plan before it; bound, status and funnel cover both spaces.

    ``top`` plans are kept.
    ``time_budget_seconds`` of CPU ends the per-layer search with the best so far.
    """
    funnel = Funnel(list(uniform.funnel.steps))
    known = uniform.best.seconds
    found = layer_settings(model, limits, pins, known, funnel)
    best: dict[str, Solution] = {}
    try:
        result = _improved(model, found, known, best, funnel, time_budget_seconds)
    except KeyboardInterrupt:
        return _interrupted(uniform, best.get("best"), found, funnel, top)
    faster = best["best"] if result.setting >= 0 else None
    ranked = [uniform.best, *uniform.alternatives]
    if faster is not None:
        ranked.insert(0, faster)
    lower = min(result.lower_bound_seconds, ranked[0].seconds)
    if not _holds_uniform(model, limits):
        lower = min(lower, uniform.lower_bound_seconds)
    status = uniform.status
    if status in ("proved", "gap", "heuristic") and (faster is not None or status != "heuristic"):
        status = "proved" if 1.0 - lower / ranked[0].seconds <= PROVED_GAP else "gap"
    return SearchResult(
        best=ranked[0],
        alternatives=ranked[1:top],
        lower_bound_seconds=lower,
        status=status,
        space=f"{uniform.space}; and tp, sharding and recompute of every layer its own, with 1F1B",
        funnel=funnel,
        cpu_seconds=uniform.cpu_seconds,
        solver={} if faster is not None else uniform.solver,
    )


def only_layer_degrees(
    model: CostModel, limits: Limits, pins: Pins, funnel: Funnel, *, time_budget_seconds: float = math.inf
) -> SearchResult | None:
    """The fastest per-layer plan where no uniform plan fits; None when none of these fits either.

    ``funnel``: that of the uniform search. Ctrl-C before there is a plan passes on, later it ends the search
    like ``time_budget_seconds`` of CPU does.
    """
    started = time.process_time()
    found = layer_settings(model, limits, pins, math.inf, funnel)
    best: dict[str, Solution] = {}
    lower, status = min((one.bound_seconds for one in found), default=0.0), "interrupted"
    try:
        result = _improved(model, found, math.inf, best, funnel, time_budget_seconds)
        if "best" in best:
            lower = min(result.lower_bound_seconds, best["best"].seconds)
            status = "proved" if 1.0 - lower / best["best"].seconds <= PROVED_GAP else "gap"
    except KeyboardInterrupt:
        if "best" not in best:
            raise
    if "best" not in best:
        return None
    return SearchResult(
        best=best["best"],
        alternatives=[],
        lower_bound_seconds=lower,
        status=status,
        space="tp, sharding and recompute of every layer its own, with 1F1B, for no plan of this space fits: "
        + describe_space(limits, pins),
        funnel=funnel,
        cpu_seconds=time.process_time() - started,
    )


def _improved(
    model: CostModel,
    found: Sequence[Setting],
    known_seconds: float,
    best: dict[str, Solution],
    funnel: Funnel,
    time_budget_seconds: float,
) -> Improvement:
    """The settings searched for a plan below ``known_seconds``; the best that fits is left in ``best``."""
    limit = model.problem.memory_limit_bytes

    def judge(
        index: int, end: int, stages: tuple[tuple[int, int], ...], chosen: tuple[int, ...]
    ) -> tuple[float, float]:
        decision = layered_decision(found[index].rows, found[index].table, end, stages, chosen)
        prediction = price(model, decision)
        over = max(0.0, prediction.peak_memory_bytes - limit)
        known_best = best.get("best")
        if not over and (known_best is None or prediction.step_seconds < known_best.seconds):
            best["best"] = Solution(decision, prediction, prediction.step_seconds)
        return prediction.step_seconds, over

    result = improve_layered(
        [one.table for one in found],
        limit,
        judge,
        known_seconds,
        worth=WORTH,
        time_budget_seconds=time_budget_seconds,
    )
    funnel.add(
        "layer-degrees",
        result.solved,
        f"per-layer settings solved, each with one strategy of embedding and head; {result.labels} stage "
        "choices on fronts",
        max(0, len(found) - result.solved),
    )
    return result


def _interrupted(
    uniform: SearchResult, faster: Solution | None, found: Sequence[Setting], funnel: Funnel, top: int
) -> SearchResult:
    """The best so far, bounded by what every setting had before it was searched."""
    ranked = [uniform.best, *uniform.alternatives]
    if faster is not None and faster.seconds < uniform.best.seconds:
        ranked.insert(0, faster)
    bounds = [one.bound_seconds for one in found]
    return replace(
        uniform,
        best=ranked[0],
        alternatives=ranked[1:top],
        lower_bound_seconds=min([uniform.lower_bound_seconds, ranked[0].seconds, *bounds]),
        status="interrupted",
        funnel=funnel,
    )


def _holds_uniform(model: CostModel, limits: Limits) -> bool:
    """Whether the per-layer settings hold every uniform plan, so that their bound is that of both spaces."""
    is_plain = limits.schedules == ("1f1b",) and limits.sharding_groups == ("global",)
    return is_plain and not model.problem.model.is_moe


def layer_settings(
    model: CostModel, limits: Limits, pins: Pins, known_seconds: float, funnel: Funnel
) -> list[Setting]:
    """Settings of the per-layer space that may hold a plan faster than ``known_seconds``."""
    c = _candidates(model, limits, pins)
    table = cost_table(model.problem, model.chain, c, model.device, model.stack)
    modes = _modes(limits, pins)
    fastest = _fastest(model, table, modes)
    found, cut, total = [], 0, 0
    for members in _grouped(c, limits, model.problem.workload.global_batch):
        total += 1
        bound = _bound(model, c, members, fastest)
        if bound >= known_seconds:
            cut += 1
            continue
        rows = [candidate_row(model.problem, table, model.stack, i, ONE_F_ONE_B, 1) for i in members]
        found.append(Setting(rows, fill_setting(model, rows, modes), bound))
    funnel.add(
        "layer-settings",
        total - cut,
        "(pp, cp, ep, microbatches, shardings) of layers with strategies of their own, the others slower "
        "than the uniform plan with every layer at its fastest",
        cut,
    )
    return found


def layered_decision(
    rows: Sequence[CandidateRow],
    table: LayeredSetting,
    end: int,
    stages: tuple[tuple[int, int], ...],
    chosen: tuple[int, ...],
) -> Decision:
    """The decision of a setting's choice: rows and modes back to a plan's own words."""
    own = rows[end]
    picked = [table.strategies[s] for s in _in_order(table, stages, chosen)]
    tensor, sharding = tuple(c.tp for c in picked), tuple(c.sharding for c in picked)
    return replace(
        row_decision(own, stages, tuple(c.recompute for c in picked), has_host_optimizer=False),
        sequence_parallel=any(tp > 1 for tp in (*tensor, own.degrees.tp)),
        layer_sharding=() if set(sharding) == {own.sharding} else sharding,
        layer_tp=() if set(tensor) == {own.degrees.tp} else tensor,
    )


def _in_order(
    table: LayeredSetting, stages: tuple[tuple[int, int], ...], chosen: tuple[int, ...]
) -> list[int]:
    """The choice with equal layers of one layout in a row sorted: the same cost, in fewer runs."""
    found: list[int] = []
    for first, end in stages:
        here = [(table.layers[layer], int(table.layout[chosen[layer]])) for layer in range(first, end)]
        at = first
        for _, run in groupby(here):
            count = len(list(run))
            found += sorted(chosen[at : at + count])
            at += count
    return found


def _modes(limits: Limits, pins: Pins) -> list[int]:
    if pins.recompute is not None:
        return [RECOMPUTES.index(pins.recompute)]
    return [RECOMPUTE_NONE, *offered_modes(limits)]


def _candidates(model: CostModel, limits: Limits, pins: Pins) -> Candidates:
    """Every mesh, sharding and microbatch size the rules allow, experts not split by tp."""
    problem = model.problem
    meshes = enumerate_meshes(problem, limits, pins, Funnel())
    meshes = meshes.take((meshes.expert_tp == 1) & ((meshes.sequence_parallel == 1) | (meshes.tp == 1)))
    sharded, _ = expand_shardings(meshes, problem, limits, pins, Funnel())
    if not problem.model.is_moe:  # a layer alone on its weights has nothing to shard
        sharded = sharded.take((sharded.sharding == SHARDING_NONE) | (sharded.data_ranks() > 1))
    largest: IntArray = np.full(len(sharded), problem.workload.global_batch, dtype=np.int64)
    return expand_microbatch_sizes(sharded, problem, pins, largest, Funnel())


def families(limits: Limits) -> list[tuple[int, ...]]:
    """Codes of shardings whose layers may stand beside each other: a base with parameters, or one alone."""
    bases = [name for name in limits.shardings if name in limits.layer_sharding_bases]
    found: list[tuple[int, ...]] = []
    for name in limits.shardings:
        code = SHARDINGS.index(name)
        if name in bases and "parameters" in limits.shardings and limits.has_layer_sharding:
            found.append((code, SHARDING_PARAMETERS))
        elif name != "parameters" or not bases:
            found.append((code,))
    return found


def _grouped(c: Candidates, limits: Limits, global_batch: int) -> list[list[int]]:
    """Indices of the candidates of every setting, tensor degrees ascending.

    Layers alone on their weights stand beside any sharding.
    """
    microbatches = c.microbatches(global_batch)
    is_alone = c.data_ranks() == 1
    groups: dict[tuple[int, ...], list[int]] = {}
    for number, family in enumerate(families(limits)):
        allowed = np.isin(c.sharding, family) | is_alone
        for index in np.flatnonzero(allowed & (c.sharding_group == 0)).tolist():
            degrees = (int(column[index]) for column in (c.pp, c.cp, c.ep, microbatches))
            groups.setdefault((*degrees, number), []).append(index)
    kept: dict[tuple[int, ...], None] = {}
    for key in sorted(groups):
        members = sorted(groups[key], key=lambda i: (int(c.tp[i]), int(c.sharding[i])))
        # Equal settings of two families are searched once.
        kept[tuple(members)] = None
    return [list(members) for members in kept]


def _fastest(model: CostModel, table: CostTable, modes: Sequence[int]) -> tuple[Array, Array]:
    """(seconds of all blocks, seconds of both ends) of every candidate, one microbatch, memory aside."""
    chain = model.chain
    counts = Counter(chain.layers)
    blocks = ends = np.zeros(len(table.candidates))
    for kind, row in enumerate(table.rows):
        is_block = chain.kinds[kind].role == "block"
        backward = [row.backward_seconds(mode) for mode in modes] if is_block else [row.backward_seconds(0)]
        seconds = counts[kind] * (row.forward_seconds() + np.min(backward, axis=0))
        blocks, ends = (blocks + seconds, ends) if is_block else (blocks, ends + seconds)
    return blocks, ends


def _bound(model: CostModel, c: Candidates, members: list[int], fastest: tuple[Array, Array]) -> float:
    """Least step of a setting with every layer at its fastest and perfectly even stages.

    The slowest stage has at least the mean t / pp of a microbatch's t seconds, and with w = pp - 1 behind it
    a step takes at least t + (m - 1 - w / 2) t / pp (the paths of ``layered_bounds``).
    """
    blocks, ends = fastest
    pp, m = int(c.pp[members[0]]), int(c.microbatches(model.problem.workload.global_batch)[members[0]])
    whole = float(blocks[members].min() + ends[members].min())
    paths = [m * whole / pp, whole, whole + (m - 1 - (pp - 1) / 2.0) * whole / pp]
    return model.straggler_factor * max(paths) + model.constants.step_overhead_seconds
