"""What a Hugging Face config.json is refused for: the rule, the pointer and a value that would work."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.errors import InputError, UnsupportedFeature
from planner.model.hugging_face import SUPPORTED_MODEL_TYPES, read_hugging_face_config
from planner.model.parameters import total_parameters
from planner.model.spec import ModelSpec

CONFIGS = Path(__file__).parent / "hf_configs"


def config(name: str) -> dict[str, Any]:
    data: dict[str, Any] = json.loads((CONFIGS / f"{name}.json").read_text())
    return data


def changed(name: str, **values: Any) -> dict[str, Any]:
    return {**config(name), **values}


def without(name: str, *keys: str) -> dict[str, Any]:
    return {key: value for key, value in config(name).items() if key not in keys}


def read(data: Any, file: str = "some/model/config.json") -> tuple[ModelSpec, list[str]]:
    return read_hugging_face_config(data, file=file)


def refused(data: Any) -> InputError:
    with pytest.raises(InputError) as caught:
        read(data)
    assert caught.value.details["file"] == "some/model/config.json"
    assert caught.value.hint
    return caught.value


@pytest.mark.parametrize("key", ["hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size"])
def test_a_missing_key_is_named_with_a_value_that_works(key: str) -> None:
    error = refused(without("llama-3.1-8b", key))
    assert key in error.message
    assert error.details["pointer"] == f"/{key}"
    assert f'"{key}":' in error.hint


@pytest.mark.parametrize(
    "value", [-1, 0, 1.5, 4096.0, float("nan"), float("inf"), "4096", True, None, [4096], {}, 10**30]
)
def test_a_size_that_is_no_sensible_whole_number_is_refused(value: Any) -> None:
    error = refused(changed("llama-3.1-8b", hidden_size=value))
    assert error.details["pointer"] == "/hidden_size"


@pytest.mark.parametrize("layers", [10_001, 10**12])
def test_an_absurd_number_of_layers_is_refused_at_once(layers: int) -> None:
    assert refused(changed("deepseek-v3", num_hidden_layers=layers)).details["allowed"] == [1, 10_000]


@pytest.mark.parametrize("value", [1, "false", 0.0])
def test_a_flag_must_be_true_or_false(value: Any) -> None:
    error = refused(changed("llama-3.1-8b", tie_word_embeddings=value))
    assert error.details["pointer"] == "/tie_word_embeddings"


@pytest.mark.parametrize("value", [-0.1, 1.5, "0.1", True])
def test_a_dropout_rate_must_be_a_fraction(value: Any) -> None:
    assert refused(changed("gpt2", attn_pdrop=value)).details["pointer"] == "/attn_pdrop"


def test_nan_is_refused_even_where_nothing_reads_it() -> None:
    data = changed("llama-3.1-8b", rope_scaling={"factor": float("nan")})
    assert refused(data).details["pointer"] == "/rope_scaling/factor"


@pytest.mark.parametrize("data", [[], "llama", None, 3, [{"model_type": "llama"}]])
def test_a_file_that_is_no_object_is_refused(data: Any) -> None:
    assert "JSON object" in refused(data).message


def test_a_text_part_that_is_no_object_is_refused() -> None:
    assert refused({"text_config": [1]}).details["pointer"] == "/text_config"


def test_an_unknown_architecture_lists_the_known_ones_and_the_nearest() -> None:
    error = refused(changed("llama-3.1-8b", model_type="lama"))
    assert isinstance(error, UnsupportedFeature)
    assert "llama" in error.details["nearest"]
    assert error.details["allowed"] == list(SUPPORTED_MODEL_TYPES)
    assert error.details["pointer"] == "/model_type"


def test_an_unknown_key_that_looks_harmless_is_a_warning_with_its_value() -> None:
    _, warnings = read(changed("llama-3.1-8b", favourite_colour="blue"))
    assert len(warnings) == 1
    assert "/favourite_colour" in warnings[0]
    assert "'blue'" in warnings[0]


@pytest.mark.parametrize("key", ["num_memory_tokens", "mamba_state", "kv_proj_dim", "expert_bias", "n_extra"])
def test_an_unknown_key_that_reads_like_a_size_is_refused(key: str) -> None:
    error = refused({**config("llama-3.1-8b"), key: 7})
    assert isinstance(error, UnsupportedFeature)
    assert error.details["pointer"] == f"/{key}"
    model, warnings = read({**config("llama-3.1-8b"), key: None})
    assert model.family == "llama"
    assert key in warnings[0]


@pytest.mark.parametrize("method", ["gptq", "awq", "bitsandbytes", None])
def test_quantized_weights_are_refused(method: str | None) -> None:
    error = refused(changed("llama-3.1-8b", quantization_config={"quant_method": method}))
    assert isinstance(error, UnsupportedFeature)
    assert error.details["pointer"] == "/quantization_config"


@pytest.mark.parametrize(
    ("fixture", "key", "value"),
    [
        ("gpt2", "add_cross_attention", True),
        ("bert-large", "is_decoder", True),
        ("bert-large", "pruned_heads", {"0": [1]}),
        ("llama-3.1-8b", "sliding_window", 4096),
        ("t5-large", "is_encoder_decoder", False),
        ("deepseek-v3", "attention_bias", True),
        ("bert-large", "position_embedding_type", "relative_key"),
        ("opt-350m", "layer_norm_elementwise_affine", False),
        ("opt-350m", "layerdrop", 0.2),
    ],
)
def test_a_known_key_at_a_value_that_changes_the_model_is_refused(fixture: str, key: str, value: Any) -> None:
    error = refused({**config(fixture), key: value})
    assert isinstance(error, UnsupportedFeature)
    assert error.details["pointer"] == f"/{key}"


@pytest.mark.parametrize("kv", [0, 7, 64])
def test_key_value_heads_must_divide_the_heads(kv: int) -> None:
    assert (
        refused(changed("llama-3.1-8b", num_key_value_heads=kv)).details["pointer"] == "/num_key_value_heads"
    )


def test_a_wrong_number_of_experts_per_token_is_refused() -> None:
    error = refused(changed("mixtral-8x7b", num_experts_per_tok=9))
    assert error.details["pointer"] == "/num_experts_per_tok"
    assert "8" in error.message


def test_two_spellings_of_one_fact_must_agree() -> None:
    assert "must agree" in refused(changed("gpt-oss-120b", experts_per_token=2)).message


def test_gpt_neo_attention_types_must_describe_every_layer() -> None:
    data = without("gpt-neo-2.7b", "attention_layers")
    assert "30 layers" in refused({**data, "attention_types": [[["global", "local"], 15]]}).message
    assert refused({**data, "attention_types": [["global", 32]]}).details["pointer"] == "/attention_types"
    assert refused({**data, "attention_types": [[["axial"], 32]]}).details["pointer"] == "/attention_types"


def test_t5_feed_forward_words_are_checked() -> None:
    assert (
        refused(changed("t5-large", feed_forward_proj="wide-relu")).details["pointer"] == "/feed_forward_proj"
    )


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)


def test_a_size_beyond_the_model_format_is_an_input_error() -> None:
    error = refused(changed("deepseek-v3", moe_intermediate_size=10_000_000, n_shared_experts=1000))
    assert "shared_ffn_size" in error.message


@given(st.data())
def test_any_value_of_any_key_gives_a_model_or_a_planner_error(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(path.stem for path in CONFIGS.glob("*.json"))))
    document = config(name)
    key = data.draw(st.sampled_from(sorted(document)))
    document[key] = data.draw(JSON_VALUES)
    try:
        model, _ = read(document)
    except InputError as error:
        pointer = error.details["pointer"]
    else:
        pointer = "/"
        assert total_parameters(model) > 0
    assert pointer.startswith("/")
