"""Which constants a plan is priced with: its stack's or its kin's, and those of an installation like it."""

from __future__ import annotations

import pytest

from planner.calibration.fitted import Fitted, read_fitted
from planner.calibration.installations import Installation, expected_value
from planner.calibration.shipped import shipped
from planner.catalog import load_device
from planner.cost.stack import RELATIVES
from planner.cost.stack import STACKS as PROFILES
from planner.errors import InputError
from planner.launchers.registry import launcher, launcher_names
from planner.request import Request, resolve

SITES = {"a hopper": 1.1, "b hopper": 1.3, "c ampere": 0.9, "d hopper": 2.0}
STACKS = {
    "a hopper": ["megatron"],
    "b hopper": ["megatron"],
    "c ampere": ["megatron"],
    "d hopper": ["torchtitan"],
}


def fitted() -> Fitted:
    found = Fitted(site_stacks=STACKS)
    found.values["site"] = {site: {"site_slowdown": value} for site, value in SITES.items()}
    return found


def expected(stack: str, site: str = "", gpu: str = "h100-sxm") -> float:
    return fitted().constants_for(load_device(gpu), stack, site).site_slowdown


def test_a_known_installation_keeps_its_own_constant():
    assert expected("torchtitan", "c ampere") == pytest.approx(0.9)


def test_one_installation_of_the_same_generation_and_stack_leaves_a_quarter_to_chance():
    """Covariance 3 of 4: common part, generation and stack shared, its own not."""
    known = {"a": Installation("hopper", ["megatron"], 1.5)}
    assert expected_value(known, "hopper", ["megatron"]) == pytest.approx(1.5**0.75)
    assert expected_value(known, "hopper", ["torchtitan"]) == pytest.approx(1.5**0.5)
    assert expected_value(known, "ampere", ["torchtitan"]) == pytest.approx(1.5**0.25)


def test_many_installations_that_agree_are_believed():
    known = {str(i): Installation("hopper", ["megatron"], 1.5) for i in range(50)}
    assert expected_value(known, "hopper", ["megatron"]) == pytest.approx(1.5, rel=0.01)


def test_without_installations_nothing_is_expected():
    assert expected_value({}, "hopper", ["megatron"]) == 1.0
    assert Fitted().constants_for(load_device("h100-sxm"), "megatron").site_slowdown == 1.0


def test_an_unknown_machine_is_nearest_to_its_own_stack_and_generation():
    values = expected("megatron", gpu="a100-80g-sxm"), expected("megatron"), expected("torchtitan")
    assert list(values) == sorted(values)
    assert values[0] < 1.0 < values[1] < 1.3 < values[2] < 2.0


def test_a_stack_takes_what_its_runs_do_not_tell_from_its_nearest_kin():
    found = fitted()
    found.values["stack"] = {
        "megatron": {"pass_factor": 1.2, "kernel_slowdown": 1.1},
        "megatron-deepspeed": {"kernel_slowdown": 1.3},
    }
    device = load_device("h100-sxm")
    constants = found.constants_for(device, "megatron-deepspeed-fp32")
    assert (constants.kernel_slowdown, constants.pass_factor) == (1.3, 1.2)
    assert found.constants_for(device, "torchtitan").pass_factor == 1.0
    assert "megatron-deepspeed" in found.origins("hopper", "megatron-deepspeed-fp32")["kernel_slowdown"]
    assert "as megatron-deepspeed" in found.basis("hopper", "megatron-deepspeed-fp32")


def test_relatives_are_stacks_with_constants_of_their_own():
    own = {stack.fitted_as for stack in PROFILES.values()}
    assert own >= {name for kin in RELATIVES.values() for name in kin} | set(RELATIVES)


@pytest.mark.parametrize("target", launcher_names())
def test_a_target_is_priced_with_the_constants_of_its_stack(target):
    stack = launcher(target).limits.stack
    request = Request("llama-3.1-8b", gpu="h100-sxm", gpus=8)
    expected = shipped().constants_for(load_device("h100-sxm"), PROFILES[stack].fitted_as)
    assert resolve(request, stack).constants == expected


def test_torchtitan_and_megatron_differ_in_what_was_fitted_to_them():
    request = Request("llama-3.1-8b", gpu="h100-sxm", gpus=8)
    ours, theirs = resolve(request).constants, resolve(request, "torchtitan").constants
    assert ours.attention_slowdown == shipped().values["stack"]["megatron"]["attention_slowdown"]
    assert theirs.attention_slowdown == shipped().values["stack"]["torchtitan"]["attention_slowdown"]
    assert ours.attention_slowdown != theirs.attention_slowdown


@pytest.mark.parametrize("wrong", [["megatron"], {"smx blackwell": "megatron"}, {"smx blackwell": [1]}])
def test_stacks_of_installations_that_are_no_lists_of_names_are_refused(wrong):
    document = {"schema_version": 1, "values": {}, "site_stacks": wrong}
    with pytest.raises(InputError, match="site_stacks") as refused:
        read_fitted(document, "mine.json")
    assert "megatron" in (refused.value.hint or "")
