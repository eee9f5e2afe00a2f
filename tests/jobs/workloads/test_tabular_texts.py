"""``workload: tabular`` on a column of texts: trained, exported and asked without any other library."""

from __future__ import annotations

import argparse
import json
import random
import smtplib
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from typer.testing import CliRunner

from jobs import load_model
from jobs.checkpoints import CheckpointManager
from jobs.data.errors import DataError
from jobs.spec.errors import SpecError
from jobs.spec.job_spec import JobSpec
from jobs.training.data_agreement import identity
from jobs.workloads import load_workload
from jobs.workloads.word_rows import hashed
from service.cli.app import app
from tests.jobs.training.training_fixture import CPU, begin

MODULES = {"argparse": argparse, "smtplib": smtplib, "tarfile": tarfile}


def lines() -> list[dict[str, str]]:
    """Lines of three modules of Python, as real a text as every machine has."""
    found = [
        {"line": line.strip(), "module": name}
        for name, module in MODULES.items()
        for line in Path(str(module.__file__)).read_text().splitlines()[:900]
        if len(line.strip()) > 20
    ]
    random.Random(0).shuffle(found)
    return found


def spec_of(root: Path, **sections: Any) -> JobSpec:
    columns = {"text": "line", "label": "module"}
    data = {"root": str(root), "batch_size": 64, "columns": columns, **sections.pop("data", {})}
    return JobSpec.from_dict({"workload": "tabular", "data": data, **sections})


def write(path: Path, rows: list[dict[str, str]]) -> Path:
    if path.suffix == ".parquet":
        pa.parquet.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".csv":
        pa.csv.write_csv(pa.Table.from_pylist(rows), path)
    else:
        path.write_text("\n".join(map(json.dumps, rows)))
    return path


def test_a_job_on_texts_is_as_good_as_a_logistic_regression_and_answers_for_rows_and_files(
    tmp_path: Path,
) -> None:
    root = write(tmp_path / "lines.jsonl", lines())
    optimizer = {"name": "adamw", "lr": 0.01}
    spec = spec_of(root, optimizer=optimizer, storage=str(tmp_path), name="lines")
    workload = load_workload(spec)
    assert workload.classes == tuple(MODULES)
    training = begin(workload, spec, 150)
    training.train(150)
    model = training.parts["model"].eval()
    halves = [workload.evaluate(model, rank, 2, CPU) for rank in range(2)]
    metrics = workload.metrics({name: halves[0][name] + halves[1][name] for name in halves[0]})
    train, test = workload._train.texts, workload._test.texts
    linear = make_pipeline(CountVectorizer(ngram_range=(1, 2)), LogisticRegression(max_iter=500))
    reached = linear.fit(train.texts, train.labels.numpy()).score(test.texts, test.labels.numpy())
    assert metrics["test_accuracy"] > reached - 0.05
    written = spec.model_dump(mode="json")
    parts = {name: training.parts[name] for name in ("model", "optimizer")}
    kept = CheckpointManager(spec.job_dir / "checkpoints", parts, spec=written, data=identity(workload))
    kept.save(150, closing=True)
    words = workload.train_batch(np.arange(5), 0, CPU)[0]
    torch.testing.assert_close(load_model(spec.job_dir)(words), model(words))
    (spec.job_dir / "spec.yaml").write_text(json.dumps(written))
    asked = [{"line": "server.sendmail(sender, recipients, message)"}, {"line": "parser.add_argument('-f')"}]
    (tmp_path / "note.txt").write_text("open the tar archive and extract its members")
    files = [write(tmp_path / "asked.csv", asked), tmp_path / "note.txt"]
    said = CliRunner().invoke(app, ["predict", str(spec.job_dir), *map(str, files)], catch_exceptions=False)
    places = [line.rpartition(" ")[0] for line in said.output.splitlines()]
    assert places == [
        f"{files[0]}:1: smtplib",
        f"{files[0]}:2: argparse",
        f"{files[1]}: tarfile",
    ]


@pytest.mark.parametrize("name", ["lines.csv", "lines.parquet", "lines.jsonl"])
def test_the_kind_of_the_table_makes_no_difference(tmp_path: Path, name: str) -> None:
    rows = [*lines()[:40], {"line": 'a "quoted", line\nand another', "module": "tarfile"}]
    workload = load_workload(spec_of(write(tmp_path / name, rows), data={"batch_size": 4}))
    own = load_workload(spec_of(write(tmp_path / "own.jsonl", rows), data={"batch_size": 4}))
    assert workload.fingerprint == own.fingerprint
    batches = [one.train_batch(np.arange(9), 0, CPU)[0] for one in (workload, own)]
    assert torch.equal(*batches)


def test_words_and_pairs_count_in_any_script_and_padding_does_not() -> None:
    assert set(hashed("Not GOOD")) == set(hashed("not good"))
    assert set(hashed("not good")) != set(hashed("good not")), "pairs have an order"
    assert len(hashed("猫が好き")) == 4 + 3
    assert (hashed("") > 0).all()
    assert len(hashed("word " * 100_000)) == 512 + 511
    spec = JobSpec.from_dict({"workload": "tabular", "data": {"root": "x"}})
    from jobs.models.word_bag import BUCKETS, build_word_bag

    model = build_word_bag(spec.model, buckets=BUCKETS, classes=2)
    words = torch.from_numpy(hashed("the cat"))[None]
    longer = torch.nn.functional.pad(words, (0, 7))
    torch.testing.assert_close(model(longer), model(words))


def test_what_is_no_text_and_what_is_both_is_refused_in_one_line(tmp_path: Path) -> None:
    root = tmp_path / "rows.csv"
    root.write_text("line,module\n1,a\n2,b\n")
    with pytest.raises(DataError, match="row 1: line is 1: it takes texts"):
        load_workload(spec_of(root))
    root.write_text("line,module\nx,a\ny,b\n")
    with pytest.raises(DataError, match=r"no column of numbers besides 'module'; .*set data.columns.text"):
        load_workload(spec_of(root, data={"columns": {"label": "module"}}))
    with pytest.raises(SpecError, match="either texts or numbers"):
        spec_of(root, data={"columns": {"text": "line", "features": ["n"]}})
    with pytest.raises(SpecError, match="has no effect on text"):
        spec_of(root, faults=[{"kind": "poisoned_batch", "step": 1}])


def test_rows_of_numbers_are_predicted_one_by_one(tmp_path: Path) -> None:
    root = tmp_path / "rows.csv"
    root.write_text("\n".join(["size,label", *(f"{n},{'small' if n < 20 else 'large'}" for n in range(40))]))
    optimizer = {"name": "adamw", "lr": 0.01}
    data = {"root": str(root), "batch_size": 8}
    job = {"workload": "tabular", "data": data, "optimizer": optimizer, "storage": str(tmp_path), "name": "n"}
    spec = JobSpec.from_dict(job)
    workload = load_workload(spec)
    training = begin(workload, spec, 40)
    training.train(40)
    parts = {name: training.parts[name] for name in ("model", "optimizer")}
    written = spec.model_dump(mode="json")
    kept = CheckpointManager(spec.job_dir / "checkpoints", parts, spec=written, data=identity(workload))
    kept.save(40, closing=True)
    (spec.job_dir / "spec.yaml").write_text(json.dumps(written))
    (tmp_path / "asked.csv").write_text("size\n39\n0\n")
    words = ["predict", str(spec.job_dir), str(tmp_path / "asked.csv"), "--json"]
    said = CliRunner().invoke(app, words, catch_exceptions=False)
    found = [json.loads(line) for line in said.output.splitlines()]
    assert [(one["row"], one["classes"]) for one in found] == [(1, ["large"]), (2, ["small"])]
    (tmp_path / "asked.csv").write_text("size\n39\n\n-inf\n")
    with pytest.raises(DataError, match="is not a finite number"):
        CliRunner().invoke(app, words, catch_exceptions=False)
