"""``plan --head-room``: the front on the screen, in the file, checked, explained, drawn and taken."""

from __future__ import annotations

import json

import jsonschema
import pytest

from planner.units import GIB

ASKED = ("--head-room", "5,10%,20")


@pytest.fixture(scope="module")
def front_file(tmp_path_factory, small):
    from planner.cli.app import run

    path = tmp_path_factory.mktemp("front") / "plan.json"
    assert run(["plan", *small, *ASKED, "-o", str(path)]) == 0
    return path


def test_the_file_holds_a_full_plan_at_every_head_room(cli, front_file):
    plan = json.loads(front_file.read_text(encoding="utf-8"))
    jsonschema.validate(plan, cli("schema", "plan").json())
    points, limit = plan["front"]["points"], plan["inputs"]["options"]["memory_limit_bytes"]
    assert [point["head_room"] for point in points] == [0.0, 0.05, 0.1, 0.2, None]
    assert points[0]["decision"] == plan["decision"]
    for point in points[:-1]:
        assert point["prediction"]["peak_memory_bytes"] <= (1 - point["head_room"]) * limit * (1 + 1e-9)
    seconds = [point["prediction"]["step_seconds"] for point in points]
    assert seconds == sorted(seconds)
    assert plan["front"]["least_memory_bound_bytes"] <= points[-1]["prediction"]["peak_memory_bytes"]
    assert [split["balance"] for split in plan["front"]["splits"]][:1] in ([], ["time"])


def test_a_file_without_a_front_has_no_such_field(plan_file):
    assert "front" not in json.loads(plan_file.read_text(encoding="utf-8"))


def test_the_screen_says_what_each_head_room_costs(cli, small):
    done = cli("plan", *small, *ASKED)
    assert done.code == 0
    for words in ("Fastest plan by memory left free", " 5 %", "20 %", "least", "--memory-limit-gib"):
        assert words in done.out
    assert max(map(len, done.out.splitlines())) <= 80


def test_the_limit_on_the_screen_takes_that_plan(cli, small, front_file):
    from planner.plan_file.read import read_plan
    from planner.report.front_text import taking_limit

    plan = read_plan(front_file)
    for point in plan.front.points[1:]:
        limit = taking_limit(point)
        taken = cli("plan", *small, "--memory-limit-gib", limit, "--json").json()["prediction"]
        if float(limit) * GIB <= point.prediction.memory_limit_bytes:
            assert taken["step_seconds"] == pytest.approx(point.prediction.step_seconds, rel=1e-9)
        # The end of the front has no room to round in: what fits in a number people can type is no slower.
        assert taken["step_seconds"] <= point.prediction.step_seconds * (1 + 1e-9)
        assert len(limit) <= len("10.241")


def test_check_judges_every_point(cli, front_file, tmp_path):
    good = cli("check", front_file)
    assert good.code == 0
    assert good.out.count("front: ") == 5
    plan = json.loads(front_file.read_text(encoding="utf-8"))
    plan["front"]["points"][3]["prediction"]["step_seconds"] *= 0.9
    bad = tmp_path / "bad.json"
    bad.write_text(json.dumps(plan))
    found = cli("check", bad)
    assert found.code == 1
    assert "20% head-room" in found.out


def test_explain_and_report_show_the_front(cli, front_file, tmp_path):
    assert "Fastest plan by memory left free" in cli("explain", front_file).out
    page = tmp_path / "plan.html"
    assert cli("report", front_file, "-o", page).code == 0
    assert "Memory left free" in page.read_text(encoding="utf-8")


@pytest.mark.parametrize("text", ["0", "100", "-5", "ten", "", "5;10", "nan"])
def test_a_head_room_that_is_no_percentage_is_refused(cli, small, text):
    done = cli("plan", *small, f"--head-room={text}")
    assert done.code == 2
    assert "--head-room 5,10,20" in done.err


def test_a_head_room_nothing_fits_in_is_named(cli, small):
    done = cli("plan", *small, "--head-room", "50,95")
    assert done.code == 0
    assert "nothing fits with 95 % free" in done.out
