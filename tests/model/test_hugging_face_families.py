"""Families read from released files: parameters to the unit, and the shape of a block.

The counts are those of transformers' own classes (5.x, AutoModelForCausalLM.from_config on the meta device;
of gemma3 and qwen2_5_vl the language model and its head), tied weights counted once.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from planner.errors import InputError, UnsupportedFeature
from planner.model.hugging_face import read_hugging_face_config
from planner.model.parameters import total_parameters
from planner.model.spec import ModelSpec

CONFIGS = Path(__file__).parent / "hf_configs"

COUNTED = {
    "command-r-v01": 34_980_831_232,
    "command-r7b": 8_028_033_024,
    "falcon-40b": 41_303_293_952,
    "falcon-7b": 6_921_720_704,
    "gemma-3-1b": 999_885_952,
    "gemma-3-27b": 27_009_346_304,
    "gpt-neox-20b": 20_554_567_680,
    "qwen2.5-vl-7b": 7_615_616_512,
    "starcoder2-7b": 7_173_923_840,
}


def config(name: str, **changes: Any) -> dict[str, Any]:
    data: dict[str, Any] = json.loads((CONFIGS / f"{name}.json").read_text())
    return {**data, **changes}


def read(data: dict[str, Any]) -> tuple[ModelSpec, list[str]]:
    return read_hugging_face_config(data, file="some/model/config.json")


def only_block(name: str, **changes: Any) -> Any:
    (block,) = read(config(name, **changes))[0].block_kinds.values()
    return block


def windows(name: str, **changes: Any) -> list[int | None]:
    model, _ = read(config(name, **changes))
    return [model.block_kinds[kind].attention.window for _, kind in model.block_sequence()]


@pytest.mark.parametrize(("name", "count"), COUNTED.items())
def test_parameters_are_those_of_transformers_own_class(name: str, count: int) -> None:
    assert total_parameters(read(config(name))[0]) == count


@pytest.mark.parametrize(
    ("name", "changes", "count"),
    [
        ("gpt-neox-20b", {"use_parallel_residual": False}, 20_554_567_680),
        ("gpt-neox-20b", {"attention_bias": False, "tie_word_embeddings": True}, 20_243_632_128),
        ("falcon-40b", {"num_ln_in_parallel_attn": 1, "ffn_hidden_size": 16384}, 25_196_183_552),
        ("falcon-7b", {"multi_query": False, "parallel_attn": False, "bias": True}, 8_226_175_872),
        ("starcoder2-7b", {"use_bias": False, "tie_word_embeddings": False}, 7_399_351_296),
        ("command-r-v01", {"attention_bias": True, "tie_word_embeddings": False}, 37_079_293_952),
    ],
)
def test_every_switch_changes_the_count_as_the_class_does(
    name: str, changes: dict[str, Any], count: int
) -> None:
    assert total_parameters(read(config(name, **changes))[0]) == count


@pytest.mark.parametrize(
    ("name", "changes", "norms", "parallel"),
    [
        ("gpt-neox-20b", {}, 2, True),
        ("gpt-neox-20b", {"use_parallel_residual": False}, 2, False),
        ("falcon-7b", {}, 1, True),
        ("falcon-7b", {"parallel_attn": False}, 2, False),
        ("falcon-40b", {}, 2, True),
        ("falcon-40b", {"parallel_attn": False}, 2, True),
        ("falcon-40b", {"num_ln_in_parallel_attn": 1}, 1, True),
        ("command-r-v01", {}, 1, True),
    ],
)
def test_blocks_side_by_side_say_how_many_norms_they_read_through(
    name: str, changes: dict[str, Any], norms: int, parallel: bool
) -> None:
    block = only_block(name, **changes)
    assert (block.num_norms, block.parallel) == (norms, parallel)


def test_falcon_shares_one_key_head_or_groups_them() -> None:
    assert only_block("falcon-7b").attention.num_kv_heads == 1
    assert only_block("falcon-7b", multi_query=False).attention.num_kv_heads == 71
    assert only_block("falcon-40b").attention.num_kv_heads == 8


def test_windows_leave_every_sixth_or_fourth_layer_whole() -> None:
    assert windows("gemma-3-1b") == [None if i % 6 == 5 else 512 for i in range(26)]
    assert windows("gemma-3-1b", sliding_window_pattern=2) == [None if i % 2 else 512 for i in range(26)]
    assert windows("command-r7b") == [None if i % 4 == 3 else 4096 for i in range(32)]
    assert windows("starcoder2-7b") == [4096] * 32


def test_gemma3_has_four_norms_norms_on_heads_and_no_cap() -> None:
    model, _ = read(config("gemma-3-27b"))
    blocks = model.block_kinds.values()
    assert all(block.num_norms == 4 and block.attention.qk_norm for block in blocks)
    assert model.head.tied
    assert not model.head.soft_cap


def test_numbers_a_released_file_leaves_out_are_said() -> None:
    model, warnings = read(config("gemma-3-27b"))
    assert (model.vocab_size, model.max_sequence_length) == (262_208, 131_072)
    assert warnings[1].endswith("vocab_size = 262208, max_position_embeddings = 131072")
    assert read(config("falcon-7b"))[1] == [
        "/: falcon defaults taken for absent keys: max_position_embeddings = 2048"
    ]
    for name in ("gpt-neox-20b", "starcoder2-7b", "command-r-v01", "command-r7b", "gemma-3-1b"):
        assert read(config(name))[1] == []


def test_qwen2_5_vl_is_the_same_model_flat_and_nested() -> None:
    flat, warnings = read(config("qwen2.5-vl-7b"))
    assert "the vision part is not priced" in warnings[0]
    top = {"architectures", "model_type", "vision_config", "transformers_version"}
    text = {key: value for key, value in config("qwen2.5-vl-7b").items() if key not in top}
    nested, _ = read({"model_type": "qwen2_5_vl", "text_config": {"model_type": "qwen2_5_vl_text", **text}})
    words = {"family", "name"}
    assert nested.model_dump(exclude=words) == flat.model_dump(exclude=words)


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("command-r-v01", "use_qk_norm", True),
        ("falcon-7b", "alibi", True),
        ("falcon-7b", "num_ln_in_parallel_attn", 2),
        ("gemma-3-1b", "use_bidirectional_attention", True),
        ("starcoder2-7b", "norm_type", "rms_norm"),
        ("starcoder2-7b", "mlp_type", "gated"),
    ],
)
def test_what_the_format_cannot_say_is_refused_with_a_value_that_works(
    name: str, key: str, value: Any
) -> None:
    with pytest.raises(UnsupportedFeature) as caught:
        read(config(name, **{key: value}))
    assert caught.value.details["pointer"] == f"/{key}"
    assert f'"{key}": ' in caught.value.hint


def test_falcon_key_heads_must_divide_the_heads() -> None:
    with pytest.raises(InputError) as caught:
        read(config("falcon-40b", num_kv_heads=7))
    assert caught.value.details["pointer"] == "/num_kv_heads"


@pytest.mark.parametrize(
    ("model_type", "why"),
    [
        ("llama4", "chunked attention"),
        ("llama4_text", "head norms without weights"),
        ("olmo", "norms without weights"),
        ("olmo2", "crosses tp ranks"),
        ("olmoe", "crosses tp ranks"),
    ],
)
def test_a_known_type_that_cannot_be_said_exactly_is_refused_with_its_reason(
    model_type: str, why: str
) -> None:
    with pytest.raises(UnsupportedFeature, match=why) as caught:
        read({"model_type": model_type})
    assert caught.value.details["pointer"] == "/model_type"
