"""estimate --profile: given degrees priced on measured tables, without a search."""

from __future__ import annotations

from pathlib import Path
from shlex import split

import pytest

from planner.checking import check_plan
from planner.cli.app import run
from planner.errors import InputError, UnsupportedByTarget
from planner.plan_file.schema import Plan
from planner.profile_estimate import make_profile_estimate
from planner.profile_pins import ProfilePins
from planner.profile_plan import make_profile_plan
from planner.profile_request import ProfileRequest

DATA = str(Path(__file__).parents[1] / "data" / "galvatron_profiles")


def estimated(limit=80.0, target="any", **pins):
    request = ProfileRequest((DATA,), 64, 8, limit, pins=ProfilePins(**pins))
    return make_profile_estimate(request, target=target)


def test_an_estimate_is_the_plan_that_the_same_choices_leave():
    pins = ProfilePins(pp=1, tp=2, cp=1, microbatch_size=2, sharding="gradients", recompute="none")
    plan = make_profile_plan(ProfileRequest((DATA,), 64, 8, 80.0, pins=pins))
    mine = estimated(tp=2, microbatch_size=2)
    assert mine.search.status == "estimate"
    assert (mine.decision, mine.prediction) == (plan.decision, plan.prediction)
    assert mine.inputs.options.pins == pins.items()


def test_stages_are_even_and_every_layer_has_the_strategy():
    plan = estimated(pp=4, tp=2, recompute="full")
    assert [s.layers for s in plan.decision.stages] == [(0, 7), (8, 15), (16, 23), (24, 31)]
    runs = [run for stage in plan.decision.stages for run in stage.layer_strategies]
    assert {(run.tp, run.dp, run.recompute) for run in runs} == {(2, 1, "full")}


def test_no_estimate_is_faster_than_the_searchs_plan():
    """Under a limit where all of them fit."""
    best = make_profile_plan(ProfileRequest((DATA,), 64, 8, 120.0)).prediction.step_seconds
    for pins in ({}, {"tp": 2}, {"tp": 8}, {"pp": 4, "recompute": "full"}, {"cp": 2}, {"microbatch_size": 4}):
        assert estimated(120.0, **pins).prediction.step_seconds >= best * (1 - 1e-9), pins


def test_an_estimate_above_the_limit_is_priced_and_says_by_how_much():
    over, ample = estimated(limit=24.0), estimated()
    assert over.prediction.step_seconds == ample.prediction.step_seconds
    assert "above the limit of 24.0 GiB" in over.warnings[-1]
    assert not any("does not fit" in warning for warning in ample.warnings)


def test_an_estimate_is_a_plan_file_that_checks():
    plan = Plan.model_validate_json(estimated(tp=2).to_json())
    assert all(finding.holds for finding in check_plan(plan))


def test_where_one_rank_holds_the_weights_nothing_is_sharded():
    assert estimated(tp=8).decision.sharding == "none"
    assert "sharding" not in estimated(tp=8).inputs.options.pins


def test_what_the_profile_does_not_cover_is_named():
    with pytest.raises(InputError, match="covers gradients, parameters"):
        estimated(sharding="optimizer")
    with pytest.raises(InputError, match="--cp 2: the profile covers 1"):
        estimated(tp=2, cp=2)


def test_a_target_that_cannot_run_it_refuses():
    with pytest.raises(UnsupportedByTarget):
        estimated(target="pytorch", cp=2)


def test_the_command_prints_writes_and_refuses(tmp_path, capfd):
    path = tmp_path / "plan.json"
    asked = split(f"estimate --profile {DATA} --gpus 8 --global-batch 64 --memory-limit-gib 36 --tp 2")
    assert run([*asked, "-o", str(path)]) == 0
    assert "Fits" in capfd.readouterr().out
    assert Plan.model_validate_json(path.read_text()).search.status == "estimate"
    assert run(["check", str(path)]) == 0
    for flag in ("--cluster dgx-h100", "--virtual-stages 2", "--plan plan.json", "--offload optimizer"):
        capfd.readouterr()
        assert run([*asked, *flag.split()]) == 2
        assert f"{flag.split()[0]} has no meaning beside --profile" in capfd.readouterr().err
