"""Submission to a real Ray cluster, and what goes wrong; ``test_readme`` has what goes right."""

from __future__ import annotations

import pytest

from jobs import JobClient, JobSpec
from jobs.client import JobNotFound, JobTimeout
from jobs.errors import JobError
from tests.integration.harness.cluster import RAY, Cluster
from tests.integration.harness.runner import GRADGUARD, SMALL

pytestmark = pytest.mark.timeout(400)

SHORT = {"train": {"max_steps": 12}, "scale": {"workers": 1}, "model": SMALL}


def test_a_failing_job_ends_with_its_own_exit_code(cluster: Cluster) -> None:
    project = cluster.sandbox.project("wrong")
    (project.path / "wrong.yaml").write_text("optimizer: {lr: -1}\n")
    submit = (RAY, "job", "submit", "--address", cluster.url, "--submission-id=wrong", "--working-dir=.")
    run = project.run(*submit, "--", "python", "-m", "jobs.train", "wrong.yaml")
    assert run.returncode == 1
    job = JobClient(cluster.url).get("wrong")
    assert (job.status, job.exit_code) == ("failed", 2)
    assert "optimizer.lr" in "".join(job.logs())


def test_the_client_submits_follows_and_waits_and_reports_that_a_job_halted(cluster: Cluster) -> None:
    faults = [{"kind": "nan_loss", "step": 4, "times": 100}]
    guard = {"budget": {"rollbacks": 0}}
    short = {**SHORT, "train": {"max_steps": 12, "checkpoint_every_steps": 1}}
    spec = cluster.sandbox.spec("halting", faults=faults, guard=guard, **short)
    client = JobClient(cluster.url)
    job = client.submit(JobSpec.load(cluster.sandbox.path / spec))
    assert job.id.startswith("halting-")
    with pytest.raises(JobTimeout):
        job.wait(timeout_s=0)
    followed = "".join(job.logs(follow=True))
    ended = job.wait(timeout_s=200)
    assert (ended.status, ended.exit_code) == ("halted", 3), followed
    assert "phase=finished" in followed
    assert job.id in [listed.id for listed in client.list()]
    kept = sorted((cluster.sandbox.path / "gradguard" / "runs" / job.id / "checkpoints").glob("step-*"))
    # The checkpoint of step 1 was in memory too, and two clean steps followed it before the first fault.
    assert [path.name for path in kept] == ["step-00000001"], "the healthy state, and none after it"


def test_wrong_addresses_and_ids_are_one_clear_line(cluster: Cluster) -> None:
    with pytest.raises(JobNotFound, match="there is no job nothing"):
        JobClient(cluster.url).get("nothing")
    with pytest.raises(JobError, match="no Ray cluster answers"):
        JobClient("http://127.0.0.1:9")
    run = cluster.sandbox.run(GRADGUARD, "list", "--address=http://127.0.0.1:9")
    assert run.returncode == 2
    assert "Traceback" not in run.stdout
