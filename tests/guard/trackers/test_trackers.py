"""Trackers are read back with the reader of each tool; one that fails is counted, and stops nothing."""

from __future__ import annotations

import csv
import json
import logging
import math
import struct
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from guard import GradientGuard
from guard.logs.trace import TraceReader
from guard.trackers import TrackConfig, Trackers
from tests.waiting import until

STEPS, BAD = 40, 30
SPEC = {"optimizer": {"name": "sgd", "lr": 0.05}, "seed": 0}


def train(trackers: Trackers, folder: Path) -> None:
    """A small loop of one's own, whose loss is NaN at one step."""
    torch.manual_seed(0)
    model = nn.Linear(4, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    guard = GradientGuard(model, optimizer)
    x, y = torch.randn(64, 4), torch.randint(2, (64,))
    for step in range(STEPS):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        guard.backward(loss * math.nan if step == BAD else loss)
        trackers.observe(guard.step())
    trackers.evaluation(STEPS, {"test_accuracy": 0.75})
    (folder / "report.html").write_text("<html></html>")
    trackers.artefact(folder / "report.html")
    trackers.close("succeeded")


def tracked(config: TrackConfig, folder: Path) -> Trackers:
    trackers = Trackers([config], name="mine", spec=SPEC, folder=folder / "track")
    train(trackers, folder)
    assert trackers.failures == {}
    return trackers


def test_a_csv_file_has_the_points_the_incident_and_the_artefacts(tmp_path: Path) -> None:
    tracked(TrackConfig(kind="csv", every=1), tmp_path)
    with (tmp_path / "track" / "track.csv").open() as file:
        rows = list(csv.DictReader(file))
    losses = [row for row in rows if row["loss"]]
    assert [int(row["attempt"]) for row in losses] == list(range(1, STEPS + 1))
    assert losses[BAD]["loss"] == "nan"
    (event,) = [row["event"] for row in rows if row["event"]]
    assert "nonfinite of loss" in event
    assert [row["eval/test_accuracy"] for row in rows if row["eval/test_accuracy"]] == ["0.75"]
    assert (tmp_path / "track" / "artefacts" / "report.html").read_text() == "<html></html>"
    assert len(list(TraceReader(tmp_path / "track" / "track.csv"))) == STEPS


def test_a_run_that_continues_appends_to_its_csv_file(tmp_path: Path) -> None:
    for _ in range(2):
        tracked(TrackConfig(kind="csv", every=10), tmp_path)
    lines = (tmp_path / "track" / "track.csv").read_text().splitlines()
    assert sum(line.startswith("attempt") for line in lines) == 1
    assert sum("0.75" in line for line in lines) == 2


def test_tensorboard_reads_its_scalars_and_texts(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    tracked(TrackConfig(kind="tensorboard", every=1), tmp_path)
    found = accumulator.EventAccumulator(str(tmp_path / "track" / "mine"))
    found.Reload()
    losses = found.Scalars("train/loss")
    assert [event.step for event in losses] == list(range(1, STEPS + 1))
    assert math.isnan(losses[BAD].value)
    assert found.Scalars("eval/test_accuracy")[0].value == 0.75
    texts = [tag for tag in found.Tags()["tensors"] if "incidents" in tag]
    assert [event.step for event in found.Tensors(texts[0])] == [BAD + 1]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::ResourceWarning")
def test_mlflow_reads_its_metrics_parameters_and_artefacts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    url = (tmp_path / "mlruns").as_uri()
    tracked(TrackConfig(kind="mlflow", project="p", url=url, every=10), tmp_path)
    client = mlflow.MlflowClient(url)
    (run,) = client.search_runs([client.get_experiment_by_name("p").experiment_id])
    assert (run.info.run_name, run.info.status) == ("mine", "FINISHED")
    assert run.data.params["optimizer.lr"] == "0.05"
    assert run.data.metrics["eval/test_accuracy"] == 0.75
    points = client.get_metric_history(run.info.run_id, "loss")
    assert sorted(point.step for point in points) == [10, 20, 30, BAD + 1, 40]
    assert any(tag.startswith("gradguard.") and f".{BAD + 1}" in tag for tag in run.data.tags)
    assert [file.path for file in client.list_artifacts(run.info.run_id)] == ["report.html"]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::ResourceWarning")
def test_a_restarted_job_continues_its_mlflow_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow", reason="needs the extra: pip install gradguard[mlflow]")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    uri = (tmp_path / "store").as_uri()
    for attempt, spec in ((1, {"steps": 10}), (2, {"steps": 20})):
        trackers = Trackers(
            [TrackConfig(kind="mlflow", url=uri)], spec=spec, folder=tmp_path / "track", resume=True
        )
        trackers.evaluation(attempt, {"loss": 1.0 / attempt})
        trackers.close("stopped" if attempt == 1 else "succeeded")
        assert trackers.failures == {}
    client = mlflow.MlflowClient(uri)
    (run,) = client.search_runs([client.get_experiment_by_name("gradguard").experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.params == {"steps": "10"}
    points = client.get_metric_history(run.info.run_id, "eval/loss")
    assert [(point.step, point.value) for point in points] == [(1, 1.0), (2, 0.5)]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_wandb_keeps_a_run_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against the real package: the file of its offline mode is read back, record by record."""
    pytest.importorskip("wandb", reason="needs the extra: pip install gradguard[wandb]")
    monkeypatch.setenv("WANDB_SILENT", "true")
    tracked(TrackConfig(kind="wandb", offline=True, every=10), tmp_path)
    (path,) = tmp_path.glob("track/wandb/offline-run-*/*.wandb")
    # W&B's own process writes it, and may still be at it.
    until(lambda: any(record.HasField("exit") for record in wandb_records(path)), 20)
    records = wandb_records(path)
    rows = [
        (record.history.step.num, {i.nested_key[0]: json.loads(i.value_json) for i in record.history.item})
        for record in records
        if record.HasField("history")
    ]
    losses = {at: row["loss"] for at, row in rows if "loss" in row}
    assert set(losses) >= {10, 20, BAD + 1, STEPS}
    assert all(0 < losses[at] < 2 for at in (10, 20, STEPS))
    assert [row["eval/test_accuracy"] for _, row in rows if "eval/test_accuracy" in row] == [0.75]
    config = {item.key: item.value_json for record in records for item in record.run.config.update}
    assert json.loads(config["optimizer.lr"]) == 0.05
    (alert,) = [record.alert for record in records if record.HasField("alert")]
    assert "nonfinite of loss" in alert.title + alert.text
    (artifact,) = [record.artifact for record in records if record.HasField("artifact")]
    assert artifact.name == "mine-report"


def wandb_records(path: Path) -> list[Any]:
    """All records of W&B's own file: LevelDB's log format (blocks of 32 KiB) after a header of 7 bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, at, whole, records = path.read_bytes(), 7, b"", []
    assert content[:4] == b":W&B"
    while at + 7 <= len(content):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768  # a record never starts in the last bytes of a block
            continue
        _, size, kind = struct.unpack_from("<IHB", content, at)
        whole += content[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, or the last part
            record = Record()
            record.ParseFromString(whole)
            records.append(record)
            whole = b""
    return records


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_trackio_reads_its_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against the real package, whose data base is in a folder of the test's own."""
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    trackio = pytest.importorskip("trackio", reason="needs the extra: pip install gradguard[trackio]")
    from trackio.sqlite_storage import SQLiteStorage

    tracked(TrackConfig(kind="trackio", every=10), tmp_path)
    (run,) = trackio.Api().runs("gradguard")
    assert run.name == "mine"
    assert run.config["optimizer.lr"] == 0.05
    assert ["nonfinite of loss" in alert["title"] for alert in run.alerts()] == [True]
    rows = SQLiteStorage.get_logs("gradguard", "mine")
    losses = {row["step"]: row["loss"] for row in rows if "loss" in row}
    assert set(losses) >= {10, 20, STEPS}
    assert all(0 < losses[at] < 2 for at in (10, 20, STEPS))
    assert [row["eval/test_accuracy"] for row in rows if "eval/test_accuracy" in row] == [0.75]
    assert list((tmp_path / "trackio" / "artifacts").rglob("blobs")) != []


class Broken:
    """A tracker of one's own whose calls fail."""

    def __init__(self, at: str) -> None:
        self.at, self.calls = at, 0

    def _call(self, name: str) -> None:
        self.calls += 1
        if name == self.at:
            raise ConnectionError("the tracker does not answer")

    def open(self, *_: Any) -> None:
        self._call("open")

    def values(self, *_: Any) -> None:
        self._call("values")

    def event(self, *_: Any) -> None:
        self._call("event")

    def artefact(self, *_: Any) -> None:
        self._call("artefact")

    def close(self, *_: Any) -> None:
        self._call("close")


@pytest.mark.parametrize(("at", "failures"), [("open", STEPS + 5), ("values", STEPS + 1), ("close", 1)])
def test_a_tracker_that_fails_is_counted_and_the_training_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, at: str, failures: int
) -> None:
    broken = Broken(at)
    trackers = Trackers([broken, TrackConfig(kind="csv", every=1)], folder=tmp_path / "track")
    with caplog.at_level(logging.WARNING, logger="guard"):
        train(trackers, tmp_path)
    assert trackers.failures == {"Broken": failures}
    assert caplog.text.count("the tracker does not answer") == 1
    assert len(list(TraceReader(tmp_path / "track" / "track.csv"))) == STEPS


class Silent(Broken):
    """A tracker that does not answer."""

    def __init__(self) -> None:
        super().__init__("")
        self.asked, self.answers = threading.Event(), threading.Event()

    def _call(self, name: str) -> None:
        self.asked.set()
        self.answers.wait()


def test_a_silent_tracker_loses_its_own_calls_alone_and_says_how_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("guard.trackers.trackers.CLOSING_S", 1.0)
    silent = Silent()
    trackers = Trackers([silent, TrackConfig(kind="csv")], folder=tmp_path)
    assert silent.asked.wait(60)
    trackers.evaluation(1, {"accuracy": 0.5})
    with caplog.at_level(logging.WARNING, logger="guard"):
        trackers.close()
    silent.answers.set()
    assert "tracker Silent: no answer for 1 s: the last 3 calls are lost" in caplog.text
    assert "0.5" in (tmp_path / "track.csv").read_text()
    assert trackers.failures == {"queue": 3}


def test_a_library_that_is_missing_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "trackio", None)
    trackers = Trackers([TrackConfig(kind="trackio")], folder=tmp_path)
    with caplog.at_level(logging.WARNING, logger="guard"):
        trackers.close()
    assert 'pip install "gradguard[trackio]"' in caplog.text
    assert trackers.failures == {"trackio": 2}
