"""The spec of a sweep: what is drawn, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from jobs.sweep.spec import RangeSpec, SweepSpec
from jobs.sweep.table import Trial, ranked
from service.cli.app import app

BASE = {"data": {"dataset": "digits"}, "optimizer": {"name": "sgd"}}


def written(folder: Path, parameters: dict[str, Any], **more: Any) -> Path:
    path = folder / "my-sweep.yaml"
    path.write_text(yaml.safe_dump({"base": BASE, "parameters": parameters, **more}, sort_keys=False))
    return path


def test_lists_are_combined_and_ranges_are_drawn_the_same_each_time(tmp_path: Path) -> None:
    both = {"optimizer.lr": [0.1, 0.01], "data.batch_size": [32, 64]}
    sweep = SweepSpec.load(written(tmp_path, both))
    found = [(job.name, job.optimizer.lr, job.data.batch_size) for job in sweep.jobs()]
    assert found == [
        ("my-sweep-1", 0.1, 32),
        ("my-sweep-2", 0.1, 64),
        ("my-sweep-3", 0.01, 32),
        ("my-sweep-4", 0.01, 64),
    ]
    assert {job.storage for job in sweep.jobs()} == {"runs/my-sweep"}
    ranges = {
        "optimizer.lr": {"min": 1e-4, "max": 1e-1, "scale": "log"},
        "optimizer.momentum": {"min": 0.0, "max": 0.9},
        "data.batch_size": {"min": 16, "max": 64},
    }
    drawn = SweepSpec.load(written(tmp_path, ranges, trials=200)).drawn()
    rates = sorted(values["optimizer.lr"] for values in drawn)
    assert 1e-4 <= rates[0] < rates[-1] <= 1e-1
    assert 1e-3 < rates[100] < 1e-2, "half of them below 0.003, as many as above"
    assert {type(values["data.batch_size"]) for values in drawn} == {int}
    assert SweepSpec.load(written(tmp_path, ranges, trials=7)).drawn() == drawn[:7]


def test_a_whole_log_range_reaches_both_ends() -> None:
    import random

    rng, whole = random.Random(0), RangeSpec(min=1, max=4, scale="log")
    assert {whole.sample(rng) for _ in range(100)} == {1, 2, 3, 4}


@pytest.mark.parametrize(
    ("parameters", "line"),
    [
        (
            {"optimizer.lr": {"min": 0.1, "max": 0.01}},
            "parameters.optimizer.lr.max = 0.01: must be more than min = 0.1",
        ),
        (
            {"optimizer.lr": {"min": 0, "max": 1, "scale": "log"}},
            "parameters.optimizer.lr.min = 0: must be above 0 on a log scale",
        ),
        ({"optimizer.momentun": [0.1]}, 'did you mean "momentum"?'),
        ({"optimizer.lr": []}, "parameters.optimizer.lr = []: is empty: list the values to try"),
        (
            {"optimizer.lr": 0.1},
            "parameters.optimizer.lr = 0.1: must be a list of values, or a range",
        ),
        ({"optimizer.lr": [0.1, -1.0]}, "trial 2 (optimizer.lr=-1.0): optimizer.lr = -1.0: must be"),
    ],
)
def test_a_wrong_range_is_one_line(tmp_path: Path, parameters: dict[str, Any], line: str) -> None:
    said = CliRunner().invoke(app, ["sweep", str(written(tmp_path, parameters)), "--dry-run"])
    assert said.exception is not None
    text = str(said.exception)
    assert line in text
    assert "\n" not in text


def test_the_best_is_first_and_one_without_a_value_last() -> None:
    trials = [Trial(number=n, value=value) for n, value in enumerate((0.5, None, 0.9, 0.5), 1)]
    assert [trial.number for trial in ranked(trials, maximize=True)] == [3, 1, 4, 2]
    assert [trial.number for trial in ranked(trials, maximize=False)] == [1, 4, 3, 2]
