"""Scoring predictions: every row has a fate, errors are what a calculator says, the table is not stale."""

from __future__ import annotations

from pathlib import Path

import pytest

from planner.calibration.case import Case, Unsupported, read_cases
from planner.calibration.intervals import coverage, quantile
from planner.calibration.ranking import kendall_tau, ranking_by_group
from planner.calibration.rows import split_rows
from planner.calibration.shipped import shipped
from planner.calibration.validation import (
    RowResult,
    case_cost_model,
    summarise,
    summary,
    validate_cases,
)
from planner.cost.constants import default_constants
from planner.errors import InputError
from planner.model.flop import model_step_flop
from planner.reasons import PUBLISHED_MFU

MEASUREMENTS = Path(__file__).resolve().parents[1] / "published" / "measurements.csv"


@pytest.fixture(scope="module")
def cases():
    return read_cases(MEASUREMENTS)


@pytest.fixture(scope="module")
def judged(cases):
    return validate_cases(split_rows(cases)[1], shipped().constants_for)


def row(predicted, measured, **cells):
    case = Case({"id": "abc-1", "measured_step_s": str(measured), **cells})
    return RowResult(case, "ok", predicted_step_s=predicted)


def test_at_least_93_percent_of_the_published_rows_are_priced(cases):
    results = validate_cases(cases, shipped().constants_for)
    priced = [r for r in results if r.status == "ok"]
    assert len(results) == 711
    assert len(priced) >= 0.93 * len(results)
    assert all(r.message for r in results if r.status != "ok")
    assert all(r.predicted_step_s > 0 and r.predicted_peak_mem_gib > 0 for r in priced)


def test_fitted_and_judged_rows_are_disjoint_and_cover_the_table(cases):
    fitted, judged_rows = split_rows(cases)
    ids = [case.id for case in fitted] + [case.id for case in judged_rows]
    assert sorted(ids) == sorted(case.id for case in cases)
    assert len(set(ids)) == len(ids)


def test_the_80_percent_interval_holds_75_to_85_percent_of_judged_rows(judged):
    share = coverage(shipped(), judged)
    assert 0.75 <= share <= 0.85


def test_suspect_rows_are_not_counted_among_the_rows_an_interval_holds():
    plain = row(1.0, 1.0)
    suspect = row(1.0, 100.0, notes="SUSPECT: two runs on the node")
    assert coverage(shipped(), [plain, suspect]) == coverage(shipped(), [plain]) == 1.0
    assert coverage(shipped(), [suspect]) is None


@pytest.mark.parametrize(
    ("source", "most"),
    [
        *(("mpt", 0.06), ("dgx", 0.06), ("kor", 0.035), ("inv", 0.06), ("vts", 0.0837)),
        *(("smx", 0.04), ("zbp", 0.05), ("bsc", 0.05), ("slr", 0.08)),
    ],
)
def test_well_measured_sources_stay_within_their_median_error(judged, source, most):
    found = next(s for s in summarise(judged, lambda r: r.case.source) if s.source == source)
    assert found.time_median_ape <= most


def test_plans_are_ranked_as_they_ran(judged):
    taus, _, regrets = ranking_by_group(judged)
    assert sum(taus) / len(taus) >= 0.85
    assert sum(regrets) / len(regrets) <= 0.02


def test_allocated_memory_of_one_node_b200_runs_is_within_3_percent(judged):
    found = next(s for s in summarise(judged, lambda r: r.case.source) if s.source == "smx")
    assert found.memory_mape <= 0.03
    assert found.memory_kind == "allocated"


def test_errors_are_what_a_calculator_says():
    found = summary("abc", [row(1.1, 1.0), row(0.8, 1.0), row(2.0, 2.0)])
    assert found.time_mape == pytest.approx(0.1)
    assert found.time_median_ape == pytest.approx(0.1)
    assert found.time_bias == pytest.approx(-1 / 30)
    assert found.time_p90 == pytest.approx(0.2)


def test_kendall_tau_of_known_orders():
    assert kendall_tau([(1, 1), (2, 2), (3, 3)]) == pytest.approx(1.0)
    assert kendall_tau([(1, 3), (2, 2), (3, 1)]) == pytest.approx(-1.0)
    assert kendall_tau([(1, 1), (2, 3), (3, 2)]) == pytest.approx(1 / 3)
    assert kendall_tau([(1, 1), (1, 2)]) is None
    assert kendall_tau([(2, 100), (1, 103), (3, 200)], noise=0.04) == pytest.approx(1.0)
    assert kendall_tau([(2, 100), (1, 103)], noise=0.04) is None


def test_regret_is_the_measured_loss_of_running_the_predicted_best():
    rows = [
        row(1.0, 1.2, model_name="m", tp="1"),
        row(2.0, 1.0, model_name="m", tp="2"),
        row(3.0, 5.0, model_name="other"),
    ]
    taus, _, regrets = ranking_by_group(rows)
    assert taus == [pytest.approx(-1.0)]
    assert regrets == [pytest.approx(0.2)]


def test_repeated_runs_of_one_plan_are_no_ranking():
    again = [row(1.0, 1.2, model_name="m", tp="1"), row(1.1, 1.0, model_name="m", tp="1", recompute="full")]
    assert ranking_by_group(again) == ([], [], [])
    third = row(2.0, 1.05, model_name="m", tp="2")
    taus, _, regrets = ranking_by_group([*again, third])
    assert taus == [pytest.approx(-1.0)]
    assert regrets == [pytest.approx(1.1 / 1.05 - 1.0)]


@pytest.mark.parametrize("column", ["heads", "ffn_hidden", "vocab"])
def test_other_shapes_are_other_models(column):
    """78 layers of 13824 with 96 and with 128 heads were both run: no comparison of plans."""
    rows = [
        row(2.0, 1.0, model_name="m", tp="1", **{column: "96"}),
        row(1.0, 2.0, model_name="m", tp="2", **{column: "128"}),
    ]
    assert ranking_by_group(rows) == ([], [], [])


def test_how_many_ranks_share_the_states_is_a_choice_of_the_plan():
    rows = [
        row(1.0, 1.0, model_name="m", tp="1", dp="8", notes="optimizer states sharded over 4 ranks"),
        row(2.0, 2.0, model_name="m", tp="1", dp="8", notes="optimizer states sharded over all DP ranks"),
    ]
    taus, _, _ = ranking_by_group(rows)
    assert taus == [pytest.approx(1.0)]


def test_quantiles_lie_between_neighbours():
    assert quantile([1.0, 2.0, 3.0], 0.5) == 2.0
    assert quantile([0.0, 10.0], 0.1) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("cells", "reason"),
    [
        ({"gpu_name": "T4 x4 + V100 x4"}, "mixed"),
        ({"gpu_name": "H9000"}, "H9000"),
        ({"gpus": "7", "gpus_per_node": "4"}, "do not fill"),
        ({"dp": "4"}, "ranks, but"),
        ({"global_batch": "nan"}, "global_batch"),
        ({"recompute": "some"}, "recompute"),
        ({"heads": "7"}, "heads"),
        ({"seq_len": ""}, "seq_len"),
        ({"stack": "unheard-of"}, "stack"),
    ],
)
def test_a_row_that_cannot_be_priced_says_why(cells, reason):
    good = {
        "id": "own-1",
        "model_name": "llama-x",
        "layers": "8",
        "hidden": "1024",
        "heads": "8",
        "vocab": "32000",
        "seq_len": "1024",
        "gpu_name": "H100-SXM-80GB",
        "gpus": "8",
        "gpus_per_node": "8",
        "global_batch": "64",
        "micro_batch": "1",
        "dp": "8",
        "tp": "1",
        "pp": "1",
        "stack": "megatron",
        "measured_step_s": "1",
    }
    assert validate_cases([Case(dict(good))])[0].status == "ok"
    result = validate_cases([Case({**good, **cells})])[0]
    assert result.status != "ok"
    assert reason.lower() in result.message.lower()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "column"),
        ("id,gpu_name\n", "gpus"),
        ("id,gpu_name,gpus,dp,tp,pp\n", "no rows"),
        ("id,gpu_name,gpus,dp,tp,pp\na,b,1,1,1,1,9\n", "line 2"),
    ],
)
def test_a_broken_table_is_an_input_error(tmp_path, text, words):
    path = tmp_path / "runs.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=words):
        read_cases(path)


def test_the_plausibility_ceilings_are_the_highest_published_utilisations(cases):
    best: dict[str, float] = {}
    for case in cases:
        if case.source == "mgs" or case.text("precision") == "fp8":
            continue
        try:
            model = case_cost_model(case, lambda device, stack, site: default_constants(device))
            seconds = case.number("measured_step_s")
        except (Unsupported, InputError):
            continue
        if seconds:
            w, problem = model.problem.workload, model.problem
            flop = model_step_flop(problem.model, w.sequence_length, w.global_batch)
            share = flop / (seconds * model.device.half_flop_per_s * problem.world_size)
            generation = problem.cluster.device.generation
            best[generation] = max(best.get(generation, 0.0), share)
    for generation, ceiling in PUBLISHED_MFU.items():
        assert best[generation] == pytest.approx(ceiling, abs=5e-4)
