"""Random decisions of one model, and the cost models that price them."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
from hypothesis import strategies as st

from planner.search.layout import balanced_chunks
from planner.strategy.decision import Decision, Degrees

NUM_BLOCKS = 8
GLOBAL_BATCH = 64


def sized(d: Degrees, **changes: int) -> Degrees:
    return replace(d, **changes)


@st.composite
def decisions(
    draw, *, num_blocks: int = NUM_BLOCKS, is_moe: bool = False, is_island: bool = True, max_degree: int = 8
) -> Decision:
    """Any mesh of powers of two with a schedule, a split, a sharding and a mode per block that fit it."""
    powers = [2**k for k in range(max_degree.bit_length())]
    tp, pp, dp = (draw(st.sampled_from(powers)) for _ in range(3))
    cp = draw(st.sampled_from([1, 1, 2, 4]))
    ep = draw(st.sampled_from([e for e in (1, 2, 4) if (dp * cp * tp) % e == 0])) if is_moe else 1
    expert_tp = draw(st.sampled_from([1, tp])) if is_moe and (dp * cp) % ep == 0 else 1
    size = draw(st.sampled_from([s for s in (1, 2, 4) if GLOBAL_BATCH % (dp * s) == 0]))
    microbatches = GLOBAL_BATCH // (dp * size)
    options = [("1f1b", 1), ("gpipe", 1)]
    if pp > 1 and microbatches % pp == 0:
        options += [("interleaved", v) for v in (2, 4) if pp * v <= num_blocks]
    schedule, v = draw(st.sampled_from(options))
    if v == 1:
        cuts = sorted(draw(st.permutations(range(1, num_blocks)))[: pp - 1])
        chunks = tuple(zip([0, *cuts], [*cuts, num_blocks], strict=True))
    else:
        chunks = balanced_chunks(num_blocks, pp * v)
    inner = min(dp * cp, max(1, 8 // tp))
    groups = [0, 1] if is_island and 1 < inner < dp * cp else [0]
    sharding = draw(st.sampled_from([0, 1, 2, 3] if dp * cp > 1 else [0]))
    modes = st.lists(st.sampled_from([0, 1, 2]), min_size=num_blocks, max_size=num_blocks)
    return Decision(
        degrees=Degrees(dp=dp, tp=tp, pp=pp, cp=cp, ep=ep, expert_tp=expert_tp),
        sequence_parallel=tp > 1 and (is_moe or draw(st.booleans())),
        sharding=sharding,
        sharding_group=draw(st.sampled_from(groups)) if sharding else 0,
        schedule=schedule,
        virtual_stages=v,
        microbatch_size=size,
        microbatches=microbatches,
        chunks=chunks,
        recompute=tuple(draw(modes)),
    )


@pytest.fixture(scope="session")
def cost_models(build):
    """Cost models of a dense model (tied table), a mixture of experts, and an encoder-decoder."""

    @cache
    def of(kind: str, *, fast: float = 250.0, slow: float = 400.0, name: str = "test-cluster"):
        blocks = {"block": build.block(hidden=2048, heads=16, ffn=8192)}
        experts = {
            "block": build.block(hidden=2048, heads=16, ffn=2048, experts=8, shared_ffn=2048),
        }
        model = {
            "dense": lambda: build.model(NUM_BLOCKS, blocks, hidden=2048, vocab=50257, tied=True),
            "experts": lambda: build.model(NUM_BLOCKS, experts, hidden=2048, vocab=50257),
            "encoder-decoder": lambda: build.encoder_decoder(4, 4, hidden=2048),
        }[kind]()
        profile = build.profile(per_node=8, nodes=256, fast=fast, slow=slow, slow_links=8, name=name)
        return build.cost_model(model, build.cluster(2048, profile), sequence=4096, batch=GLOBAL_BATCH)

    return of


@pytest.fixture(scope="session")
def any_decision():
    return decisions
