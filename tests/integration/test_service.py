"""The service for real: a Ray cluster, the server's process, the installed command, and what kills them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from ray.job_submission import JobSubmissionClient

from jobs import AsyncJobClient, JobClient, JobSpec
from jobs.client import Conflict, Job, JobNotFound, Unsupported
from jobs.cluster import JOB_CONFIG_VAR, PACKAGE_ROOT
from tests.integration.cluster import RAY, Cluster
from tests.integration.runner import Sandbox, alive, descendants
from tests.service.postgres import running_postgres
from tests.service.server import DEADLINE_S, Server, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

ONE_WORKER = {"scale": {"workers": 1, "cpus_per_worker": 1}, "preflight": "off"}
SHORT = {**ONE_WORKER, "train": {"max_steps": 12, "checkpoint_every_steps": 4}}
ENDLESS = {**ONE_WORKER, "train": {"max_steps": 100_000, "checkpoint_every_steps": 5}}
DAY_S = 86_400
SHIFTED_CLOCK = PACKAGE_ROOT / "tests" / "service" / "shifted_clock.py"


@pytest.fixture(scope="module")
def server(cluster: Cluster) -> Iterator[Server]:
    server = Server(cluster.sandbox, f"--address={cluster.url}")
    yield server
    server.end()


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
    assert told in (
        ["queued", "starting", "running", "succeeded"],
        ["queued", "starting", "succeeded"],  # it trained and ended between two looks at it
    )
    assert [event.data["verdict"] for event in job.follow() if event.kind == "incident"] == ["nonfinite"]
    assert [row["action"] for row in job.incidents()] == ["skipped"]
    assert job.metrics().rows == 13, "12 steps and the one that was skipped"
    assert [c.step for c in job.checkpoints() if c.health == "good"][-1] == 12
    assert "<html" in job.report()
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


def test_the_service_dies_the_clock_jumps_the_driver_dies_and_the_job_goes_on(
    server: Server, cluster: Cluster
) -> None:
    first = server.submit("survivor", **ENDLESS)
    until(lambda: len(httpx.get(f"{server.url}/v1/jobs/{first.id}/events", timeout=60).json()) > 1)
    server.kill()  # about when Ray is being told of the job
    clock = cluster.sandbox.path / "clock"
    clock.write_text("0")
    server.command = (sys.executable, str(SHIFTED_CLOCK), str(clock))
    server.start()
    client = server.client()
    until(lambda: trained(client, first.id, 6))
    whole = client.get(first.id)
    assert [attempt.number for attempt in whole.info.attempts or []] == [1]
    submissions = [job.submission_id for job in JobSubmissionClient(cluster.url).list_jobs()]
    assert [s for s in submissions if s and s.startswith(first.id)] == [f"{first.id}-a1"]

    clock.write_text(str(-DAY_S))
    driver_of(f"{first.id}-a1").kill()
    again = until(lambda: (job := client.get(first.id)).info.attempt == 2 and job)
    assert again.info.restarts == 1
    until(lambda: trained(client, first.id, 6))
    resumed = [row for row in client.incidents(first.id) if row["type"] == "incident"]
    assert resumed == [], "to be killed is no incident of the training"

    clock.write_text(str(DAY_S))
    waiting = server.submit("large", **{**SHORT, "scale": {"workers": 2}})
    until(lambda: waiting.refresh().message == "waiting for 2 CPUs, 1 free")
    assert waiting.refresh().status == "waiting"
    waiting.stop()
    assert waiting.refresh().status == "stopped"

    clock.write_text(str(-DAY_S))
    client.stop(first.id)
    stopped = client.wait(first.id, timeout_s=DEADLINE_S)
    assert stopped.status == "stopped"
    assert (stopped.info.ended or 0) >= (stopped.info.started or 0), "no job ends before it began"
    at = stopped.progress.step if stopped.progress else 0
    client.resume(first.id)
    until(lambda: trained(client, first.id, at + 1))
    client.stop(first.id)
    assert client.wait(first.id, timeout_s=DEADLINE_S).status == "stopped"


def test_a_job_of_plain_ray_job_submit_is_adopted_and_started_again(server: Server, cluster: Cluster) -> None:
    project = cluster.sandbox.project("own-code")
    (project.path / "mine.py").write_text("from jobs.workloads.vision import VisionWorkload as Mine\n")
    spec = project.spec("adopted", workload="mine:Mine", **ENDLESS)
    submit = (RAY, "job", "submit", "--address", cluster.url, "--submission-id", "by-hand", "--no-wait")
    run = project.run(*submit, "--working-dir", ".", "--", "python", "-m", "jobs.train", spec)
    assert run.returncode == 0, run.stdout
    client = server.client()
    adopted = until(lambda: known(client, "by-hand"))
    assert adopted.info.adopted
    until(lambda: trained(client, "by-hand", 6))
    until(lambda: client.get("by-hand").info.spec)
    driver_of("by-hand").kill()
    until(lambda: client.get("by-hand").info.attempt == 2)
    at = newest_step(client, "by-hand")
    until(lambda: trained(client, "by-hand", at + 1))
    steps = client.metrics("by-hand", points=20_000).columns["step"]
    assert steps.count(1) == 1, "it went on from its checkpoint"
    client.stop("by-hand")
    assert client.wait("by-hand", timeout_s=DEADLINE_S).status == "stopped"


@pytest.mark.parametrize("kind", [pytest.param("sqlite", marks=pytest.mark.soak), "postgresql"])
def test_two_services_on_one_database_run_each_job_once_though_one_dies(cluster: Cluster, kind: str) -> None:
    storage = f"--storage=two-{kind}"
    with database(kind, cluster) as url, contextlib.ExitStack() as stack:
        options = (f"--address={cluster.url}", storage, f"--database={url}")
        servers = [Server(cluster.sandbox, *options) for _ in range(2)]
        for one in servers:
            stack.callback(one.end)
        tiny = {**ONE_WORKER, "train": {"max_steps": 2}}
        spec = JobSpec.load(cluster.sandbox.path / cluster.sandbox.spec("once", **tiny))
        with ThreadPoolExecutor(3) as pool:
            jobs = list(pool.map(lambda i: servers[i % 2].client().submit(spec).id, range(3)))
        until(lambda: any(job.status not in ("queued", "waiting") for job in servers[0].client().list()))
        leader = until(lambda: next((one for one in servers if leads(one)), None))
        leader.kill()
        client = next(one for one in servers if one is not leader).client()
        ended = [client.wait(job, timeout_s=DEADLINE_S) for job in jobs]
        assert [job.status for job in ended] == ["succeeded"] * 3, [job.message for job in ended]
        assert [len(job.info.attempts or []) for job in ended] == [1] * 3
        assert [job.metrics().columns["step"] for job in ended] == [[1, 2]] * 3, "no step was made twice"
        at_ray = [job.submission_id for job in JobSubmissionClient(cluster.url).list_jobs()]
        assert sorted(s for s in at_ray if s and s[:-3] in jobs) == sorted(f"{job}-a1" for job in jobs)


def test_the_embedded_head_dies_and_the_job_goes_on_at_the_next_one(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    server = Server(Sandbox(tmp_path_factory.mktemp("embedded")), "--num-cpus=2")
    try:
        client, job = server.client(), server.submit("outlives", **ENDLESS)
        until(lambda: trained(client, job.id, 6))
        at = newest_step(client, job.id)
        head = next(p for p in descendants(server.process) if "gcs_server" in p.name())
        head.kill()
        until(lambda: client.get(job.id).info.attempt > 1)
        until(lambda: trained(client, job.id, at + 1))
        assert client.metrics(job.id, points=20_000).columns["step"].count(1) == 1, "from its checkpoint"
        attempts = client.get(job.id).info.attempts or []
        assert attempts[0].outcome == "lost"
        client.stop(job.id)
        assert client.wait(job.id, timeout_s=DEADLINE_S).status == "stopped"
        family = descendants(server.process)
    finally:
        server.end()
    assert alive(family) == []


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


def driver_of(submission_id: str) -> psutil.Process:
    """The process of a submission's driver, by what Ray told it of itself."""
    wanted = f'"job_submission_id": "{submission_id}"'

    def find() -> psutil.Process | None:
        for process in psutil.process_iter(["cmdline"]):
            if "jobs.train" in (process.info["cmdline"] or []) and wanted in told_by_ray(process):
                return process
        return None

    found: psutil.Process = until(find)
    return found


def told_by_ray(process: psutil.Process) -> str:
    try:
        return process.environ().get(JOB_CONFIG_VAR, "") if "python" in process.name() else ""
    except psutil.Error:
        return ""


def newest_step(client: JobClient, job_id: str) -> int:
    progress = client.get(job_id).progress
    return 0 if progress is None else progress.step


def leads(server: Server) -> bool:
    return "gradguard_service_leading 1.0" in httpx.get(f"{server.url}/metrics", timeout=60).text


@contextlib.contextmanager
def database(kind: str, cluster: Cluster) -> Iterator[str]:
    if kind == "postgresql":
        with running_postgres() as url:
            yield url
    else:
        yield f"sqlite:///{cluster.sandbox.path}/two.db"


def known(client: JobClient, job_id: str) -> Job | None:
    try:
        return client.get(job_id)
    except JobNotFound:
        return None
