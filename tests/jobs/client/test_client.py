"""The job client on a folder, and the pieces that all its ends share."""

from __future__ import annotations

import io
import json
import os
import re
import socket
import threading
import zipfile
from pathlib import Path

import pytest
from typer.testing import CliRunner

from jobs.client import (
    ClientError,
    Conflict,
    JobClient,
    JobNotFound,
    JobTimeout,
    NotAllowed,
    Refused,
    TryLater,
    Unreachable,
    Unsupported,
)
from jobs.client.connect import is_service, token_from_environment
from jobs.client.models import JobInfo, Progress
from jobs.client.show import describe, show_progress
from jobs.client.working_dir import pack
from jobs.errors import JobError
from jobs.run_dir.paths import RunDir
from jobs.spec.job_spec import JobSpec
from service.cli.app import app


def job_folder(root: Path, name: str, rows: int = 50) -> Path:
    """What a job leaves behind: a loss that explodes once at step 30."""
    folder = root / name
    folder.mkdir(parents=True)
    (folder / "spec.yaml").write_text(
        JobSpec.from_dict({"name": name, "train": {"max_steps": rows}}).to_yaml()
    )
    with (folder / "metrics.jsonl").open("w") as file:
        for step in range(1, rows + 1):
            odd = step == 30
            row = {"time": step, "attempt": step, "step": step, "loss": "nan" if odd else 1 / step}
            row |= {"action": "skipped" if odd else "applied", "verdict": "nonfinite" if odd else "ok"}
            file.write(json.dumps(row) + "\n")
    incident = {"type": "incident", "id": 1, "step": 30, "verdict": "nonfinite", "action": "skipped"}
    outcome = {"type": "outcome", "incident": 1, "outcome": "recovered"}
    (folder / "incidents.jsonl").write_text(f"{json.dumps(incident)}\n{json.dumps(outcome)}\n")
    return folder


def test_a_folder_of_jobs_is_read_without_any_server(tmp_path: Path) -> None:
    (job_folder(tmp_path, "done") / "result.json").write_text('{"status": "succeeded", "steps": 50}')
    running, killed = job_folder(tmp_path, "running"), job_folder(tmp_path, "killed")
    client = JobClient(str(tmp_path))
    with RunDir(running).locked():
        assert {job.id: job.status for job in client.list()} == {
            "done": "succeeded",
            "running": "running",
            "killed": "failed",
        }
    assert "--resume continues it" in client.get(killed.name).message
    job = client.get("done")
    assert job.progress is not None
    assert (job.progress.step, job.progress.total_steps) == (50, 50)
    assert [row["outcome"] for row in job.incidents()] == ["recovered"]
    assert "<html" in job.report()
    assert [event.kind for event in job.follow()] == ["incident", "state"]
    assert [job.id for job in client.list(status="failed")] == ["killed", "running"]


def test_a_folder_says_when_a_job_started_and_how_and_when_it_ended(tmp_path: Path) -> None:
    ended, running = job_folder(tmp_path, "ended"), job_folder(tmp_path, "running")
    (ended / "result.json").write_text('{"status": "halted"}')
    os.utime(ended / "spec.yaml", (1000, 1000))
    os.utime(ended / "result.json", (1060, 1060))
    client = JobClient(str(tmp_path))
    job = client.get("ended").info
    assert (job.exit_code, job.started, job.ended) == (3, 1000, 1060)
    with RunDir(running).locked():
        job = client.get("running").info
    assert (job.exit_code, job.ended) == (None, None)


def test_a_job_that_has_ended_is_not_asked_to_stop(tmp_path: Path) -> None:
    (job_folder(tmp_path, "done") / "result.json").write_text('{"status": "succeeded"}')
    said = CliRunner().invoke(app, ["stop", "done", "--address", str(tmp_path)])
    assert (said.exit_code, said.output) == (0, "done has ended already: succeeded\n")


def test_thinned_out_metrics_keep_every_step_that_was_no_ordinary_one(tmp_path: Path) -> None:
    job_folder(tmp_path, "long", rows=1000)
    series = JobClient(str(tmp_path)).metrics("long", ["loss"], points=10)
    assert series.rows == 1000
    assert len(series.columns["step"]) <= 12
    assert series.columns["step"][-1] == 1000
    assert series.columns["loss"][series.columns["step"].index(30)] == "nan"
    later = JobClient(str(tmp_path)).metrics("long", ["loss"], after_attempt=998)
    assert later.columns["step"] == [999, 1000]


def test_a_folder_is_only_read(tmp_path: Path) -> None:
    job_folder(tmp_path, "old")
    client = JobClient(f"file://{tmp_path}")
    for change in (client.stop, client.checkpoint, client.resume, client.delete, client.clone):
        with pytest.raises(Unsupported, match="a folder is only read"):
            change("old")
    with pytest.raises(JobNotFound, match=r"there is no job \.\./old"):
        client.get("../old")
    with pytest.raises(JobTimeout, match="still running"), RunDir(tmp_path / "old").locked():
        client.wait("old", timeout_s=0)


@pytest.mark.parametrize("address", ["/no/such/folder", "ftp://x", "http://127.0.0.1:9"])
def test_an_address_where_nothing_answers_is_one_clear_line(address: str) -> None:
    with pytest.raises(Unreachable) as caught:
        JobClient(address)
    assert "\n" not in str(caught.value)


def test_all_errors_are_in_one_tree() -> None:
    kinds = (Conflict, JobNotFound, JobTimeout, NotAllowed, Refused, TryLater, Unreachable, Unsupported)
    assert all(issubclass(kind, ClientError) for kind in kinds)
    assert issubclass(ClientError, JobError)


def test_a_working_directory_is_packed_the_same_every_time(tmp_path: Path) -> None:
    (tmp_path / "wd" / "__pycache__").mkdir(parents=True)
    (tmp_path / "wd" / "job.py").write_text("x = 1")
    (tmp_path / "wd" / "__pycache__" / "job.pyc").write_text("")
    first = pack(tmp_path / "wd")
    (tmp_path / "wd" / "job.py").touch()
    assert pack(tmp_path / "wd") == first
    assert zipfile.ZipFile(io.BytesIO(first)).namelist() == ["job.py"]
    (tmp_path / "wd" / "link").symlink_to("/etc/passwd")
    with pytest.raises(Refused, match="is a link"):
        pack(tmp_path / "wd")


def test_progress_is_one_line_for_each_change() -> None:
    job = JobInfo(id="j", name="j", status="running", progress=Progress(step=4, attempt=4, total_steps=9))
    stream = io.StringIO()
    with show_progress(stream) as show:
        show(job)
        show(job)
        show(job.model_copy(update={"status": "failed", "reason": "rank 0: ValueError"}))
    assert stream.getvalue().splitlines() == [
        "j  running  step 4/9",
        "j  failed  step 4/9  rank 0: ValueError",
    ]
    assert describe(job) == "j  running  step 4/9"


def test_a_job_whose_files_cannot_be_read_does_not_hide_the_others(tmp_path: Path) -> None:
    (job_folder(tmp_path, "whole") / "result.json").write_text('{"status": "succeeded"}')
    (job_folder(tmp_path, "folder") / "result.json").mkdir()
    circle = job_folder(tmp_path, "circle")
    (circle / "result.json").symlink_to("result.json")
    found = {job.id: (job.status, job.message) for job in JobClient(str(tmp_path)).list()}
    assert found["whole"] == ("succeeded", "")
    assert found["folder"] == ("failed", f"{tmp_path}/folder/result.json is a folder: it is not read")
    assert found["circle"] == ("failed", f"{circle}/result.json is a link in a circle: it is not read")
    (circle / "incidents.jsonl").unlink()
    (circle / "incidents.jsonl").symlink_to("incidents.jsonl")
    with pytest.raises(JobError, match="is a link in a circle: it is not read"):
        JobClient(str(tmp_path)).incidents("circle")


@pytest.mark.parametrize(
    "address", ["http://", "http://exa mple", "http://[::1", "http://x:99999", "https://:80"]
)
def test_what_is_no_url_is_one_line(address: str) -> None:
    with pytest.raises(Unreachable, match=f"^{re.escape(address)} is no URL: write http://HOST:PORT"):
        JobClient(address)


def test_a_server_that_speaks_no_http_is_no_service() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def greet() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(b"220 mail.example.com ESMTP\r\n")

        thread = threading.Thread(target=greet)
        thread.start()
        assert not is_service(f"http://127.0.0.1:{server.getsockname()[1]}")
        thread.join()


def test_a_token_file_that_is_no_text_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "token").write_bytes(b"\xff\xfe\0t")
    monkeypatch.setenv("GRADGUARD_TOKEN_FILE", str(tmp_path / "token"))
    monkeypatch.delenv("GRADGUARD_TOKEN", raising=False)
    with pytest.raises(Unreachable, match="token cannot be read: is no text"):
        token_from_environment()


def test_arguments_of_another_kind_are_taken_or_refused_in_a_line(tmp_path: Path) -> None:
    job_folder(tmp_path, "digits")
    client = JobClient(tmp_path)
    assert [job.id for job in client.list()] == ["digits"]
    with pytest.raises(JobError, match="submit takes a JobSpec, not dict"):
        client.submit({"name": "digits"})  # type: ignore[arg-type]
    with pytest.raises(JobError, match="missing: there is no such folder"):
        client.download("digits", "metrics.jsonl", tmp_path / "missing")
    with pytest.raises(JobError, match="yaml: there is no such folder"):
        client.get("digits").download_checkpoint(10, tmp_path / "digits" / "spec.yaml")
