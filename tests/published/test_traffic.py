"""Collectives and FLOP of a rank against what can be counted by hand."""

from __future__ import annotations

import pytest

from planner.cost.traffic import rank_traffic
from planner.model.flop import model_step_flop
from planner.search.layout import balanced_chunks
from planner.strategy.decision import RECOMPUTES, SHARDINGS, Decision, Degrees

HIDDEN, LAYERS, SEQUENCE, MICROBATCHES = 2048, 8, 4096, 4


@pytest.fixture
def traffic(build):
    """(traffic of rank 0, cost model) of a decoder under a plan on a stack."""

    def of(stack="megatron", sharding="none", recompute="none", dp=1, tp=1, pp=1, **shape):
        block = build.block(hidden=HIDDEN, heads=16, ffn=8192, **shape)
        model = build.model(LAYERS, {"block": block}, hidden=HIDDEN, vocab=32768)
        cluster = build.cluster(dp * tp * pp, build.profile(per_node=8))
        costs = build.cost_model(model, cluster, sequence=SEQUENCE, batch=dp * MICROBATCHES, stack=stack)
        decision = Decision(
            degrees=Degrees(dp, tp, pp),
            sequence_parallel=tp > 1,
            sharding=SHARDINGS.index(sharding),
            sharding_group=0,
            schedule="1f1b",
            virtual_stages=1,
            microbatch_size=1,
            microbatches=MICROBATCHES,
            chunks=balanced_chunks(LAYERS, pp),
            recompute=(RECOMPUTES.index(recompute),) * LAYERS,
        )
        return rank_traffic(costs, decision, 0), costs

    return of


def collectives(found):
    return {(c.axis, c.operation): (c.count, c.whole_bytes) for c in found[0].collectives}


def test_one_rank_alone_sends_nothing_and_computes_the_model(traffic):
    found, costs = traffic()
    assert found.collectives == ()
    model = costs.problem.model
    flop = model_step_flop(model, SEQUENCE, MICROBATCHES)
    norms = 6.0 * (2 * LAYERS) * HIDDEN * SEQUENCE * MICROBATCHES  # counted as weights there, not as products
    # The fused kernel's backward is 2.5 forwards; the model counts 2.
    kernel = found.attention_flop * (3.0 / 3.5)
    assert found.matmul_flop + kernel == pytest.approx(flop, rel=1e-3)
    assert abs(flop - found.matmul_flop - kernel) <= norms
    assert found.recomputed_matmul_flop == found.recomputed_attention_flop == 0.0


def test_full_recompute_repeats_the_blocks_forward_and_stops_early_where_the_stack_does(traffic):
    plain, whole = traffic()[0], traffic(recompute="full")[0]
    early = traffic("torchtitan", recompute="full")[0]
    tokens = SEQUENCE * MICROBATCHES
    products = 2.0 * tokens * LAYERS * (4 * HIDDEN**2 + 3 * HIDDEN * 8192)
    assert whole.recomputed_matmul_flop == pytest.approx(products)
    assert early.recomputed_matmul_flop == pytest.approx(products - 2.0 * tokens * LAYERS * HIDDEN * 8192)
    assert whole.recomputed_attention_flop == pytest.approx(plain.attention_flop / 3.5)
    assert whole.flop > early.flop > plain.flop


def test_a_split_sequence_moves_hidden_states_four_or_five_times_a_sub_layer_pair(traffic):
    hidden = 2 * SEQUENCE * HIDDEN
    for stack, again in (("megatron", 1), ("torchtitan", 0)):
        found = collectives(traffic(stack, tp=4))
        # Attention and feed-forward each gather and scatter both ways, the embedding and the head once each;
        # Megatron gathers every product's input again.
        gathers = (2 * LAYERS * (2 + again) + 2 + again) * MICROBATCHES
        scatters = (2 * LAYERS * 2 + 2) * MICROBATCHES
        assert found["tp", "all_gather"] == (gathers, gathers * hidden)
        assert found["tp", "reduce_scatter"] == (scatters, scatters * hidden)


@pytest.mark.parametrize(("norms", "inputs"), [(2, 2), (1, 1)])
def test_a_parallel_block_sums_one_output_and_gathers_an_input_a_norm(traffic, norms, inputs):
    found = collectives(traffic("torchtitan", tp=4, parallel=True, norms=norms))
    # Forward gathers the inputs and backward the output's gradient; the ends as in any model.
    assert found["tp", "all_gather"][0] == (LAYERS * (inputs + 1) + 2) * MICROBATCHES
    assert found["tp", "reduce_scatter"][0] == (LAYERS * (inputs + 1) + 2) * MICROBATCHES


def test_sharded_weights_are_gathered_by_microbatch_and_reduced_in_fp32(traffic):
    found = collectives(traffic("torchtitan", "parameters", dp=8))
    vocabulary = 32768 * HIDDEN
    weights = LAYERS * (4 * HIDDEN**2 + 3 * HIDDEN * 8192 + 2 * HIDDEN) + 2 * vocabulary + HIDDEN
    kept = vocabulary + HIDDEN  # the head's unit stays for the backward that follows at once
    assert found["dp", "all_gather"][1] == MICROBATCHES * 2 * (2 * weights - kept)
    assert found["dp", "reduce_scatter"][1] == MICROBATCHES * 4 * weights


def test_a_pipeline_keeps_gradients_whole_and_sends_hidden_states(traffic):
    found = collectives(traffic("torchtitan", "optimizer", dp=4, pp=2))
    assert found["pp", "send"] == (MICROBATCHES, MICROBATCHES * 2 * SEQUENCE * HIDDEN)
    blocks = LAYERS // 2 * (4 * HIDDEN**2 + 3 * HIDDEN * 8192 + 2 * HIDDEN) + 32768 * HIDDEN
    assert found["dp", "reduce_scatter"] == (LAYERS // 2 + 1, 4 * blocks)
    assert found["dp", "all_gather"] == (LAYERS // 2 + 1, 2 * blocks)
