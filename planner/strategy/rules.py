"""Hard validity rules: each named, checked on arrays for the search and explained with numbers for people.

A rule's ``holds`` answers for every candidate at once; its ``explain`` says, for one candidate, the numbers
that break it. Legal values are found by trying them on the same predicate, so a rule is written once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from planner.errors import InputError
from planner.model.spec import Attention, MixtureOfExperts
from planner.strategy.candidates import BoolArray, Candidates, Problem
from planner.strategy.decision import (
    GATHER_UNITS,
    GROUP_ISLAND,
    OFFLOAD_NONE,
    OFFLOADS,
    SCHEDULES,
    SHARDING_GROUPS,
    SHARDING_NONE,
    SHARDING_OPTIMIZER,
    SHARDING_PARAMETERS,
    SHARDINGS,
    UNIT_BLOCK,
)

# DeepSpeed's CPUAdam and torch.optim.AdamW, which Megatron-LM runs there.
HOST_OPTIMIZERS = ("adamw", "adam")
CODES = dict(sharding=SHARDINGS, sharding_group=SHARDING_GROUPS, offload=OFFLOADS, gather_unit=GATHER_UNITS)
INTERLEAVED, ZB_H1, ZB_V, ZB_H2 = map(SCHEDULES.index, ("interleaved", "zb-h1", "zb-v", "zb-h2"))


@dataclass(frozen=True)
class Rule:
    """A hard rule. ``field``: the column whose legal values an error lists."""

    name: str
    statement: str
    field: str
    holds: Callable[[Candidates, Problem], BoolArray]
    explain: Callable[[Candidates, Problem], str]


def attention_heads(problem: Problem) -> list[int]:
    """Distinct query-head counts of the model."""
    return sorted({head for head, _ in _heads(problem)})


def key_value_heads(problem: Problem) -> list[int]:
    """Distinct key/value-head counts of the model."""
    return sorted({kv for _, kv in _heads(problem)})


def _heads(problem: Problem) -> Iterator[tuple[int, int]]:
    for block in problem.model.block_kinds.values():
        for attention in (block.attention, block.cross_attention):
            if attention is None:
                continue
            kv = attention.num_kv_heads if isinstance(attention, Attention) else attention.num_heads
            yield attention.num_heads, kv


def _widths(problem: Problem) -> list[int]:
    widths = set()
    for block in problem.model.block_kinds.values():
        ff = block.feed_forward
        if isinstance(ff, MixtureOfExperts):
            widths |= {ff.shared_ffn_size} if ff.shared_ffn_size else set()
        else:
            widths.add(ff.ffn_size)
    return sorted(widths)


def expert_counts(problem: Problem) -> list[int]:
    """Distinct routed-expert counts; empty for dense models."""
    blocks = problem.model.block_kinds.values()
    found = {b.feed_forward.num_experts for b in blocks if isinstance(b.feed_forward, MixtureOfExperts)}
    return sorted(found)


def _all(c: Candidates, conditions: Iterator[Any]) -> BoolArray:
    result: BoolArray = np.ones(len(c), dtype=bool)
    for condition in conditions:
        result &= condition
    return result


def _at(c: Candidates, name: str) -> int:
    return int(getattr(c, name)[0])


def _heads_hold(c: Candidates, p: Problem) -> BoolArray:
    return _all(c, (head % c.tp == 0 for head in attention_heads(p)))


def _kv_hold(c: Candidates, p: Problem) -> BoolArray:
    return _all(c, ((kv % c.tp == 0) | (c.tp % kv == 0) for kv in sorted({kv for _, kv in _heads(p)})))


def _widths_hold(c: Candidates, p: Problem) -> BoolArray:
    return _all(c, (width % c.tp == 0 for width in _widths(p)))


def _experts_hold(c: Candidates, p: Problem) -> BoolArray:
    counts = expert_counts(p)
    if not counts:
        return _all(c, iter([c.ep == 1]))
    return _all(c, (count % c.ep == 0 for count in counts))


def _expert_ffn(p: Problem) -> list[int]:
    blocks = p.model.block_kinds.values()
    return sorted(
        {b.feed_forward.expert_ffn_size for b in blocks if isinstance(b.feed_forward, MixtureOfExperts)}
    )


def _sequences(p: Problem) -> list[float]:
    return [p.workload.sequence_length * stack.sequence_scale for stack in p.model.stacks]


def _cp_hold(c: Candidates, p: Problem) -> BoolArray:
    is_flash = p.workload.attention == "flash"
    return _all(c, ((c.cp == 1) | ((s % (2 * c.cp) == 0) & is_flash) for s in _sequences(p)))


def _sp_hold(c: Candidates, p: Problem) -> BoolArray:
    return _all(
        c,
        (
            (c.sequence_parallel == 0) | (c.tp == 1) | ((s // c.cp) % c.tp == 0) & (s % c.cp == 0)
            for s in _sequences(p)
        ),
    )


def _moe_sp_hold(c: Candidates, p: Problem) -> BoolArray:
    if not expert_counts(p):
        return np.ones(len(c), dtype=bool)
    return _all(c, iter([(c.tp == 1) | (c.sequence_parallel == 1)]))


def _batch_hold(c: Candidates, p: Problem) -> BoolArray:
    return _all(c, iter([p.workload.global_batch % (c.dp * c.microbatch_size) == 0]))


def _interleaved_hold(c: Candidates, p: Problem) -> BoolArray:
    m = c.microbatches(p.workload.global_batch)
    is_piped = c.pp > 1
    fits = [
        (INTERLEAVED, (c.virtual_stages > 1) & is_piped & (m % c.pp == 0)),
        (ZB_V, (c.virtual_stages == 2) & is_piped),
        # Rounds of at least pp microbatches, as PyTorch deals them.
        (ZB_H1, (c.virtual_stages == 1) & is_piped & (m % np.maximum(1, m // c.pp) == 0)),
        (ZB_H2, (c.virtual_stages == 1) & is_piped),
    ]
    return _all(
        c,
        iter(
            [np.select([c.schedule == code for code, _ in fits], [f for _, f in fits], c.virtual_stages == 1)]
        ),
    )


def _island_hold(c: Candidates, p: Problem) -> BoolArray:
    """Hybrid sharding is a choice of its own only when an island holds part of the data group."""
    inner = c.island_shard_size(p.cluster)
    proper = (inner > 1) & (inner < c.data_ranks()) & (c.sharding != SHARDING_NONE)
    return _all(c, iter([(c.sharding_group != GROUP_ISLAND) | proper]))


def _has_replicas(c: Candidates, p: Problem) -> BoolArray:
    """Whether several ranks hold the same weights, dense ones or experts."""
    has_experts = len(expert_counts(p)) > 0
    result: BoolArray = (c.data_ranks() > 1) | (has_experts & (c.expert_data_ranks() > 1))
    return result


def _m(c: Candidates, p: Problem) -> int:
    return int(c.microbatches(p.workload.global_batch)[0])


RULES: tuple[Rule, ...] = (
    Rule(
        "world-identity",
        "tp * cp * pp * dp equals the number of GPUs",
        "tp",
        lambda c, p: c.world_size() == p.world_size,
        lambda c, p: (
            f"tp {_at(c, 'tp')} x cp {_at(c, 'cp')} x pp {_at(c, 'pp')} x dp {_at(c, 'dp')} = "
            f"{int(c.world_size()[0])}, but there are {p.world_size} GPUs"
        ),
    ),
    Rule(
        "heads-by-tp",
        "tp divides the attention heads",
        "tp",
        _heads_hold,
        lambda c, p: f"{attention_heads(p)} attention heads over tp {_at(c, 'tp')} leave a remainder",
    ),
    Rule(
        "kv-heads-by-tp",
        "tp divides the key/value heads or is a multiple of them",
        "tp",
        _kv_hold,
        lambda c, p: (
            f"key/value heads {sorted({kv for _, kv in _heads(p)})} and tp {_at(c, 'tp')} do not divide"
        ),
    ),
    Rule(
        "ffn-by-tp",
        "tp divides the feed-forward width",
        "tp",
        _widths_hold,
        lambda c, p: f"feed-forward widths {_widths(p)} over tp {_at(c, 'tp')} leave a remainder",
    ),
    Rule(
        "layers-by-stages",
        "every virtual stage holds at least one layer: pp * virtual_stages <= layers",
        "pp",
        lambda c, p: c.pp * c.virtual_stages <= p.model.num_layers,
        lambda c, p: (
            f"pp {_at(c, 'pp')} x {_at(c, 'virtual_stages')} virtual stages need that many layers; the "
            f"model has {p.model.num_layers}"
        ),
    ),
    Rule(
        "batch-identity",
        "dp * microbatch_size divides the global batch",
        "microbatch_size",
        _batch_hold,
        lambda c, p: (
            f"global batch {p.workload.global_batch} is not a multiple of dp {_at(c, 'dp')} x "
            f"microbatch size {_at(c, 'microbatch_size')} = {_at(c, 'dp') * _at(c, 'microbatch_size')}"
        ),
    ),
    Rule(
        "interleaving",
        "virtual stages need the interleaved schedule, pp > 1 and microbatches a multiple of pp; zero bubble "
        "needs pp > 1, zb-v exactly 2 virtual stages",
        "virtual_stages",
        _interleaved_hold,
        lambda c, p: (
            f"schedule {SCHEDULES[_at(c, 'schedule')]} with {_at(c, 'virtual_stages')} virtual stages, "
            f"pp {_at(c, 'pp')} and {_m(c, p)} microbatches"
        ),
    ),
    Rule(
        "split-backward",
        "zero bubble keeps gradients whole until the step ends: sharding none or optimizer (PyTorch 2.13 "
        "loses weight gradients of sharded ones)",
        "sharding",
        lambda c, p: ~np.isin(c.schedule, (ZB_H1, ZB_V, ZB_H2)) | (c.sharding <= SHARDING_OPTIMIZER),
        lambda c, p: f"schedule {SCHEDULES[_at(c, 'schedule')]} with sharding code {_at(c, 'sharding')}",
    ),
    Rule(
        "sequence-by-cp",
        "2 cp divides the sequence (a rank takes one early and one late piece), with flash attention",
        "cp",
        _cp_hold,
        lambda c, p: (
            f"sequence length {p.workload.sequence_length} over 2 x cp {_at(c, 'cp')} with "
            f"{p.workload.attention} attention"
        ),
    ),
    Rule(
        "sequence-by-tp",
        "with sequence parallelism tp divides the sequence length of a rank",
        "tp",
        _sp_hold,
        lambda c, p: (
            f"sequence {p.workload.sequence_length} / cp {_at(c, 'cp')} is not a multiple of tp "
            f"{_at(c, 'tp')}"
        ),
    ),
    Rule(
        "experts-by-ep",
        "ep divides the routed experts (and is 1 for dense models)",
        "ep",
        _experts_hold,
        lambda c, p: f"routed experts {expert_counts(p) or 'none'} over ep {_at(c, 'ep')}",
    ),
    Rule(
        "experts-inside-data",
        "ep * expert_tp divides dp * cp * tp; expert_tp is 1 or tp and divides the expert width",
        "ep",
        lambda c, p: (
            ((c.dp * c.cp * c.tp) % (c.ep * c.expert_tp) == 0)
            & ((c.expert_tp == 1) | ((c.expert_tp == c.tp) & (len(expert_counts(p)) > 0)))
            & _all(c, (width % c.expert_tp == 0 for width in _expert_ffn(p)))
        ),
        lambda c, p: (
            f"dp {_at(c, 'dp')} x cp {_at(c, 'cp')} x tp {_at(c, 'tp')} ranks over ep {_at(c, 'ep')} x "
            f"expert_tp {_at(c, 'expert_tp')}"
        ),
    ),
    Rule(
        "experts-need-sequence-parallel",
        "experts with tp > 1 need sequence parallelism",
        "tp",
        _moe_sp_hold,
        lambda c, p: f"tp {_at(c, 'tp')} without sequence parallelism on a mixture of experts",
    ),
    Rule(
        "sharding-needs-replicas",
        "sharding needs more than one data rank (dp * cp, or replicas of the experts)",
        "sharding",
        lambda c, p: (c.sharding == SHARDING_NONE) | (c.data_ranks() > 1) | (c.expert_data_ranks() > 1),
        lambda c, p: f"dp {_at(c, 'dp')} x cp {_at(c, 'cp')} = 1 rank: there is nothing to shard over",
    ),
    Rule(
        "island-sharding",
        "hybrid sharding needs a data group larger than its part inside one island",
        "sharding_group",
        _island_hold,
        lambda c, p: (
            f"{int(c.data_ranks()[0])} data ranks, {int(c.island_shard_size(p.cluster)[0])} of them "
            f"inside an island of {p.cluster.island_devices} devices"
        ),
    ),
    Rule(
        "gather-units",
        "only sharded parameters are gathered in units finer than a block",
        "gather_unit",
        lambda c, p: (c.gather_unit == UNIT_BLOCK) | (c.sharding == SHARDING_PARAMETERS),
        lambda c, p: f"gather unit code {_at(c, 'gather_unit')} with sharding code {_at(c, 'sharding')}",
    ),
    Rule(
        "offload-optimizer",
        "an optimizer on the host is Adam with fp32 states (adamw or adam): the host's kernels have no other",
        "offload",
        lambda c, p: (c.offload == OFFLOAD_NONE) | (p.workload.optimizer in HOST_OPTIMIZERS),
        lambda c, p: f"optimizer {p.workload.optimizer}",
    ),
    Rule(
        "offload-sharded",
        "an optimizer on the host is sharded where several ranks hold the same weights, and only there: else "
        "each would update all of it",
        "sharding",
        lambda c, p: (c.offload == OFFLOAD_NONE) | ((c.sharding != SHARDING_NONE) == _has_replicas(c, p)),
        lambda c, p: f"sharding code {_at(c, 'sharding')} over {int(c.data_ranks()[0])} data ranks",
    ),
)


def broken_rules(candidate: Candidates, problem: Problem) -> list[Rule]:
    """The rules a single candidate breaks, in order."""
    return [rule for rule in RULES if not rule.holds(candidate, problem).all()]


def legal_values(rule: Rule, candidate: Candidates, problem: Problem, limit: int = 12) -> list[Any]:
    """Values of the rule's field that satisfy it, all else unchanged: the nearest, sorted; codes by name."""
    current = _at(candidate, rule.field)
    largest = max(problem.world_size, problem.model.num_layers)
    names = CODES.get(rule.field)
    values = np.arange(1, min(largest, 1 << 16) + 1) if names is None else np.arange(len(names))
    varied = candidate.repeat_each(len(values)).replace(**{rule.field: values})
    good = values[rule.holds(varied, problem)].tolist()
    nearest = sorted(sorted(good, key=lambda value: (abs(value - current), value))[:limit])
    return nearest if names is None else [names[value] for value in nearest]


def require_valid(candidate: Candidates, problem: Problem) -> None:
    """Raises InputError for the first broken rule: its statement, the numbers, and values that would work."""
    broken = broken_rules(candidate, problem)
    if not broken:
        return
    rule = broken[0]
    legal = legal_values(rule, candidate, problem)
    nearest_batches = None
    if rule.name == "batch-identity":
        nearest_batches = nearest_global_batches(candidate, problem)
    field = rule.field.replace("_", " ")
    hints = [f"legal values of {field} with the rest unchanged: {legal}"] if legal else []
    if nearest_batches:
        hints.append(f"use a global batch of {' or '.join(map(str, nearest_batches))}")
    if rule.name == "world-identity":
        used = _at(candidate, "tp") * _at(candidate, "cp") * _at(candidate, "pp")
        if problem.world_size % used == 0:
            hints.append(f"use --dp {problem.world_size // used}")
    hint = "; or ".join(hints)
    raise InputError(
        f"rule {rule.name}: {rule.statement}; {rule.explain(candidate, problem)}",
        hint=hint,
        allowed=legal,
        rule=rule.name,
        nearest_global_batches=nearest_batches,
    )


def nearest_global_batches(candidate: Candidates, problem: Problem) -> list[int]:
    """The multiples of dp * microbatch_size on either side of the global batch."""
    unit = _at(candidate, "dp") * _at(candidate, "microbatch_size")
    low = problem.workload.global_batch // unit * unit
    return [value for value in (low, low + unit) if value > 0]
