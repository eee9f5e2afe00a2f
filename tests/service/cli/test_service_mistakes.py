"""First mistakes at a service, over HTTP: what each command prints is the line in the documents."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from service.cli.app import main
from tests.integration.deaths.test_full_disk import ISOLATED, can_mount
from tests.integration.harness.runner import GRADGUARD
from tests.service.api.api_fixture import Api
from tests.service.cli.test_first_mistakes import SPEC, documented
from tests.service.page.page_fixture import play, served

HEADING = "At a service"
MISTAKES: dict[str, tuple[str, str]] = {
    "no token": ("gradguard list", ""),
    "a token that does not exist": ("gradguard list", "gg_wrong"),
    "half a token and a word": ("gradguard list", "gg_wro ng"),
    "a token that may only read": ("gradguard submit my-job.yaml", "read"),
    "a token that may not delete": ("gradguard delete my-job-1a2b3c", "submit"),
    "an id of no job": ("gradguard status my-jbo-1a2b3c", "read"),
    "a job that has recorded nothing yet": ("gradguard download my-job-1a2b3c metrics.jsonl", "read"),
    "no folder to save to": ("gradguard download my-job-1a2b3c --to results", "read"),
    "a FIFO in a job's folder": ("gradguard download fifo-1a2b3c metrics.jsonl", "read"),
    "a device in a job's folder": ("gradguard report device-1a2b3c", "read"),
    "a link out of a job's folder": ("gradguard incidents link-1a2b3c", "read"),
    "a folder where a file belongs": ("gradguard download folder-1a2b3c metrics.jsonl", "read"),
}
BY_OTHER_TESTS = {
    "a full disk here": "gradguard download large-1a2b3c metrics.jsonl --to full",
    "a full disk of the service": "gradguard submit my-job.yaml",
    "Ctrl-C while a job is submitted": "gradguard submit my-job.yaml",
    "Ctrl-C while its log is shown": "gradguard submit my-job.yaml --wait",
    "Ctrl-C while a job trains here": "gradguard train my-job.yaml",
}
ODD: dict[str, Callable[[Path], object]] = {
    "my-job": Path.exists,
    "fifo": os.mkfifo,
    "device": lambda path: path.symlink_to("/dev/zero"),
    "link": lambda path: path.symlink_to("/etc/passwd"),
    "folder": lambda path: path.mkdir(),
    "large": lambda path: path.write_bytes(bytes(1 << 20)),
}
"""What becomes of the files of each job."""


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Api:
    api = Api(tmp_path_factory.mktemp("service"))
    for name, make in ODD.items():
        job = f"{name}-1a2b3c"
        play(api, job, "running")
        folder = api.root / "runs" / job
        folder.mkdir(parents=True)
        (folder / "spec.yaml").write_text(SPEC)
        make(folder / "metrics.jsonl")
        make(folder / "incidents.jsonl")
    return api


@pytest.fixture(scope="module")
def url(api: Api) -> Iterator[str]:
    with served(api) as url:
        yield url


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which somebody works."""
    (tmp_path / "my-job.yaml").write_text(SPEC)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "300")
    return tmp_path


def test_the_documents_list_these_mistakes() -> None:
    commands = {mistake: command for mistake, (command, _) in MISTAKES.items()} | BY_OTHER_TESTS
    assert {mistake: command for mistake, (command, _) in documented(HEADING).items()} == commands


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_first_mistake_prints_the_documented_line(
    mistake: str, api: Api, url: str, here: Path, monkeypatch: Any, capsys: Any
) -> None:
    command, token = MISTAKES[mistake]
    monkeypatch.setenv("GRADGUARD_TOKEN", api.tokens.get(token, token))
    code, printed = ended(command, url, monkeypatch, capsys)
    assert code == 2
    assert printed.replace(str(api.root / "runs"), "/jobs") == documented(HEADING)[mistake][1]


@pytest.mark.parametrize(
    ("mistake", "at"),
    [
        ("Ctrl-C while a job is submitted", ("POST", "/v1/jobs")),
        ("Ctrl-C while its log is shown", ("GET", "/logs")),
    ],
)
def test_ctrl_c_says_what_became_of_the_job(
    mistake: str, at: tuple[str, str], api: Api, here: Path, monkeypatch: Any, capsys: Any
) -> None:
    async def interrupting(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http" and scope["method"] == at[0] and scope["path"].endswith(at[1]):
            os.kill(os.getpid(), signal.SIGINT)
        await api.app(scope, receive, send)

    before = {row.id for row in api.context.store.page().jobs}
    monkeypatch.setenv("GRADGUARD_TOKEN", api.tokens["submit"])
    with served(SimpleNamespace(app=interrupting)) as url:  # type: ignore[arg-type]
        code, printed = ended(BY_OTHER_TESTS[mistake], url, monkeypatch, capsys)
    assert code == 130
    for job in {row.id for row in api.context.store.page().jobs} - before:  # one or none
        printed = printed.replace(job, "my-job-1a2b3c")
    assert printed == documented(HEADING)[mistake][1]


@pytest.mark.slow
@pytest.mark.skipif(not can_mount(), reason="needs the right to mount a file system")
def test_a_full_disk_here_is_one_line_and_no_half_file(api: Api, url: str, here: Path) -> None:
    command = BY_OTHER_TESTS["a full disk here"].replace("gradguard", GRADGUARD)
    full = f"mkdir full && mount -t tmpfs -o size=300k none full && {command} --address {url}; ls full >&2"
    environment = {**os.environ, "GRADGUARD_TOKEN": api.tokens["read"]}
    run = subprocess.run([*ISOLATED, full], env=environment, capture_output=True, text=True, check=False)
    assert run.stderr == documented(HEADING)["a full disk here"][1] + "\n"


def ended(command: str, url: str, monkeypatch: Any, capsys: Any) -> tuple[Any, str]:
    """The exit code of a command at this service and the line that it printed."""
    monkeypatch.setattr(sys, "argv", [*shlex.split(command), "--address", url])
    with pytest.raises(SystemExit) as left:
        main()
    (line,) = capsys.readouterr().err.splitlines()
    return left.value.code, line
