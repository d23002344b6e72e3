"""Decision tree: every mesh, microbatch size, schedule and sharding that the hard rules allow.

The tree branches in the order mesh, experts, microbatch size, virtual stages, sharding; after each branch
the rules that can already be judged cut, and the funnel counts what each cut took. All rules but one are
exact: what they remove is not a valid plan, or is equal to a plan that stays. The heuristic one is
chunk-depth (``virtual_stage_choices``); ``Limits.is_exact`` turns it off.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np

from planner.errors import InputError
from planner.strategy.candidates import BoolArray, Candidates, IntArray, Problem
from planner.strategy.decision import (
    SCHEDULES,
    SHARDING_GRADIENTS,
    SHARDING_GROUPS,
    SHARDING_NONE,
    SHARDING_PARAMETERS,
    SHARDINGS,
)
from planner.strategy.limits import Limits
from planner.strategy.rules import RULES, Rule, expert_counts, key_value_heads

DEEP_SHARDINGS = (SHARDING_GRADIENTS, SHARDING_PARAMETERS)


@dataclass(frozen=True)
class Pins:
    """Choices fixed by the user; None leaves a choice to the search. ``recompute`` is a mode name."""

    tp: int | None = None
    pp: int | None = None
    dp: int | None = None
    cp: int | None = None
    ep: int | None = None
    virtual_stages: int | None = None
    microbatch_size: int | None = None
    sharding: str | None = None
    recompute: str | None = None
    schedule: str | None = None
    offload: str | None = None

    def items(self) -> dict[str, int | str]:
        """The choices that are pinned."""
        return {name: value for name, value in self.__dict__.items() if value is not None}


@dataclass
class Funnel:
    """What each step of the search kept, and what each rule cut."""

    steps: list[dict[str, object]] = field(default_factory=list)

    def add(self, step: str, candidates: int, reason: str, cut: int = 0, kind: str = "exact") -> None:
        """Record a step: how many candidates are left after it, how many it cut, and why."""
        self.steps.append(
            {"step": step, "candidates": int(candidates), "cut": int(cut), "kind": kind, "reason": reason}
        )

    def absorb(self, other: Funnel) -> None:
        """Add another funnel's steps: candidates and cuts of equal steps are summed, order kept."""
        known = {step["step"]: step for step in self.steps}
        for step in other.steps:
            mine = known.get(step["step"])
            if mine is None:
                self.steps.append(dict(step))
            else:
                for name in ("candidates", "cut"):
                    mine[name] = int(str(mine[name])) + int(str(step[name]))

    def last_cut(self) -> dict[str, object] | None:
        """The step that cut the last candidates, if one left none."""
        return next((step for step in self.steps if step["candidates"] == 0), None)


def divisors(number: int) -> list[int]:
    """All divisors, ascending."""
    small = [d for d in range(1, int(number**0.5) + 1) if number % d == 0]
    return sorted(set(small + [number // d for d in small]))


def enumerate_meshes(problem: Problem, limits: Limits, pins: Pins, funnel: Funnel) -> Candidates:
    """All meshes with their expert degrees that satisfy every rule that can be judged on them."""
    rules = {rule.name: rule for rule in RULES}
    c = _meshes(problem, pins)
    funnel.add("mesh", len(c), "all (tp, cp, pp, dp) whose product is the number of GPUs")
    c = _apply(c, problem, funnel, [rules[name] for name in MESH_RULES])
    keep = _target_degrees(c, problem, limits)
    if not keep.all():
        funnel.add("target-degrees", int(keep.sum()), f"degrees of {limits.target}", int((~keep).sum()))
        c = c.take(keep)
    keep = (c.cp <= limits.max_cp) & (problem.workload.global_batch % c.dp == 0)
    funnel.add("batch-by-dp", int(keep.sum()), "dp divides the global batch", len(c) - int(keep.sum()))
    c = _sequence_parallel(c.take(keep), problem)
    funnel.add("sequence-parallel", len(c), "with and without sequence parallelism where tp > 1")
    c = _experts(c, problem, limits, pins)
    funnel.add("experts", len(c), "ep and expert tensor degrees for each mesh")
    return _apply(c, problem, funnel, [rules[name] for name in EXPERT_RULES])


def expand_microbatch_sizes(
    c: Candidates, problem: Problem, pins: Pins, largest: IntArray, funnel: Funnel
) -> Candidates:
    """Meshes crossed with the microbatch sizes that divide global_batch / dp, up to ``largest`` of each."""
    crossed = _microbatch_sizes(c, problem, pins)
    funnel.add("microbatch", len(crossed), "microbatch sizes that divide global_batch / dp")
    counts = [len(_pinned(divisors(n), pins.microbatch_size)) for n in _per_replica(c, problem)]
    keep = crossed.microbatch_size <= np.repeat(largest, counts)
    if not keep.all():
        reason = "one recomputed microbatch passes the memory limit under the deepest sharding"
        funnel.add("microbatch-memory", int(keep.sum()), reason, int((~keep).sum()))
    return crossed.take(keep)


def expand_shardings(
    c: Candidates, problem: Problem, limits: Limits, pins: Pins, funnel: Funnel
) -> tuple[Candidates, IntArray]:
    """Candidates crossed with shardings and their groups, and which candidate each came from."""
    rules = {rule.name: rule for rule in RULES}
    marked, origin = _shardings(c, limits, pins)
    funnel.add("sharding", len(marked), "none, optimizer, gradients, parameters; global or inside an island")
    for rule in (*(rules[name] for name in SHARDING_RULES), *limits.rules):
        keep = rule.holds(marked, problem)
        left = int(keep.sum())
        funnel.add(rule.name, left, rule.statement, len(marked) - left)
        if left < len(marked):
            marked, origin = marked.take(keep), origin[keep]
    return marked, origin


def expand_schedules(
    c: Candidates, problem: Problem, limits: Limits, pins: Pins, funnel: Funnel
) -> tuple[Candidates, IntArray]:
    """Candidates crossed with schedules and virtual stages, and which candidate each came from.

    Layer costs do not depend on the schedule, so this branch comes last, after pricing.
    """
    counts = np.arange(len(c), dtype=np.int64)
    options = _schedule_options(c, problem, limits, pins)
    origin = np.repeat(counts, [len(row) for row in options])
    expanded = _cross(c, options)
    every = sum(map(len, _schedule_options(c, problem, replace(limits, is_exact=True), pins)))
    funnel.add("schedule", every, "1f1b, zero bubble, and interleaving with every number of chunks")
    if not limits.is_exact:
        reason = "of the interleaving degrees with chunks of as many layers only the smallest"
        funnel.add("chunk-depth", len(expanded), reason, every - len(expanded), "heuristic")
    rules = {rule.name: rule for rule in RULES}
    for name in ("layers-by-stages", "interleaving", "split-backward"):
        keep = rules[name].holds(expanded, problem)
        left = int(keep.sum())
        if left < len(expanded):
            funnel.add(name, left, rules[name].statement, len(expanded) - left)
            expanded, origin = expanded.take(keep), origin[keep]
    return expanded, origin


MESH_RULES = (
    "heads-by-tp",
    "kv-heads-by-tp",
    "ffn-by-tp",
    "layers-by-stages",
    "sequence-by-cp",
    "offload-optimizer",
)
SHARDING_RULES = ("sharding-needs-replicas", "island-sharding", "offload-sharded")
EXPERT_RULES = ("experts-by-ep", "experts-inside-data", "experts-need-sequence-parallel")


def _apply(c: Candidates, problem: Problem, funnel: Funnel, rules: list[Rule]) -> Candidates:
    for rule in rules:
        keep = rule.holds(c, problem)
        left = int(keep.sum())
        if left < len(c):
            funnel.add(rule.name, left, rule.statement, len(c) - left)
            c = c.take(keep)
    return c


def _target_degrees(c: Candidates, problem: Problem, limits: Limits) -> BoolArray:
    """The target's largest pp; tp dividing the key/value heads where it keeps no copies of them."""
    keep: BoolArray = c.pp <= limits.max_pp
    if limits.kv_heads_by_tp:
        for heads in key_value_heads(problem):
            keep &= heads % c.tp == 0
    return keep


def _pinned(values: list[int], pin: int | None) -> list[int]:
    return values if pin is None else [value for value in values if value == pin]


def _meshes(problem: Problem, pins: Pins) -> Candidates:
    world = problem.world_size
    rows = [
        (tp, cp, world // (tp * cp * pp), pp)
        for tp in _pinned(divisors(world), pins.tp)
        for pp in _pinned(divisors(world // tp), pins.pp)
        for cp in _pinned(divisors(world // (tp * pp)), pins.cp)
        if pins.dp is None or world // (tp * cp * pp) == pins.dp
    ]
    table = np.array(rows, dtype=np.int64).reshape(-1, 4)
    ones = np.ones(len(table), dtype=np.int64)
    return Candidates(
        tp=table[:, 0],
        cp=table[:, 1],
        dp=table[:, 2],
        pp=table[:, 3],
        ep=ones,
        expert_tp=ones,
        microbatch_size=ones,
        virtual_stages=ones,
        schedule=0 * ones,
        sharding=0 * ones,
        sharding_group=0 * ones,
        sequence_parallel=ones,
        offload=ones * (pins.offload == "optimizer"),
        gather_unit=0 * ones,
    )


def _sequence_parallel(c: Candidates, problem: Problem) -> Candidates:
    """With tp > 1 both with and without sequence parallelism, as the rules allow.

    It saves memory always, but not time: without it one all-reduce hides under the weight gradient.
    """
    rules = [rule for rule in RULES if rule.name in ("sequence-by-tp", "experts-need-sequence-parallel")]
    options = []
    for flags in zip(
        *(_split_allowed(c, problem, rules, flag) for flag in (1, 0)), (c.tp > 1).tolist(), strict=True
    ):
        with_split, without, is_tensor = flags
        row = [{"sequence_parallel": 1}] if with_split and is_tensor else []
        row += [{"sequence_parallel": 0}] if without or not is_tensor else []
        options.append(row)
    return _cross(c, options)


def _split_allowed(c: Candidates, problem: Problem, rules: list[Rule], flag: int) -> list[bool]:
    probe = c.replace(sequence_parallel=c.sequence_parallel * 0 + flag)
    allowed = np.ones(len(c), dtype=bool)
    for rule in rules:
        allowed &= rule.holds(probe, problem)
    result: list[bool] = allowed.tolist()
    return result


def _cross(c: Candidates, options: list[list[dict[str, int]]]) -> Candidates:
    """Each candidate repeated for its own list of column values."""
    counts = np.array([len(values) for values in options], dtype=np.int64)
    repeated = c.repeat_each(counts)
    flat = [values for row in options for values in row]
    if not flat:
        return repeated
    columns = {name: np.array([values[name] for values in flat], dtype=np.int64) for name in flat[0]}
    return repeated.replace(**columns)


def _experts(c: Candidates, problem: Problem, limits: Limits, pins: Pins) -> Candidates:
    counts = expert_counts(problem)
    if not counts and pins.ep in (None, 1):
        return c
    common = int(np.gcd.reduce(np.array(counts or [1])))
    degrees = _pinned([ep for ep in divisors(common) if ep <= limits.max_ep], pins.ep)
    options = []
    for tp in c.tp.tolist():
        tensor = [1] if tp == 1 else [1, tp]
        options.append([{"ep": ep, "expert_tp": x} for ep in degrees for x in tensor])
    return _cross(c, options)


def _per_replica(c: Candidates, problem: Problem) -> list[int]:
    result: list[int] = (problem.workload.global_batch // c.dp).tolist()
    return result


def _microbatch_sizes(c: Candidates, problem: Problem, pins: Pins) -> Candidates:
    per_replica = _per_replica(c, problem)
    table = {n: _pinned(divisors(n), pins.microbatch_size) for n in set(per_replica)}
    return _cross(c, [[{"microbatch_size": size} for size in table[n]] for n in per_replica])


def virtual_stage_choices(blocks_per_rank: int) -> list[int]:
    """Interleaving degrees worth trying: for each chunk depth (layers, rounded up) the smallest degree.

    A deeper interleaving with chunks of as many layers sends more and fills no sooner; where chunks are
    uneven it may balance better, so this is a heuristic: its measured regret is in
    tests/benchmarks/pruning.md.
    """
    found: dict[int, int] = {}
    for v in range(2, blocks_per_rank + 1):
        found.setdefault(-(-blocks_per_rank // v), v)
    return sorted(found.values())


def _schedule_options(
    c: Candidates, problem: Problem, limits: Limits, pins: Pins
) -> list[list[dict[str, int]]]:
    """The schedules of each candidate, by (pp, whether pp divides the microbatches)."""
    microbatches = c.microbatches(problem.workload.global_batch).tolist()
    known: dict[tuple[int, bool], list[dict[str, int]]] = {}
    options = []
    for pp, m in zip(c.pp.tolist(), microbatches, strict=True):
        key = (pp, m % pp == 0)
        if key not in known:
            pairs = list(_schedules_of(*key, problem.model.num_layers, limits, pins))
            known[key] = [{"schedule": SCHEDULES.index(name), "virtual_stages": v} for name, v in pairs]
        options.append(known[key])
    return options


def _schedules_of(
    pp: int, is_multiple: bool, num_layers: int, limits: Limits, pins: Pins
) -> Iterator[tuple[str, int]]:
    """(schedule, virtual stages): 1F1B, interleaving, zero bubble; GPipe only when pinned.

    GPipe holds more than 1F1B and finishes no sooner.
    """
    wanted = limits.schedules if pins.schedule is None else (pins.schedule,)
    degree = pins.virtual_stages
    if degree in (None, 1):
        if pins.schedule in (None, "1f1b", "gpipe"):
            yield pins.schedule if pins.schedule == "gpipe" else "1f1b", 1
        if pp > 1 and "zb-h1" in wanted:
            yield "zb-h1", 1
    if pp > 1 and "zb-v" in wanted and degree in (None, 2):
        yield "zb-v", 2
    if pp > 1 and is_multiple and "interleaved" in wanted and degree != 1:
        deepest = -(-num_layers // pp)
        every = list(range(2, deepest + 1)) if limits.is_exact else virtual_stage_choices(deepest)
        choices = every if degree is None else [degree]
        yield from (("interleaved", v) for v in choices)


def sharding_codes(limits: Limits, pins: Pins) -> list[int]:
    """Codes of the shardings a plan may have. Raises InputError for a pinned one the target lacks."""
    wanted = [pins.sharding] if pins.sharding else list(limits.shardings)
    for name in wanted:
        if name not in limits.shardings:
            raise InputError(
                f"target {limits.target} cannot shard {name}",
                allowed=list(limits.shardings),
                hint=f"use --sharding {limits.shardings[0]}",
            )
    return [SHARDINGS.index(name) for name in wanted]


def _shardings(c: Candidates, limits: Limits, pins: Pins) -> tuple[Candidates, IntArray]:
    options: list[tuple[int, int]] = []
    for code in sharding_codes(limits, pins):
        groups = limits.sharding_groups if code != SHARDING_NONE else ("global",)
        options += [(code, SHARDING_GROUPS.index(group)) for group in groups]
    origin = np.repeat(np.arange(len(c), dtype=np.int64), len(options))
    pairs = np.tile(np.array(options, dtype=np.int64).reshape(-1, 2), (len(c), 1))
    crossed = c.take(origin).replace(sharding=pairs[:, 0], sharding_group=pairs[:, 1])
    if limits.parameter_sharding_with_pipeline:
        return crossed, origin
    keep = ~((crossed.pp > 1) & np.isin(crossed.sharding, DEEP_SHARDINGS))
    return crossed.take(keep), origin[keep]
