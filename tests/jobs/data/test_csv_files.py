"""Tables as spreadsheets and databases of other countries write them: read whole and block by block alike."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest

from jobs.spec.job_spec import JobSpec
from jobs.workloads import Workload, load_workload
from tests.jobs.data.streams.stream_fixture import spec_of as streamed
from tests.jobs.training.training_fixture import CPU

COUNT = 40
WIDTH, WEIGHT = ([0.5 * (number % 7) for number in range(COUNT)], [100.0 - number for number in range(COUNT)])
KIND = ["yes" if number % 2 else "no" for number in range(COUNT)]


def table(separator: str, point: str, header: str, end: str = "\n") -> str:
    cells = zip(WIDTH, WEIGHT, KIND, strict=True)
    lines = [separator.join((f"{a}".replace(".", point), f"{b:g}", c)) for a, b, c in cells]
    return end.join([header, *lines]) + end


def load(path: Path, *, stream: bool) -> Workload:
    columns = {"columns": {"label": "kind"}}
    if not stream:
        data = {"root": str(path), "batch_size": 8, **columns}
        return load_workload(JobSpec.from_dict({"workload": "tabular", "data": data}))
    path.rename(train := path.with_name(f"train{path.suffix}"))
    train.with_name(f"val{path.suffix}").write_bytes(train.read_bytes())
    return load_workload(streamed(path.parent, data=columns))


def read(path: Path, *, stream: bool) -> list[list[float]]:
    workload = load(path, stream=stream)
    assert workload.columns == ("width", "weight")
    return sorted(workload.train_batch(range(workload.n_train), 0, CPU)[0].tolist())


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "text",
    [
        table(";", ",", "\ufeffwidth;weight;kind", "\r\n"),
        table("\t", ",", "width\tweight\tkind"),
        table(",", ".", "width, weight, kind "),
    ],
    ids=["semicolons", "tabs", "spaces around names"],
)
def test_decimal_commas_and_spaces_around_names_are_read(text: str, stream: bool, tmp_path: Path) -> None:
    (tmp_path / f"t.{'tsv' if chr(9) in text else 'csv'}").write_text(text)
    found = read(next(tmp_path.iterdir()), stream=stream)
    known = sorted(map(list, zip(WIDTH, WEIGHT, strict=True)))
    assert len(found) >= 0.8 * COUNT
    assert all(row in known for row in found)


@pytest.mark.parametrize("stream", [False, True])
def test_decimals_of_a_database_are_numbers(stream: bool, tmp_path: Path) -> None:
    width = pa.array([Decimal(str(number)) for number in WIDTH], pa.decimal128(8, 2))
    content = pa.table({"width": width, "weight": WEIGHT, "kind": KIND})
    pa.parquet.write_table(content, tmp_path / "t.parquet", row_group_size=10)
    assert read(tmp_path / "t.parquet", stream=stream)[0] == min(map(list, zip(WIDTH, WEIGHT, strict=True)))


def test_a_column_with_points_and_commas_is_no_number(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(table(";", ",", "width;weight;kind") + "1.5;3;no\n")
    assert load(tmp_path / "t.csv", stream=False).columns == ("weight",)
