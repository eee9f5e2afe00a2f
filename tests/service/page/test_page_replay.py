"""A log that was dropped on the page: the same verdicts as the command's, within bounds."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from guard.logs.log import Row
from service.api import Limits
from service.cli.app import app
from service.page import replay_routes
from service.page.replay_process import POINTS, thinned
from tests.service.api.api_fixture import Api, problem
from tests.service.cli.test_replay_command import write_log


@pytest.fixture
def api(tmp_path: Path) -> Api:
    return Api(tmp_path)


def test_a_dropped_log_has_the_verdicts_of_the_command(api: Api, tmp_path: Path) -> None:
    log = write_log(tmp_path / "log.csv")
    expected = json.loads(CliRunner().invoke(app, ["replay", str(log), "--json"]).stdout)
    packed = gzip.compress(log.read_bytes())
    answer = api.client("submit").post("/v1/replay?name=my log.csv.gz", content=packed)
    assert answer.status_code == 200, answer.text
    found = answer.json()
    alarms = [one for one in found["shown"] if one["verdict"] in ("spike", "nonfinite")]
    assert [{k: v for k, v in one.items() if k != "would"} for one in alarms] == expected["alarms"]
    assert (found["rows"], found["suspects"]) == (expected["rows"], expected["suspects"])
    assert found["columns"]["loss"][250] == "nan"
    assert "300 steps" in found["taken_for"]
    assert {one["would"] for one in alarms} <= {"roll back", "skip"}


def test_what_is_no_log_is_refused_without_the_name_of_a_folder(api: Api) -> None:
    client = api.client("submit")
    answer = client.post("/v1/replay?name=../../etc/x.csv", content=b"step,loss\n0,1.0\n1,high\n")
    assert answer.status_code == 422
    assert (
        problem(answer)
        == "_.._etc_x.csv:3: loss is 'high', not a number: write a number, nan or inf, or leave it empty"
    )
    named = client.post("/v1/replay?name=a.csv&loss=lose", content=b"step,loss\n0,1.0\n")
    assert "did you mean 'loss'" in problem(named)
    assert api.client(None).post("/v1/replay", content=b"x").status_code == 401


def test_a_log_is_bounded_in_size_time_and_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    api = Api(tmp_path, limits=Limits(upload_bytes=1 << 20))
    client = api.client("submit")
    assert client.post("/v1/replay", content=bytes((1 << 20) + 1)).status_code == 413
    monkeypatch.setattr(replay_routes, "LONGEST_S", 0.01)
    late = client.post("/v1/replay", content=b"step,loss\n0,1.0\n")
    assert "gradguard replay" in problem(late)


def test_a_long_log_keeps_its_extremes() -> None:
    rows = [Row(float(i), 1.0 + i % 7, 2.0) for i in range(50_000)]
    rows[31_007] = Row(31_007.0, 99.0, 2.0)
    rows[40_001] = Row(40_001.0, float("nan"), 2.0)
    kept = thinned(rows)
    assert len(kept) <= POINTS + 500
    assert rows[31_007] in kept
    assert rows[40_001] in kept
