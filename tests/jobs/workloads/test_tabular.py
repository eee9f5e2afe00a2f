"""``workload: tabular``: rows of numbers from a table, from the file to the evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression

from jobs import load_model
from jobs.checkpoints import CheckpointManager
from jobs.data.errors import DataError
from jobs.spec.errors import SpecError
from jobs.spec.job_spec import JobSpec
from jobs.training.data_agreement import identity
from jobs.workloads import load_workload
from tests.jobs.training.training_fixture import CPU, begin

FLOWERS = load_iris()
COLUMNS = ["sepal_l", "sepal_w", "petal_l", "petal_w"]


def spec_of(root: Path, **sections: Any) -> JobSpec:
    data = {"root": str(root), "batch_size": 32, **sections.pop("data", {})}
    return JobSpec.from_dict({"workload": "tabular", "data": data, **sections})


def iris(path: Path) -> Path:
    names = FLOWERS.target_names[FLOWERS.target]
    lines = [",".join([*map(str, row), "note", name]) for row, name in zip(FLOWERS.data, names, strict=True)]
    path.write_text("\n".join([",".join([*COLUMNS, "remark", "label"]), *lines]) + "\n")
    return path


def test_a_csv_of_features_trains_as_well_as_a_logistic_regression(tmp_path: Path) -> None:
    optimizer = {"name": "adamw", "lr": 0.01}
    spec = spec_of(iris(tmp_path / "iris.csv"), optimizer=optimizer, model={"width": 32, "layers": 1})
    workload = load_workload(spec)
    assert workload.columns == tuple(COLUMNS), "columns of text are no features"
    assert workload.classes == ("setosa", "versicolor", "virginica")
    training = begin(workload, spec, 80)
    training.train(80)
    model = training.parts["model"]
    halves = [workload.evaluate(model, rank, 2, CPU) for rank in range(2)]
    metrics = workload.metrics({name: halves[0][name] + halves[1][name] for name in halves[0]})
    train, test = workload._train, workload._test
    linear = LogisticRegression(max_iter=500).fit(train.features.numpy(), train.labels.numpy())
    reached = linear.score(test.features.numpy(), test.labels.numpy())
    assert metrics["test_accuracy"] >= reached - 1.01 / len(test)
    assert sum(map(sum, workload.confusion(workload.evaluate(model, 0, 1, CPU)))) == 15


def test_the_model_of_a_job_is_loaded_with_its_standardization(tmp_path: Path) -> None:
    spec = spec_of(iris(tmp_path / "iris.csv"), storage=str(tmp_path), name="rows")
    workload = load_workload(spec)
    training = begin(workload, spec, 2)
    training.train(2)
    parts = {name: training.parts[name] for name in ("model", "optimizer")}
    written = spec.model_dump(mode="json")
    kept = CheckpointManager(spec.job_dir / "checkpoints", parts, spec=written, data=identity(workload))
    kept.save(2, closing=True)
    rows = torch.tensor(FLOWERS.data[:5], dtype=torch.float32)
    expected = training.parts["model"](rows)
    torch.testing.assert_close(load_model(spec.job_dir)(rows), expected)


def test_a_column_of_lists_is_as_many_features(tmp_path: Path) -> None:
    vectors = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
    table = pa.table({"embedding": vectors.tolist(), "other": range(20), "kind": [n % 2 for n in range(20)]})
    pa.parquet.write_table(table, tmp_path / "t.parquet")
    columns = {"features": ["embedding"], "label": "kind"}
    workload = load_workload(spec_of(tmp_path / "t.parquet", data={"columns": columns, "batch_size": 4}))
    features, labels = workload.train_batch(np.arange(workload.n_train), 0, CPU)
    assert features.shape == (18, 3)
    assert labels.dtype == torch.int64
    assert {tuple(row) for row in features.tolist()} < {tuple(row) for row in vectors.tolist()}
    wider = pa.table({"embedding": [[1.0] * 4]})
    with pytest.raises(DataError, match="has 4 numbers in a row; 3 were trained on"):
        workload.read(wider, tmp_path)
    assert workload.build_model()[0](features).std(0, correction=0).allclose(torch.ones(3), atol=1e-5)


@pytest.mark.parametrize(
    ("text", "columns", "line"),
    [
        ("a,label\n1,x\n,y\n", {}, "row 2 has no a: fill it in, or leave the row out"),
        ("a,label\n1,x\ninf,y\n", {}, "row 2: a is not a finite number"),
        ("a,label\nu,x\nv,y\n", {"features": ["a"]}, "column 'a' is string: features are numbers"),
        ("a,label\nu,x\nv,y\n", {}, "has no column of numbers besides 'label'"),
        ("a,label\n1,x\n2,y\n", {"features": ["b"]}, "there is no column 'b'; it has a, label"),
        ("a,kind\n1,x\n2,y\n", {}, "there is no column 'label'; it has a, kind"),
    ],
)
def test_what_is_no_number_is_refused_by_row_and_column(
    tmp_path: Path, text: str, columns: dict[str, Any], line: str
) -> None:
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(DataError) as refused:
        load_workload(spec_of(tmp_path / "t.csv", data={"columns": columns}))
    assert line in str(refused.value)


@pytest.mark.parametrize(
    ("sections", "line"),
    [
        ({"model": {"name": "resnet18"}}, "must be mlp, the model of workload tabular"),
        ({"model": {"heads": 4}}, "model.heads = 4: is for workload language: remove it"),
        ({"data": {"augment": "standard"}}, "data.augment"),
        ({"data": {"dataset": "imagefolder"}}, "must be table for workload tabular"),
        (
            {"workload": "vision", "data": {"columns": {"features": ["a"]}, "dataset": "table"}},
            "for workload tab",
        ),
    ],
)
def test_fields_of_other_workloads_are_refused(tmp_path: Path, sections: dict[str, Any], line: str) -> None:
    with pytest.raises(SpecError, match=line):
        spec_of(tmp_path, **sections) if "workload" not in sections else JobSpec.from_dict(
            {**sections, "data": {**sections["data"], "root": str(tmp_path)}}
        )


def table(folder: Path, columns: dict[str, list[Any]], encoding: str = "utf-8") -> JobSpec:
    """Of a CSV file."""
    lines = [",".join(columns), *(",".join(map(str, row)) for row in zip(*columns.values(), strict=True))]
    (folder / "table.csv").write_text("\n".join(lines) + "\n", encoding=encoding)
    return spec_of(folder / "table.csv", data={"batch_size": 4})


ROWS = range(40)
HEIGHTS = [round(0.1 + row % 7 * 0.5, 1) for row in ROWS]
SORTED = ["a" if row < 20 else "b" for row in ROWS]


@pytest.mark.parametrize("name", ["", "Unnamed: 0", "id"])
def test_a_column_that_counts_the_rows_is_no_feature(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    columns = {name: list(ROWS), "height": HEIGHTS, "label": SORTED}
    spec = table(tmp_path, columns)
    assert load_workload(spec).columns == ("height",)
    assert f"it counts the rows of {tmp_path / 'table.csv'}: {name!r}" in caplog.text
    if name:
        wanted = {**spec.data.model_dump()["columns"], "features": [name, "height"]}
        named = spec_of(tmp_path / "table.csv", data={"batch_size": 4, "columns": wanted})
        assert load_workload(named).columns == (name, "height"), "what the spec names is used"


def test_columns_that_are_left_out_are_named_with_what_is_no_number(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    width = ["?" if row == 6 else row / 8 for row in ROWS]
    price = [f'"1,{row:03}"' for row in ROWS]
    load_workload(table(tmp_path, {"height": HEIGHTS, "width": width, "price": price, "label": SORTED}))
    assert "width (row 7: '?'), price (row 1: '1,000')" in caplog.text


def test_labels_are_classes_as_they_are_written(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def classes(labels: list[Any]) -> tuple[str, ...]:
        return load_workload(table(tmp_path, {"height": HEIGHTS, "label": labels * 10})).classes

    assert classes(["01", "1", "10", "10"]) == ("01", "1", "10")
    assert classes([10, 9, 2, 2]) == ("2", "9", "10"), "whole numbers are in their order"
    assert classes(["1.0", "0.0", "2.0", "2.0"]) == ("0", "1", "2")
    assert not caplog.records
    assert classes(["cat", " cat", "Dog", "dog"]) == (" cat", "Dog", "cat", "dog")
    assert "differ little: ' cat' and 'cat'; 'Dog' and 'dog'" in caplog.text


@pytest.mark.parametrize(
    ("columns", "encoding", "said"),
    [
        ({"height": HEIGHTS, "label": [*ROWS]}, "utf-8", "label differs in each row"),
        (
            {"height": HEIGHTS, "label": [f"{c}\u00e9" for c in SORTED]},
            "latin-1",
            r"byte 18 \(0xe9, in line 2\)",
        ),
        ({"height": HEIGHTS, "label": SORTED}, "utf-16", "it is UTF-16: save it as UTF-8"),
        (
            {"at": [1700000000000 + row % 2 for row in ROWS], "label": SORTED},
            "utf-8",
            "at differs by less than",
        ),
        (
            {"height": ["1e300", *HEIGHTS[1:]], "label": SORTED},
            "utf-8",
            "row 1: height is not a finite number",
        ),
    ],
    ids=["a number to predict", "latin-1", "utf-16", "milliseconds", "beyond float32"],
)
def test_what_would_train_on_something_else_is_refused(
    tmp_path: Path, columns: dict[str, list[Any]], encoding: str, said: str
) -> None:
    with pytest.raises(DataError, match=said):
        load_workload(table(tmp_path, columns, encoding))
