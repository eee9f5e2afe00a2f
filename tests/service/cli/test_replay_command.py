"""``gradguard replay`` on small logs, through the command itself."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from guard.logs.log import TraceError
from service.cli.app import app


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["replay", *map(str, arguments)])


def write_log(path: Path, header: str = "step,loss,grad_norm") -> Path:
    rows = [f"{i},{2 + 0.01 * (i * 7 % 11)},{1 + 0.02 * (i * 5 % 7)}" for i in range(300)]
    rows[200:203] = ["200,40,90", "201,41,95", "202,42,91"]
    rows[250] = "250,nan,1.0"
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


def test_json_lists_the_alarms_with_their_evidence(tmp_path: Path) -> None:
    result = json.loads(run(write_log(tmp_path / "log.csv"), "--json").stdout)
    assert result["rows"] == 300
    assert {alarm["step"] for alarm in result["alarms"]} >= {250}
    assert any(alarm["verdict"] == "spike" and 200 <= alarm["step"] <= 202 for alarm in result["alarms"])
    for alarm in result["alarms"]:
        assert set(alarm) == {"step", "verdict", "signal", "score", "baseline"}


def test_the_table_shows_what_the_guard_would_have_done(tmp_path: Path) -> None:
    shown = run(write_log(tmp_path / "log.csv")).stdout
    assert "roll back" in shown
    assert "skip" in shown
    assert "300 rows" in shown


def test_other_column_names_gzip_and_a_plot(tmp_path: Path) -> None:
    log = write_log(tmp_path / "log.csv", header="it,train_loss,gnorm")
    packed = tmp_path / "log.csv.gz"
    packed.write_bytes(gzip.compress(log.read_bytes()))
    names = ("--step", "it", "--loss", "train_loss", "--grad-norm", "gnorm")
    plot = tmp_path / "log.svg"
    assert run(packed, *names, "--json", "--plot", plot).stdout == run(log, *names, "--json").stdout
    assert "<svg" in plot.read_text()


def test_a_malformed_row_is_named_by_its_line(tmp_path: Path) -> None:
    log = tmp_path / "log.csv"
    log.write_text("step,loss\n0,1.0\n1,high\n")
    with pytest.raises(TraceError, match=r"log\.csv:3: loss is 'high', not a number"):
        raise run(log).exception or AssertionError("the command said nothing")


def test_it_says_what_the_log_was_taken_for(tmp_path: Path) -> None:
    log = tmp_path / "out.log"
    log.write_text(
        "".join(f"iter {i}: loss {2 + i % 7 / 100}, time 310.20ms, mfu 41.20%\n" for i in range(2000))
    )
    shown = run(log).stdout.splitlines()[0]
    assert shown == "nanoGPT log, 2,000 steps, step from iter, no gradient norm: loss alone"


def test_settings_of_the_detector_can_be_set_and_compared(tmp_path: Path) -> None:
    log = write_log(tmp_path / "log.csv")
    deaf = ("min_excess=90", "guard.detect.sigmas=5000")
    options = [word for setting in deaf for word in ("--set", setting)]
    alarms = json.loads(run(log, *options, "--json").stdout)["alarms"]
    assert [alarm["step"] for alarm in alarms] == [250]
    compared = json.loads(run(log, "--compare", deaf[0], "--compare", deaf[1], "--json").stdout)
    assert compared["compared"]["alarms"] == alarms
    assert len(compared["alarms"]) > 1
    shown = run(log, "--compare", deaf[0], "--compare", deaf[1]).stdout
    assert "alarms only as it is: 20" in shown
    assert "only with the change" not in shown


@pytest.mark.parametrize(
    ("option", "value", "problem"),
    [
        ("--set", "sigma=8", 'did you mean "sigmas"'),
        ("--plot", ".", "write a file's name that ends in .svg, .png or .pdf"),
        ("--plot", "alarms", "write a file's name that ends in .svg, .png or .pdf"),
        ("--regex", r"cost (?P<loss>\d+)", "no line matches --regex"),
        ("--compare", "sigmas=-1", "--compare sigmas=-1: sigmas = -1: must be greater than 0"),
    ],
)
def test_a_wrong_setting_is_refused(tmp_path: Path, option: str, value: str, problem: str) -> None:
    assert problem in str(run(write_log(tmp_path / "log.csv"), option, value).exception)


@pytest.mark.parametrize(
    ("rows", "fail_on", "code"),
    [
        ("", "spike", 0),
        ("spike", "spike", 1),
        ("spike", "nonfinite", 0),
        ("nan", "spike", 1),
        ("nan", "nonfinite", 1),
        ("spike", "suspect", 1),
    ],
)
def test_the_exit_code_for_continuous_integration(tmp_path: Path, rows: str, fail_on: str, code: int) -> None:
    losses = [str(2 + 0.01 * (i * 7 % 11)) for i in range(300)]
    if rows == "spike":
        losses[200:203] = ["40", "41", "42"]
    elif rows == "nan":
        losses[250] = "nan"
    (tmp_path / "log.csv").write_text("\n".join(["loss", *losses]))
    assert run(tmp_path / "log.csv").exit_code == 0
    assert run(tmp_path / "log.csv", "--fail-on", fail_on).exit_code == code


def test_a_log_without_rows_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.csv").write_text("step,loss\n")
    with pytest.raises(TraceError, match=r"empty\.csv: CSV without a row: nothing was logged yet"):
        CliRunner().invoke(
            app, ["replay", str(tmp_path / "empty.csv"), "--fail-on", "spike"], catch_exceptions=False
        )
