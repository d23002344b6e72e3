"""``read_hugging_face_config``: from a parsed config.json to a ModelSpec and warnings in words."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from pydantic import ValidationError

from planner.errors import InputError, UnsupportedFeature, nearest_names
from planner.model.hugging_face import deepseek, encoders, experts, gpt, llama, parallel, t5
from planner.model.hugging_face.keys import check_other_keys, reject_non_finite
from planner.model.hugging_face.naming import model_name
from planner.model.hugging_face.values import Config, describe
from planner.model.spec import ModelSpec


class Family(NamedTuple):
    """How one model_type is read."""

    read: Callable[[Config], ModelSpec]
    harmless: frozenset[str]
    class_prefix: str


FAMILIES: Mapping[str, Family] = {
    "bert": Family(encoders.read_bert, encoders.BERT_HARMLESS, "Bert"),
    "bloom": Family(gpt.read_bloom, gpt.BLOOM_HARMLESS, "Bloom"),
    "cohere": Family(parallel.read_cohere, parallel.COHERE_HARMLESS, "Cohere"),
    "cohere2": Family(parallel.read_cohere2, parallel.COHERE2_HARMLESS, "Cohere2"),
    "deepseek_v2": Family(deepseek.read_deepseek_v2, deepseek.DEEPSEEK_HARMLESS, "DeepseekV2"),
    "deepseek_v3": Family(deepseek.read_deepseek_v3, deepseek.DEEPSEEK_HARMLESS, "DeepseekV3"),
    "falcon": Family(parallel.read_falcon, parallel.FALCON_HARMLESS, "Falcon"),
    "gemma2": Family(llama.read_gemma2, llama.GEMMA_HARMLESS, "Gemma2"),
    "gemma3_text": Family(llama.read_gemma3, llama.GEMMA_HARMLESS, "Gemma3"),
    "gpt2": Family(gpt.read_gpt2, gpt.GPT2_HARMLESS, "GPT2"),
    "gpt_neo": Family(gpt.read_gpt_neo, gpt.GPT_NEO_HARMLESS, "GPTNeo"),
    "gpt_neox": Family(parallel.read_gpt_neox, parallel.GPT_NEOX_HARMLESS, "GPTNeoX"),
    "gpt_oss": Family(experts.read_gpt_oss, experts.GPT_OSS_HARMLESS, "GptOss"),
    "llama": Family(llama.read_llama, llama.LLAMA_HARMLESS, "Llama"),
    "mistral": Family(llama.read_mistral, llama.MISTRAL_HARMLESS, "Mistral"),
    "mixtral": Family(experts.read_mixtral, experts.MIXTRAL_HARMLESS, "Mixtral"),
    "opt": Family(gpt.read_opt, gpt.OPT_HARMLESS, "OPT"),
    "phi3": Family(llama.read_phi3, llama.PHI3_HARMLESS, "Phi3"),
    "qwen2": Family(llama.read_qwen2, llama.QWEN_HARMLESS, "Qwen2"),
    "qwen2_5_vl": Family(llama.read_qwen2_5_vl, llama.QWEN2_5_VL_HARMLESS, "Qwen2_5_VL"),
    "qwen2_5_vl_text": Family(llama.read_qwen2_5_vl, llama.QWEN2_5_VL_HARMLESS, "Qwen2_5_VLText"),
    "qwen3": Family(llama.read_qwen3, llama.QWEN_HARMLESS, "Qwen3"),
    "qwen3_moe": Family(experts.read_qwen3_moe, experts.QWEN3_MOE_HARMLESS, "Qwen3Moe"),
    "starcoder2": Family(gpt.read_starcoder2, gpt.STARCODER2_HARMLESS, "Starcoder2"),
    "t5": Family(t5.read_t5, t5.T5_HARMLESS, "T5"),
    "vit": Family(encoders.read_vit, encoders.VIT_HARMLESS, "ViT"),
}

SUPPORTED_MODEL_TYPES: tuple[str, ...] = tuple(sorted(FAMILIES))
"""Every model_type that can be read."""

REFUSED: Mapping[str, str] = {
    "llama4": "chunked attention and head norms without weights cannot be said in the model format",
    "llama4_text": "chunked attention and head norms without weights cannot be said in the model format",
    "olmo": "norms without weights cannot be said in the model format",
    "olmo2": "one norm over all heads of queries and of keys, whose sum crosses tp ranks, is not priced",
    "olmoe": "one norm over all heads of queries and of keys, whose sum crosses tp ranks, is not priced",
}
"""Known types that cannot be described exactly, and why."""

CLASS_NAME = re.compile(
    r"^(?P<prefix>\w+?)(?P<task>LMHeadModel|WithLMHeadModel|DoubleHeadsModel|Model|For[A-Z]\w*)$"
)
PRICED_TASKS = {
    "ForCausalLM", "LMHeadModel", "WithLMHeadModel", "ForPreTraining", "ForMaskedLM",
    "ForConditionalGeneration", "ForImageClassification", "Model",
}  # fmt: skip
NESTED_KEYS = ("text_config", "llm_config", "language_config")
SHARED_KEYS = ("tie_word_embeddings", "quantization_config")
"""Keys that apply to the language model although multimodal files write them at the top."""


class TextPart(NamedTuple):
    """The language model's keys, their JSON pointer, and the keys taken over from the top."""

    keys: dict[str, Any]
    base: str
    inherited: frozenset[str]


def read_hugging_face_config(config: dict[str, Any], *, file: str) -> tuple[ModelSpec, list[str]]:
    """The model described by a Hugging Face config.json, and warnings in words.

    ``config`` is the parsed JSON, ``file`` its path for messages and, without ``_name_or_path``, the
    name. Raises InputError (a value breaks a rule) or UnsupportedFeature (an architecture or a key that
    cannot be priced); every error carries the file and a JSON pointer.
    """
    require_object(config, file=file, pointer="")
    reject_non_finite(config, file=file)
    warnings: list[str] = []
    part, base, inherited = text_part(config, file=file, warnings=warnings)
    architectures = class_names(part, file=file, base=base)
    model_type = find_model_type(part, architectures, file=file, base=base)
    name = model_name(part if part.get("_name_or_path") else config, file)
    view = Config(
        part,
        file=file,
        model_type=model_type,
        name=name,
        base=base,
        warnings=warnings,
        inherited=inherited,
    )
    family = FAMILIES[model_type]
    try:
        spec = family.read(view)
    except ValidationError as error:
        raise from_validation(error, file=file, base=base) from error
    check_other_keys(view, family.harmless)
    warn_about_task(view, architectures)
    return spec, warnings


def require_object(value: Any, *, file: str, pointer: str) -> None:
    """InputError unless ``value`` is a JSON object."""
    if not isinstance(value, dict):
        raise InputError(
            f"must be a JSON object of keys and values, not {describe(value)}",
            file=file,
            pointer=pointer or "/",
            hint='the smallest start is {"model_type": "llama", ...}',
        )


def text_part(config: dict[str, Any], *, file: str, warnings: list[str]) -> TextPart:
    """The part that describes the language model; says what is left out."""
    for key in NESTED_KEYS:
        if config.get(key) is None:
            continue
        require_object(config[key], file=file, pointer=f"/{key}")
        part = dict(config[key])
        taken = {shared for shared in SHARED_KEYS if part.get(shared) is None and shared in config}
        part |= {shared: config[shared] for shared in taken}
        others = sorted(set(config) - {key} - taken)
        warnings.append(
            f"/{key}: only the language model is read; the vision or audio part is not priced "
            f"(keys left out: {', '.join(others) or 'none'})"
        )
        return TextPart(part, f"/{key}", frozenset(taken))
    return TextPart(config, "", frozenset())


def class_names(part: Mapping[str, Any], *, file: str, base: str) -> list[str]:
    """The checked ``architectures`` list, empty when absent."""
    value = part.get("architectures")
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise InputError(
            f"architectures must be a list of class names, not {describe(value)}",
            file=file,
            pointer=f"{base}/architectures",
            hint='write "architectures": ["LlamaForCausalLM"], or remove the key',
        )
    return value


def find_model_type(part: Mapping[str, Any], architectures: list[str], *, file: str, base: str) -> str:
    """model_type, or the family of the class in ``architectures``; errors list what is supported."""
    supported = ", ".join(SUPPORTED_MODEL_TYPES)
    value = part.get("model_type")
    pointer = f"{base}/model_type"
    if value is None:
        by_prefix = {family.class_prefix: name for name, family in FAMILIES.items()}
        for name in architectures:
            match = CLASS_NAME.match(name)
            if match and match["prefix"] in by_prefix:
                return by_prefix[match["prefix"]]
        if not architectures:
            raise InputError(
                "required key 'model_type' is missing and there are no architectures to infer it from",
                file=file,
                pointer=pointer,
                allowed=list(SUPPORTED_MODEL_TYPES),
                hint=f'write for example "model_type": "llama"; supported: {supported}',
            )
        value, pointer = architectures[0], f"{base}/architectures/0"
    elif not isinstance(value, str):
        raise InputError(
            f"'model_type' must be a string, not {describe(value)}",
            file=file,
            pointer=pointer,
            allowed=list(SUPPORTED_MODEL_TYPES),
            hint=f'write for example "model_type": "llama"; supported: {supported}',
        )
    if value in FAMILIES:
        return str(value)
    near = nearest_names(value, SUPPORTED_MODEL_TYPES)
    reason = f": {REFUSED[value]}" if value in REFUSED else f"; nearest: {', '.join(near)}" if near else ""
    raise UnsupportedFeature(
        f"model_type {value!r} cannot be read{reason}",
        file=file,
        pointer=pointer,
        allowed=list(SUPPORTED_MODEL_TYPES),
        hint=f"supported: {supported}; any other model can be described in a models/*.json file",
        nearest=near,
    )


def warn_about_task(config: Config, architectures: list[str]) -> None:
    """Say so when the file's class has another head than the one priced."""
    for name in architectures[:1]:
        match = CLASS_NAME.match(name)
        if match and match["task"] not in PRICED_TASKS:
            config.warn(
                f"{config.pointer('architectures')}: {name} has a head of its own; the pre-training head of "
                f"{config.model_type} is priced instead"
            )


def from_validation(error: ValidationError, *, file: str, base: str) -> InputError:
    """A broken rule of ModelSpec as an InputError of this file."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    return InputError(
        f"the model it describes is not consistent: {where + ': ' if where else ''}{first['msg']}",
        file=file,
        pointer=base or "/",
        hint="compare the file with the model's published config.json",
    )
