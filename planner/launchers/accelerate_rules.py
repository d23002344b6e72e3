"""The rules a plan must meet to run under Hugging Face Accelerate, with reasons, and those the search needs.

Facts: Accelerate 1.15, parallelism_config.py (mesh, forbidden pairs), commands/launch.py (a
parallelism_config needs FSDP2), accelerator.py (tp, cp, DDP).
"""

from __future__ import annotations

import numpy as np

from planner.launchers.base import Break
from planner.launchers.base import Rule as PlanRule
from planner.launchers.config_rules import (
    ADAM,
    CAUSAL_SPLIT,
    EXPERTS_WITHOUT_TP,
    HALF_PRECISION,
    NO_EXPERT_GROUPS,
    NO_INTERLEAVING,
    NO_PIPELINE,
    NO_SEQUENCE_PARALLEL,
    ONE_CHUNK,
    WHOLE_MODEL_RECOMPUTE,
)
from planner.launchers.megatron_groups import data_ranks, islands
from planner.launchers.torch_rules import HEADS, NO_OFFLOAD, RANKS, shared
from planner.plan_file.schema import Plan
from planner.strategy.candidates import BoolArray, Candidates, Problem
from planner.strategy.decision import GROUP_ISLAND, SHARDING_NONE
from planner.strategy.rules import Rule


def data_mesh(plan: Plan) -> tuple[int, int]:
    """(dp_replicate, dp_shard) of a plan with sharding; parameters are sharded over dp_shard x cp.

    Raises ValueError when cp does not divide the ranks of an island's data group.
    """
    d = plan.decision.degrees
    outer = islands(plan)[0] if plan.decision.sharding_group == "island" else 1
    inner = data_ranks(plan) // outer
    if inner % d.cp:
        raise ValueError(f"cp {d.cp} does not divide the {inner} data ranks of an island")
    return outer, inner // d.cp


def _kinds(plan: Plan) -> Break | None:
    sharding = plan.decision.sharding
    if sharding != "optimizer":
        return None
    return Break("sharding optimizer", "sharding gradients (FSDP2 that keeps weights after the forward pass)")


def _sharded_split(plan: Plan) -> Break | None:
    q = plan.decision
    d = q.degrees
    if q.sharding != "none" and d.dp * d.cp == 1:
        return Break(f"sharding {q.sharding} with dp 1 and cp 1", "more data ranks")
    if q.sharding != "none" or d.tp * d.cp == 1:
        return None
    nearest = "sharding gradients" if d.dp * d.cp > 1 else "tp 1, or more data ranks with sharding gradients"
    return Break(f"tp {d.tp}, cp {d.cp}, dp {d.dp} and sharding none", nearest)


def _hybrid(plan: Plan) -> Break | None:
    q = plan.decision
    if q.sharding == "none" or q.sharding_group == "global":
        return None
    outer = islands(plan)[0]
    inner = data_ranks(plan) // outer
    if inner % q.degrees.cp:
        return Break(
            f"{inner} data ranks in an island over cp {q.degrees.cp}", "sharding over the whole data group"
        )
    if inner == q.degrees.cp and q.degrees.cp > 1 and outer > 1:
        return Break(
            f"dp_replicate {outer} with dp_shard 1 beside cp {q.degrees.cp}",
            "sharding over the whole data group",
        )
    return None


def _sharded_split_holds(c: Candidates, p: Problem) -> BoolArray:
    is_sharded = c.sharding != SHARDING_NONE
    result: BoolArray = (is_sharded & (c.data_ranks() > 1)) | (~is_sharded & (c.tp == 1) & (c.cp == 1))
    return result


def _hybrid_holds(c: Candidates, p: Problem) -> BoolArray:
    inner = c.island_shard_size(p.cluster)
    fits = (inner % c.cp == 0) & ((c.cp == 1) | (inner > c.cp))
    result: BoolArray = np.asarray((c.sharding_group != GROUP_ISLAND) | fits)
    return result


SHARDED_SPLIT = PlanRule(
    "sharded-split",
    "tp and cp come with FSDP2: sharded gradients or parameters over two data ranks or more",
    _sharded_split,
)
HYBRID = PlanRule(
    "hybrid-mesh",
    "cp divides the data ranks of an island, and with cp > 1 more than one shard is left (dp_shard > 1)",
    _hybrid,
)
ACCELERATE_RULES: tuple[PlanRule, ...] = (
    *shared("world-identity", "batch-identity", "whole-nodes"),
    RANKS,
    NO_PIPELINE,
    ONE_CHUNK,
    NO_INTERLEAVING,
    NO_EXPERT_GROUPS,
    *shared("stages-cover-layers"),
    HEADS,
    *shared("ffn-by-tp"),
    NO_SEQUENCE_PARALLEL,
    EXPERTS_WITHOUT_TP,
    *shared("sequence-by-cp", "context-parallel-kernel"),
    CAUSAL_SPLIT,
    WHOLE_MODEL_RECOMPUTE,
    *shared("layer-choices"),
    PlanRule("sharding", "DDP or FSDP2: no sharding of the optimizer state alone", _kinds),
    SHARDED_SPLIT,
    HYBRID,
    ADAM,
    HALF_PRECISION,
    NO_OFFLOAD,
    *shared("gather-units"),
    *shared("kernels"),
)
SHARDED_SPLIT_SEARCH = Rule(
    "sharded-split",
    SHARDED_SPLIT.statement,
    "sharding",
    _sharded_split_holds,
    lambda c, p: f"sharding none with tp {int(c.tp[0])} and cp {int(c.cp[0])}",
)
HYBRID_SEARCH = Rule(
    "hybrid-mesh",
    HYBRID.statement,
    "sharding_group",
    _hybrid_holds,
    lambda c, p: f"{int(c.island_shard_size(p.cluster)[0])} data ranks in an island over cp {int(c.cp[0])}",
)
