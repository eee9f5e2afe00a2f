"""``gradguard report`` and ``gradguard compare`` on folders of jobs, through the commands themselves."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from jobs.errors import JobError
from service.cli.app import app, main

SPEC = "name: {name}\nseed: 0\noptimizer: {{name: sgd, lr: {lr}}}\n"


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [*map(str, arguments)], env={"COLUMNS": "120"})


def write_job(folder: Path, *, lr: float, steps: int) -> Path:
    folder.mkdir()
    (folder / "spec.yaml").write_text(SPEC.format(name=folder.name, lr=lr))
    rows = [
        {"attempt": i, "step": i, "action": "applied", "loss": 2.0 / i, "grad_norm": 1.0 / i, "lr": lr}
        for i in range(1, steps + 1)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("runs")
    return write_job(root / "steady", lr=0.1, steps=40), write_job(root / "hot", lr=0.4, steps=20)


def test_the_report_is_a_page_and_a_picture(jobs: tuple[Path, Path]) -> None:
    done = run("report", jobs[0])
    assert (done.exit_code, done.stdout.strip()) == (0, str(jobs[0] / "report.html"))
    assert (jobs[0] / "report.png").read_bytes().startswith(b"\x89PNG")


def test_png_writes_only_the_picture(jobs: tuple[Path, Path]) -> None:
    done = run("report", jobs[1], "--png")
    assert (done.exit_code, done.stdout.strip()) == (0, str(jobs[1] / "report.png"))
    assert not (jobs[1] / "report.html").exists()


def test_the_report_is_written_where_to_says(jobs: tuple[Path, Path], tmp_path: Path) -> None:
    page = tmp_path / "mine.html"
    assert run("report", jobs[1], "--to", page).stdout.strip() == str(page)
    assert page.read_text().startswith("<!DOCTYPE html>")
    assert page.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert not (jobs[1] / "report.html").exists()
    assert run("report", jobs[1], "--png", "--to", tmp_path / "chart.png").exit_code == 0
    assert (tmp_path / "chart.png").exists()


@pytest.mark.parametrize("command", ["report", "compare"])
def test_a_folder_or_device_is_not_replaced(command: str, jobs: tuple[Path, Path], tmp_path: Path) -> None:
    os.mkfifo(pipe := tmp_path / "pipe.html")
    for place in (tmp_path, pipe):
        given = jobs if command == "compare" else jobs[:1]
        with pytest.raises(JobError, match=f"cannot write {place}: it is no file"):
            CliRunner().invoke(app, [command, *map(str, (*given, "--to", place))], catch_exceptions=False)
    assert pipe.is_fifo()


def test_compare_shows_figures_and_what_differs_in_the_spec(jobs: tuple[Path, Path]) -> None:
    done = run("compare", *jobs)
    lines = [line.split() for line in done.stdout.splitlines()]
    assert done.exit_code == 0
    assert ["Steps", "40", "20", "−20"] in lines
    assert ["optimizer.lr", "0.1", "0.4"] in lines
    assert lines[-1] == [str(jobs[0] / "compare-hot.html")]
    assert (jobs[0] / "compare-hot.html").exists()


def test_compare_gives_json_and_writes_to_the_given_path(jobs: tuple[Path, Path], tmp_path: Path) -> None:
    done = run("compare", *jobs, "--json", "--to", tmp_path / "both.html")
    read = json.loads(done.stdout)
    assert read["figures"]["steps"] == {"first": 40, "second": 20, "difference": -20, "unit": "count"}
    assert read["spec"]["optimizer.lr"] == ["0.1", "0.4"]
    assert Path(read["page"]) == tmp_path / "both.html"
    assert (tmp_path / "both.html").exists()


@pytest.mark.parametrize("command", ["report", "compare"])
def test_what_is_no_job_is_one_line_and_exit_code_2(
    command: str,
    jobs: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = [str(jobs[0]), str(tmp_path)] if command == "compare" else [str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["gradguard", command, *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert capsys.readouterr().err.strip() == (
        f"{tmp_path} is not the folder of a job: it has neither spec.yaml nor metrics.jsonl"
    )


def test_a_place_that_cannot_be_written_is_named(jobs: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = run("compare", *jobs, "--to", tmp_path / "file" / "both.html")
    assert done.exit_code != 0
    assert "cannot write" in str(done.exception)
    assert "--to" in str(done.exception)


def journal(path: Path, *jobs: str) -> Path:
    """What a guard writes in a loop of the user's own, beside no other file of a job."""
    rows = [
        {"type": "incident", "id": 1, "job": job, "step": 60 + i, "attempt": 60 + i, "verdict": "nonfinite"}
        | {"signal": "loss", "value": "nan", "action": "skipped", "reason": "loss is not finite"}
        for i, job in enumerate(jobs)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_bare_journal_is_listed(tmp_path: Path) -> None:
    done = run("incidents", journal(tmp_path / "incidents.jsonl", "mine"))
    assert done.exit_code == 0
    assert done.stdout.splitlines()[-1].split() == ["60", "nonfinite", "loss", "nan", "skipped"]


def test_a_journal_of_several_guards_names_their_jobs(tmp_path: Path) -> None:
    path = journal(tmp_path / "gan.jsonl", "generator", "discriminator")
    lines = [line.split()[0] for line in run("incidents", path).stdout.splitlines()]
    assert lines == ["job", "generator", "discriminator"]
    rows = json.loads(run("incidents", path, "--json").stdout)
    assert [row["job"] for row in rows] == ["generator", "discriminator"]


def test_a_bare_journal_has_a_report(tmp_path: Path) -> None:
    done = run("report", journal(tmp_path / "run7.jsonl", "mine"))
    assert (done.exit_code, done.stdout.strip()) == (0, str(tmp_path / "run7-report.html"))
    assert "incident-1" in (tmp_path / "run7-report.html").read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "run7-report.html",
        "run7-report.png",
        "run7.jsonl",
    ]


@pytest.mark.parametrize("command", ["incidents", "report"])
def test_a_file_that_is_no_journal_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    (tmp_path / "log.csv").write_text("step,loss\n1,2.0\n")
    monkeypatch.setattr(sys, "argv", ["gradguard", command, str(tmp_path / "log.csv")])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert "is no journal" in capsys.readouterr().err
