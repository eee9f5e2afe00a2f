"""Two services on one database, killed while jobs are submitted: none is lost, none is made twice."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs import JobClient, JobSpec
from jobs.client import ClientError
from tests.integration.harness.runner import Sandbox
from tests.service.server import Server

pytestmark = [pytest.mark.soak, pytest.mark.timeout(900)]

NOBODY = "http://127.0.0.1:9"
SEED, KILLS, CALLERS, JOBS = 19, 4, 3, 8
SPEC = JobSpec.from_dict({"name": "in-flight", "data": {"dataset": "digits"}})


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[list[Server]]:
    sandbox = Sandbox(tmp_path)
    options = (f"--address={NOBODY}", "--storage=store", f"--database=sqlite:///{tmp_path}/two.db")
    started = [Server(sandbox, *options) for _ in range(2)]
    yield started
    for server in started:
        server.end()


def submitted(servers: list[Server], caller: int, accepted: dict[str, str]) -> None:
    """Each job is submitted again, to the other service too, until one has accepted it."""
    dice = random.Random(caller)
    for number in range(JOBS):
        key = f"{caller}-{number}"
        while key not in accepted:
            try:
                with JobClient(dice.choice(servers).url) as client:
                    accepted[key] = client.submit(SPEC, idempotency_key=key).id
            except ClientError:
                continue  # it was killed just now


def test_every_accepted_submission_is_there_once(servers: list[Server]) -> None:
    accepted: dict[str, str] = {}
    callers = [threading.Thread(target=submitted, args=(servers, i, accepted)) for i in range(CALLERS)]
    for caller in callers:
        caller.start()
    dice = random.Random(SEED)
    for _ in range(KILLS):
        victim = dice.choice(servers)
        victim.kill()
        victim.start()
    for caller in callers:
        caller.join()
    for server in servers:
        jobs = [job.id for job in server.client().list()]
        assert sorted(jobs) == sorted(accepted.values())
        assert len(set(jobs)) == CALLERS * JOBS
