"""Submission to a real Ray cluster: by ``ray job submit``, by JobClient and by ``gradguard submit``."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from jobs import JobClient, JobSpec
from jobs.client import JobNotFound, JobTimeout
from jobs.cluster import PACKAGE_ROOT
from jobs.errors import JobError
from tests.integration.cluster import RAY, Cluster
from tests.integration.runner import GRADGUARD, SMALL, Sandbox

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

SHORT = {"train": {"max_steps": 12}, "scale": {"workers": 1}, "model": SMALL}


def test_ray_job_submit_ends_succeeded(cluster: Cluster) -> None:
    project = checkout(cluster)
    run = submit_plain(cluster, project, "plain", project.spec("plain", **SHORT))
    assert run.returncode == 0, run.stdout
    assert "succeeded" in run.stdout
    assert JobClient(cluster.url).get("plain").status == "succeeded"
    assert (cluster.sandbox.path / "gradguard" / "runs" / "plain" / "report.html").exists()


def test_a_failing_job_ends_with_its_own_exit_code(cluster: Cluster) -> None:
    project = checkout(cluster)
    (project.path / "wrong.yaml").write_text("optimizer: {lr: -1}\n")
    run = submit_plain(cluster, project, "wrong", "wrong.yaml")
    assert run.returncode == 1
    job = JobClient(cluster.url).get("wrong")
    assert (job.status, job.exit_code) == ("failed", 2)
    assert "optimizer.lr" in "".join(job.logs())


def test_the_client_submits_follows_and_waits_and_a_halted_job_says_so(cluster: Cluster) -> None:
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


def test_the_command_line_submits_lists_and_stops(cluster: Cluster) -> None:
    sandbox, address = cluster.sandbox, f"--address={cluster.url}"
    spec = sandbox.spec("bycli", **{**SHORT, "train": {"max_steps": 5000}})
    job_id = sandbox.run(GRADGUARD, "submit", spec, address).stdout.strip()
    client = JobClient(cluster.url)
    for piece in client.logs(job_id, follow=True):
        if "phase=training" in piece and "loss=" in piece:
            break
    assert job_id in sandbox.run(GRADGUARD, "list", address).stdout
    assert sandbox.run(GRADGUARD, "status", job_id, address).stdout.strip() == "running"
    assert sandbox.run(GRADGUARD, "stop", job_id, address).returncode == 0
    assert client.wait(job_id, timeout_s=60).status == "stopped"
    checkpoints = sandbox.path / "gradguard" / "runs" / job_id / "checkpoints"
    assert list(checkpoints.glob("step-*/manifest.json")), "the state was kept"


def test_wrong_addresses_and_ids_are_one_clear_line(cluster: Cluster) -> None:
    with pytest.raises(JobNotFound, match="there is no job nothing"):
        JobClient(cluster.url).get("nothing")
    with pytest.raises(JobError, match="no Ray cluster answers"):
        JobClient("http://127.0.0.1:9")
    run = cluster.sandbox.run(GRADGUARD, "list", "--address=http://127.0.0.1:9")
    assert run.returncode == 2
    assert "Traceback" not in run.stdout


def checkout(cluster: Cluster) -> Sandbox:
    """A folder with our packages, as a user's checkout has them."""
    project = cluster.sandbox.project("checkout")
    for package in ("guard", "jobs"):
        shutil.copytree(PACKAGE_ROOT / package, project.path / package, dirs_exist_ok=True)
    return project


def submit_plain(
    cluster: Cluster, project: Sandbox, job_id: str, spec: str
) -> subprocess.CompletedProcess[str]:
    submit = (RAY, "job", "submit", "--address", cluster.url, "--submission-id", job_id, "--working-dir", ".")
    return project.run(*submit, "--", "python", "-m", "jobs.train", spec)
