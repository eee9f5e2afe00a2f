"""What kills a service, its jobs or its cluster: every job continues, and none runs twice."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from ray.job_submission import JobSubmissionClient

from jobs import JobSpec
from jobs.cluster.session import PACKAGE_ROOT
from tests.integration.harness.cluster import Cluster
from tests.integration.harness.runner import Sandbox, alive, descendants
from tests.integration.harness.service_jobs import ENDLESS, ONE_WORKER, SHORT, driver_of, newest_step, trained
from tests.service.server import DEADLINE_S, Server
from tests.service.store.postgres import running_postgres
from tests.waiting import until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

DAY_S = 86_400
SHIFTED_CLOCK = PACKAGE_ROOT / "tests" / "service" / "shifted_clock.py"


@pytest.fixture
def server(cluster: Cluster) -> Iterator[Server]:
    server = Server(cluster.sandbox, f"--address={cluster.url}")
    yield server
    server.end()


def test_the_service_dies_the_clock_jumps_the_driver_dies_and_the_job_continues(
    server: Server, cluster: Cluster
) -> None:
    first = server.submit("survivor", **ENDLESS)
    until(lambda: len(httpx.get(f"{server.url}/v1/jobs/{first.id}/events", timeout=60).json()) > 1)
    server.kill()  # about when the job is submitted to Ray
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


def test_the_embedded_head_dies_and_the_job_continues_at_the_next_one(
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


def leads(server: Server) -> bool:
    return "gradguard_service_leading 1.0" in httpx.get(f"{server.url}/metrics", timeout=60).text


@contextlib.contextmanager
def database(kind: str, cluster: Cluster) -> Iterator[str]:
    if kind == "postgresql":
        with running_postgres() as url:
            yield url
    else:
        yield f"sqlite:///{cluster.sandbox.path}/two.db"
