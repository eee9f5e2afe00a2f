"""Logs in, verdicts out: the same as a detector that is shown the numbers one by one."""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest

from guard.config import DetectConfig
from guard.decide.replay import replay
from guard.logs.log import TraceError
from guard.logs.trace import TraceReader
from tests.guard.synthetic_runs import Step, run, verdicts_of


def spiky() -> list[Step]:
    steps = run(300, norm=lambda _: 0.5)
    steps[100] = Step(math.nan, math.inf)
    steps[150] = Step(steps[150].loss * 1.7, 0.5)
    steps[200:203] = [Step(steps[200].loss * 3, 4.0)] * 3
    return steps


def as_csv(steps: list[Step]) -> str:
    return "step,loss,grad_norm\n" + "".join(
        f"{10 * i},{s.loss!r},{s.grad_norm!r}\n" for i, s in enumerate(steps)
    )


def as_json_lines(steps: list[Step]) -> str:
    """As a job's own metrics are written: strict JSON, evaluations in between."""
    lines = []
    for i, step in enumerate(steps):
        values = {"loss": step.loss, "grad_norm": step.grad_norm}
        strict = {k: v if math.isfinite(v) else repr(v) for k, v in values.items()}  # type: ignore[arg-type]
        lines.append(json.dumps({"attempt": i, "step": 10 * i, **strict}, allow_nan=False))
        if i % 100 == 0:
            lines.append(json.dumps({"attempt": i, "step": 10 * i, "eval": {"test_loss": 9.9}}))
    return "\n".join(lines) + "\n\n"


@pytest.mark.parametrize("zipped", [False, True], ids=["plain", "gzip"])
@pytest.mark.parametrize(("suffix", "write"), [("csv", as_csv), ("jsonl", as_json_lines)])
def test_a_log_gets_the_verdicts_of_the_run_itself(
    tmp_path: Path, suffix: str, write: Callable[[list[Step]], str], zipped: bool
) -> None:
    steps, path = spiky(), tmp_path / f"log.{suffix}{'.gz' if zipped else ''}"
    data = write(steps).encode()
    path.write_bytes(gzip.compress(data) if zipped else data)
    result, verdicts = replay(path), verdicts_of(steps)
    assert result.rows == len(steps)
    assert result.suspects == sum(v.kind == "suspect" for v in verdicts) == 1
    assert [(a["step"], a["verdict"], a["signal"], a["score"], a["baseline"]) for a in result.alarms] == [
        (10 * i, v.kind, v.signal, v.score, v.baseline)
        for i, v in enumerate(verdicts)
        if v.kind in ("spike", "nonfinite")
    ]
    assert [a["step"] for a in result.alarms] == [1000, 2000, 2010, 2020]


def test_the_result_is_strict_json(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text(as_csv(spiky()))
    found = json.loads(json.dumps(replay(path).to_dict(), allow_nan=False))
    assert (found["rows"], found["suspects"], len(found["alarms"]), found["trends"]) == (300, 1, 4, [])
    assert found["alarms"][0]["score"] == "inf"
    assert set(found["alarms"][0]) == {"step", "verdict", "signal", "score", "baseline"}
    assert found["skipped_first"] == [2000]


def test_drift_is_a_trend_and_no_alarm(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text(as_csv(run(1500, loss=lambda i: 1 + i / 500, norm=lambda _: 0.5)))
    result = replay(path)
    assert result.alarms == []
    assert {trend["verdict"] for trend in result.trends} == {"drift"}


def test_columns_can_be_named_and_stand_in_any_order(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text(
        "lr,norm, train/loss ,it\n" + "".join(f"0.1,0.5,{s.loss!r},{i}\n" for i, s in enumerate(spiky()))
    )
    found = replay(path, step="it", loss="train/loss", grad_norm="norm").alarms
    assert [alarm["step"] for alarm in found] == [100, 200, 201, 202]


def test_an_empty_cell_was_not_logged_and_a_nan_was(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("step,loss,grad_norm\n0,1.5,\n1,,0.25\n2,nan,-inf\n\n3, 2e3 , \n")
    rows = list(TraceReader(path))
    assert [(r.step, r.loss, r.grad_norm) for r in rows[:2]] == [(0, 1.5, None), (1, None, 0.25)]
    assert math.isnan(rows[2].loss or 0)
    assert rows[2].grad_norm == -math.inf
    assert rows[3] == (3, 2000.0, None)


def test_without_a_step_or_a_norm_column_rows_are_counted_and_only_the_loss_is_used(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("\ufeffloss\n" + "".join(f"{s.loss!r}\n" for s in spiky()), encoding="utf-8")
    assert replay(path).alarms[0]["step"] == 100
    assert all(row.grad_norm is None for row in TraceReader(path))


def test_the_configuration_is_used(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text(as_csv(spiky()))
    assert [a["verdict"] for a in replay(path, DetectConfig(min_excess=9.0, sigmas=500)).alarms] == [
        "nonfinite"
    ]


@pytest.mark.parametrize(
    ("name", "text", "line", "problem"),
    [
        ("a.csv", "step,loss\n0,1.0\n1,high\n", 3, "loss is 'high', not a number"),
        ("a.csv", "step,loss\nzero,1.0\n", 2, "step is 'zero', not a number"),
        ("a.csv", "step,loss\nnan,1.0\n", 2, "number every row"),
        ("a.csv", "step,loss\n0,1.0,7\n", 2, "3 cells under a header of 2"),
        ("a.csv", "step,loss\n0\n", 2, "1 cells under a header of 2"),
        ("a.csv", 'step,loss\n0,"1.0\n', 2, "not CSV"),
        ("a.csv", "step,perplexity\n0,1.0\n", 0, "no column 'loss': name one of step, perplexity"),
        ("a.csv", "", 0, "is empty: nothing was logged yet"),
        ("a.jsonl", '{"step": 0, "loss": 1}\n{"step": 1, "lo\n', 2, "not JSON"),
        ("a.jsonl", '{"step": 0, "loss": 1}\n[1, 2]\n', 2, "not a JSON object"),
        ("a.jsonl", '{"step": 0, "loss": [1]}\n', 1, "loss is [1], not a number"),
        ("a.jsonl", '{"step": 0, "loss": true}\n', 1, "loss is True, not a number"),
        ("a.jsonl", '{"step": 0, "perplexity": 2}\n', 0, "no column 'loss': name one of step, perplexity"),
    ],
)
def test_a_malformed_row_is_named_by_file_and_line(
    tmp_path: Path, name: str, text: str, line: int, problem: str
) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(TraceError) as caught:
        replay(path)
    assert isinstance(caught.value, ValueError)
    assert str(caught.value).startswith(f"{path}:{line}: " if line else f"{path}: ")
    assert problem in str(caught.value)
    assert (caught.value.path, caught.value.line) == (path, line)


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"step,loss\n0,\xff\xfe\n", r"log\.csv:2: loss is .* not a number"),
        (gzip.compress(b"step,loss\n" + b"0,1.0\n" * 99, mtime=0)[:30], r"log\.csv: a damaged archive"),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, data: bytes, problem: str) -> None:
    path = tmp_path / "log.csv"
    path.write_bytes(data)
    with pytest.raises(TraceError, match=problem):
        replay(path)


def test_a_missing_file_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        replay(tmp_path / "none.csv")


def test_rows_are_read_one_by_one(tmp_path: Path) -> None:
    """The first rows come before a later one is found to be malformed."""
    path = tmp_path / "log.csv"
    path.write_text("step,loss\n0,1.0\n1,2.0\n2,bad\n")
    rows = TraceReader(path)
    assert [next(rows).loss, next(rows).loss] == [1.0, 2.0]
    with pytest.raises(TraceError, match=r"log\.csv:4"):
        next(rows)
