"""The confusion matrix of result.json is a table of the report; a damaged one is none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from jobs.report.data import read_run
from jobs.report.page import render
from jobs.run_dir.jsonl import write_json_atomic
from tests.jobs.report.report_fixture import result, write_job


def page(folder: Path, confusion: Any) -> str:
    job = write_job(folder / "fashion", steps=30)
    write_json_atomic(job / "result.json", {**result("fashion", 30), "confusion": confusion})
    return render(read_run(job))


def test_the_matrix_has_a_row_and_a_column_for_each_class(tmp_path: Path) -> None:
    html = page(tmp_path, {"classes": ["cat", "<dog>"], "rows": [[30, 10], [0, 7]]})
    assert "Confusion matrix" in html
    assert '<th scope="col">cat</th><th scope="col">&lt;dog&gt;</th>' in html
    assert (
        '<td class="share" style="--share:75.0%">30</td><td class="share" style="--share:25.0%">10</td>'
        in html
    )


@pytest.mark.parametrize(
    "confusion",
    [
        None,
        [],
        {"classes": ["a"]},
        {"classes": ["a", "b"], "rows": [[1, 2]]},
        {"classes": ["a"], "rows": [["x"]]},
    ],
)
def test_what_is_no_matrix_is_not_shown(tmp_path: Path, confusion: Any) -> None:
    assert "Confusion matrix" not in page(tmp_path, confusion)
