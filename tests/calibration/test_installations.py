"""Which constants a plan is priced with: its stack's, and the median installation that ran it."""

from __future__ import annotations

import pytest

from planner.calibration.fitted import Fitted, read_fitted
from planner.calibration.shipped import shipped
from planner.catalog import load_device
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


@pytest.mark.parametrize(
    ("stack", "site", "slowdown"),
    [
        ("megatron", "", 1.1),
        ("torchtitan", "", 2.0),
        ("torchtitan", "elsewhere hopper", 2.0),
        ("never measured", "", 1.2),
        ("torchtitan", "c ampere", 0.9),
    ],
)
def test_an_unknown_machine_has_the_median_of_those_that_ran_the_stack(stack, site, slowdown):
    device = load_device("h100-sxm")
    assert fitted().constants_for(device, stack, site).site_slowdown == pytest.approx(slowdown)


@pytest.mark.parametrize("target", launcher_names())
def test_a_target_is_priced_with_the_constants_of_its_stack(target):
    from planner.cost.stack import STACKS as PROFILES

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
