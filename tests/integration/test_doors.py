"""One job that is tracked, tells of itself, and ends early."""

from __future__ import annotations

import csv
import json
from base64 import b64decode
from pathlib import Path

import pytest

from tests.integration.harness.runner import GRADGUARD, SMALL, Sandbox
from tests.jobs.notify.receiver import receiving

pytestmark = pytest.mark.slow


def test_a_job_is_tracked_tells_of_itself_and_stops_early(tmp_path: Path) -> None:
    sandbox = Sandbox(tmp_path)
    train = {
        "max_steps": 200,
        "eval_every_steps": 5,
        "early_stopping": {"metric": "max:test_accuracy", "patience": 2, "min_delta": 2.0},
    }
    with receiving() as receiver:
        spec = sandbox.spec(
            "doors",
            scale={"workers": 1},
            model=SMALL,
            train=train,
            faults=[{"kind": "nan_loss", "step": 7, "rank": 0}],
            track=[{"kind": "csv", "every": 1}, {"kind": "mlflow", "url": "http://127.0.0.1:1"}],
            notify=[{"url": receiver.url, "picture": True}, {"url": f"{receiver.url}/broken"}],
        )
        sandbox.environment |= {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
        run = sandbox.run(GRADGUARD, "train", spec)
        assert run.returncode == 0, run.stdout
        told = [json.loads(body) for path, _, body in receiver.posts if "broken" not in path]
    result = sandbox.result("doors")
    assert (result["status"], result["steps"]) == ("succeeded", 15), "the best evaluation, and two after it"
    assert result["dataset"] == "digits"
    assert [notice["event"] for notice in told] == ["started", "ended"]
    assert told[-1]["sentence"].startswith("doors: The run finished 15 steps")
    assert (told[-1]["skips"], "test_accuracy" in told[-1]["metrics"]) == (1, True)
    assert ["picture" in notice for notice in told] == [False, True]
    assert b64decode(told[-1]["picture"]).startswith(b"\x89PNG")
    assert result["notices"] == {"sent": 2, "failed": 2, "dropped": 0}
    with (tmp_path / "runs" / "doors" / "track" / "track.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["loss"] for row in rows if row["loss"]].count("nan") == 1
    assert any("nonfinite of loss" in row["event"] for row in rows)
    assert len([row for row in rows if row["eval/test_accuracy"]]) == 3
    assert set(result["tracker_failures"]) == {"mlflow"}
    assert run.stdout.count(receiver.url) == 0, "the URL of a webhook is its key"
