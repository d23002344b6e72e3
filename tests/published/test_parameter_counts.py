"""Our parameter counts against the figures the models' authors print."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from planner.model.parameters import total_parameters
from planner.model.spec import ModelSpec

MODELS = sorted((Path(__file__).parents[2] / "models").glob("*.json"))
TOLERANCE = 0.005

PRINTED_ACTIVE = [
    ("qwen3-235b-a22b", 22e9, 1e9, True),
    ("qwen3-30b-a3b", 3.3e9, 0.1e9, True),
    ("deepseek-v2", 21e9, 1e9, True),
    ("deepseek-v3", 37e9, 1e9, False),
    ("gpt-oss-120b", 5.13e9, 0.01e9, False),
]
"""(model, active parameters as printed, the last digit printed, embedding counted by the authors)."""

PRINTED_TOTAL = [
    ("megatron-1.7b", 1.7e9, 0.1e9),
    ("megatron-3.6b", 3.6e9, 0.1e9),
    ("gpt-neo-2.7b", 2.7e9, 0.1e9),
]
"""Totals printed too coarsely for a 0.5 % comparison: they must still round to the printed digits."""


def load(path: Path) -> ModelSpec:
    return ModelSpec.model_validate(json.loads(path.read_text()))


def named(name: str) -> ModelSpec:
    return load(next(path for path in MODELS if path.stem == name))


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.stem)
def test_total_count_is_within_half_a_percent_of_the_published_one(path: Path) -> None:
    model = load(path)
    assert model.published_parameters is not None
    assert total_parameters(model) == pytest.approx(model.published_parameters.total, rel=TOLERANCE)


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.stem)
def test_active_count_is_within_half_a_percent_of_the_published_one(path: Path) -> None:
    model = load(path)
    assert model.published_parameters is not None
    published = model.published_parameters.active
    if published is None:
        assert not model.is_moe or "Active is printed only as" in model.published_parameters.note
    else:
        assert model.is_moe
        assert total_parameters(model, active=True) == pytest.approx(published, rel=TOLERANCE)


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.stem)
def test_dense_models_are_wholly_active_and_routed_ones_are_not(path: Path) -> None:
    model = load(path)
    active, total = total_parameters(model, active=True), total_parameters(model)
    assert active < total if model.is_moe else active == total


@pytest.mark.parametrize(("name", "printed", "digit", "with_embedding"), PRINTED_ACTIVE)
def test_active_count_agrees_with_the_printed_digits(
    name: str, printed: float, digit: float, with_embedding: bool
) -> None:
    model = named(name)
    count = total_parameters(model, active=True)
    if not with_embedding:
        count -= model.vocab_size * model.hidden_size
    assert abs(count - printed) <= digit


@pytest.mark.parametrize(("name", "printed", "digit"), PRINTED_TOTAL)
def test_total_count_rounds_to_the_printed_digits(name: str, printed: float, digit: float) -> None:
    assert abs(total_parameters(named(name)) - printed) <= digit / 2


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.stem)
def test_the_file_is_named_like_the_model_and_says_where_its_numbers_come_from(path: Path) -> None:
    model = load(path)
    assert model.name == path.stem
    assert model.source
    assert model.aliases
    assert model.published_parameters is not None
    assert model.published_parameters.source


def test_no_two_models_share_a_name_or_an_alias() -> None:
    names = [name.lower() for path in MODELS for name in (load(path).name, *load(path).aliases)]
    assert len(names) == len(set(names)), sorted(name for name in names if names.count(name) > 1)


def test_megatron_totals_follow_the_papers_equation() -> None:
    """arXiv 2104.04473, equation (2): P = 12 l h^2 (1 + 13 / (12 h) + (V + s) / (12 l h)), no final norm."""
    for path in MODELS:
        model = load(path)
        if model.family != "megatron-gpt":
            continue
        layers, h = model.num_layers, model.hidden_size
        equation = 12 * layers * h * h + 13 * layers * h + (model.vocab_size + 2048) * h
        assert total_parameters(model) == equation + 2 * h
