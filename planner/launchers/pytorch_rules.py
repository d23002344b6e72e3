"""What the native PyTorch script can train, as rules with reasons.

The script builds one causal pre-norm decoder of equal dense blocks. Facts: torch 2.13,
torch.distributed.fsdp, torch.distributed.tensor.parallel, torch.distributed.pipelining.
"""

from __future__ import annotations

from collections.abc import Callable

from planner.launchers.base import Break, Rule
from planner.launchers.torch_rules import HEADS, NO_OFFLOAD, PRECISION, RANKS, SCHEDULES, TIED, shared
from planner.model.spec import Attention, Block, FeedForward
from planner.plan_file.schema import Plan

OPTIMIZERS = ("adamw", "adam", "sgd-momentum")
# Families whose blocks or positions the script does not have, although their shapes look alike.
OTHER_FAMILIES = {
    "opt": "ReLU",
    "gemma": "gated GELU",
    "gemma2": "gated GELU",
    "gemma3_text": "gated GELU",
    "bloom": "ALiBi positions",
    "mpt": "ALiBi positions",
}


def dense_blocks(plan: Plan) -> list[Block]:
    """Block kinds in use, in order of first use."""
    model = plan.inputs.model
    return [model.block_kinds[kind] for kind in dict.fromkeys(kind for _, kind in model.block_sequence())]


def _model(plan: Plan) -> Break | None:
    model = plan.inputs.model
    wanted = "one causal decoder of dense blocks with a token table and a plain projection"
    embedding, head = model.stacks[0].embedding, model.head
    if len(model.stacks) > 1:
        return Break(f"{model.name} has {len(model.stacks)} stacks", wanted)
    if embedding.kind != "tokens" or head.kind != "language_model":
        return Break(f"an embedding of {embedding.kind} and a {head.kind} head", wanted)
    extra = (
        ("a norm after the embedding", embedding.norm),
        ("segment embeddings", embedding.num_types > 0),
        ("an embedding of another width", embedding.projection_size > 0),
        ("a dense layer before the projection", head.transform),
        ("a bias on the projection", head.bias),
        ("a pooler", head.pooler),
        ("capped logits", head.soft_cap),
        ("no norm after the last block", not model.stacks[0].final_norm),
    )
    found = [name for name, present in extra if present]
    return Break(", ".join(found), wanted) if found else None


def _blocks(plan: Plan) -> Break | None:
    length = plan.inputs.workload.sequence_length
    for block in dense_blocks(plan):
        attention = block.attention
        if not isinstance(attention, Attention):
            return Break("latent attention", "grouped-query attention")
        if not isinstance(block.feed_forward, FeedForward):
            return Break(f"{block.feed_forward.num_experts} routed experts", "a dense feed-forward")
        odd = (
            ("attention in both directions", not attention.causal),
            ("cross-attention", block.cross_attention is not None),
            ("parallel attention and feed-forward", block.parallel),
            (f"{block.num_norms} norms a block", block.num_norms != 2),
            ("attention sinks", attention.sinks),
            ("relative position biases", attention.relative_bias_buckets > 0),
            (f"a window of {attention.window} tokens", (attention.window or length) < length),
        )
        found = [name for name, present in odd if present]
        if found:
            return Break(", ".join(found), "pre-norm blocks with causal attention over the whole sequence")
    return None


def _equal(plan: Plan) -> Break | None:
    def shape(block: Block) -> Block:
        attention = block.attention.model_copy(update={"window": None})
        return block.model_copy(update={"attention": attention})

    kinds = [shape(block) for block in dense_blocks(plan)]
    if all(kind == kinds[0] for kind in kinds):
        return None
    return Break(f"{len(kinds)} kinds of block", "blocks of one shape")


def _family(plan: Plan) -> Break | None:
    family = plan.inputs.model.family
    if family not in OTHER_FAMILIES:
        return None
    return Break(f"{family} has {OTHER_FAMILIES[family]}", "SiLU gates or GELU, rotary or learned positions")


def _positions(plan: Plan) -> Break | None:
    table = plan.inputs.model.stacks[0].embedding.num_positions
    length = plan.inputs.workload.sequence_length
    if not table or length <= table:
        return None
    return Break(f"sequence length {length}, position table {table}", f"sequence length {table}")


def _one(name: str) -> Callable[[Plan], Break | None]:
    def check(plan: Plan) -> Break | None:
        degree = getattr(plan.decision.degrees, name)
        return None if degree == 1 else Break(f"{name} {degree}", f"{name} 1")

    return check


def _sequence(plan: Plan) -> Break | None:
    q, length = plan.decision, plan.inputs.workload.sequence_length
    tp = q.degrees.tp
    if not q.sequence_parallel or length % tp == 0:
        return None
    return Break(f"sequence length {length}, tp {tp}", f"sequence length {max(tp, length // tp * tp)}")


def _dropout(plan: Plan) -> Break | None:
    q = plan.decision
    if q.degrees.tp == 1 or q.sequence_parallel or not any(block.dropout for block in dense_blocks(plan)):
        return None
    return Break(f"dropout with tp {q.degrees.tp} and whole sequences", "sequence parallelism on, or tp 1")


def _optimizer(plan: Plan) -> Break | None:
    name = plan.inputs.workload.optimizer
    return None if name in OPTIMIZERS else Break(f"optimizer {name}", "adamw")


PYTORCH_RULES: tuple[Rule, ...] = (
    Rule("model-kind", "the script trains one causal decoder with a language-model head", _model),
    Rule("blocks", "blocks are pre-norm, dense, causal, without windows, sinks or experts", _blocks),
    Rule("equal-blocks", "all blocks have one shape", _equal),
    Rule("family", "the script has SiLU gates and GELU, rotary and learned positions", _family),
    Rule("positions", "the position table is as long as the sequence", _positions),
    *shared("world-identity", "batch-identity", "whole-nodes", "ffn-by-tp"),
    *shared("stages-cover-layers", "layer-choices", "kernels"),
    RANKS,
    HEADS,
    SCHEDULES,
    TIED,
    PRECISION,
    NO_OFFLOAD,
    Rule("context-parallel", "the script has no context parallelism", _one("cp")),
    Rule("expert-parallel", "the script has no experts", _one("ep")),
    Rule("sequence-by-tp", "with sequence parallelism tp divides the sequence", _sequence),
    Rule("dropout", "tp ranks that hold the same activations must drop the same ones", _dropout),
    Rule("optimizer", "optimizers with the plan's state: " + ", ".join(OPTIMIZERS), _optimizer),
)
