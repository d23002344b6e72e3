"""Rules every launcher file must meet, judged on what it states: degrees, batch, heads, experts, sequence.

A rule that needs a number nobody stated is not judged. What a launcher does when one is broken differs: it
may refuse, fail at the first step, leave GPUs idle, or round down; either way the file does not train what it
says. Facts: the launchers' own sources as named in their ``*_import.py``.
"""

from __future__ import annotations

import math

from planner.launchers.base import nearest_divisor
from planner.launchers.imported import Facts, Imported
from planner.model.spec import LatentAttention, MixtureOfExperts, ModelSpec

# Launchers whose key/value heads cannot be copied over tp.
DIVIDING = ("torchtitan", "deepspeed", "accelerate", "galvatron", "pytorch")


def judge(found: Imported, facts: Facts) -> None:
    """Add the faults of the shared rules, and what follows from the identities (dp, microbatches).

    A rule the importer found broken in the file's own words is not repeated; judging twice changes nothing.
    """
    known = {fault.rule for fault in found.faults}
    before = len(found.faults)
    found.world_size = found.world_size or facts.world_size
    model = facts.model or found.model
    _world(found)
    _batch(found)
    _stages(found, model)
    _interleaving(found)
    if model is not None:
        for rule in (_heads, _key_value_heads, _widths, _experts, _expert_sequence, _vocabulary):
            rule(found, model)
        _positions(found, model)
    _expert_ranks(found, model)
    _sequence(found)
    _shards(found)
    found.faults[before:] = [fault for fault in found.faults[before:] if fault.rule not in known]


def mesh(found: Imported) -> tuple[int, int, int]:
    """(tp, cp, pp), 1 where the file is silent."""
    return found.tp or 1, found.cp or 1, found.pp or 1


def _world(found: Imported) -> None:
    if found.world_size is None or None in (found.tp, found.pp):
        return
    tp, cp, pp = mesh(found)
    used = tp * cp * pp * (found.dp or 1)
    shown = f"tp {tp} x cp {cp} x pp {pp}" + (f" x dp {found.dp}" if found.dp else "")
    if found.world_size % used or (found.dp and found.world_size != used):
        idle = found.world_size - found.world_size // used * used if used <= found.world_size else 0
        found.fault(
            "world-identity",
            f"{shown} = {used} for {found.world_size} GPUs" + (f": {idle} would idle" if idle else ""),
            f"{used if found.dp else max(used, found.world_size // used * used)} GPUs",
        )
    elif found.dp is None:
        found.dp = found.world_size // used


def _batch(found: Imported) -> None:
    """dp x microbatch size x microbatches is the global batch; the one not stated follows."""
    dp, size = found.dp, found.microbatch_size
    if dp is None or size is None:
        return
    if found.global_batch is None:
        found.global_batch = dp * size * found.microbatches if found.microbatches else None
        return
    unit = dp * size * (found.microbatches or 1)
    is_exact = found.global_batch == unit if found.microbatches else found.global_batch % unit == 0
    if not is_exact:
        low = found.global_batch // (dp * size) * dp * size
        count = f" x {found.microbatches} microbatches" if found.microbatches else ""
        found.fault(
            "batch-identity",
            f"global batch {found.global_batch} for dp {dp} x microbatch size {size}{count} = {unit}",
            f"a global batch of {max(unit, low)}",
        )
    elif found.microbatches is None:
        found.microbatches = found.global_batch // unit


def _stages(found: Imported, model: ModelSpec | None) -> None:
    if model is None or found.stage_layers is None:
        return
    total = sum(found.stage_layers)
    if total != model.num_layers:
        found.fault(
            "stages-cover-layers",
            f"stages hold {total} of the {model.num_layers} layers of {model.name}",
            f"stages of {model.num_layers} layers",
        )
    if 0 in found.stage_layers:
        found.unpriced.append(f"stage {found.stage_layers.index(0)} holds no layer")


def _interleaving(found: Imported) -> None:
    pp, chunks, count = found.pp or 1, found.virtual_stages or 1, found.microbatches
    if chunks == 1 or pp == 1 or count is None or found.schedule != "interleaved" or count % pp == 0:
        return
    found.fault(
        "interleaving",
        f"{count} microbatches with {chunks} virtual stages over pp {pp}: {count} % {pp} = {count % pp}",
        f"{max(1, count // pp) * pp} microbatches",
    )


def _heads(found: Imported, model: ModelSpec) -> None:
    tp = found.tp or 1
    for heads in sorted({b.attention.num_heads for b in model.block_kinds.values()}):
        if heads % tp:
            found.fault(
                "heads-by-tp", f"{heads} attention heads over tp {tp}", f"tp {nearest_divisor(heads, tp)}"
            )


def _key_value_heads(found: Imported, model: ModelSpec) -> None:
    tp = found.tp or 1
    for block in model.block_kinds.values():
        a = block.attention
        if isinstance(a, LatentAttention) or a.num_kv_heads == a.num_heads:
            continue
        kv = a.num_kv_heads
        copies = found.launcher not in DIVIDING and tp % kv == 0
        if kv % tp and not copies:
            idle = f": {tp - kv} ranks of each {tp} idle" if tp > kv and found.launcher == "deepspeed" else ""
            found.fault(
                "kv-heads-by-tp",
                f"{kv} key/value heads over tp {tp}{idle}",
                f"tp {nearest_divisor(kv, min(tp, kv))}",
            )
            return


def _widths(found: Imported, model: ModelSpec) -> None:
    tp, inner = found.tp or 1, found.expert_tp or 1
    for block in model.block_kinds.values():
        ff = block.feed_forward
        is_routed = isinstance(ff, MixtureOfExperts)
        width, degree = (ff.expert_ffn_size, inner) if isinstance(ff, MixtureOfExperts) else (ff.ffn_size, tp)
        if width % degree:
            name = "expert_tp" if is_routed else "tp"
            found.fault(
                "ffn-by-tp",
                f"feed-forward width {width} over {name} {degree}",
                f"{name} {nearest_divisor(width, degree)}",
            )
            return


def _experts(found: Imported, model: ModelSpec) -> None:
    ep = found.ep or 1
    counts = {b.feed_forward.num_experts for b in model.block_kinds.values() if b.feed_forward.kind == "moe"}
    if not counts and ep > 1:
        found.fault("experts-by-ep", f"ep {ep} and {model.name} has no experts", "ep 1")
    for count in sorted(counts):
        if count % ep:
            found.fault("experts-by-ep", f"{count} experts over ep {ep}", f"ep {nearest_divisor(count, ep)}")


def _expert_ranks(found: Imported, model: ModelSpec | None) -> None:
    """ep x expert_tp must divide the ranks of a pipeline stage."""
    ep, inner = found.ep or 1, found.expert_tp or 1
    if found.world_size is None or ep == 1 or (model is not None and not model.is_moe):
        return
    pp = found.pp or 1
    if found.world_size % pp or (found.world_size // pp) % (ep * inner):
        ranks = found.world_size // pp
        found.fault(
            "expert-ranks",
            f"ep {ep} x expert_tp {inner} x pp {pp} on {found.world_size} GPUs: {ranks} ranks a stage",
            f"ep x expert_tp of {nearest_divisor(ranks, ep * inner)}",
        )


def _expert_sequence(found: Imported, model: ModelSpec) -> None:
    tp = found.tp or 1
    if not model.is_moe or tp == 1 or found.sequence_parallel is not False:
        return
    if found.launcher in ("megatron", "torchtitan"):
        found.fault(
            "experts-need-sequence-parallel",
            f"experts with tp {tp} and no sequence parallelism",
            "sequence parallelism on, or tp 1",
        )


def _sequence(found: Imported) -> None:
    length = found.sequence_length
    tp, cp, _ = mesh(found)
    if length is None:
        return
    unit = 2 * cp if cp > 1 else 1
    if found.sequence_parallel and tp > 1:
        unit = unit * tp if found.launcher == "torchtitan" else math.lcm(unit, cp * tp)
    if length % unit:
        near = max(unit, length // unit * unit)
        found.fault(
            "sequence-by-mesh",
            f"sequence length {length}, cp {cp}, tp {tp}: not a multiple of {unit}",
            f"{near}",
        )


def _positions(found: Imported, model: ModelSpec) -> None:
    length = found.sequence_length
    rows = model.stacks[0].embedding.num_positions
    if length is not None and rows and length > rows:
        found.fault(
            "positions", f"sequence length {length}, {model.name} has {rows} positions", f"at most {rows}"
        )


def _vocabulary(found: Imported, model: ModelSpec) -> None:
    """Megatron-LM pads the table to 128 tp rows; others leave uneven or refused shards."""
    tp, rows = found.tp or 1, model.vocab_size
    if tp > 1 and rows % tp and found.launcher in ("torchtitan", "pytorch"):
        found.assumptions.append(
            f"vocabulary {rows} over tp {tp}: uneven shards, {found.launcher} does not pad; "
            "memory is priced even"
        )


def _shards(found: Imported) -> None:
    """A shard group is a divisor of the data group."""
    if found.shard_ranks is None or found.dp is None:
        return
    ranks = found.dp * (found.cp or 1)
    if ranks % found.shard_ranks:
        found.fault(
            "shard-group",
            f"{found.where.get('shard_ranks', f'groups of {found.shard_ranks}')} over {ranks} data ranks",
            f"a divisor of {ranks}",
        )
