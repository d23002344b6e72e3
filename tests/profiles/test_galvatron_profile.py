"""Reading Hetu-Galvatron's files: what they say, and what is refused."""

from __future__ import annotations

import json
import re
from itertools import groupby
from pathlib import Path

import pytest

from planner.catalog import load_model
from planner.errors import InfeasibleError, InputError
from planner.profile_plan import make_profile_plan
from planner.profile_request import ProfileRequest, resolve_profile
from planner.profiles.files import read_files
from planner.profiles.galvatron import read_galvatron
from planner.profiles.galvatron_costs import layered_settings, profiled_model
from planner.profiles.tables import SizeTable
from planner.search.layered import search_layered
from planner.strategy.layered import LayerChoice
from planner.units import GIB, MIB

DATA = Path(__file__).parents[1] / "data" / "galvatron_profiles"
COMPUTATION = "computation_profiling_bf16_llama2-7b_all.json"
MEMORY = "memory_profiling_bf16_llama2-7b_all.json"
EIGHT = [
    COMPUTATION,
    MEMORY,
    "allreduce_bandwidth_1nodes_8gpus_per_node.json",
    "p2p_bandwidth_1nodes_8gpus_per_node.json",
    "sp_time_1nodes_8gpus_per_node.json",
    "overlap_coefficient.json",
]


def profile():
    return read_galvatron(read_files([str(DATA)]), 8)


def settings(batch=64):
    found = profile()
    return layered_settings(found, profiled_model(found, load_model("llama-2-7b")[0]), batch).settings


def changed(tmp_path, name, change):
    """The folder of the eight-GPU profile with one document changed; ``change`` returns None to drop it."""
    for file in EIGHT:
        document = json.loads((DATA / file).read_text())
        if file == name:
            document = change(document)
        if document is not None:
            (tmp_path / file).write_text(json.dumps(document))
    return str(tmp_path)


def test_units_are_mib_per_millisecond_and_milliseconds():
    found = profile()
    assert found.bus_bytes_per_s[8, True] == pytest.approx(154.203 * MIB * 1000)
    assert found.all_reduce[8].seconds(1024 * MIB) == pytest.approx(8.1409e-3)
    assert found.all_reduce[8].seconds(3 * MIB) == pytest.approx((0.1094e-3 + 0.1333e-3) / 2)
    assert found.layer_memory[0].parameters == pytest.approx(778.2236328125 * MIB / 4)
    assert found.layer_seconds[0].seconds(12) == pytest.approx(12 * 3.9181755e-3, rel=0.01)
    assert any("raw rows only" in note for note in found.notes)


def test_a_batch_line_reproduces_the_measured_batches():
    document = json.loads((DATA / COMPUTATION).read_text())
    line = profile().layer_seconds[0]
    for key, value in document.items():
        match = re.fullmatch(r"layertype_0_bsz(\d+)_seq2048", key)
        if match:
            samples = int(match[1])
            assert line.seconds(samples) == pytest.approx(value * samples / 1000, rel=0.07)


def test_memory_rule_against_the_raw_rows_of_the_profile():
    """States and peaks that the profiler measured on 1 and 2 layers: the rule the table uses, row by row."""
    document = json.loads((DATA / MEMORY).read_text())
    kept = document["layertype_0_sp"]["2048"]["tp_activation_per_bsz_dict"]
    weights = document["layertype_0_sp"]["2048"]["parameter_size"]
    ends = document["other_memory_pp_off_sp"]["2048"]
    rows = 0
    for key, measured in document.items():
        match = re.fullmatch(r"1_(\d)_(\d)(_c)?(_vtp)?_sp", key)
        if not match or (match[1] != "1" and not match[4]):
            continue
        tp, dp, is_lean = int(match[1]), int(match[2]), bool(match[3])
        samples = 8 // dp
        for count in (1, 2):
            states = count * 4 * weights / tp / dp + ends["model_states"][str(tp)] / dp
            whole = kept[str(tp)] * samples
            own = kept["checkpoint"] * samples if is_lean else whole
            peak = count * own + (whole - own) + ends["activation"][str(tp)] * samples
            name = f"layernum[{count}]_bsz8_seq2048_rank0"
            assert states == pytest.approx(measured[f"{name}_ms"], rel=0.005)
            assert -0.05 <= peak / measured[f"{name}_act_peak"] - 1 <= 0.065
            rows += 1
    assert rows == 10


def test_the_table_prices_a_layer_as_its_docstring_says():
    setting = next(s for s in settings() if (s.pp, s.microbatches) == (2, 8))
    at = setting.strategies.index(LayerChoice(2, 1, 2, 2, 2))
    found, c = profile(), setting.costs
    once = found.layer_seconds[0].seconds(8 / 2 / 2)
    gather = found.all_reduce[2].seconds(4 * 2048 * 4096 * 2) / 2
    assert c.forward_seconds[0, at] == pytest.approx(once + 4 * gather)
    assert c.backward_seconds[0, at] == pytest.approx(3 * once + 6 * gather)
    weights = found.layer_memory[0].parameters / 2
    assert c.state_bytes[0, at] == pytest.approx(weights * (2 + 2 + 12 / 2))
    assert c.activation_bytes[0, at] == pytest.approx(32 * MIB * 4 / 2)
    traffic = 2 * 0.5 * weights * 2 / found.bus_bytes_per_s[2, False]
    slow = found.overlap_slowdown - 1
    backward = 3 * once
    exposed = max(backward, traffic) + slow * min(backward, traffic) - backward
    assert c.sync_seconds[0, at] == pytest.approx(exposed)


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("overlap_coefficient.json", lambda d: None, ["no overlap_coefficient.json"]),
        (MEMORY, lambda d: None, [f"no {MEMORY}"]),
        (COMPUTATION, lambda d: {**d, "layertipe_0_bsz1_seq2048": 1.0}, ["unknown key", "layertipe_0"]),
        (MEMORY, lambda d: {**d, "other_memory_pp_of_sp": {}}, ["unknown key", "other_memory_pp_of_sp"]),
        (EIGHT[2], lambda d: {k: v * 1e9 for k, v in d.items()}, ["MB/ms", "MiB per millisecond"]),
        (EIGHT[4], lambda d: {k: v * 1e-9 for k, v in d.items()}, ["milliseconds"]),
        (EIGHT[5], lambda d: {"overlap_coe": 0.5}, ["overlap_coe", "between 1"]),
        (COMPUTATION, lambda d: {k: v for k, v in d.items() if k.startswith("layernum")}, ["raw rows only"]),
        (COMPUTATION, lambda d: {k: -v for k, v in d.items()}, ["positive"]),
        (COMPUTATION, lambda d: {k: v * 1e-9 for k, v in d.items()}, ["TFLOP/s", "milliseconds"]),
    ],
)
def test_a_broken_profile_is_refused_with_the_reason(tmp_path, name, change, words):
    folder = changed(tmp_path, name, change)
    with pytest.raises(InputError) as error:
        resolve_profile(ProfileRequest((folder,), 64, 8, 36.0))
    for word in words:
        assert word in str(error.value)


def test_a_profile_of_another_model_is_refused():
    with pytest.raises(InputError, match="another model, or another unit"):
        resolve_profile(ProfileRequest((str(DATA),), 64, 8, 36.0, model="llama-2-13b"))


def test_missing_rows_are_gaps_in_the_funnel_not_guesses(tmp_path):
    folder = changed(tmp_path, EIGHT[2], lambda d: {k: v for k, v in d.items() if "size_4_consec_0" not in k})
    plan = make_profile_plan(ProfileRequest((folder,), 64, 8, 36.0))
    reasons = [step["reason"] for step in plan.search.funnel if step["step"] == "left out"]
    assert "no row allreduce_size_4_consec_0" in reasons


def test_machine_and_batch_must_be_covered():
    with pytest.raises(InputError, match="no all-reduce table for 32 GPUs"):
        resolve_profile(ProfileRequest((str(DATA),), 64, 32, 36.0))
    with pytest.raises(InputError, match="several machines"):
        resolve_profile(ProfileRequest((str(DATA),), 64, None, 36.0))
    with pytest.raises(InputError, match="measured at sequence lengths"):
        resolve_profile(ProfileRequest((str(DATA),), 64, 8, 36.0, seq_len=4096))


def test_size_tables_are_read_between_rows_only_in_straight_lines():
    table = SizeTable.of({1e6: 1e-3, 2e6: 1.5e-3, 4e6: 3e-3}, "file", "what")
    assert table.seconds(10.0) == 1e-3
    assert table.seconds(1.5e6) == pytest.approx(1.25e-3)
    assert table.seconds(8e6) == pytest.approx(6e-3)


def test_more_memory_is_never_slower():
    found = settings()
    steps = []
    for gib in (16, 20, 24, 28, 36, 48, 80):
        result = search_layered(found, gib * GIB)
        assert result.status == "proved"
        steps.append(result.step_seconds)
    assert steps == sorted(steps, reverse=True)


def test_too_little_memory_says_how_much_would_do():
    with pytest.raises(InfeasibleError) as error:
        search_layered(settings(), 12 * GIB)
    need = error.value.details["nearest_miss"]["bytes"]
    assert 12 * GIB < need < 16 * GIB


def test_never_slower_than_the_best_of_the_measuring_tools_own_space():
    """Even stages, at least pp microbatches: the same table, cut down to what that tool searches."""
    from planner.profiles.spaces import even_settings

    found = settings()
    narrow = even_settings(found)
    assert len(narrow) < len(found)
    for gib in (20, 32):
        assert search_layered(found, gib * GIB).step_seconds <= search_layered(narrow, gib * GIB).step_seconds


def test_a_plan_file_checks_exports_and_shows_a_change(tmp_path):
    from planner.checking import check_plan
    from planner.launchers.galvatron import galvatron_config
    from planner.launchers.galvatron_read import read_galvatron as read_config
    from planner.plan_file.read import read_plan

    plan = make_profile_plan(ProfileRequest((str(DATA),), 64, 8, 20.0))
    file = tmp_path / "plan.json"
    file.write_text(plan.to_json())
    again = read_plan(file)
    assert again == plan
    assert all(finding.holds for finding in check_plan(again, "galvatron"))
    derived = read_config(galvatron_config(again), 8)
    runs = [run for stage in plan.decision.stages for run in stage.layer_strategies]
    widths = [run.tp * run.cp for run in runs for _ in range(run.layers[0], run.layers[1] + 1)]
    assert derived["tp"] == widths
    assert derived["recompute"] == [r.recompute for r in runs for _ in range(r.layers[0], r.layers[1] + 1)]
    assert [len(list(g)) for _, g in groupby(widths)]
    document = json.loads(plan.to_json())
    document["prediction"]["step_seconds"] *= 0.9
    file.write_text(json.dumps(document))
    assert not all(finding.holds for finding in check_plan(read_plan(file)))
    key = "layertype_0_bsz1_seq2048"
    document = json.loads(plan.to_json())
    document["inputs"]["profile"]["files"][COMPUTATION][key] *= 3
    file.write_text(json.dumps(document))
    broken = [finding.name for finding in check_plan(read_plan(file)) if not finding.holds]
    assert "inputs digest" in broken
    assert "step time" in broken


def test_the_same_request_gives_the_same_bytes():
    request = ProfileRequest((str(DATA),), 64, 8, 24.0)
    assert make_profile_plan(request).to_json() == make_profile_plan(request).to_json()
