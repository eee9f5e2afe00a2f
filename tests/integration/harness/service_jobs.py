"""Jobs of a real service, and what the tests ask about them."""

from __future__ import annotations

import psutil

from jobs import JobClient
from jobs.client import Job
from jobs.cluster.session import JOB_CONFIG_VAR
from tests.integration.harness.runner import SMALL
from tests.waiting import until

ONE_WORKER = {"scale": {"workers": 1, "cpus_per_worker": 1}, "preflight": "off", "model": SMALL}
SHORT = {**ONE_WORKER, "train": {"max_steps": 12, "checkpoint_every_steps": 4}}
ENDLESS = {**ONE_WORKER, "train": {"max_steps": 100_000, "checkpoint_every_steps": 5}}


def trained(client: JobClient, job_id: str, steps: int = 1) -> Job | None:
    """The job, once it has trained so far; fails if it ended."""
    job = client.get(job_id)
    assert not job.ended, f"{job.status}: {job.message}\n{''.join(client.logs(job_id))}"
    return job if job.status == "running" and job.progress and job.progress.step >= steps else None


def driver_of(submission_id: str) -> psutil.Process:
    """The process of a submission's driver, by what Ray put in its environment."""
    wanted = f'"job_submission_id": "{submission_id}"'

    def find() -> psutil.Process | None:
        for process in psutil.process_iter(["cmdline"]):
            if "jobs.train" in (process.info["cmdline"] or []) and wanted in environment_from_ray(process):
                return process
        return None

    found: psutil.Process = until(find)
    return found


def environment_from_ray(process: psutil.Process) -> str:
    try:
        return process.environ().get(JOB_CONFIG_VAR, "") if "python" in process.name() else ""
    except psutil.Error:
        return ""


def newest_step(client: JobClient, job_id: str) -> int:
    progress = client.get(job_id).progress
    return 0 if progress is None else progress.step
