"""``validate`` on tables that are wrong: the rule, the numbers and what would work; never a traceback."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

MEASUREMENTS = Path(__file__).resolve().parents[1] / "published" / "measurements.csv"


@pytest.fixture(scope="module")
def rows():
    with MEASUREMENTS.open(encoding="utf-8") as stream:
        return [row for _, row in zip(range(4), csv.DictReader(stream), strict=False)]


def write(path, rows, columns=None):
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, columns or list(rows[0]), extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    return path


@pytest.mark.parametrize(
    ("cells", "words"),
    [
        ({"measured_step_s": "-3"}, "measured_step_s is -3; write a number above 0, or leave it empty"),
        ({"measured_step_s": "0"}, "measured_step_s is 0; write a number above 0"),
        ({"measured_step_s": "fast"}, "measured_step_s is 'fast'; write a number above 0"),
        ({"measured_peak_mem_gb": "inf"}, "measured_peak_mem_gb is inf; write a number above 0"),
        ({"gpu_name": "H1000"}, "unknown device 'h1000'; nearest: h100-sxm"),
        ({"tp": "3"}, "dp 64 x tp 3 x pp 1 x cp 1 = 192 ranks, but 64 GPUs ran"),
        ({"dp": "32"}, "= 32 ranks, but 64 GPUs ran; dp 64 fills them"),
        ({"layers": "0"}, "layers is 0; write a whole number, 1 or more"),
        ({"precision": "bf61"}, "'bf16', 'fp16' or 'fp8', not 'bf61'"),
        ({"seq_len": "1e30"}, "use at most 134217728"),
        ({"stack": "megatronn"}, "unknown training stack 'megatronn'; nearest: megatron"),
    ],
)
def test_a_row_that_cannot_be_priced_says_why_and_the_others_are(cli, rows, tmp_path, cells, words):
    changed = [rows[0], {**rows[1], **cells}, *rows[2:]]
    table, page = write(tmp_path / "runs.csv", changed), tmp_path / "page.html"
    outcome = cli("validate", table, "--html", page)
    assert outcome.code == 0
    (line,) = [line for line in outcome.err.splitlines() if line.startswith("not priced")]
    assert line.startswith(f"not priced: {rows[1]['id']}: ")
    assert words in line
    assert "3 of 4 rows priced" in outcome.out
    record = {row["id"]: row for row in cli("validate", table, "--json").json()["rows"]}[rows[1]["id"]]
    assert record["status"] in ("unsupported", "invalid")
    assert words in record["message"]


def test_a_table_without_needed_columns_names_them(cli, rows, tmp_path):
    columns = [name for name in rows[0] if name not in ("tp", "pp")]
    outcome = cli("validate", write(tmp_path / "runs.csv", rows, columns))
    assert outcome.code == 2
    assert "lacks the columns tp, pp" in outcome.err
    assert "at least id,gpu_name,gpus,dp,tp,pp" in outcome.err


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "the file is empty"),
        (b"id;gpu_name;gpus;dp;tp;pp\na;h100;8;8;1;1\n", "semicolons here: save the table with commas"),
        (b"id\tgpu_name\tgpus\n", "tabs here: save the table with commas"),
        (b"id,gpu_name,gpus,dp,tp,pp\n", "the table has no rows"),
        (b"id,gpu_name,gpus,dp,tp,pp\n,h100,8,8,1,1\n", "line 2: the id is empty"),
        (b"\xff\xfe\x00", "byte 0xff at offset 0"),
    ],
)
def test_a_file_that_is_no_table_says_what_to_do(cli, tmp_path, content, words):
    file = tmp_path / "runs.csv"
    file.write_bytes(content)
    outcome = cli("validate", file)
    assert outcome.code == 2
    assert words in outcome.err
    assert "Traceback" not in outcome.err


def test_a_folder_is_not_a_table(cli, tmp_path):
    outcome = cli("validate", tmp_path)
    assert outcome.code == 2
    assert "give a CSV file" in outcome.err


def test_runs_without_a_measurement_are_priced_and_said_not_to_be_scored(cli, rows, tmp_path):
    empty = {"measured_step_s": "", "measured_peak_mem_gb": ""}
    outcome = cli("validate", write(tmp_path / "runs.csv", [{**row, **empty} for row in rows]))
    assert outcome.code == 0
    assert "4 of 4 rows priced" in outcome.out
    assert "not scored: 4 of vtm: neither measured_step_s nor measured_peak_mem_gb is stated" in outcome.err
