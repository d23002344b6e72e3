"""Megatron's saved tensors against the formulas printed in Korthikanti et al. (arXiv 2205.05198).

The paper's layer has a plain MLP of width 4h, unfused attention and dropout; table 2 gives bytes per layer.
"""

from __future__ import annotations

import pytest

from planner.cost.decision_rows import decision_rows
from planner.strategy.decision import Decision, Degrees

HIDDEN, HEADS, SEQUENCE, BATCH = 4096, 32, 2048, 2
SBH = SEQUENCE * BATCH * HIDDEN
SCORES = 5 * HEADS * SEQUENCE / HIDDEN


@pytest.fixture
def layer(build):
    """Saved bytes (none, selective, full) of one layer under tp, with or without sequence parallelism."""

    def of(tp=1, *, is_sequence=False, attention="unfused", dropout=True, stack="megatron", **block):
        shape = {"hidden": HIDDEN, "heads": HEADS, "ffn": 4 * HIDDEN, "gated": False, **block}
        model = build.model(2, {"block": build.block(dropout=dropout, **shape)}, hidden=HIDDEN)
        cluster = build.cluster(tp, build.profile(per_node=8))
        costs = build.cost_model(
            model, cluster, sequence=SEQUENCE, batch=BATCH, attention=attention, stack=stack
        )
        decision = Decision(
            degrees=Degrees(dp=1, tp=tp, pp=1),
            sequence_parallel=is_sequence,
            sharding=0,
            sharding_group=0,
            schedule="1f1b",
            virtual_stages=1,
            microbatch_size=BATCH,
            microbatches=1,
            chunks=((0, 2),),
            recompute=(0, 0),
        )
        kinds = decision_rows(costs, decision)[0].kinds
        return next(kind.saved_bytes for kind in kinds if kind.role == "block")

    return of


def test_one_rank(layer):
    """Equation 1: sbh (34 + 5 as/h)."""
    assert layer()[0] == pytest.approx(SBH * (34 + SCORES))


def test_a_parallel_block_keeps_one_input_and_each_norms_output(layer):
    """GPT-NeoX (arXiv 2204.06745, section 2.1) has two norms of one input, PaLM's block (2204.02311) one."""
    assert layer(parallel=True)[0] == pytest.approx(layer()[0] - 2 * SBH)
    assert layer(parallel=True, norms=1)[0] == pytest.approx(layer()[0] - 4 * SBH)


@pytest.mark.parametrize("t", [2, 4, 8])
def test_tensor_parallelism(layer, t):
    """Equation 2: sbh (10 + 24/t + 5 as/ht)."""
    assert layer(t)[0] == pytest.approx(SBH * (10 + 24 / t + SCORES / t))


@pytest.mark.parametrize("t", [2, 4, 8])
def test_tensor_and_sequence_parallelism(layer, t):
    """Equation 4: sbh/t (34 + 5 as/h)."""
    assert layer(t, is_sequence=True)[0] == pytest.approx(SBH / t * (34 + SCORES))


@pytest.mark.parametrize("t", [2, 8])
def test_selective_recompute(layer, t):
    """Section 5: sbh 34/t, without the attention core's 5 as/h."""
    assert layer(t, is_sequence=True)[1] == pytest.approx(SBH / t * 34)


@pytest.mark.parametrize("t", [1, 8])
def test_full_recompute(layer, t):
    """Table 2: 2sbh, the layer's input; its own part of it where the sequence is split over tp."""
    assert layer(t)[2] == pytest.approx(2 * SBH)
    assert layer(t, is_sequence=True)[2] == pytest.approx(2 * SBH / t)


@pytest.mark.parametrize("t", [1, 4])
def test_fused_attention_keeps_a_row_statistic_instead_of_the_scores(layer, t):
    """The 5 as/h term goes, 4 bytes per head and token come; without dropout its masks (1 + 1) go too.

    What is left of the paper's 34: attention 11 - 1 mask, MLP 19 - 1 mask, norms 4.
    """
    saved = layer(t, is_sequence=True, attention="flash", dropout=False)[0]
    assert saved == pytest.approx(SBH / t * 32 + 4 * SEQUENCE * BATCH * HEADS / t)


def test_a_gated_mlp_keeps_three_tensors_of_its_width(layer):
    """Fused SwiGLU: both inputs and the product; PyTorch's eager kernels keep the activation too."""
    ffn = 11008
    attention = 32 * SBH - 2 * 8 * SBH + 4 * SEQUENCE * BATCH * HEADS
    per_width = 2 * SEQUENCE * BATCH * ffn
    gated = {"attention": "flash", "dropout": False, "ffn": ffn, "gated": True}
    assert layer(**gated)[0] == pytest.approx(attention + 3 * per_width)
    statistics = 2 * 4 * SEQUENCE * BATCH
    eager = layer(**gated, stack="torchtitan")[0]
    assert eager == pytest.approx(attention + 4 * per_width + statistics)


@pytest.mark.parametrize("t", [2, 8])
def test_a_split_sequence_keeps_norm_outputs_whole_only_where_they_are_gathered(layer, t):
    """Megatron keeps its part of a norm's output and gathers again; DTensor keeps the gathered tensor."""
    options = {"is_sequence": True, "attention": "flash", "dropout": False}
    ours, theirs = layer(t, **options)[0], layer(t, **options, stack="torchtitan")[0]
    statistics = 2 * 4 * SEQUENCE * BATCH / t
    assert theirs - ours == pytest.approx(2 * 2 * SBH * (1 - 1 / t) + statistics)


def test_distributed_optimizer_bytes(build):
    """Megatron-LM's distributed optimizer: 18 bytes a parameter, 6 + 12/d over d data ranks."""
    model = build.model(2)
    for sharding, d in ((0, 1), (1, 4)):
        costs = build.cost_model(model, build.cluster(d, build.profile(per_node=8)), batch=d)
        decision = Decision(Degrees(d, 1, 1), False, sharding, 0, "1f1b", 1, 1, 1, ((0, 2),), (0, 0))
        row = decision_rows(costs, decision)[sharding]
        for kind in row.kinds:
            assert sum(kind.state_bytes) == pytest.approx(kind.dense_parameters * (6 + 12 / d))
