"""Which rows a calibration has seen follows from the table it names, to the byte."""

from __future__ import annotations

from pathlib import Path

from planner.calibration.case import read_cases
from planner.calibration.provenance import fitted_ids, provenance
from planner.calibration.rows import split_rows
from planner.calibration.shipped import shipped

TABLE = Path(__file__).resolve().parents[1] / "published" / "measurements.csv"


def test_the_shipped_constants_saw_every_other_row_of_each_source():
    cases = read_cases(TABLE)
    seen, judged = split_rows(cases)
    found = fitted_ids(shipped().provenance, str(TABLE), cases)
    assert found == {case.id for case in seen}
    assert not found & {case.id for case in judged}


def test_rows_of_another_table_are_nobodys(tmp_path):
    table = tmp_path / "mine.csv"
    table.write_text("\n".join(TABLE.read_text(encoding="utf-8").splitlines()[:9]), encoding="utf-8")
    cases = read_cases(table)
    assert fitted_ids(shipped().provenance, str(table), cases) == set()
    assert len(fitted_ids(provenance(str(table), 4), str(table), cases)) == 4


def test_a_fit_of_all_rows_saw_them_all():
    cases = read_cases(TABLE)
    record = provenance(str(TABLE), len(cases))
    assert fitted_ids(record, str(TABLE), cases) == {case.id for case in cases}
