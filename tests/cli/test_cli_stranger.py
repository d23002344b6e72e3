"""What somebody meets who reads nothing: flags that contradict, files named twice, Ctrl-C at any moment."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from shlex import split

import pytest

from planner.errors import EXIT_INFEASIBLE, EXIT_INTERRUPTED, EXIT_TARGET

GALVATRON = Path(__file__).resolve().parents[1] / "data" / "galvatron_profiles"
MEASURED = Path(__file__).resolve().parents[1] / "published" / "measurements.csv"


@pytest.mark.parametrize("line", ["report FILE -o FILE", "trace FILE -o FILE"])
def test_no_command_writes_over_what_it_reads(cli, plan_file, line):
    before = plan_file.read_bytes()
    done = cli(*line.replace("FILE", str(plan_file)).split())
    assert done.code == 2
    assert "name another file" in done.err
    assert plan_file.read_bytes() == before


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ("--tp 2", "--tp"),
        ("--micro-batch 4 --no-sequence-parallel", "--micro-batch, --sequence-parallel"),
        ("--gpus 4 --global-batch 64", "--gpus, --global-batch"),
        ("--memory-limit-gib 40", "--memory-limit-gib"),
    ],
)
def test_a_plan_file_priced_again_takes_no_other_answer(cli, plan_file, flags, named):
    done = cli("estimate", "--plan", plan_file, *flags.split())
    assert done.code == 2
    assert named in done.err
    assert "explain" in done.err


@pytest.mark.parametrize(
    ("flags", "rule"),
    [
        ("--schedule 1f1b --virtual-stages 2", "schedule 1f1b has 1 virtual stages, not 2"),
        ("--schedule zb-v --virtual-stages 3", "schedule zb-v has 2 virtual stages, not 3"),
        ("--schedule interleaved --virtual-stages 1", "2 or more"),
        ("--schedule interleaved --pp 1", "needs a pipeline"),
        ("--virtual-stages 2 --pp 1", "needs a pipeline"),
    ],
)
def test_pins_that_no_plan_has_together_are_refused(cli, small, flags, rule):
    done = cli("plan", *small, *flags.split())
    assert done.code == 2
    assert rule in done.err
    assert "hint: leave" in done.err


def test_what_a_pinned_schedule_cuts_is_not_called_too_much_memory(cli, small):
    """GPipe holds every microbatch: nothing fits, though plain 1F1B would."""
    done = cli("plan", *small, "--global-batch", "1024", "--schedule", "gpipe", "--micro-batch", "1")
    assert done.code == EXIT_INFEASIBLE
    assert "Under plain 1f1b" in done.err
    assert re.search(r"; TP\S+ .*gpipe mb1 .* needs [\d.]+ GiB", done.err)
    assert "GiB too much" not in done.err
    assert "without --schedule" in done.err


def test_several_pins_that_do_not_fit_are_freed_together(cli):
    asked = split("plan --model llama-3.1-70b --gpu h100-sxm --gpus 16 --tp 1 --sharding none --pp 1")
    done = cli(*asked)
    assert done.code == EXIT_INFEASIBLE
    assert "free every pinned choice (without --tp --pp --sharding)" in done.err


def test_codes_are_told_by_name(cli, small):
    done = cli("estimate", *small, "--sharding", "parameters", "--sharding-group", "island")
    assert "['global']" in done.err


def test_choices_forced_that_the_plan_has_are_said_so(cli, plan_file):
    dp = json.loads(plan_file.read_text(encoding="utf-8"))["decision"]["degrees"]["dp"]
    assert f"it has dp={dp}" in cli("explain", plan_file, "--why-not", f"dp={dp}").out


def test_a_folder_named_like_a_model_is_pointed_at(cli, tmp_path, monkeypatch):
    (tmp_path / "mixtral").mkdir()
    (tmp_path / "mixtral" / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    done = cli("models", "show", "mixtral")
    assert done.code == 0
    assert "write ./mixtral" in done.err


@pytest.mark.parametrize("columns", ["60", "45"])
def test_columns_makes_screens_narrower(process, small, columns):
    done = process("plan", *small, env={"COLUMNS": columns})
    assert done.code == 0
    assert max(map(len, done.out.splitlines())) <= int(columns)


def test_compare_varies_head_room_and_memory(cli, small):
    rows = cli("compare", *small, "--head-room", "0,20", "--json").json()
    limits = [row["peak_memory_bytes"] for row in rows]
    assert [row["head_room_percent"] for row in rows] == [0.0, 20.0]
    assert limits[1] <= 0.8 * 80 * 2**30
    assert rows[0]["step_seconds_low"] < rows[0]["step_seconds"] <= rows[1]["step_seconds"]
    capped = cli("compare", *small, "--memory-limit-gib", "30,60", "--json").json()
    assert [row["memory_limit_gib"] for row in capped] == [30.0, 60.0]
    assert all(row["peak_memory_bytes"] <= row["memory_limit_gib"] * 2**30 * (1 + 1e-9) for row in capped)


def test_compare_allows_idle_gpus_and_repeats_warnings(cli):
    asked = split("compare --model gpt2 --gpu h100-sxm,mi300x --gpus 12 --global-batch 64 --allow-idle")
    done = cli(*asked)
    assert done.code == 0
    assert "idle" in done.out
    assert "gpu mi300x: no measured run of cdna3" in done.err


def test_compare_with_no_plan_at_any_point_says_so_by_its_code(cli):
    done = cli("compare", "--model", "llama-3.1-70b", "--gpu", "a100-40g-sxm", "--gpus", "4,8")
    assert done.code == EXIT_INFEASIBLE
    assert done.out.count("does not fit") == 2


@pytest.mark.parametrize("flags", ["--csv --json", "--head-room 100", "--time-budget 0"])
def test_compare_refuses_what_contradicts(cli, small, flags):
    assert cli("compare", *small, *flags.split()).code == 2


def test_compare_interrupted_prints_the_points_planned(cli, small, monkeypatch):
    from planner import comparison

    planned = []

    def make(request, *given, **named):
        if planned:
            raise KeyboardInterrupt
        planned.append(request)
        return original(request, *given, **named)

    original = comparison.make_plan
    monkeypatch.setattr(comparison, "make_plan", make)
    done = cli("compare", *small, "--global-batch", "64,128,256", "--jobs", "1")
    assert done.code == EXIT_INTERRUPTED
    assert "interrupted: 1 of 3 points planned" in done.err
    assert len(done.out.splitlines()) == 2


def test_interrupted_while_counting_gpus_it_keeps_the_plan(cli, monkeypatch, tmp_path):
    from planner import idle

    tried = []

    def search(*given, **named):
        if tried:
            raise KeyboardInterrupt
        tried.append(given)
        return original(*given, **named)

    original = idle.faster_solution
    monkeypatch.setattr(idle, "faster_solution", search)
    path = tmp_path / "plan.json"
    asked = split("plan --model gpt2 --gpu a100-80g-sxm --gpus 60 --global-batch 64 --allow-idle")
    done = cli(*asked, "-o", path)
    assert done.code == EXIT_INTERRUPTED
    assert "best so far" in done.out
    assert cli("check", path).code == 0


@pytest.mark.parametrize("as_json", [False, True])
def test_interrupted_with_nothing_in_hand_it_says_so(cli, small, monkeypatch, as_json):
    from planner.search import layer_search

    def search(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(layer_search, "search_all", search)
    done = cli("plan", *small, *(["--json"] if as_json else []))
    assert done.code == EXIT_INTERRUPTED
    if as_json:
        assert done.json()["error"]["kind"] == "interrupted"
    else:
        assert "interrupted before there was anything to print" in done.err


@pytest.mark.parametrize("pin", ["--pp 2", "--cp 2"])
def test_a_degree_the_launcher_lacks_is_its_refusal(cli, small, pin):
    done = cli("plan", *small, "--target", "deepspeed", *pin.split())
    assert done.code == EXIT_TARGET
    assert "deepspeed cannot run" in done.err


def test_screens_in_a_pipe_have_no_trailing_blanks(cli, small):
    lines = cli("plan", *small).out.splitlines()
    assert lines == [line.rstrip() for line in lines]


def test_a_table_of_bytes_has_whole_headings_in_60_columns(process, plan_file):
    screen = process("explain", plan_file, env={"COLUMNS": "60"}).out
    assert "stage param. grad. optim. activ. buffers reserve total" in screen


def test_an_estimate_says_what_searches_for_better(cli, small):
    done = cli("estimate", *small, "--sharding", "parameters")
    assert "planner plan --model llama-3.1-8b --gpu h100-sxm --gpus 8" in done.out


@pytest.mark.parametrize(
    "flag", ["--optimizer adam", "--attention unfused", "--exact", "--head-room 5", "--allow-idle"]
)
def test_what_measured_files_cannot_answer_is_refused(cli, flag):
    done = cli("plan", "--profile", GALVATRON, *split("--gpus 8 --global-batch 64"), *flag.split())
    assert done.code == 2
    assert f"{flag.split()[0]} has no meaning beside --profile" in done.err


def test_compare_plans_measured_files_too(cli):
    asked = split("--gpus 8 --global-batch 64 --memory-limit-gib 12,16,36")
    done = cli("compare", "--profile", GALVATRON, *asked, "--json")
    assert done.code == 0
    rows = done.json()
    assert [row["fits"] for row in rows] == [False, True, True]
    assert rows[1]["step_seconds"] > rows[2]["step_seconds"]
    assert "14.1 GiB" in rows[0]["reason"]
    refused = cli("compare", "--profile", GALVATRON, *asked, "--network", "100")
    assert refused.code == 2
    assert "--network has no meaning beside --profile" in refused.err


def test_the_list_of_commands_ends_no_sentence_in_dots(cli):
    assert "..." not in cli("--help").out.split("Commands:")[1]


def test_interrupted_before_its_time_is_up_the_code_says_so(cli, small, monkeypatch):
    from planner.search import layer_search

    def search(*given, **named):
        found = original(*given, **named)
        found.status = "interrupted"
        return found

    original = layer_search.search_all
    monkeypatch.setattr(layer_search, "search_all", search)
    assert cli("plan", *small, "--time-budget", "1000").code == EXIT_INTERRUPTED
    assert cli("plan", *small, "--time-budget", "1e-9").code == 0


def test_an_estimate_for_a_launcher_is_priced_on_its_stack_or_refused(cli, small, plan_file):
    plan = cli("estimate", *small, "--sharding", "parameters", "--target", "torchtitan", "--json").json()
    assert plan["inputs"]["options"]["target"] == plan["inputs"]["options"]["stack"] == "torchtitan"
    other = cli("estimate", *small, "--sharding", "parameters", "--json").json()
    assert plan["prediction"]["peak_memory_bytes"] != other["prediction"]["peak_memory_bytes"]
    assert cli("estimate", *small, "--pp", "2", "--target", "deepspeed").code == EXIT_TARGET
    assert cli("estimate", "--plan", plan_file, "--target", "deepspeed").code == 2


@pytest.mark.parametrize(
    ("target", "wanted"),
    [("deepspeed", "--to deepspeed"), ("any", "--target megatron")],
)
def test_what_to_type_next_is_for_a_launcher_that_runs_the_plan(cli, small, target, wanted):
    following = " ".join(cli("plan", *small, "--target", target).out.split("Next")[1].split())
    assert wanted in following or "--to megatron" in following
    assert target == "any" or "--to megatron" not in following


@pytest.mark.parametrize("cell", ["nan", "-3", "fast"])
@pytest.mark.parametrize("column", ["measured_step_s", "measured_peak_mem_gb", "sim_by_source_step_s"])
def test_a_measurement_that_is_no_number_is_a_row_not_priced(cli, tmp_path, column, cell):
    rows = list(csv.DictReader(MEASURED.read_text(encoding="utf-8").splitlines()))[:2]
    rows[0][column] = cell
    table = tmp_path / "runs.csv"
    with table.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    done = cli("validate", table, "--json")
    assert done.code == 0
    assert [row["status"] for row in done.json()["rows"]] == ["unsupported", "ok"]
    assert cli("validate", table).code == 0
    assert f"{column} is" in cli("validate", table, "--html", tmp_path / "page.html").err
