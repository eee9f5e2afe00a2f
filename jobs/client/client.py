"""Jobs from Python: handed in, followed, stopped, continued.

client = JobClient("http://127.0.0.1:8410")
job = client.submit(JobSpec.load("spec.yaml"))
for event in job.follow():
    print(event.text)
print(job.wait().status)
"""

from __future__ import annotations

import builtins
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from jobs.client.backend import SubmitRequest
from jobs.client.connect import connect
from jobs.client.errors import JobTimeout
from jobs.client.job import Job
from jobs.client.job_files import COLUMNS
from jobs.client.models import CheckpointInfo, Event, Series
from jobs.client.show import show_progress
from jobs.spec.job_spec import JobSpec

POLL_S = 1.0
PAGE = 100


class JobClient:
    """Hands jobs in and follows them.

    Args:
        address: the URL of a GradGuard service or of a Ray cluster's dashboard, or a folder of jobs, which is
            only read. Default: a service, else Ray, on this machine.
        token: of the service; default: ``$GRADGUARD_TOKEN``.

    Raises:
        Unreachable: nothing answers there.
    """

    def __init__(self, address: str | None = None, *, token: str | None = None) -> None:
        self._backend = connect(address, token=token)

    def submit(
        self,
        spec: JobSpec,
        *,
        working_dir: str | Path | None = None,
        priority: int = 0,
        max_restarts: int | None = None,
        env: Mapping[str, str] | None = None,
        idempotency_key: str | None = None,
    ) -> Job:
        """Hands a job in and returns at once.

        The id that it gets, the spec's name and a suffix, is its folder under ``storage`` and its label in
        the metrics.

        Args:
            spec: the job. A relative ``storage`` is meant from ``~/gradguard`` on the cluster, or from the
                service's storage folder.
            working_dir: a folder to ship with the job, for a workload of your own.
            priority: the higher, the sooner, where jobs wait; needs a service.
            max_restarts: how often a service starts the job again whose driver or head died.
            env: environment variables of the job; the way for secrets.
            idempotency_key: the same key with the same job hands it in once.
        """
        order = SubmitRequest(
            spec=spec,
            working_dir=None if working_dir is None else Path(working_dir),
            priority=priority,
            max_restarts=max_restarts,
            env=dict(env or {}),
            key=idempotency_key,
        )
        return Job(self._backend.submit(order), self)

    def get(self, job_id: str) -> Job:
        """The job of this id.

        Raises:
            JobNotFound: there is none.
        """
        return Job(self._backend.get(job_id), self)

    def list(
        self, *, status: str | Sequence[str] = (), name: str | None = None, limit: int | None = None
    ) -> list[Job]:
        """Jobs, the newest first; all of them unless ``limit`` is given."""
        statuses = [status] if isinstance(status, str) else list(status)
        found: builtins.list[Job] = []
        cursor: str | None = None
        while limit is None or len(found) < limit:
            size = PAGE if limit is None else min(PAGE, limit - len(found))
            page = self._backend.page(statuses=statuses, name=name, cursor=cursor, limit=size)
            found += [Job(info, self) for info in page.jobs]
            cursor = page.next_cursor
            if cursor is None:
                break
        return found

    def stop(self, job_id: str) -> None:
        """Asks a job to save its state and end; returns at once."""
        self._backend.stop(job_id)

    def checkpoint(self, job_id: str) -> None:
        """Asks a running job to save a checkpoint now; returns when the request is on its way to the job.

        Raises:
            Conflict: it does not train now.
        """
        self._backend.checkpoint(job_id)

    def resume(self, job_id: str) -> Job:
        """Continues an ended job from its last good checkpoint.

        Raises:
            Conflict: it has not ended, or has succeeded.
        """
        return Job(self._backend.resume(job_id), self)

    def delete(self, job_id: str, *, files: bool = False) -> None:
        """Forgets an ended job, and deletes its files too if asked.

        Raises:
            Conflict: it has not ended.
        """
        self._backend.delete(job_id, files=files)

    def clone(self, job_id: str, changes: Sequence[str] = (), *, priority: int | None = None) -> Job:
        """Hands in a job like this one; ``changes`` are ``field=value`` overrides of its spec."""
        return Job(self._backend.clone(job_id, changes, priority=priority), self)

    def wait(self, job_id: str, *, timeout_s: float | None = None, progress: bool = False) -> Job:
        """The job once it has ended; ``progress`` shows it on standard error meanwhile.

        Raises:
            JobTimeout: it has not after ``timeout_s``; it goes on.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        with show_progress(sys.stderr if progress else None) as show:
            while not (job := self.get(job_id)).ended:
                show(job.info)
                if deadline is not None and time.monotonic() > deadline:
                    raise JobTimeout(f"{job_id} is still {job.status} after {timeout_s:g} s")
                time.sleep(POLL_S)
            show(job.info)
        return job

    def logs(self, job_id: str, *, follow: bool = False, offset: int = 0) -> Iterator[str]:
        """What the job has printed, in pieces, from a byte on; ``follow`` goes on until it ends."""
        return self._backend.logs(job_id, follow=follow, offset=offset)

    def follow(self, job_id: str, *, after: int = 0) -> Iterator[Event]:
        """What happens to the job, until it has ended; ``after`` leaves out what was seen before."""
        return self._backend.events(job_id, after=after)

    def incidents(self, job_id: str) -> builtins.list[dict[str, Any]]:
        """What the guard acted on, with the evidence, the first one first."""
        return self._backend.incidents(job_id)

    def metrics(
        self, job_id: str, columns: Sequence[str] = COLUMNS, *, after_attempt: int = -1, points: int = 2000
    ) -> Series:
        """Metrics over the attempts, thinned out to about ``points``; no incident is thinned out."""
        return self._backend.metrics(job_id, columns, after_attempt=after_attempt, points=points)

    def checkpoints(self, job_id: str) -> builtins.list[CheckpointInfo]:
        """What the job can return to, the oldest first."""
        return self._backend.checkpoints(job_id)

    def report(self, job_id: str) -> str:
        """The report as one HTML document."""
        return self._backend.report(job_id)

    def close(self) -> None:
        """Gives the connections back."""
        self._backend.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
