"""Error bars: risks and ties follow their definition, and a plan keeps the risk it was given."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

import planner
from planner.api import Choice, make_estimate
from planner.calibration.case import Case
from planner.calibration.error_bars import ErrorBars
from planner.calibration.intervals import ranking_noise
from planner.calibration.shipped import SHIPPED
from planner.calibration.validation import RowResult
from planner.errors import InputError
from planner.reasons import PUBLISHED_MFU
from planner.request import Request, resolve

QUESTION = {"gpu": "h100-sxm", "gpus": 8, "seq_len": 4096, "global_batch": 64}
BARS = ErrorBars("same", (-0.2, 0.1), (-0.15, 0.10), 0.05)
GIB = 1024.0**3


@given(risk=st.floats(0.001, 0.999), low=st.floats(-0.5, -0.01), high=st.floats(0.01, 0.5))
def test_the_peak_at_a_risk_has_that_risk(risk, low, high):
    bars = ErrorBars("same", (low, high), (low, high), None)
    peak = bars.peak_bytes_at_risk(80 * GIB, risk)
    assert bars.out_of_memory_probability(peak, 80 * GIB) == pytest.approx(risk, abs=1e-6)


def test_the_interval_s_ends_have_the_risk_of_their_quantiles():
    capacity = 80 * GIB
    assert BARS.out_of_memory_probability(capacity * math.exp(-0.15), capacity) == pytest.approx(0.1)
    assert BARS.out_of_memory_probability(capacity * math.exp(0.10), capacity) == pytest.approx(0.9)


@given(peak=st.floats(1.0, 200.0), more=st.floats(0.01, 50.0), capacity=st.floats(8.0, 200.0))
def test_more_memory_needed_or_less_there_never_lowers_the_risk(peak, more, capacity):
    risk = BARS.out_of_memory_probability(peak * GIB, capacity * GIB)
    assert 0.0 <= risk <= BARS.out_of_memory_probability((peak + more) * GIB, capacity * GIB)
    assert risk >= BARS.out_of_memory_probability(peak * GIB, (capacity + more) * GIB)


def test_a_tie_is_symmetric_and_needs_a_known_noise():
    assert BARS.is_tied(1.0, 1.04)
    assert BARS.is_tied(1.04, 1.0)
    assert not BARS.is_tied(1.0, 1.06)
    assert not ErrorBars("same", (-0.2, 0.1), (-0.2, 0.1), None).is_tied(1.0, 1.0)


def test_an_error_common_to_all_plans_is_no_ranking_noise():
    def rows(factors):
        return [
            RowResult(
                Case({"id": f"abc-{i}", "measured_step_s": "1.0", "model_name": "m", "tp": str(i)}),
                "ok",
                predicted_step_s=factor,
            )
            for i, factor in enumerate(factors)
        ]

    assert ranking_noise([rows([1.3, 1.3, 1.3])]) == pytest.approx(0.0)
    assert ranking_noise([rows([1.0, 1.1])]) == pytest.approx(math.log(1.1), rel=1e-3)
    assert ranking_noise([rows([1.0])]) is None


@pytest.fixture(scope="module")
def noisy(tmp_path_factory):
    """The shipped calibration with a ranking noise of a factor of two."""
    document = json.loads(SHIPPED.read_text(encoding="utf-8"))
    document["ranking"] = dict.fromkeys(("same", "part", "datasheet"), math.log(2.0))
    document["intervals"]["time"] = {key: [-0.5, 0.25] for key in ("same", "part", "datasheet")}
    path = tmp_path_factory.mktemp("calibration") / "noisy.json"
    path.write_text(json.dumps(document), encoding="utf-8")
    return str(path)


def test_a_plan_carries_the_error_bars_of_its_calibration(noisy):
    found = planner.plan("llama-3.1-8b", **QUESTION, calibration=noisy)
    p = found.prediction
    assert p.step_seconds_interval[0] == pytest.approx(p.step_seconds * math.exp(-0.25))
    assert p.step_seconds_interval[1] == pytest.approx(p.step_seconds * math.exp(0.5))
    assert found.alternatives
    for other in found.alternatives:
        is_near = other.prediction.step_seconds < 2.0 * p.step_seconds
        assert other.tied == is_near
        assert ("tied within the error of 69.3%" in other.why) == is_near


@pytest.mark.parametrize("risk", [0.02, 0.1, 0.3])
def test_a_plan_keeps_the_risk_it_was_given(risk):
    found = planner.plan("llama-3.1-8b", **QUESTION, oom_risk=risk)
    assert found.prediction.out_of_memory_probability <= risk * (1 + 1e-9)
    assert found.inputs.options.oom_risk == risk
    assert any(f"{risk:.0%}" in text or "kept free" in text for text in found.inputs.options.assumptions)


def test_less_risk_never_gives_a_faster_plan():
    careful, bold = (planner.plan("llama-3.1-8b", **QUESTION, oom_risk=risk) for risk in (0.01, 0.3))
    assert careful.prediction.step_seconds >= bold.prediction.step_seconds * (1 - 1e-9)


def test_a_memory_limit_stands_above_the_default_risk_and_states_it():
    found = planner.plan("llama-3.1-8b", **QUESTION, memory_limit_gib=79)
    assert found.prediction.memory_limit_bytes == 79 * GIB
    assert found.inputs.options.oom_risk is None
    assert 0.0 <= found.prediction.out_of_memory_probability <= 1.0


@pytest.mark.parametrize("risk", [0.0, 1.0, -1.0, float("nan")])
def test_a_risk_outside_0_to_1_is_refused(risk):
    with pytest.raises(InputError, match="--oom-risk"):
        planner.plan("llama-3.1-8b", **QUESTION, oom_risk=risk)


def test_a_prediction_above_every_published_utilisation_says_so():
    sober = replace(resolve(Request(model="llama-3.1-8b", **QUESTION)).constants, kernel_slowdown=1.8)
    dreamt = replace(sober, matmul_efficiency=0.99, kernel_slowdown=0.6)
    for constants, is_flagged in ((sober, False), (dreamt, True)):
        found = make_estimate(Request(model="llama-3.1-8b", **QUESTION, constants=constants), Choice(tp=1))
        assert (found.prediction.mfu > PUBLISHED_MFU["hopper"]) == is_flagged
        assert any("above the highest" in text for text in found.warnings) == is_flagged
