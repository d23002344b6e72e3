"""Fitting: known constants are found again, bounds hold, files are checked."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

import planner
from planner.calibration.case import Case
from planner.calibration.fit import MIN_ROWS, fit
from planner.calibration.fitted import PARAMETERS, Fitted, read_fitted, to_json
from planner.calibration.leave_out import leave_out
from planner.calibration.provenance import provenance
from planner.calibration.rows import samples
from planner.calibration.shipped import SHIPPED, shipped
from planner.calibration.validation import validate_cases
from planner.catalog import load_device
from planner.cli.app import run as run_planner
from planner.cost.constants import default_constants
from planner.errors import InputError


def runs(constants_for, count=8):
    """Rows whose measured step is what ``constants_for`` predicts: a machine that obeys the model."""
    cases = []
    for index in range(count):
        cells = {
            "id": f"own-{index}",
            "model_name": "gpt",
            "layers": "8",
            "hidden": str(1024 * (1 + index % 3)),
            "heads": "8",
            "vocab": "51200",
            "seq_len": "2048",
            "gpu_name": "A100-SXM4-80GB",
            "gpus": "8",
            "gpus_per_node": "8",
            "global_batch": "64",
            "micro_batch": str(1 + index % 2),
            "dp": "8",
            "tp": "1",
            "pp": "1",
            "stack": "megatron",
            "attention": "flash",
            "recompute": "none",
            "precision": "bf16",
        }
        step = validate_cases([Case(dict(cells))], constants_for)[0].predicted_step_s
        cases.append(Case({**cells, "measured_step_s": str(step)}))
    return cases


def test_a_machine_that_is_slower_by_a_known_factor_is_found_again():
    def slower(device, stack, site):
        return replace(default_constants(device), matmul_efficiency=0.60, pass_factor=1.5)

    cases = runs(slower)
    before = [abs(r.time_error()) for r in validate_cases(cases)]
    fitted = fit(cases)
    after = [abs(r.time_error()) for r in validate_cases(cases, fitted.constants_for)]
    assert sum(after) < 0.25 * sum(before)
    assert max(after) < 0.05


def test_a_fit_gives_the_same_bytes_twice():
    cases = runs(lambda device, stack, site: replace(default_constants(device), launch_seconds=2e-5), count=4)
    assert to_json(fit(cases)) == to_json(fit(cases))


def test_every_shipped_constant_is_inside_its_physical_bounds_and_stands_on_rows():
    bounds = {p.name: (p.low, p.high) for p in PARAMETERS}
    fitted = shipped()
    for scope, groups in fitted.values.items():
        for key, values in groups.items():
            assert fitted.rows[scope][key] >= 3
            for name, value in values.items():
                low, high = bounds[name]
                assert low <= value <= high, (scope, key, name)


def test_shipped_file_reads_back_to_its_own_bytes():
    text = SHIPPED.read_text(encoding="utf-8")
    assert to_json(read_fitted(json.loads(text), "shipped.json")) == text


def test_gpus_and_stacks_nobody_measured_keep_the_priors():
    device = load_device("mi300x")
    assert Fitted().constants_for(device, "unmeasured") == default_constants(device)
    assert shipped().closeness("cdna3", "unmeasured") == "datasheet"


def test_intervals_widen_with_distance_from_measured_ground():
    def width(generation, stack):
        low, high = shipped().interval("time", generation, stack, 1.0)
        assert low < high
        return high - low

    assert width("hopper", "megatron") < width("cdna3", "megatron") < width("cdna3", "unmeasured")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: d.update(schema_version=2), "not a calibration file"),
        (lambda d: d["values"]["stack"].setdefault("megatron", {}).update(pass_factor=99.0), "bounds"),
        (lambda d: d["values"]["stack"].setdefault("megatron", {}).update(luck=1.0), "unknown constant"),
    ],
)
def test_a_wrong_calibration_file_is_refused(change, words):
    document = json.loads(SHIPPED.read_text(encoding="utf-8"))
    change(document)
    with pytest.raises(InputError, match=words):
        read_fitted(document, "mine.json")


def test_nothing_to_fit_is_an_error():
    with pytest.raises(InputError, match="no row"):
        fit([Case({"id": "x-1", "gpu_name": "", "gpus": "1", "dp": "1", "tp": "1", "pp": "1"})])


def test_suspect_rows_are_left_out():
    good = runs(lambda device, stack, site: default_constants(device), count=2)
    suspect = [Case({**case.cells, "notes": "SUSPECT: printed twice"}) for case in good]
    assert len(samples(good + suspect, Fitted().constants_for)) == len(good)


def test_a_constant_that_fewer_than_three_rows_inform_keeps_its_prior():
    """Seven rows of one node and one of four nodes: only that one could tell stragglers."""
    cases = runs(lambda device, stack, site: replace(default_constants(device), matmul_efficiency=0.6))
    cases[-1].cells.update(gpus="32", dp="32", global_batch="256")
    fitted = fit(cases)
    assert "straggler_per_doubling" not in fitted.values["stack"]["megatron"]
    assert "matmul_efficiency" in fitted.values["generation"]["ampere"]


def test_two_rows_fit_nothing():
    fitted = fit(runs(lambda device, stack, site: default_constants(device), count=2))
    assert fitted.values == {"generation": {}, "stack": {}, "site": {}}
    assert fitted.evidence == {}


def test_every_fitted_constant_states_its_rows_sources_and_standard_error():
    fitted = fit(runs(lambda device, stack, site: replace(default_constants(device), pass_factor=2.0)))
    for scope, groups in fitted.values.items():
        for key, values in groups.items():
            assert set(fitted.evidence[scope][key]) == set(values)
            for evidence in fitted.evidence[scope][key].values():
                assert evidence.rows >= MIN_ROWS
                assert evidence.sources == ["own"]
                assert evidence.standard_error > 0.0
    assert read_fitted(json.loads(to_json(fitted)), "mine.json") == fitted


def test_a_second_source_that_agrees_makes_the_constants_surer():
    cases = runs(lambda device, stack, site: replace(default_constants(device), matmul_efficiency=0.6))
    more = [Case({**case.cells, "id": f"other-{index}"}) for index, case in enumerate(cases)]

    def errors(rows):
        return {
            (key, name): evidence.standard_error
            for groups in fit(rows).evidence.values()
            for key, constants in groups.items()
            for name, evidence in constants.items()
        }

    one, two = errors(cases), errors(cases + more)
    # The second source is an installation of its own.
    assert two.keys() - one.keys() == {("other ampere", "site_slowdown")}
    assert all(two[key] <= one[key] for key in one)
    assert any(two[key] < one[key] for key in one)


def test_a_constant_at_a_physical_bound_is_marked():
    cases = runs(lambda device, stack, site: default_constants(device))
    slow = [Case({**c.cells, "measured_step_s": str(9.0 * float(c.text("measured_step_s")))}) for c in cases]
    fitted = fit(slow)
    marked = 0
    for scope, groups in fitted.evidence.items():
        for key, constants in groups.items():
            for name, evidence in constants.items():
                parameter = next(p for p in PARAMETERS if p.name == name)
                value = fitted.values[scope][key][name]
                is_at = {"low": parameter.low, "high": parameter.high}.get(evidence.bound)
                assert is_at is None or value == pytest.approx(is_at, rel=0.05, abs=parameter.high * 0.006)
                marked += is_at is not None
    assert marked


def test_a_group_left_out_does_not_touch_its_own_prediction():
    """The left-out rows may say anything: their prediction is that of a fit which never held them."""
    cases = runs(lambda device, stack, site: replace(default_constants(device), matmul_efficiency=0.6))
    wrong = [
        Case({**c.cells, "id": f"odd-{i}", "measured_step_s": str(5.0 * float(c.text("measured_step_s")))})
        for i, c in enumerate(cases)
    ]
    [_, odd] = leave_out(cases + wrong, cases + wrong, "source", processes=1)
    assert odd.group == "odd"
    alone = validate_cases(wrong, fit(cases).constants_for)
    for found, expected in zip(odd.results, alone, strict=True):
        assert found.predicted_step_s == pytest.approx(expected.predicted_step_s, rel=0.03)


def test_leaving_out_gives_the_same_digits_in_one_process_and_in_two():
    cases = runs(lambda device, stack, site: replace(default_constants(device), pass_factor=2.0), count=6)
    cases += [Case({**c.cells, "id": f"odd-{i}", "hidden": "2048"}) for i, c in enumerate(cases)]

    def predicted(processes):
        found = leave_out(cases, cases, "source", processes=processes)
        return [[row.predicted_step_s for row in one.results] for one in found]

    assert predicted(1) == predicted(2)


def test_leaving_out_the_only_group_is_an_error():
    cases = runs(lambda device, stack, site: default_constants(device), count=4)
    with pytest.raises(InputError, match="one gpu only"):
        list(leave_out(cases, cases, "gpu"))
    with pytest.raises(InputError, match="unknown group"):
        list(leave_out(cases, cases, "colour"))


def test_a_table_of_times_alone_gives_a_calibration_that_plans(tmp_path, capsys):
    """Memory was not measured: its error bars stay as shipped, and that is said."""

    def six_tenths(device, stack, site):
        return replace(default_constants(device), matmul_efficiency=0.6)

    cases = runs(six_tenths, count=6)
    names = list(dict.fromkeys(name for case in cases for name in case.cells))
    table = tmp_path / "runs.csv"
    lines = [",".join(case.text(name) for name in names) for case in cases]
    table.write_text("\n".join([",".join(names), *lines]) + "\n", encoding="utf-8")
    file = tmp_path / "mine.json"
    assert run_planner(["calibrate", str(table), "--all-rows", "-o", str(file)]) == 0
    shown = capsys.readouterr()
    assert "memory interval" in shown.err
    assert "matmul_efficiency" in shown.out
    document = json.loads(file.read_text(encoding="utf-8"))
    assert document["intervals"]["memory"] == shipped().intervals["memory"]
    assert document["provenance"]["table"] == "runs.csv"
    found = planner.estimate("megatron-1.7b", gpu="a100-80g-sxm", gpus=8, calibration=str(file))
    assert "rows of own (runs.csv" in found.inputs.constant_origins["matmul_efficiency"]


def test_the_same_day_gives_the_same_bytes(tmp_path, monkeypatch):
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "86400")
    table = tmp_path / "runs.csv"
    table.write_text("id\n", encoding="utf-8")
    assert provenance(str(table), 1) == provenance(str(table), 1)
    assert provenance(str(table), 1)["date"] == "1970-01-02"
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "tomorrow")
    with pytest.raises(InputError, match="SOURCE_DATE_EPOCH"):
        provenance(str(table), 1)
