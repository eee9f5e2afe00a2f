"""A job can leave anything in its folder: no reader waits for it, and nothing from outside is shown."""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from jobs import JobClient
from jobs.client.job_files import JobFiles
from jobs.run_dir.paths import HISTORY, INCIDENTS, METRICS, RESULT, SAMPLES, SPEC
from jobs.spec.job_spec import JobSpec
from service.page.list_stream import ListLive
from service.page.streams import JobLive
from service.reconcile.job_files import files_below
from service.reconcile.log_spool import log_path
from service.reconcile.outcome import outcome_of
from service.store import JobRow
from tests.service.api.api_fixture import SPEC as DIGITS
from tests.service.api.api_fixture import Api
from tests.service.page.page_fixture import served
from tests.service.reconcile.test_reconcile import ended

FILES = (SPEC, METRICS, INCIDENTS, RESULT, SAMPLES, HISTORY, "checkpoints/step-00000010/manifest.json")
ASKED = ("", "/report", "/metrics", "/incidents", "/checkpoints", "/logs", "/events")
OUTSIDE = "root:TOPSECRET:0:0"


@pytest.fixture
def api(tmp_path: Path) -> Api:
    return Api(tmp_path)


def folder_of(api: Api, job: str) -> Path:
    """A folder with a first row, as a job leaves it."""
    folder = Path(api.context.store.get(job).folder or "")
    (folder / "checkpoints" / "step-00000010").mkdir(parents=True)
    (folder / METRICS).write_text('{"action": "applied", "step": 1, "attempt": 1, "loss": 1.0}\n')
    (folder / RESULT).write_text(json.dumps({"status": "succeeded", "samples": SAMPLES}))
    (folder / SPEC).write_text(JobSpec.from_dict({**DIGITS, "name": job}).to_yaml())
    return folder


def put(path: Path, make: Callable[[Path], object]) -> None:
    path.unlink(missing_ok=True)
    make(path)


def put_socket(path: Path) -> None:
    """By a short path: the name of a socket has at most 107 bytes."""
    with contextlib.chdir(path.parent), socket.socket(socket.AF_UNIX) as bound:
        bound.bind(path.name)


@pytest.mark.parametrize("name", FILES)
def test_a_fifo_in_place_of_a_file_holds_up_no_request(api: Api, name: str) -> None:
    for make in (os.mkfifo, put_socket, Path.mkdir):
        job, client = api.submitted(), api.client("read")
        put(folder_of(api, job) / name, make)
        answers = {what: client.get(f"/v1/jobs/{job}{what}").status_code for what in ASKED}
        assert set(answers.values()) <= {200, 409}, (make, answers)
        assert dict(JobLive(api.context, job).poll())["job"]["id"] == job
    assert client.get("/v1/jobs").status_code == 200
    assert len(ListLive(api.context, [], None, 10).poll()) == 1


@pytest.mark.parametrize("to", ["a file elsewhere", "another job", "the service's own files", "a device"])
@pytest.mark.parametrize("name", FILES)
def test_no_link_is_followed_out_of_the_folder(api: Api, tmp_path: Path, name: str, to: str) -> None:
    job, client = api.submitted(), api.client("read")
    folder = folder_of(api, job)
    places = {
        "a file elsewhere": tmp_path / "outside.txt",
        "another job": api.root / "other" / name,
        "the service's own files": api.root / ".service" / "logs" / "other.log",
        "a device": Path("/dev/zero"),
    }
    target = places[to]
    if to != "a device":
        target.parent.mkdir(parents=True, exist_ok=True)
        row = {"type": "incident", "id": 1, "action": "applied", "step": 7, "attempt": 2, "error": OUTSIDE}
        target.write_text(json.dumps({**row, "reason": OUTSIDE, "name": OUTSIDE}))
    put(folder / name, lambda path: path.symlink_to(target))
    for what in ASKED:
        answer = client.get(f"/v1/jobs/{job}{what}")
        assert answer.status_code in (200, 409)
        assert "TOPSECRET" not in answer.text, what
    assert "TOPSECRET" not in str(JobLive(api.context, job).poll())


def test_a_folder_of_checkpoints_elsewhere_is_not_read(api: Api, tmp_path: Path) -> None:
    job, client = api.submitted(), api.client("read")
    folder = folder_of(api, job)
    other = tmp_path / "other" / "step-00000010"
    other.mkdir(parents=True)
    (other / "manifest.json").write_text(OUTSIDE)
    (folder / "checkpoints" / "step-00000010").rmdir()
    (folder / "checkpoints" / "step-00000010").symlink_to(other)
    (shown,) = client.get(f"/v1/jobs/{job}/checkpoints").json()
    assert "leads out of the job's folder" in shown["problem"]


def test_a_long_journal_comes_in_pages(api: Api) -> None:
    job, client = api.submitted(), api.client("read")
    row = {"type": "incident", "action": "skipped", "step": 7, "attempt": 2}
    lines = (json.dumps({**row, "id": number}) + "\n" for number in range(1, 2502))
    (folder_of(api, job) / INCIDENTS).write_text("".join(lines))
    url = f"/v1/jobs/{job}/incidents"
    pages = [client.get(url, params={"start": start}).json() for start in (0, 1000, 2000, 3000)]
    assert [len(page) for page in pages] == [1000, 1000, 501, 0]
    assert pages[2][-1]["id"] == 2501
    shown = dict(JobLive(api.context, job).poll())["incidents"]
    assert (shown["total"], len(shown["shown"]), shown["shown"][-1]["id"]) == (2501, 200, 2501)
    with served(api) as address, JobClient(address, token=api.tokens["read"]) as whole:
        assert [incident["id"] for incident in whole.incidents(job)] == list(range(1, 2502))
        assert [incident["id"] for incident in whole.incidents(job, newest=2)] == [2500, 2501]


def test_html_of_a_job_is_text_and_its_report_is_in_a_sandbox(api: Api) -> None:
    job, script = api.submitted(), "<script>alert(1)</script>"
    folder = folder_of(api, job)
    result = {"status": "failed", "error": script, "samples": SAMPLES, "dataset": script}
    (folder / RESULT).write_text(json.dumps(result))
    (folder / SAMPLES).write_text(f"</pre>{script}")
    row = {"type": "incident", "id": 1, "step": 7, "action": script, "layers": [[script, 1.0]]}
    (folder / INCIDENTS).write_text(json.dumps(row) + "\n")
    report = api.client("read").get(f"/v1/jobs/{job}/report")
    assert script not in report.text
    assert "&lt;script&gt;" in report.text
    assert report.headers["content-security-policy"].startswith("sandbox; default-src 'none'")
    sent = api.client("read").get(f"/v1/jobs/{job}/files/{SAMPLES}")
    assert sent.headers["content-disposition"].startswith("attachment")
    assert (sent.headers["content-type"], sent.headers["x-content-type-options"]) == (
        "application/octet-stream",
        "nosniff",
    )


def test_a_job_cannot_name_the_services_own_folder_as_its_own(api: Api) -> None:
    own = api.root / ".service"
    own.mkdir()
    assert files_below(own, api.root) is None
    assert files_below(api.root, api.root) is None
    assert isinstance(files_below(api.root / "job", api.root), JobFiles)


def test_a_file_beyond_the_limit_is_refused_by_name(api: Api) -> None:
    job, client = api.submitted(), api.client("read")
    folder = folder_of(api, job)
    for name in (METRICS, SAMPLES, RESULT):
        os.truncate(put_empty(folder / name), 1 << 40)
    answer = client.get(f"/v1/jobs/{job}/metrics")
    assert answer.status_code == 409
    assert "metrics.jsonl is larger than" in answer.json()["detail"]
    assert client.get(f"/v1/jobs/{job}/report").status_code == 409


def put_empty(path: Path) -> Path:
    path.touch()
    return path


def test_a_log_that_was_replaced_by_a_link_is_not_shown(api: Api, tmp_path: Path) -> None:
    job, client = api.submitted(), api.client("read")
    (tmp_path / "outside.txt").write_text(OUTSIDE)
    log = log_path(api.root, job)
    log.parent.mkdir(parents=True)
    log.symlink_to(tmp_path / "outside.txt")
    assert client.get(f"/v1/jobs/{job}/logs").text == ""


def test_a_fifo_as_result_does_not_keep_a_job_from_ending(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / RESULT)
    outcome = outcome_of(ended(), JobFiles(tmp_path), before=None, stopping=False, log_end="")
    assert (outcome.kind, outcome.result) == ("failed", None)


def test_a_command_line_in_the_result_is_shown_without_its_secrets(api: Api) -> None:
    job, command = api.submitted(), "gradguard train x.yaml --set options.api_key=hunter2hunter2 --resume"

    def end(row: JobRow) -> None:
        row.result = {"status": "failed", "resume": command, "metrics": {"token_accuracy": 0.5}}

    api.context.store.change(job, end)
    shown = api.client("read").get(f"/v1/jobs/{job}").json()["result"]
    assert shown["resume"] == command.replace("hunter2hunter2", "********")
    assert shown["metrics"] == {"token_accuracy": 0.5}
