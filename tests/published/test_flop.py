"""Model FLOP per token against formulas and totals that others published."""

from __future__ import annotations

import pytest

from planner.catalog import load_model
from planner.model.flop import model_step_flop
from planner.model.parameters import total_parameters


def flop_per_token(name: str, sequence: int) -> float:
    model, _ = load_model(name)
    return model_step_flop(model, sequence, 1) / sequence


def test_gpt3_trains_at_6n_plus_half_of_palms_attention_term():
    """PaLM (arXiv 2204.02311, appendix B): 6 N + 12 L h s; a causal mask needs half of the second term."""
    expected = 6 * 174.6e9 + 6 * 96 * 12288 * 2048
    assert flop_per_token("gpt3-175b", 2048) == pytest.approx(expected, rel=0.01)


def test_gpt3_needs_the_total_its_paper_prints():
    """arXiv 2005.14165, table D.1: 3.14e23 FLOP for 300 B tokens, attention scores not counted (1.4 %)."""
    total = flop_per_token("gpt3-175b", 2048) * 300e9
    assert 3.14e23 < total < 1.025 * 3.14e23


def test_llama_3_405b_needs_the_total_its_paper_prints():
    """arXiv 2407.21783, section 3.2: 3.8e25 FLOP for 15.6 T tokens at sequence length 8192."""
    assert flop_per_token("llama-3.1-405b", 8192) * 15.6e12 == pytest.approx(3.8e25, rel=0.05)


@pytest.mark.parametrize(
    ("name", "layers", "hidden"),
    [
        ("megatron-1.7b", 24, 2304),
        ("megatron-3.6b", 30, 3072),
        ("megatron-7.5b", 36, 4096),
        ("megatron-18.4b", 40, 6144),
        ("megatron-39.1b", 48, 8192),
        ("megatron-76.1b", 60, 10240),
        ("megatron-145.6b", 80, 12288),
        ("megatron-310.1b", 96, 16384),
        ("megatron-529.6b", 105, 20480),
        ("megatron-1008b", 128, 25600),
    ],
)
def test_megatrons_formula_without_recompute_and_with_causal_halving(name, layers, hidden):
    """arXiv 2104.04473, equation 3: 96 B s L h^2 (1 + s/6h + V/16Lh) with full recompute, scores whole.

    Without recompute 72 B s L h^2 (1 + s/6h + V/12Lh); a causal mask halves the s term.
    """
    s, vocabulary = 2048, 51200
    expected = 72 * layers * hidden**2 * (1 + s / (12 * hidden) + vocabulary / (12 * layers * hidden))
    assert flop_per_token(name, s) == pytest.approx(expected, rel=1e-3)  # ours also counts biases


def test_megatrons_recompute_adds_a_third_of_the_blocks():
    """The difference of its two formulas is one more forward of the blocks, none of the logits."""
    layers, hidden, s, vocabulary = 80, 12288, 2048, 51200
    whole = 96 * layers * hidden**2 * (1 + s / (6 * hidden) + vocabulary / (16 * layers * hidden))
    plain = 72 * layers * hidden**2 * (1 + s / (6 * hidden) + vocabulary / (12 * layers * hidden))
    causal_saving = 72 * layers * hidden * s / 12
    assert flop_per_token("megatron-145.6b", s) == pytest.approx(plain - causal_saving, rel=1e-3)
    assert whole - plain == pytest.approx(24 * layers * hidden**2 * (1 + s / (6 * hidden)))


def test_llama_2_7b_is_six_flop_per_matrix_weight_and_causal_scores():
    """arXiv 2307.09288: 32 layers of 4 h^2 attention and 3 h f feed-forward weights, one output matrix."""
    hidden, ffn, layers, s = 4096, 11008, 32, 4096
    matrices = layers * (4 * hidden**2 + 3 * hidden * ffn) + 32000 * hidden
    assert flop_per_token("llama-2-7b", s) == pytest.approx(6 * matrices + 6 * layers * hidden * s, rel=1e-9)


def test_mixtral_pays_for_the_two_experts_a_token_visits():
    """arXiv 2401.04088: 2 of 8 experts; grouped queries with 8 key/value heads of 128."""
    hidden, ffn, layers, s = 4096, 14336, 32, 4096
    attention = 2 * hidden * 4096 + 2 * hidden * 1024
    matrices = layers * (attention + 2 * 3 * hidden * ffn + 8 * hidden) + 32000 * hidden
    assert flop_per_token("mixtral-8x7b", s) == pytest.approx(
        6 * matrices + 6 * layers * hidden * s, rel=1e-9
    )


def test_bert_reads_the_whole_sequence_both_ways():
    """arXiv 1810.04805: 24 layers, h 1024, no causal mask, so PaLM's 12 L h s stands whole."""
    hidden, layers, s, vocabulary = 1024, 24, 512, 30522
    matrices = layers * 12 * hidden**2 + hidden**2 + vocabulary * hidden
    expected = 6 * matrices + 12 * layers * hidden * s
    assert flop_per_token("bert-large", s) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("name", ["gpt3-175b", "llama-3.1-405b", "megatron-1008b"])
def test_six_flop_per_parameter_and_token_is_a_good_rule_for_large_models(name):
    model, _ = load_model(name)
    assert flop_per_token(name, 2048) == pytest.approx(6 * total_parameters(model), rel=0.02)


def test_flop_grow_with_the_batch_exactly_and_with_the_sequence_faster():
    model, _ = load_model("llama-2-7b")
    one = model_step_flop(model, 4096, 1)
    assert model_step_flop(model, 4096, 64) == 64 * one
    assert model_step_flop(model, 8192, 1) > 2 * one
