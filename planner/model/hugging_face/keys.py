"""Which keys of a ``config.json`` cannot change cost, and what happens to every other one."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from planner.errors import InputError, UnsupportedFeature
from planner.model.hugging_face.values import Config, describe, escape_pointer

IDENTITY = {
    "_name_or_path", "architectures", "model_type", "transformers_version", "auto_map", "_commit_hash",
    "torch_dtype", "dtype", "torchscript", "return_dict", "use_bfloat16", "tf_legacy_loss",
    "finetuning_task", "id2label", "label2id", "num_labels", "problem_type", "task_specific_params",
    "language", "_attn_implementation", "attn_implementation", "_attn_implementation_autoset",
    "_experts_implementation", "base_model_tp_plan", "unsloth_version", "unsloth_fixed",
    "gradient_checkpointing", "_diffusers_version",
}  # fmt: skip
"""Names, labels, library bookkeeping, storage type (the workload sets the training precision)."""

TOKENS = {
    "bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id", "sep_token_id", "cls_token_id",
    "mask_token_id", "decoder_start_token_id", "forced_bos_token_id", "forced_eos_token_id",
    "tokenizer_class", "prefix", "bad_words_ids",
    "begin_suppress_tokens", "suppress_tokens", "output_past", "directionality",
}  # fmt: skip
"""Special tokens and tokenizer names."""

GENERATION = {
    "use_cache", "max_length", "min_length", "do_sample", "early_stopping", "num_beams",
    "num_beam_groups", "diversity_penalty", "temperature", "top_k", "top_p", "typical_p",
    "repetition_penalty", "length_penalty", "no_repeat_ngram_size", "encoder_no_repeat_ngram_size",
    "num_return_sequences", "output_scores", "return_dict_in_generate", "remove_invalid_values",
    "exponential_decay_length_penalty", "output_attentions", "output_hidden_states",
    "cache_implementation", "chunk_size_feed_forward", "generation_config", "max_new_tokens",
}  # fmt: skip
"""Decoding settings; a training step never reads them."""

NUMERICS = {
    "initializer_range", "initializer_factor", "init_std", "rms_norm_eps", "layer_norm_eps",
    "layer_norm_epsilon", "rope_theta", "rope_scaling", "rope_parameters", "hidden_act",
    "hidden_activation", "activation_function", "pretraining_tp",
    "classifier_dropout", "output_router_logits", "router_aux_loss_coef", "partial_rotary_factor",
    "rope_interleave", "rope_local_base_freq",
}  # fmt: skip
"""Constants inside operations whose shapes stay the same."""

HARMLESS = frozenset(IDENTITY | TOKENS | GENERATION | NUMERICS)

ONLY_WHEN: Mapping[str, tuple[Any, ...]] = {
    "add_cross_attention": (False, None),
    "is_encoder_decoder": (False, None),
    "is_decoder": (False, None),
    "tie_encoder_decoder": (False, None),
    "cross_attention_hidden_size": (None,),
    "pruned_heads": (None, {}, []),
    "sliding_window": (None,),
    "layerdrop": (0.0, 0, None),
    "use_sliding_window": (False, None),
}
"""Keys that cost nothing at these values and change the model at any other."""

COSTLY = re.compile(
    r"^(num|n)_|_(size|dim|rank|layers|heads|experts|width|depth|freq|interval|step|window)$|experts?_|^expert"
    r"|moe|mtp|quantiz|compress|lora|sparse|window|attention_type|cross_attention|adapter|mamba|conv|vision|audio"
)
"""Spellings of unknown keys that most likely name a size, a count or a different operator."""

STORAGE_FORMATS = ("fp8", "mxfp4")
"""quant_method values of released checkpoints that only pack the same weights (DeepSeek-V3, GPT-OSS)."""


def reject_non_finite(config: Mapping[str, Any], *, file: str) -> None:
    """InputError at the first NaN or infinity anywhere in the file (JSON has neither)."""
    pending: list[tuple[str, Any]] = [("", config)]
    while pending:
        pointer, value = pending.pop()
        if isinstance(value, float) and not math.isfinite(value):
            raise InputError(
                f"numbers must be finite, not {value}",
                file=file,
                pointer=pointer,
                hint="write the number, or remove the key",
            )
        if isinstance(value, Mapping):
            pending += [(f"{pointer}/{escape_pointer(str(key))}", item) for key, item in value.items()]
        elif isinstance(value, list):
            pending += [(f"{pointer}/{index}", item) for index, item in enumerate(value)]


def check_other_keys(config: Config, harmless: frozenset[str]) -> None:
    """Deal with every key the family did not read: harmless, refused, or named in a warning."""
    check_quantization(config)
    for key, value in config.data.items():
        if key in config.used:
            continue
        if key in ONLY_WHEN:
            check_fixed_key(config, key, value)
        elif key not in HARMLESS and key not in harmless:
            report_unknown_key(config, key, value)


def check_fixed_key(config: Config, key: str, value: Any) -> None:
    """UnsupportedFeature unless the value is one at which the key costs nothing."""
    if not any(value == allowed and type(value) is type(allowed) for allowed in ONLY_WHEN[key]):
        raise unsupported(
            config,
            key,
            f"{key!r} = {describe(value)} changes the model and is not priced for {config.model_type}",
            f"a value that works: {describe(ONLY_WHEN[key][0])}",
        )


def report_unknown_key(config: Config, key: str, value: Any) -> None:
    """Refuse an unknown key that reads like a size or an operator; warn about any other."""
    if COSTLY.search(key) and value not in (None, False, 0, "", [], {}):
        raise unsupported(
            config,
            key,
            f"key {key!r} = {describe(value)} is not known for {config.model_type} and its name says it "
            "may change the cost",
            "remove the key if it does not change the shapes, or describe the model in a models/*.json file",
        )
    config.warn(
        f"{config.pointer(key)}: key {key!r} = {describe(value)} is not known for {config.model_type}; "
        "not used"
    )


def check_quantization(config: Config) -> None:
    """A checkpoint packed in fp8 or mxfp4 has the shapes it was trained with; other methods are refused.

    GPTQ, AWQ, bitsandbytes and the like freeze the weights they pack, which is a different training job.
    """
    value = config.get("quantization_config")
    if value is None:
        return
    method = value.get("quant_method") if isinstance(value, Mapping) else None
    if method not in STORAGE_FORMATS:
        raise unsupported(
            config,
            "quantization_config",
            f"quantization_config with quant_method {describe(method)} is not priced: "
            "packed weights are frozen",
            "use the config.json of the unquantized model, or remove quantization_config; "
            f"storage formats accepted: {', '.join(STORAGE_FORMATS)}",
        )
    config.warn(
        f"{config.pointer('quantization_config')}: the checkpoint stores weights as {method}; "
        "the storage format is not used, the workload sets the training precision"
    )


def unsupported(
    config: Config, key: str, message: str, hint: str, *, item: int | None = None
) -> UnsupportedFeature:
    """An UnsupportedFeature that points at ``key`` or at one item of its list."""
    return UnsupportedFeature(message, file=config.file, pointer=config.pointer(key, item), hint=hint)
