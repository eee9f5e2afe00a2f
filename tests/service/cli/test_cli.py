"""The installed command against a service with tokens and TLS. No cluster is up: jobs wait for one."""

from __future__ import annotations

import json
import os
import pty
import shutil
import signal
import subprocess
from collections.abc import Iterator

import httpx
import pytest

from jobs.cluster.session import PACKAGE_ROOT
from tests.integration.harness.runner import GRADGUARD, Sandbox, read_until
from tests.service.server import Server
from tests.waiting import until

pytestmark = pytest.mark.slow

NOBODY = "http://127.0.0.1:9"
SECRET = "hunter2hunter2"
CERTIFICATE = (
    *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"),
    *("-addext", "subjectAltName=IP:127.0.0.1", "-keyout", "key.pem", "-out", "cert.pem"),
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    if shutil.which("openssl") is None:
        pytest.skip("openssl, which makes the certificate, is not installed")
    sandbox = Sandbox(tmp_path_factory.mktemp("tls"))
    sandbox.environment["PYTHONPATH"] = str(PACKAGE_ROOT)
    subprocess.run(CERTIFICATE, cwd=sandbox.path, check=True, capture_output=True)
    made = sandbox.run(GRADGUARD, "tokens", "create", "anna", "--scope=admin", "--storage=store")
    tls = ("--tls-cert=cert.pem", "--tls-key=key.pem")
    server = Server(sandbox, f"--address={NOBODY}", "--host=0.0.0.0", "--storage=store", *tls)
    server.url = server.url.replace("0.0.0.0", "127.0.0.1")
    sandbox.environment |= {
        "GRADGUARD_TOKEN": made.stdout.strip(),
        "SSL_CERT_FILE": str(sandbox.path / "cert.pem"),
        "MY_API_KEY": SECRET,
    }
    yield server
    server.end()


def one_line(run: subprocess.CompletedProcess[str], says: str) -> None:
    assert run.returncode == 2, run.stdout
    assert len(run.stdout.strip().splitlines()) == 1, run.stdout
    assert says in run.stdout


def test_a_job_from_its_submission_to_its_end_by_the_command_line(server: Server) -> None:
    assert server.url.startswith("https://")
    spec = server.sandbox.spec("life")
    job_id = server.run("submit", spec, "--env=MY_API_KEY").stdout.strip()
    watching = server.sandbox.start(GRADGUARD, "status", job_id, "--watch", f"--address={server.url}")
    read_until(watching, lambda line: "waiting for the Ray cluster" in line)

    listed = json.loads(server.run("list", "--json").stdout)
    assert [job["id"] for job in listed] == [job_id]
    cloned = json.loads(server.run("clone", job_id, "--set=optimizer.lr=0.5", "--json").stdout)
    assert cloned["spec"]["optimizer"]["lr"] == 0.5
    assert cloned["env"] == {"MY_API_KEY": "********"}
    one_line(server.run("delete", cloned["id"]), "stop it first")

    assert server.run("stop", job_id).returncode == 0
    assert "stopped" in watching.communicate(timeout=300)[0], "to watch a job ends when the job has"
    assert watching.returncode == 0
    assert server.run("delete", job_id).returncode == 0
    one_line(server.run("status", job_id), f"there is no job {job_id}")


def test_a_list_is_watched_on_a_terminal_until_ctrl_c(server: Server) -> None:
    master, slave = pty.openpty()
    command = (GRADGUARD, "list", "--watch", f"--address={server.url}")
    environment = {**server.sandbox.environment, "TERM": "xterm", "COLUMNS": "160"}
    process = subprocess.Popen(
        command,
        stdin=slave,
        stdout=slave,
        stderr=slave,
        env=environment,
        start_new_session=True,
        preexec_fn=lambda: os.close(master),
    )
    os.close(slave)
    try:
        seen = ""
        while "life-" not in seen:  # the clone
            seen += os.read(master, 1 << 16).decode(errors="replace")
        process.send_signal(signal.SIGINT)
        until(lambda: not _more(master), within_s=60)
        assert process.wait(timeout=60) == 130
    finally:
        process.kill()
        process.wait()
        os.close(master)


def test_ctrl_c_ends_a_command_whose_parent_ignores_it(server: Server) -> None:
    command = (GRADGUARD, "list", "--watch", f"--address={server.url}")
    ignoring = ("sh", "-c", 'trap "" INT; exec "$@"', "sh", *command)
    watching = server.sandbox.start(*ignoring)
    try:
        read_until(watching, lambda line: "life-" in line)
        watching.send_signal(signal.SIGINT)
        assert watching.wait(timeout=60) == 130
    finally:
        watching.kill()
        watching.communicate()


def _more(terminal: int) -> bytes:
    try:
        return os.read(terminal, 1 << 16)
    except OSError:  # how a terminal reports that its other end is gone
        return b""


def test_missing_access_is_one_line_that_names_what_to_set(server: Server) -> None:
    known = dict(server.sandbox.environment)
    try:
        del server.sandbox.environment["GRADGUARD_TOKEN"]
        one_line(server.run("list"), "a token is required")
        del server.sandbox.environment["SSL_CERT_FILE"]
        one_line(server.run("list"), "set SSL_CERT_FILE")
    finally:
        server.sandbox.environment.update(known)
    one_line(server.run("submit", server.sandbox.spec("bad", optimizer={"lr": -1})), "optimizer.lr")
    one_line(server.run("list", "--status=sideways"), "status")
    half = server.sandbox.run(GRADGUARD, "serve", "--tls-cert=cert.pem")
    one_line(half, "give both")
    wrong = server.sandbox.run(GRADGUARD, "serve", "--tls-cert=key.pem", "--tls-key=life.yaml")
    one_line(wrong, "both are PEM files")


def test_no_secret_is_in_the_output_of_the_service_or_in_the_list_of_processes(server: Server) -> None:
    until(lambda: "does not answer" in server.said())
    token = server.sandbox.environment["GRADGUARD_TOKEN"]
    for secret in (token, token.rpartition("_")[2], SECRET):
        assert secret not in server.said()
        assert secret not in server.command_lines()
    kept = (server.sandbox.path / "store" / ".service" / "service.db").read_bytes()
    assert token.rpartition("_")[2].encode() not in kept


def test_a_shell_completes_the_commands(server: Server) -> None:
    script = (
        'eval "$(_GRADGUARD_COMPLETE=source_bash gradguard)"; complete -p gradguard; '
        'COMP_WORDS=(gradguard st); COMP_CWORD=1; _gradguard_completion gradguard; echo "${COMPREPLY[@]}"'
    )
    run = server.sandbox.run("bash", "-c", script)
    assert sorted(run.stdout.split()[-2:]) == ["status", "stop"], run.stdout


def test_jobs_are_stopped_by_name_and_deleted_by_age_and_the_audit_log_shows_it(server: Server) -> None:
    jobs = [server.run("submit", server.sandbox.spec("aging")).stdout.strip() for _ in range(2)]
    assert server.run("stop", "--name=aging").stdout.count("was asked to stop") == 2
    one_line(server.run("delete"), "give JOB_ID or --older-than")
    one_line(server.run("delete", "--older-than=soon"), "is no age")
    one_line(server.run("stop", jobs[0], "--name=aging"), "and not both")
    assert server.run("delete", "--older-than=30d").stdout == ""
    shown = server.run("delete", "--older-than=0s", "--name=aging", "--dry-run")
    assert sorted(shown.stdout.split()[::4]) == sorted(jobs)
    assert server.run("delete", "--older-than=0s", "--name=aging").stdout.count("is deleted") == 2
    one_line(server.run("status", jobs[0]), f"there is no job {jobs[0]}")
    log = server.sandbox.run(GRADGUARD, "audit", jobs[0], "--storage=store", "--json")
    assert [row["action"] for row in json.loads(log.stdout)] == ["submit", "stop", "delete"]
    assert {row["token"] for row in json.loads(log.stdout)} == {"anna"}


@pytest.mark.parametrize("host", ["::1", "127.0.0.2"])
def test_it_answers_under_whichever_loopback_address_it_listens_on(
    host: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    sandbox = Sandbox(tmp_path_factory.mktemp("loopback"))
    server = Server(sandbox, f"--address={NOBODY}", f"--host={host}", "--storage=store")
    try:
        assert host in server.url
        assert "without tokens" in server.said()
        assert httpx.get(f"{server.url}/healthz").json()["status"] == "ok"
        assert server.run("list").returncode == 0
        assert httpx.get(f"{server.url}/v1/jobs", headers={"Host": "evil.example"}).status_code == 403
    finally:
        server.end()
