"""A read launcher file as a decision on a problem: stages, recompute, shard groups."""

from __future__ import annotations

from dataclasses import replace

from planner.cost.decision_rows import decision_candidates
from planner.errors import InputError, UnsupportedFeature
from planner.launchers.imported import Imported
from planner.search.layout import balanced_chunks
from planner.strategy.candidates import Problem
from planner.strategy.decision import (
    GATHER_UNITS,
    OFFLOADS,
    RECOMPUTES,
    SHARDING_GROUPS,
    SHARDINGS,
    Decision,
    Degrees,
)
from planner.strategy.rules import require_valid

# What a decision needs and no launcher's default gives: the flag that says it, with an example.
NEEDED = {
    "tp": "--tp 1",
    "pp": "--pp 1",
    "microbatch_size": "--micro-batch 1",
    "sharding": "--sharding optimizer",
    "recompute": "--recompute none",
}


def build_imported_decision(found: Imported, problem: Problem, sharding_group: str | None) -> Decision:
    """The decision a read file states, on a problem. Raises InputError for what is missing or broken."""
    for name, flag in NEEDED.items():
        if getattr(found, name) is None:
            raise InputError(f"{found.file} does not state {name.replace('_', ' ')}", hint=f"add {flag}")
    tp, pp, cp = found.tp or 1, found.pp or 1, found.cp or 1
    used = tp * pp * cp
    if problem.world_size % used:
        raise InputError(
            f"rule world-identity: tp {tp} x cp {cp} x pp {pp} = {used} does not divide "
            f"{problem.world_size} GPUs",
            file=found.file,
            rule="world-identity",
        )
    # Some launchers' default for the tensor degree of experts is tp, also where there are none.
    inner = found.expert_tp if problem.model.is_moe or "expert_tp" in found.where else 1
    degrees = Degrees(problem.world_size // used, tp, pp, cp, found.ep or 1, inner or 1)
    chunks = _chunks(found, problem, degrees)
    split = found.sequence_parallel if found.sequence_parallel is not None else tp > 1
    decision = Decision(
        degrees=degrees,
        sequence_parallel=bool(split) and tp > 1,
        sharding=SHARDINGS.index(found.sharding or "none"),
        sharding_group=0,
        schedule=found.schedule or ("interleaved" if (found.virtual_stages or 1) > 1 else "1f1b"),
        virtual_stages=found.virtual_stages or 1,
        microbatch_size=found.microbatch_size or 1,
        microbatches=found.microbatches
        or problem.workload.global_batch // (degrees.dp * (found.microbatch_size or 1)),
        chunks=chunks,
        recompute=_recompute(found, problem, chunks),
        layer_sharding=tuple(SHARDINGS.index(name) for name in found.layer_sharding),
        layer_units=tuple(GATHER_UNITS.index(name) for name in found.layer_units),
        offload=OFFLOADS.index(found.offload or "none"),
    )
    if found.layer_tp:
        decision = _with_layer_degrees(found, decision, sharding_group)
    else:
        decision = _grouped(found, problem, decision, sharding_group)
    for code in decision.row_codes():
        require_valid(decision_candidates(decision, [code]), problem)
    return decision


def _with_layer_degrees(found: Imported, decision: Decision, sharding_group: str | None) -> Decision:
    """Tensor degrees of single layers; layers alone on their weights have nothing to shard."""
    if sharding_group not in (None, "global"):
        raise InputError(
            f"--sharding-group {sharding_group}: layers of different tp shard over all data ranks",
            allowed=["global"],
            hint="leave --sharding-group out",
        )
    own = found.ends_tp or decision.degrees.tp
    size = decision.microbatch_size_of(own)
    ends = replace(
        decision,
        degrees=decision.degrees_of(own),
        microbatch_size=size,
        layer_tp=found.layer_tp,
        sequence_parallel=any(tp > 1 for tp in (own, *found.layer_tp)),
    )
    cp, blocks = decision.degrees.cp, range(len(decision.recompute))
    sharding = tuple(
        decision.sharding_of(b) if ends.degrees_of(ends.tp_of(b)).dp * cp > 1 else 0 for b in blocks
    )
    code = decision.sharding if ends.degrees.dp * cp > 1 else 0
    return replace(
        ends, sharding=code, layer_sharding=() if all(one == code for one in sharding) else sharding
    )


def _chunks(found: Imported, problem: Problem, degrees: Degrees) -> tuple[tuple[int, int], ...]:
    count, layers = degrees.pp * (found.virtual_stages or 1), problem.model.num_layers
    if found.stage_layers is None:
        if degrees.pp > 1:
            found.assumptions.append(
                f"stages are not stated: {layers} layers over {count}, as even as they go"
            )
        return balanced_chunks(layers, count)
    if len(found.stage_layers) != count or sum(found.stage_layers) != layers:
        raise InputError(
            f"rule stages-cover-layers: {len(found.stage_layers)} stages of "
            f"{sum(found.stage_layers)} layers; "
            f"pp x virtual stages is {count} and the model has {layers}",
            file=found.file,
            rule="stages-cover-layers",
        )
    ends = [sum(found.stage_layers[: at + 1]) for at in range(count)]
    return tuple(zip([0, *ends[:-1]], ends, strict=True))


def _recompute(found: Imported, problem: Problem, chunks: tuple[tuple[int, int], ...]) -> tuple[int, ...]:
    """One code per layer; block recompute is full on the first layers of every virtual stage."""
    if isinstance(found.recompute, tuple):
        return tuple(RECOMPUTES.index(mode) for mode in found.recompute)
    if found.recompute_block is not None:
        return tuple(
            RECOMPUTES.index("full" if layer - first < found.recompute_block else "none")
            for first, end in chunks
            for layer in range(first, end)
        )
    if found.recompute not in RECOMPUTES:
        raise InputError(f"--recompute {found.recompute!r} is not a choice", allowed=list(RECOMPUTES))
    return (RECOMPUTES.index(str(found.recompute)),) * problem.model.num_layers


def _grouped(found: Imported, problem: Problem, decision: Decision, sharding_group: str | None) -> Decision:
    """Which ranks share: all of the data group, or those of one island. Nothing to shard over is none."""
    candidate = decision_candidates(decision, [decision.sharding])
    ranks, expert_ranks = int(candidate.data_ranks()[0]), int(candidate.expert_data_ranks()[0])
    if decision.offload and not problem.model.is_moe:
        expert_ranks = 1  # an offloaded optimizer asks for the flag of sharding without replicas too
    if decision.sharding and ranks == 1 and expert_ranks <= 1:
        found.assumptions.append(f"sharding {found.sharding} over one data rank is none")
        return replace(decision, sharding=0, layer_sharding=(), layer_units=())
    if sharding_group is not None and sharding_group not in SHARDING_GROUPS:
        raise InputError(f"--sharding-group {sharding_group!r}", allowed=list(SHARDING_GROUPS))
    if found.shard_ranks is None or decision.sharding == 0:
        wants_island = sharding_group == "island" and decision.sharding > 0
        return replace(decision, sharding_group=int(wants_island))
    if found.shard_ranks == ranks:
        return decision
    island = int(candidate.island_shard_size(problem.cluster)[0])
    if found.shard_ranks != island:
        raise UnsupportedFeature(
            f"{found.where.get('shard_ranks', 'the file')}: sharding over {found.shard_ranks} of "
            f"{ranks} data ranks; "
            f"priced are all {ranks}, or the {island} inside one island of "
            f"{problem.cluster.island_devices} GPUs",
            file=found.file,
            hint=f"shard over {ranks} or {island} ranks",
        )
    return replace(decision, sharding_group=SHARDING_GROUPS.index("island"))
