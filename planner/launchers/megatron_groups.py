"""Rank groups of a plan as Megatron-LM forms them from its rank order (parallel_state.py)."""

from __future__ import annotations

import math

from planner.model.spec import MixtureOfExperts
from planner.plan_file.schema import Plan


def data_ranks(plan: Plan) -> int:
    """Ranks that hold the same dense shard: dp cp."""
    d = plan.decision.degrees
    return d.dp * d.cp


def expert_data_ranks(plan: Plan) -> int:
    """Ranks that hold the same experts: dp cp tp / (ep expert_tp)."""
    d = plan.decision.degrees
    return d.dp * d.cp * d.tp // (d.ep * d.expert_tp)


def islands(plan: Plan) -> tuple[int, int]:
    """Islands the dense and the expert data group span: Megatron's optimizer instances for each."""
    d, cluster = plan.decision.degrees, plan.inputs.cluster
    island = min(cluster.profile.node_groups[0].tiers[0].devices or cluster.gpus, cluster.gpus)
    dense, expert = data_ranks(plan), expert_data_ranks(plan)
    inner = math.gcd(dense, max(1, island // d.tp))
    expert_inner = math.gcd(expert, max(1, island // (d.ep * d.expert_tp)))
    return dense // inner, expert // expert_inner


def nodes(plan: Plan) -> tuple[int, int]:
    """(number of nodes, ranks per node)."""
    per_node = min(plan.inputs.cluster.profile.node_groups[0].devices_per_node, plan.inputs.cluster.gpus)
    return plan.inputs.cluster.gpus // per_node, per_node


def experts_of(plan: Plan) -> list[MixtureOfExperts]:
    """Feed-forwards with routed experts, one per block kind that has them."""
    blocks = plan.inputs.model.block_kinds.values()
    return [b.feed_forward for b in blocks if isinstance(b.feed_forward, MixtureOfExperts)]
