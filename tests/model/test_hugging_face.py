"""Reading a Hugging Face config.json: equal to the built-in model, strict about everything else."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.errors import InputError, UnsupportedFeature
from planner.model.hugging_face import SUPPORTED_MODEL_TYPES, read_hugging_face_config
from planner.model.hugging_face.layout import fold
from planner.model.parameters import total_parameters
from planner.model.spec import ModelSpec

CONFIGS = Path(__file__).parent / "hf_configs"
MODELS = Path(__file__).parents[2] / "models"

BUILT_IN = {
    "bert-large": "bert-large",
    "bloom-176b": "bloom-176b",
    "deepseek-v2": "deepseek-v2",
    "deepseek-v3": "deepseek-v3",
    "gemma-2-27b": "gemma-2-27b",
    "gpt-neo-2.7b": "gpt-neo-2.7b",
    "gpt-oss-120b": "gpt-oss-120b",
    "gpt2": "gpt2",
    "llama-2-70b": "llama-2-70b",
    "llama-3.1-8b": "llama-3.1-8b",
    "mistral-7b": "mistral-7b",
    "mixtral-8x7b": "mixtral-8x7b",
    "opt-350m": "opt-350m",
    "qwen2.5-7b": "qwen2.5-7b",
    "qwen3-30b-a3b": "qwen3-30b-a3b",
    "qwen3-8b": "qwen3-8b",
    "t5-large": "t5-large",
    "vit-huge-patch14-224-in21k": "vit-huge-32",
}


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


def layout(model: ModelSpec) -> list[tuple[str, list[str], int]]:
    return [(stack.name, run.kinds, run.repeat) for stack in model.stacks for run in stack.layout]


def without_keys(data: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in data.items() if key not in keys}


@pytest.mark.parametrize(("fixture", "built_in"), BUILT_IN.items())
def test_a_config_gives_the_built_in_model(fixture: str, built_in: str) -> None:
    model, _ = read(config(fixture), file=f"{fixture}.json")
    expected = ModelSpec.model_validate(json.loads((MODELS / f"{built_in}.json").read_text()))
    assert total_parameters(model) == total_parameters(expected)
    assert total_parameters(model, active=True) == total_parameters(expected, active=True)
    words = {"name", "aliases", "source", "published_parameters", "notes", "family"}
    assert layout(model) == layout(expected)
    assert model.model_dump(exclude=words) == expected.model_dump(exclude=words)


def test_every_family_has_a_fixture() -> None:
    files = [config(path.stem) for path in CONFIGS.glob("*.json")]
    types = {data.get("text_config", data)["model_type"] for data in files}
    # The text part of a Qwen2.5-VL file is the flat file's (test_hugging_face_families).
    assert types | {"qwen2_5_vl_text"} == set(SUPPORTED_MODEL_TYPES)


def test_released_configs_give_no_warning_but_the_stated_ones() -> None:
    said = {name: read(config(name))[1] for name in BUILT_IN}
    assert {name for name, warnings in said.items() if warnings} == {
        "deepseek-v3",
        "gpt-oss-120b",
        "vit-huge-patch14-224-in21k",
    }
    assert "stores weights as fp8" in said["deepseek-v3"][0]
    assert "1000 classes" in said["vit-huge-patch14-224-in21k"][0]


def test_t5_v1_1_is_gated_and_untied() -> None:
    model, warnings = read(config("t5-v1.1-large"))
    assert total_parameters(model) == 783_150_080
    assert not model.head.tied
    assert "n_positions" in warnings[0]


def test_a_multimodal_file_gives_its_text_part_and_says_so() -> None:
    model, warnings = read(config("mistral-small-3.1-24b"), file="mistral-small-3.1-24b.json")
    assert model.family == "mistral"
    assert model.name == "mistral-small-3.1-24b"
    assert total_parameters(model) == 23_572_403_200
    assert "not priced" in warnings[0]
    assert "vision_config" in warnings[0]


def test_a_nested_error_points_inside_the_text_part() -> None:
    data = config("mistral-small-3.1-24b")
    del data["text_config"]["hidden_size"]
    error = refused(data)
    assert error.details["pointer"] == "/text_config/hidden_size"
    packed = {**config("mistral-small-3.1-24b"), "quantization_config": {"quant_method": "awq"}}
    assert refused(packed).details["pointer"] == "/quantization_config"


def test_the_tied_flag_of_a_multimodal_file_may_stand_at_the_top() -> None:
    data = {**config("mistral-small-3.1-24b"), "tie_word_embeddings": True}
    assert read(data)[0].head.tied


def test_without_a_model_type_the_class_name_decides() -> None:
    for name in BUILT_IN:
        assert read(without(name, "model_type"))[0].family == config(name)["model_type"]
    error = refused({"architectures": ["MambaForCausalLM"]})
    assert isinstance(error, UnsupportedFeature)
    assert error.details["pointer"] == "/architectures/0"
    assert refused({"hidden_size": 1}).details["pointer"] == "/model_type"
    assert refused(changed("gpt2", architectures="GPT2LMHeadModel")).details["pointer"] == "/architectures"
    assert refused(changed("gpt2", model_type=["gpt2"])).details["pointer"] == "/model_type"


def test_head_dim_defaults_to_hidden_over_heads_and_may_differ() -> None:
    assert read(config("llama-3.1-8b"))[0].block_kinds["block"].attention.head_dim == 128  # type: ignore[union-attr]
    wide = read(changed("llama-3.1-8b", head_dim=256))[0]
    assert total_parameters(wide) > total_parameters(read(config("llama-3.1-8b"))[0])
    error = refused(changed("llama-3.1-8b", num_attention_heads=24))
    assert "4096 % 24 = 16" in error.message


def test_absent_key_value_heads_mean_no_grouping() -> None:
    model, warnings = read(without("llama-2-70b", "num_key_value_heads"))
    assert model.block_kinds["block"].attention.num_kv_heads == 64  # type: ignore[union-attr]
    assert not warnings
    _, stated = read(without("mistral-7b", "num_key_value_heads"))
    assert "transformers would take 8" in stated[0]


def test_qwen_windows_start_at_max_window_layers() -> None:
    data = changed("qwen2.5-7b", use_sliding_window=True, max_window_layers=20, sliding_window=4096)
    assert layout(read(data)[0]) == [("decoder", ["full"], 20), ("decoder", ["sliding"], 8)]
    assert refused(without_keys(data, "max_window_layers")).details["pointer"] == "/max_window_layers"
    assert refused(without_keys(data, "sliding_window")).details["pointer"] == "/sliding_window"


def test_layer_types_decide_when_given() -> None:
    kinds = (["sliding_attention"] * 5 + ["full_attention"]) * 7 + ["sliding_attention"] * 4
    model, _ = read(changed("gemma-2-27b", layer_types=kinds))
    assert layout(model)[0] == ("decoder", ["sliding"] * 5 + ["full"], 7)
    error = refused(changed("gemma-2-27b", layer_types=kinds[:-1]))
    assert "45 entries" in error.message
    error = refused(changed("gemma-2-27b", layer_types=["linear_attention", *kinds[1:]]))
    assert error.details["pointer"] == "/layer_types/0"


def test_gemma_and_gpt_oss_alternate_without_layer_types() -> None:
    assert layout(read(without("gpt-oss-120b", "layer_types"))[0]) == [("decoder", ["sliding", "full"], 18)]


def test_phi3_has_llamas_shapes() -> None:
    """Phi-3-mini-4k-instruct: 3,821,079,552 parameters in its safetensors index."""
    phi = config("phi-3-mini")
    model, warnings = read(phi)
    assert total_parameters(model) == 3_821_079_552
    assert not warnings
    (block,) = model.block_kinds.values()
    assert block.attention.window == 2047
    assert not block.dropout
    assert next(iter(read({**phi, "resid_pdrop": 0.1})[0].block_kinds.values())).dropout


def test_qwen3_moe_dense_layers_follow_the_step_and_the_list() -> None:
    assert layout(read(changed("qwen3-30b-a3b", decoder_sparse_step=2))[0]) == [
        ("decoder", ["dense", "moe"], 24)
    ]
    some = read(changed("qwen3-30b-a3b", mlp_only_layers=[0, 1]))[0]
    assert layout(some) == [("decoder", ["dense"], 2), ("decoder", ["moe"], 46)]
    assert refused(changed("qwen3-30b-a3b", mlp_only_layers=[48])).details["pointer"] == "/mlp_only_layers/0"


def test_deepseek_without_query_rank_projects_queries_directly() -> None:
    model, _ = read(changed("deepseek-v2", q_lora_rank=None))
    h, heads, qk, rank = 5120, 128, 192, 1536
    direct, low = h * heads * qk, h * rank + rank + rank * heads * qk
    assert total_parameters(model) - total_parameters(read(config("deepseek-v2"))[0]) == 60 * (direct - low)


def test_deepseek_routes_every_nth_layer() -> None:
    model, _ = read(changed("deepseek-v3", first_k_dense_replace=0, moe_layer_freq=2, num_hidden_layers=8))
    assert layout(model) == [("decoder", ["moe", "dense"], 4)]


def test_dropout_follows_the_file() -> None:
    assert read(config("gpt2"))[0].block_kinds["block"].dropout
    off = changed("gpt2", attn_pdrop=0.0, resid_pdrop=0.0, embd_pdrop=0.0)
    assert not read(off)[0].block_kinds["block"].dropout


def test_another_head_than_the_priced_one_is_stated() -> None:
    _, warnings = read(changed("llama-3.1-8b", architectures=["LlamaForSequenceClassification"]))
    assert "LlamaForSequenceClassification" in warnings[0]


@pytest.mark.parametrize(
    ("file", "said", "name"),
    [
        ("x/Llama-3.1-8B/config.json", None, "llama-3.1-8b"),
        ("config.json", None, "config"),
        ("my model.json", None, "my-model"),
        ("config.json", "meta-llama/Meta-Llama-3-8B", "meta-llama-3-8b"),
        ("a/models--Qwen--Qwen3-8B/snapshots/0123/config.json", None, "qwen3-8b"),
        ("here/config.json", "./", "here"),
    ],
)
def test_the_name_comes_from_the_file_or_its_place(file: str, said: str | None, name: str) -> None:
    data = config("llama-3.1-8b") if said is None else changed("llama-3.1-8b", _name_or_path=said)
    assert read(data, file=file)[0].name == name


def test_the_input_is_not_changed() -> None:
    for path in CONFIGS.glob("*.json"):
        data = config(path.stem)
        before = copy.deepcopy(data)
        read(data)
        assert data == before


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=60))
def test_folding_keeps_the_sequence(sequence: list[str]) -> None:
    runs = fold(sequence)
    assert [kind for run in runs for _ in range(run.repeat) for kind in run.kinds] == sequence
