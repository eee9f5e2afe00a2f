"""Text from a column of a table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from jobs.data.errors import DataError
from jobs.data.text import load_text
from jobs.spec.errors import SpecError
from jobs.spec.job_spec import JobSpec
from jobs.workloads import load_workload


def spec_of(path: Path, **data: Any) -> JobSpec:
    data = {"path": str(path), "batch_size": 2, "columns": {"text": "body"}, **data}
    return JobSpec.from_dict({"workload": "language", "data": data})


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("\n".join(json.dumps({"body": row, "n": 1}) for row in rows))
    return path


def test_rows_are_joined_and_the_end_is_held_out(tmp_path: Path) -> None:
    rows = [f'Line {number} \u00e9, "quoted"' for number in range(40)]
    corpus = load_text(spec_of(write(tmp_path / "t.jsonl", [*rows, None, ""]), holdout=0.2).data)
    (train,), (test,) = corpus.train, corpus.test
    assert (train + test).decode() == "\n\n".join(rows)
    assert 0.1 < len(test) / len(train + test) < 0.3


def test_a_folder_has_its_splits_and_trains(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", ["word " * 200] * 4)
    write(tmp_path / "validation.jsonl", ["other " * 300])
    spec = spec_of(tmp_path)
    corpus = load_text(spec.data)
    assert corpus.test == [b"other " * 300]
    workload = load_workload(spec)
    assert workload.n_train > 10
    write(tmp_path / "train.jsonl", ["wort " * 200] * 4)
    assert load_workload(spec).fingerprint != workload.fingerprint


@pytest.mark.parametrize(
    ("rows", "column", "said"),
    [
        (["a"], "bdy", "there is no column 'bdy'; it has body, n; did you mean \"body\"?"),
        (["a"], "n", "column 'n' has int '1', not text: set data.columns.text to one with text"),
        ([None, ""], "body", "column 'body' is empty"),
    ],
)
def test_a_column_without_text_is_one_line(tmp_path: Path, rows: list[Any], column: str, said: str) -> None:
    with pytest.raises(DataError) as caught:
        load_text(spec_of(write(tmp_path / "t.jsonl", rows), columns={"text": column}).data)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_column_belongs_to_a_path_of_the_language_workload() -> None:
    columns = {"columns": {"text": "body"}}
    with pytest.raises(SpecError, match=r"data\.columns\.text = .*is a column of data\.path: set that too"):
        JobSpec.from_dict({"workload": "language", "data": columns})
    with pytest.raises(SpecError, match=r"data\.columns\.text = .*is for workload language"):
        JobSpec.from_dict({"data": {"dataset": "digits", **columns}})
    with pytest.raises(SpecError, match=r"is for table, and data\.dataset is auto"):
        JobSpec.from_dict({"workload": "language", "data": {"path": "x", "columns": {"image": "a"}}})
