"""The service for real: a Ray cluster, the server's process, the installed command, and what kills them."""

from __future__ import annotations

import asyncio
import json
import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from ray.job_submission import JobSubmissionClient

from jobs import AsyncJobClient, JobClient, JobSpec
from jobs.client import Conflict, Job, JobNotFound, NotAllowed, Unsupported
from jobs.cluster import PACKAGE_ROOT
from tests.integration.cluster import RAY, Cluster
from tests.integration.runner import GRADGUARD, Sandbox, read_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

DEADLINE_S = 300
ONE_WORKER = {"scale": {"workers": 1, "cpus_per_worker": 1}}
SHORT = {**ONE_WORKER, "train": {"max_steps": 12, "checkpoint_every_steps": 4}}
ENDLESS = {**ONE_WORKER, "train": {"max_steps": 100_000, "checkpoint_every_steps": 5}}


class Server:
    """``gradguard serve`` in a process of its own."""

    def __init__(self, sandbox: Sandbox, *options: str) -> None:
        self.sandbox, self.options = sandbox, options
        self.url = ""
        self.start()

    def start(self) -> None:
        self.process = self.sandbox.start(GRADGUARD, "serve", "--port=0", "--lease-s=2", *self.options)
        said = read_until(self.process, lambda line: line.startswith("serving at "))
        self.url = said.rpartition("serving at ")[2].partition(",")[0]

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()

    def end(self) -> None:
        self.process.send_signal(signal.SIGINT)
        try:
            self.process.communicate(timeout=90)
        except subprocess.TimeoutExpired:
            self.kill()

    def client(self) -> JobClient:
        return JobClient(self.url)

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        return self.sandbox.run(GRADGUARD, *command, f"--address={self.url}")

    def submit(self, name: str, **changes: Any) -> Job:
        spec = JobSpec.load(self.sandbox.path / self.sandbox.spec(name, **changes))
        return self.client().submit(spec)


@pytest.fixture(scope="module")
def server(cluster: Cluster) -> Iterator[Server]:
    server = Server(cluster.sandbox, f"--address={cluster.url}")
    yield server
    server.end()


def until(holds: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        if found := holds():
            return found
        time.sleep(0.2)
    raise AssertionError("nothing happened in time")


def trained(client: JobClient, job_id: str, steps: int = 1) -> Job | None:
    """The job, once it has trained so far; fails if it ended."""
    job = client.get(job_id)
    assert not job.ended, f"{job.status}: {job.message}\n{''.join(client.logs(job_id))}"
    return job if job.status == "running" and job.progress and job.progress.step >= steps else None


def test_a_job_is_handed_in_followed_and_read(server: Server) -> None:
    faults = [{"kind": "nan_loss", "step": 5}]
    spec = server.sandbox.spec("life", faults=faults, **SHORT)
    handed_in = server.run("submit", spec, "--env=MY_API_KEY=hunter2hunter2")
    assert handed_in.returncode == 0, handed_in.stdout
    job_id = handed_in.stdout.strip()

    followed = server.run("logs", "-f", job_id)
    assert "12/12" in followed.stdout
    client = server.client()
    job = client.wait(job_id, timeout_s=DEADLINE_S)
    assert (job.status, job.exit_code) == ("succeeded", 0), job.message
    assert job.progress is not None
    assert job.progress.step == 12

    texts = [event.text.partition(":")[0] for event in job.follow() if event.kind == "state"]
    told = [text for text in texts if not text.startswith("waiting for")]  # where another job is just ending
    assert told == ["queued", "starting", "running", "succeeded"]
    assert [event.data["verdict"] for event in job.follow() if event.kind == "incident"] == ["nonfinite"]
    assert [row["action"] for row in job.incidents()] == ["skipped"]
    assert job.metrics().rows == 13, "12 steps and the one that was skipped"
    assert [c.step for c in job.checkpoints() if c.health == "good"][-1] == 12
    assert "<html" in job.report()
    assert job_id in server.run("list").stdout
    assert "nonfinite" in server.run("incidents", job_id).stdout
    told = json.loads(server.run("status", job_id, "--json").stdout)
    assert told["result"]["status"] == "succeeded"
    assert told["env"] == {"MY_API_KEY": "********"}

    folder = JobClient(str(Path(job.info.folder or "").parent))
    assert folder.get(job_id).status == "succeeded"
    assert folder.incidents(job_id) == job.incidents(), "with no server at all"
    with pytest.raises(Unsupported, match="only read"):
        folder.stop(job_id)

    with pytest.raises(Conflict, match="clone it"):
        job.resume()
    job.delete(files=True)
    assert not Path(job.info.folder or "").exists()
    with pytest.raises(JobNotFound):
        client.get(job_id)


def test_the_service_dies_and_comes_back_and_the_job_has_run_once(server: Server, cluster: Cluster) -> None:
    first = server.submit("survivor", **ENDLESS)
    until(lambda: len(httpx.get(f"{server.url}/v1/jobs/{first.id}/events").json()) > 1)
    server.kill()  # about when Ray is being told of the job
    server.start()
    client = server.client()
    until(lambda: trained(client, first.id, 6))
    whole = client.get(first.id)
    assert [attempt.number for attempt in whole.info.attempts or []] == [1]
    submissions = [job.submission_id for job in JobSubmissionClient(cluster.url).list_jobs()]
    assert [s for s in submissions if s and s.startswith(first.id)] == [f"{first.id}-a1"]

    driver_of(first.id).kill()
    again = until(lambda: (job := client.get(first.id)).info.attempt == 2 and job)
    assert again.info.restarts == 1
    until(lambda: trained(client, first.id, 6))
    resumed = [row for row in client.incidents(first.id) if row["type"] == "incident"]
    assert resumed == [], "to be killed is no incident of the training"

    waiting = server.submit("large", **{**SHORT, "scale": {"workers": 2}})
    text = until(lambda: (job := waiting.refresh()).status == "waiting" and job.message)
    assert text == "waiting for 2 CPUs, 1 free"
    waiting.stop()
    assert waiting.refresh().status == "stopped"

    client.stop(first.id)
    stopped = client.wait(first.id, timeout_s=DEADLINE_S)
    assert stopped.status == "stopped"
    at = stopped.progress.step if stopped.progress else 0
    client.resume(first.id)
    until(lambda: trained(client, first.id, at + 1))
    client.stop(first.id)
    assert client.wait(first.id, timeout_s=DEADLINE_S).status == "stopped"


def test_a_job_of_plain_ray_job_submit_is_adopted(server: Server, cluster: Cluster) -> None:
    spec = JobSpec.load(server.sandbox.path / server.sandbox.spec("direct", **SHORT))
    direct = JobClient(cluster.url).submit(spec)
    adopted = until(lambda: known(server.client(), direct.id))
    assert adopted.info.adopted
    ended = server.client().wait(direct.id, timeout_s=DEADLINE_S)
    assert ended.status == "succeeded", ended.message
    assert ended.metrics().rows == 12
    plain = ("job", "submit", "--address", cluster.url, "--submission-id", "plain-adopted", "--no-wait", "--")
    command = shlex.join(["python", "-m", "jobs.train", "no-such-spec.yaml"])
    assert server.sandbox.run(RAY, *plain, *command.split()).returncode == 0
    failed = until(lambda: known(server.client(), "plain-adopted"))
    assert server.client().wait(failed.id, timeout_s=DEADLINE_S).status == "failed"


def test_asyncio_has_the_same_client(server: Server) -> None:
    async def look() -> list[str]:
        async with await AsyncJobClient.connect(server.url) as client:
            jobs = await client.list(status="stopped")
            events = [event.kind async for event in client.follow(jobs[0].id)]
            assert "state" in events
            return [job.status for job in jobs]

    assert set(asyncio.run(look())) == {"stopped"}


def test_the_notebook_runs_from_top_to_bottom(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRADGUARD_ADDRESS", server.url)
    cells = json.loads((PACKAGE_ROOT / "jobs" / "examples" / "job_api.ipynb").read_text())["cells"]
    names: dict[str, Any] = {}
    for cell in cells:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), names)
    assert names["job"].status == "succeeded"
    assert names["incident"]["verdict"] == "nonfinite"
    assert asyncio.run(names["statuses"]()) == ["succeeded"]


def test_off_loopback_a_token_is_asked_for(cluster: Cluster) -> None:
    sandbox = cluster.sandbox
    made = sandbox.run(GRADGUARD, "tokens", "create", "anna", "--scope=read", "--storage=guarded")
    token = made.stdout.strip()
    server = Server(sandbox, f"--address={cluster.url}", "--host=0.0.0.0", "--storage=guarded")
    try:
        with pytest.raises(NotAllowed, match="a token is needed"):
            server.client().list()
        reader = JobClient(server.url, token=token)
        assert isinstance(reader.list(), list)
        spec = JobSpec.load(sandbox.path / sandbox.spec("denied", **SHORT))
        with pytest.raises(NotAllowed, match="needs the scope submit"):
            reader.submit(spec)
        assert "anna" in sandbox.run(GRADGUARD, "tokens", "list", "--storage=guarded").stdout
        assert token not in (sandbox.path / "guarded" / ".service" / "service.db").read_bytes().decode(
            "latin-1"
        )
    finally:
        server.end()


def test_bad_input_is_one_line(server: Server) -> None:
    for command in (
        ("status", "no-such-job"),
        ("resume", "no-such-job"),
        ("submit", server.sandbox.spec("bad", optimizer={"lr": -1})),
        ("list", "--status=sideways"),
    ):
        run = server.run(*command)
        assert run.returncode == 2, (command, run.stdout)
        assert "Traceback" not in run.stdout
        assert len(run.stdout.strip().splitlines()) == 1, run.stdout


def driver_of(job_id: str) -> psutil.Process:
    """The process of the job's driver, by the spec in its environment."""

    def find() -> psutil.Process | None:
        for process in psutil.process_iter(["cmdline"]):
            if "jobs.train" in (process.info["cmdline"] or []) and f"name: {job_id}\n" in spec_in(process):
                return process
        return None

    found: psutil.Process = until(find)
    return found


def spec_in(process: psutil.Process) -> str:
    try:
        return process.environ().get("GRADGUARD_SPEC", "") if "python" in process.name() else ""
    except psutil.Error:
        return ""


def known(client: JobClient, job_id: str) -> Job | None:
    try:
        return client.get(job_id)
    except JobNotFound:
        return None
