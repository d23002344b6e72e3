"""One flag away: every single change is tried, legal, and priced as itself."""

from __future__ import annotations

from dataclasses import replace

import pytest

from planner.api import Choice, choice_decision
from planner.cost.decision_rows import decision_candidates
from planner.cost.model import CostModel
from planner.cost.step import price
from planner.neighbours import neighbours
from planner.request import Request, resolve
from planner.strategy.rules import broken_rules


@pytest.fixture(scope="module")
def found():
    resolved = resolve(Request("llama-3.1-8b", cluster="dgx-h100", gpus=32, seq_len=4096, global_batch=128))
    model = CostModel.of(resolved.problem, resolved.constants)
    choice = Choice(tp=2, pp=4, microbatch_size=2, virtual_stages=2, sharding="optimizer", recompute="full")
    decision = choice_decision(resolved, choice)
    return model, decision, neighbours(model, decision)


def test_every_kind_of_change_is_tried(found):
    _, _, tried = found
    assert {neighbour.change for neighbour in tried} >= {
        "tp 2 -> 4",
        "tp 2 -> 1",
        "pp 4 -> 8",
        "pp 4 -> 2",
        "cp 1 -> 2",
        "microbatch size 2 -> 4",
        "microbatch size 2 -> 1",
        "recompute full -> none",
        "recompute full -> selective",
        "sharding optimizer -> none",
        "sharding optimizer -> gradients",
        "sharding optimizer -> parameters",
        "virtual stages 2 -> 4",
        "virtual stages 2 -> 1",
        "sequence parallelism off",
    }


def test_neighbours_are_legal_and_keep_world_batch_and_layers(found):
    model, decision, tried = found
    for neighbour in tried:
        other = neighbour.decision
        assert not broken_rules(decision_candidates(other, [other.sharding]), model.problem), neighbour.change
        assert other.degrees.world_size == decision.degrees.world_size
        assert other.global_batch == decision.global_batch
        assert other.chunks[-1][1] == decision.chunks[-1][1]
        assert len(other.chunks) == other.degrees.pp * other.virtual_stages


def test_prices_are_the_decisions_own_and_the_order_is_fit_then_time(found):
    model, _, tried = found
    limit = model.problem.memory_limit_bytes
    keys = []
    for neighbour in tried:
        again = price(model, neighbour.decision)
        assert again.step_seconds == neighbour.prediction.step_seconds
        keys.append((again.peak_memory_bytes > limit, again.step_seconds))
    assert keys == sorted(keys)


def test_a_change_there_and_back_is_the_decision_itself(found):
    model, decision, tried = found
    for there, back in (("tp 2 -> 4", "tp 4 -> 2"), ("microbatch size 2 -> 4", "microbatch size 4 -> 2")):
        other = next(n.decision for n in tried if n.change == there)
        again = next(n.decision for n in neighbours(model, other) if n.change == back)
        assert again == replace(decision, sequence_parallel=again.sequence_parallel)
