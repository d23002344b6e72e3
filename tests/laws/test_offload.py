"""Laws of the optimizer on the host: a last resort, never more GPU memory, bytes and seconds by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from planner.api import Choice, make_estimate, make_plan
from planner.checking import check_plan
from planner.cluster.topology import resolve_cluster
from planner.cost.decision_rows import decision_candidates
from planner.cost.model import CostModel
from planner.cost.offload import fullest_node_bytes, on_host, usable_bytes
from planner.cost.stack import STACKS
from planner.cost.step import price
from planner.errors import InfeasibleError, InputError, UnsupportedFeature
from planner.model.parameters import total_parameters
from planner.plan_file.difference import diff_plans
from planner.plan_file.read import read_decision
from planner.plan_file.schema import Plan
from planner.request import Request, resolve
from planner.search.engine import search
from planner.search.last_resort import search_all
from planner.search.tree import Pins
from planner.strategy.decision import OFFLOAD_OPTIMIZER, SHARDING_NONE
from planner.strategy.limits import ANY
from planner.strategy.rules import broken_rules
from planner.units import GIB

HOSTED = Pins(offload="optimizer")
TIGHT = Request(
    "llama-3.1-8b", gpu="a100-40g-sxm", gpus=2, seq_len=2048, global_batch=16, host_memory_gib=256
)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_it_never_takes_more_gpu_memory_nor_less_time(cost_models, any_decision, data):
    kind = data.draw(st.sampled_from(["dense", "experts"]))
    model, decision = cost_models(kind), data.draw(any_decision(is_moe=kind == "experts"))
    hosted = replace(decision, offload=OFFLOAD_OPTIMIZER)
    here, there = price(model, decision), price(model, hosted)
    assert there.peak_memory_bytes <= here.peak_memory_bytes
    for one, other in zip(here.stages, there.stages, strict=True):
        assert other.memory_bytes["optimizer"] == 0.0
        assert other.host_bytes > 0.0
        others = [name for name in one.memory_bytes if name not in ("optimizer", "total")]
        assert [one.memory_bytes[n] for n in others] == [other.memory_bytes[n] for n in others]
    assert there.step_seconds >= here.step_seconds
    assert sum(there.breakdown_seconds.values()) == pytest.approx(there.step_seconds, rel=1e-9)
    assert here.host_bytes == 0.0


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_bytes_on_all_hosts_are_those_of_all_parameters_once(cost_models, any_decision, data):
    """Sharded over the whole data group every element is updated by one rank: 18 bytes of AdamW each."""
    model = cost_models("dense")
    decision = replace(data.draw(any_decision(is_island=False)), offload=OFFLOAD_OPTIMIZER)
    assume(decision.sharding != SHARDING_NONE)
    stride = decision.degrees.stage_stride
    total = sum(stage.host_bytes for stage in price(model, decision).stages) * stride
    parameters = total_parameters(model.problem.model)
    # Norm weights are whole on every tp rank, the vocabulary is padded, a tied table is on both ends.
    assert total >= 18.0 * parameters * (1 - 1e-9)
    assert total <= 18.0 * parameters * 1.2


@settings(max_examples=200, deadline=None)
@given(
    per_stage=st.lists(st.integers(0, 100).map(float), min_size=1, max_size=9),
    stride=st.integers(1, 12),
    node=st.integers(1, 16),
)
def test_the_fullest_node_is_found_rank_by_rank(per_stage, stride, node):
    ranks = [held for held in per_stage for _ in range(stride)]
    nodes = [sum(ranks[at : at + node]) for at in range(0, len(ranks), node)]
    assert fullest_node_bytes(per_stage, stride, node) == pytest.approx(max(nodes))


def test_seconds_and_bytes_by_hand():
    """8.03e9 parameters over 8 ranks: 6 bytes over PCIe and 30 through host memory an element."""
    request = TIGHT.changed(gpu=None, cluster="dgx-a100", gpus=8, host_memory_gib=None)
    plan = make_estimate(request, Choice(sharding="optimizer", offload="optimizer"))
    here = make_estimate(request, Choice(sharding="optimizer"))
    elements = total_parameters(plan.inputs.model) / 8
    constants = plan.inputs.constants
    link = 6 * elements / (31.5e9 * dict(constants["link_efficiency"])["pcie"])
    adam = 30 * elements / (409.6e9 / 8 * constants["host_adam_efficiency"])
    spent = plan.prediction.breakdown_seconds["optimizer"]
    stream = 2039e9 * constants["bandwidth_efficiency"] / constants["optimizer_bytes_factor"]
    assert spent == pytest.approx(link + adam + 10 * elements / stream, rel=0.01)
    assert plan.prediction.host_memory_bytes == pytest.approx(
        18 * total_parameters(plan.inputs.model), rel=0.01
    )
    freed = here.prediction.peak_memory_bytes - plan.prediction.peak_memory_bytes
    assert freed == pytest.approx(12 * elements, rel=0.01)
    assert plan.prediction.host_memory_usable_bytes == pytest.approx(0.9 * 2048 * GIB)


@pytest.mark.parametrize("gpus", [2, 8])
@pytest.mark.parametrize("limit", [10.0, 24.0, 38.0])
def test_only_where_nothing_else_fits(gpus, limit):
    """Under auto a plan on the host means that the GPUs alone hold none, and the other way round."""
    resolved = resolve(TIGHT.changed(gpus=gpus, memory_limit_gib=limit))
    model = CostModel.of(resolved.problem, resolved.constants)
    try:
        alone = search(model, ANY, Pins(), top=1).best
    except InfeasibleError:
        alone = None
    try:
        search_all(model, ANY, HOSTED, top=1)
    except InfeasibleError:
        if alone is None:
            with pytest.raises(InfeasibleError, match="on the host too"):
                search_all(model, ANY, Pins(), top=1)
            return
    found = search_all(model, ANY, Pins(), top=1).best
    assert (found.decision.offload == OFFLOAD_OPTIMIZER) == (alone is None)
    if alone is not None:
        assert found.seconds == alone.seconds


def test_none_and_optimizer_pin_it():
    with pytest.raises(InfeasibleError, match="nothing fits") as error:
        make_plan(TIGHT, Pins(offload="none"))
    assert "on the host" not in error.value.message
    assert error.value.details["would_fit"][0]["flags"] == "without --offload"
    roomy = TIGHT.changed(gpus=8)
    assert make_plan(roomy).decision.offload == "none"
    assert make_plan(roomy, HOSTED).decision.offload == "optimizer"
    with pytest.raises(InputError, match="not a choice"):
        make_plan(roomy, Pins(offload="parameters"))
    with pytest.raises(InputError, match="not a choice for target pytorch"):
        make_plan(roomy, HOSTED, target="pytorch")
    with pytest.raises(InfeasibleError, match="offload-optimizer"):
        make_plan(roomy.changed(optimizer="sgd-momentum"), HOSTED)


def test_a_host_too_small_is_an_error_with_the_size_that_would_do():
    with pytest.raises(InfeasibleError, match=r"on the host too.*usable") as error:
        make_plan(TIGHT.changed(host_memory_gib=100))
    remedy = error.value.details["would_fit"][0]
    assert remedy["flags"].startswith("--host-memory-gib ")
    wanted = float(remedy["flags"].split()[1])
    found = make_plan(TIGHT.changed(host_memory_gib=wanted))
    assert found.prediction.step_seconds == pytest.approx(remedy["step_seconds"], rel=1e-9)
    assert found.prediction.host_memory_bytes <= found.prediction.host_memory_usable_bytes
    with pytest.raises(InputError, match="positive"):
        make_plan(TIGHT.changed(host_memory_gib=0))


def test_the_plan_says_so_and_can_be_checked_read_back_and_compared():
    plan = make_plan(TIGHT.changed(host_memory_gib=None, gpu="a100-80g-sxm", gpus=1))
    assert any("optimizer is on the host" in reason for reason in plan.why)
    assert any("last resort" in warning for warning in plan.warnings)
    assumed = " ".join(plan.inputs.options.assumptions)
    assert "host memory of 160 GiB" in assumed
    assert "host memory bandwidth of 51 GB/s" in assumed
    again = Plan.model_validate_json(plan.to_json())
    assert again == plan
    assert read_decision(again.decision).offload == OFFLOAD_OPTIMIZER
    assert all(finding.holds for finding in check_plan(again))
    names = [finding.name for finding in check_plan(again)]
    assert "host memory" in names
    other = make_plan(TIGHT.changed(gpu="a100-80g-sxm", gpus=4))
    changes = {change.field: (change.before, change.after) for change in diff_plans(plan, other).decision}
    assert changes["offload"] == ("optimizer", "none")
    assert "offload" not in other.model_dump(mode="json")["decision"]


def test_a_check_finds_a_host_that_cannot_hold_it():
    plan = make_plan(TIGHT)
    group = plan.inputs.cluster.profile.node_groups[0]
    small = group.model_copy(
        update={"host_memory_gib": group.host_memory_gib.model_copy(update={"value": 64.0})}
    )
    profile = plan.inputs.cluster.profile.model_copy(update={"node_groups": [small]})
    cluster = plan.inputs.cluster.model_copy(update={"profile": profile})
    bad = plan.model_copy(update={"inputs": plan.inputs.model_copy(update={"cluster": cluster})})
    failed = {finding.name for finding in check_plan(bad) if not finding.holds}
    assert failed == {"inputs digest", "host memory"}


def test_replicas_that_update_the_same_weights_break_a_rule(cost_models):
    problem = cost_models("dense").problem
    plan = make_estimate(TIGHT.changed(gpus=4), Choice(sharding="optimizer", offload="optimizer"))
    decision = read_decision(plan.decision)
    unsharded = replace(decision, sharding=SHARDING_NONE)
    rules = broken_rules(decision_candidates(unsharded, [0]), problem)
    assert "offload-sharded" in [rule.name for rule in rules]
    with pytest.raises(InputError, match="offload-sharded"):
        make_estimate(TIGHT.changed(gpus=4), Choice(sharding="none", offload="optimizer"))


def test_stacks_without_apart_weights_cannot():
    with pytest.raises(UnsupportedFeature, match="torchtitan"):
        on_host(STACKS["torchtitan"])


def test_a_faster_host_is_never_slower():
    request = TIGHT.changed(gpu=None, cluster="dgx-a100", gpus=8)
    resolved = resolve(request)
    seconds = []
    for rate in (100.0, 400.0, 1600.0):
        group = resolved.profile.node_groups[0]
        stated = group.host_memory_bandwidth_gb_per_s.model_copy(update={"value": rate})
        group = group.model_copy(update={"host_memory_bandwidth_gb_per_s": stated})
        profile = resolved.profile.model_copy(update={"node_groups": [group]})
        cluster = resolve_cluster(profile, resolved.device, 8)
        model = CostModel.of(replace(resolved.problem, cluster=cluster), resolved.constants)
        found = search_all(model, ANY, HOSTED, top=1).best
        assert found.prediction.host_bytes <= usable_bytes(cluster.host)
        seconds.append(found.seconds)
    assert seconds == sorted(seconds, reverse=True)
