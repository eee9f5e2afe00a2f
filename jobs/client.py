"""Hand jobs to a Ray cluster from Python.

client = JobClient("http://127.0.0.1:8265")
job = client.submit(JobSpec.load("spec.yaml"))
for line in job.logs(follow=True):
    print(line, end="")
print(job.wait().status)
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from jobs.cluster import PACKAGE_ROOT, WORKER_DEFAULTS
from jobs.entrypoint import SPEC_VARIABLE
from jobs.errors import JobError
from jobs.spec import JobSpec

Status = Literal["pending", "running", "succeeded", "failed", "halted", "stopped"]

HALTED_EXIT_CODE = 3
POLL_S = 1.0
AGENT_TIMEOUT_S = 60.0
_NO_AGENT = "No available agent"
_MARK = "gradguard"
_STOP_GRACEFULLY = {"RAY_JOB_STOP_SIGNAL": "SIGINT", "RAY_JOB_STOP_WAIT_TIME_S": "20"}


class JobNotFound(JobError):
    """The cluster knows no job of this id."""


class JobTimeout(JobError):
    """The job did not end in the time it was given; it goes on."""


@dataclass(frozen=True, slots=True)
class Job:
    """A submitted job, as it was when it was asked about.

    ``exit_code`` is None while it runs and when it was stopped; ``message`` is Ray's, for people.
    """

    id: str
    name: str
    status: Status
    exit_code: int | None
    message: str
    client: JobClient = field(repr=False, compare=False)

    @property
    def ended(self) -> bool:
        """Whether nothing more will happen."""
        return self.status not in ("pending", "running")

    def wait(self, timeout_s: float | None = None) -> Job:
        """This job once it has ended; see ``JobClient.wait``."""
        return self.client.wait(self.id, timeout_s=timeout_s)

    def logs(self, *, follow: bool = False) -> Iterator[str]:
        """Its log; see ``JobClient.logs``."""
        return self.client.logs(self.id, follow=follow)

    def stop(self) -> None:
        """Asks it to save its state and end."""
        self.client.stop(self.id)


class JobClient:
    """Submits jobs to a Ray cluster and follows them.

    Args:
        address: URL of the cluster's dashboard, such as ``http://127.0.0.1:8265``.

    Raises:
        JobError: nothing answers there.
    """

    def __init__(self, address: str) -> None:
        try:
            self._ray = JobSubmissionClient(address)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise JobError(
                f"no Ray cluster answers at {address}: give the URL of its dashboard, "
                "such as http://127.0.0.1:8265"
            ) from error

    def submit(self, spec: JobSpec, *, working_dir: str | Path | None = None) -> Job:
        """Hands a job in and returns at once.

        The id that it gets, the spec's name and a suffix, is its folder under ``storage`` and its label in
        the metrics.

        Args:
            spec: the job. A relative ``storage`` is meant from ``~/gradguard`` on the cluster.
            working_dir: a folder to ship with the job, for a workload of your own.
        """
        job_id = f"{spec.name[:55]}-{secrets.token_hex(3)}"
        named = spec.model_copy(update={"name": job_id})
        self._submit(
            entrypoint="python -m jobs.train --from-environment",
            submission_id=job_id,
            metadata={_MARK: "job", "name": spec.name},
            runtime_env=_runtime_env(named, working_dir),
        )
        return self.get(job_id)

    def _submit(self, **job: Any) -> None:
        """A head that has just started has no agent yet to run a job: then wait for one."""
        deadline = time.monotonic() + AGENT_TIMEOUT_S
        while True:
            try:
                self._ray.submit_job(**job)
            except RuntimeError as error:
                if _NO_AGENT not in str(error):
                    raise JobError(f"the cluster refused the job: {error}") from error
                if time.monotonic() > deadline:
                    raise JobError("the cluster has had no node to run a job for a minute") from error
                time.sleep(POLL_S)
            else:
                return

    def get(self, job_id: str) -> Job:
        """The job of this id.

        Raises:
            JobNotFound: there is none.
        """
        return self._job(self._details(job_id))

    def list(self) -> list[Job]:
        """All jobs that were submitted through GradGuard, the newest first."""
        ours = [d for d in self._ray.list_jobs() if (d.metadata or {}).get(_MARK)]
        return [self._job(d) for d in sorted(ours, key=lambda d: d.start_time or 0, reverse=True)]

    def stop(self, job_id: str) -> None:
        """Asks a job to save its state and end; returns at once."""
        self._details(job_id)
        self._ray.stop_job(job_id)

    def wait(self, job_id: str, *, timeout_s: float | None = None) -> Job:
        """The job once it has ended.

        Raises:
            JobTimeout: it has not after ``timeout_s``.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while not (job := self.get(job_id)).ended:
            if deadline is not None and time.monotonic() > deadline:
                raise JobTimeout(f"{job_id} is still {job.status} after {timeout_s:g} s")
            time.sleep(POLL_S)
        return job

    def logs(self, job_id: str, *, follow: bool = False) -> Iterator[str]:
        """What the job has printed, in pieces; ``follow`` goes on until it ends."""
        self._details(job_id)
        if not follow:
            yield self._ray.get_job_logs(job_id)
            return
        yield from _drain(cast(AsyncGenerator[str, None], self._ray.tail_job_logs(job_id)))

    def _details(self, job_id: str) -> JobDetails:
        try:
            return self._ray.get_job_info(job_id)
        except RuntimeError as error:
            raise JobNotFound(f"there is no job {job_id}: `ray job list` shows all") from error

    def _job(self, details: JobDetails) -> Job:
        job_id = details.submission_id or details.job_id or ""
        name = (details.metadata or {}).get("name", job_id)
        return Job(job_id, name, _status(details), details.driver_exit_code, details.message or "", self)


def _runtime_env(spec: JobSpec, working_dir: str | Path | None) -> dict[str, Any]:
    packages = [str(PACKAGE_ROOT / package) for package in ("guard", "jobs")]
    variables = {**WORKER_DEFAULTS, **_STOP_GRACEFULLY, SPEC_VARIABLE: spec.to_yaml()}
    environment: dict[str, Any] = {"py_modules": packages, "env_vars": variables}
    return {**environment, "working_dir": str(working_dir)} if working_dir else environment


def _status(details: JobDetails) -> Status:
    if details.status == JobStatus.FAILED and details.driver_exit_code == HALTED_EXIT_CODE:
        return "halted"
    names: dict[JobStatus, Status] = {
        JobStatus.PENDING: "pending",
        JobStatus.RUNNING: "running",
        JobStatus.SUCCEEDED: "succeeded",
        JobStatus.FAILED: "failed",
        JobStatus.STOPPED: "stopped",
    }
    return names[details.status]


def _drain(pieces: AsyncGenerator[str, None]) -> Iterator[str]:
    loop = asyncio.new_event_loop()
    try:
        while True:
            yield loop.run_until_complete(anext(pieces))
    except StopAsyncIteration:
        return
    finally:
        loop.run_until_complete(pieces.aclose())
        loop.close()
