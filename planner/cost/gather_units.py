"""What is gathered at once of a block whose weights are sharded: the block, its two parts, or each matrix.

OSDP (arXiv 2305.09940) splits an operator in g slices and gathers one at a time: less gathered memory, g
latencies. PyTorch's FSDP2 runs that with whole matrices: ``fully_shard`` on modules inside a block makes each
a unit of its own, gathered before its products and freed behind them. Slices of one matrix run nowhere that
this planner exports to, so they are not offered.

Units in forward order, as the exported PyTorch script wraps them. A part holds its norm. With a unit for each
matrix the norms are left to the block, whose unit is gathered first. Blocks that are not plain dense ones
(experts, latent or cross attention) are gathered whole.
"""

from __future__ import annotations

from planner.model.parameters import attention_parameters, block_parameters, norm_parameters
from planner.model.spec import Attention, Block, FeedForward
from planner.strategy.decision import UNIT_BLOCK, UNIT_MATRIX, UNIT_PART

WHOLE = (1.0,)


def unit_shares(block: Block | None, hidden_size: int, unit: int) -> tuple[float, ...]:
    """Share of a layer's weights in each of its units, in forward order; they sum to 1.

    ``unit``: a code of ``GATHER_UNITS``. tp splits all matrices alike, so shares hold for any tp (norms,
    whole on every rank, aside).
    """
    if unit == UNIT_BLOCK or block is None or not has_units(block):
        return WHOLE
    total = float(block_parameters(block, hidden_size))
    norms = block.num_norms * norm_parameters(block.norm, hidden_size)
    if unit == UNIT_PART:
        attention = attention_parameters(block.attention, hidden_size) + norms / 2.0
        return attention / total, 1.0 - attention / total
    shares = [matrix / total for matrix in _matrices(block, hidden_size)]
    return (1.0 - sum(shares), *shares)


def has_units(block: Block) -> bool:
    """Whether a block has units finer than itself: two norms, plain attention, a dense feed-forward."""
    is_plain = isinstance(block.attention, Attention) and isinstance(block.feed_forward, FeedForward)
    return is_plain and block.cross_attention is None and block.num_norms == 2


def held_shares(block: Block | None, hidden_size: int, unit: int) -> tuple[float, float, float]:
    """Largest share of a layer's weights that is whole at once, by recompute mode, prefetch aside.

    Recomputation in backward gathers units too, and FSDP2 keeps those until their own backward is done
    (``_fsdp_param_group.py``, post_forward: no reshard in backward): full holds the whole block, selective
    the products that enter a part, which is what it repeats.
    """
    shares = unit_shares(block, hidden_size, unit)
    largest = max(shares)
    selective = max(sum(shares[1:4]), sum(shares[5:-1])) if unit == UNIT_MATRIX and len(shares) > 1 else 0.0
    return largest, max(largest, selective), 1.0


def _matrices(block: Block, hidden_size: int) -> list[float]:
    """Elements of queries, keys, values, output, up (gate) and down, in the order they run."""
    attention, ff = block.attention, block.feed_forward
    if not isinstance(attention, Attention) or not isinstance(ff, FeedForward):
        raise TypeError("only plain dense blocks have units")
    queries = attention.num_heads * attention.head_dim
    keys = attention.num_kv_heads * attention.head_dim
    inputs = [ff.ffn_size] * (2 if ff.gated else 1)
    widths = [queries, keys, keys, queries, *inputs, ff.ffn_size]
    return [float(hidden_size * width) for width in widths]
