"""The service for real: a Ray cluster, the server's process, the installed command, jobs of every origin."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jobs import AsyncJobClient, JobClient
from jobs.client import Conflict, Job, JobNotFound, Unsupported
from jobs.cluster.session import PACKAGE_ROOT
from tests.integration.harness.cluster import RAY, Cluster
from tests.integration.harness.service_jobs import ENDLESS, SHORT, driver_of, newest_step, trained
from tests.service.server import DEADLINE_S, Server
from tests.waiting import until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def server(cluster: Cluster) -> Iterator[Server]:
    server = Server(cluster.sandbox, f"--address={cluster.url}")
    yield server
    server.end()


def test_a_job_is_submitted_followed_and_read(server: Server) -> None:
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
    seen = [text for text in texts if not text.startswith("waiting for")]  # where another job is just ending
    assert seen in (
        ["queued", "starting", "running", "succeeded"],
        ["queued", "starting", "succeeded"],  # it trained and ended between two looks at it
    )
    assert [event.data["verdict"] for event in job.follow() if event.kind == "incident"] == ["nonfinite"]
    assert [row["action"] for row in job.incidents()] == ["skipped"]
    assert job.metrics().rows == 13, "12 steps and the one that was skipped"
    assert [c.step for c in job.checkpoints() if c.health == "good"][-1] == 12
    assert "<html" in job.report()
    assert "nonfinite" in server.run("incidents", job_id).stdout
    seen = json.loads(server.run("status", job_id, "--json").stdout)
    assert seen["result"]["status"] == "succeeded"
    assert seen["env"] == {"MY_API_KEY": "********"}

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
    assert steps.count(1) == 1, "it continued from its checkpoint"
    client.stop("by-hand")
    assert client.wait("by-hand", timeout_s=DEADLINE_S).status == "stopped"


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


def known(client: JobClient, job_id: str) -> Job | None:
    try:
        return client.get(job_id)
    except JobNotFound:
        return None
