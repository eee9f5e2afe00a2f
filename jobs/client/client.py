"""Jobs from Python: submitted, followed, stopped, resumed.

client = JobClient("http://127.0.0.1:8410")
job = client.submit(JobSpec.load("spec.yaml"))
for event in job.follow():
    print(event.text)
print(job.wait().status)
"""

from __future__ import annotations

import builtins
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

from guard.records import COLUMNS
from jobs.client.backend import SubmitRequest, Wanted
from jobs.client.connect import connect
from jobs.client.errors import Conflict, JobTimeout
from jobs.client.models import (
    ENDED,
    STATUSES,
    CheckpointInfo,
    Event,
    JobInfo,
    Progress,
    Recorded,
    Series,
    Status,
)
from jobs.client.show import show_progress
from jobs.errors import JobError
from jobs.spec.job_spec import JobSpec

P = ParamSpec("P")
T = TypeVar("T")
POLL_S = 1.0
PAGE = 100


class JobClient:
    """Submits jobs and follows them.

    Args:
        address: the URL of a GradGuard service or of a Ray cluster's dashboard, or a folder of jobs, which is
            only read. Default: a service, else Ray, on this machine.
        token: of the service; default: ``$GRADGUARD_TOKEN``.

    Raises:
        Unreachable: nothing answers there.
    """

    def __init__(self, address: str | Path | None = None, *, token: str | None = None) -> None:
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
        """Submits a job and returns at once.

        The id that it gets, the spec's name and a suffix, is its folder under ``storage`` and its label in
        the metrics.

        Args:
            spec: the job. A relative ``storage`` is relative to ``~/gradguard`` on the cluster, or to the
                service's storage folder.
            working_dir: a folder to ship with the job, for a workload of your own.
            priority: the higher, the sooner, where jobs wait; needs a service.
            max_restarts: how often a service starts the job again whose driver or head died.
            env: environment variables of the job; the way for secrets.
            idempotency_key: the same key with the same job submits it once.
        """
        if not isinstance(spec, JobSpec):
            given = type(spec).__name__
            raise JobError(f"submit takes a JobSpec, not {given}: see JobSpec.load and JobSpec.from_dict")
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
        self,
        *,
        status: str | Sequence[str] = (),
        name: str | None = None,
        tag: str | None = None,
        limit: int | None = None,
    ) -> list[Job]:
        """Jobs, the newest first: whose id contains ``name``, with ``tag``; all unless ``limit`` is given.

        Raises:
            JobError: a job has no such status.
        """
        wanted = Wanted([status] if isinstance(status, str) else list(status), name, tag)
        if unknown := set(wanted.statuses) - set(STATUSES):
            raise JobError(f"status {min(unknown)!r}: a job is one of {', '.join(STATUSES)}")
        found: builtins.list[Job] = []
        cursor: str | None = None
        while limit is None or len(found) < limit:
            size = PAGE if limit is None else min(PAGE, limit - len(found))
            page = self._backend.page(wanted, cursor=cursor, limit=size)
            found += [Job(info, self) for info in page.jobs]
            cursor = page.next_cursor
            if cursor is None:
                break
        return found

    def stop(self, job_id: str) -> None:
        """Requests that a job saves its state and ends; returns at once."""
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
        """Removes an ended job from the list, and with ``files`` its folder.

        Raises:
            Conflict: it has not ended.
        """
        self._backend.delete(job_id, files=files)

    def clone(self, job_id: str, changes: Sequence[str] = (), *, priority: int | None = None) -> Job:
        """Submits a job like this one; ``changes`` are ``field=value`` overrides of its spec."""
        return Job(self._backend.clone(job_id, changes, priority=priority), self)

    def wait(self, job_id: str, *, timeout_s: float | None = None, progress: bool = False) -> Job:
        """The job once it has ended; ``progress`` shows it on standard error meanwhile.

        Raises:
            JobTimeout: it has not ended after ``timeout_s``; it continues.
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
        """What the job has printed, in pieces, from a byte on; ``follow`` continues until it ends."""
        return self._backend.logs(job_id, follow=follow, offset=offset)

    def follow(self, job_id: str, *, after: int = 0) -> Iterator[Event]:
        """What happens to the job, until it has ended; ``after`` is the last ``seq`` that was seen."""
        return self._backend.events(job_id, after=after)

    def incidents(self, job_id: str, newest: int | None = None) -> builtins.list[dict[str, Any]]:
        """What the guard acted on, with the evidence, the first one first; at most the ``newest`` N."""
        return self._backend.incidents(job_id, newest)

    def metrics(
        self,
        job_id: str,
        columns: Sequence[str] = tuple(COLUMNS),
        *,
        after_attempt: int = -1,
        points: int = 2000,
    ) -> Series:
        """Metrics over the attempts, thinned to about ``points`` rows; what was no ordinary step stays."""
        return self._backend.metrics(job_id, columns, after_attempt=after_attempt, points=points)

    def checkpoints(self, job_id: str) -> builtins.list[CheckpointInfo]:
        """The checkpoints of the job, the oldest first."""
        return self._backend.checkpoints(job_id)

    def report(self, job_id: str) -> str:
        """The report as one HTML document."""
        return self._backend.report(job_id)

    def download(self, job_id: str, name: Recorded, to: str | Path = ".") -> Path:
        """Saves a file that the job recorded as ``<to>/<job_id>-<name>``, as it is now; returns its path.

        Raises:
            JobNotFound: there is no such job, or it has no such file yet.
            JobError: there is no folder ``to``.
        """
        path = _folder(to) / f"{job_id}-{name}"
        with tempfile.TemporaryDirectory(dir=to) as folder:
            part = Path(folder, name)
            with part.open("wb") as file:
                self._backend.download(job_id, name, file)
            return part.replace(path)

    def download_checkpoint(self, job_id: str, step: int, to: str | Path = ".") -> Path:
        """Saves the checkpoint of a step as a folder in ``to``; returns its path. It contains the job's spec
        with its secrets, so a service wants a token with the scope ``submit``.

        Raises:
            JobNotFound: there is no such job or checkpoint.
            Conflict: the folder exists already.
            JobError: there is no folder ``to``.
        """
        with tempfile.TemporaryDirectory(dir=_folder(to)) as folder:
            self._backend.download_checkpoint(job_id, step, Path(folder))
            (part,) = Path(folder).iterdir()
            if (path := Path(to) / part.name).exists():
                raise Conflict(f"{path} exists already: choose another folder")
            return part.rename(path)

    def close(self) -> None:
        """Closes the connections."""
        self._backend.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _folder(to: str | Path) -> Path:
    if not (folder := Path(to)).is_dir():
        raise JobError(f"{folder}: there is no such folder")
    return folder


def _of_job(
    method: Callable[Concatenate[JobClient, str, P], T],
) -> Callable[Concatenate[Job, P], T]:
    def call(job: Job, /, *args: P.args, **options: P.kwargs) -> T:
        return method(job._client, job.id, *args, **options)

    call.__doc__ = method.__doc__
    return call


class Job:
    """A job as it was when it was fetched (``info``), and what can be done with it.

    ``logs``, ``follow``, ``stop``, ``checkpoint``, ``resume``, ``clone``, ``delete``, ``incidents``,
    ``metrics``, ``checkpoints``, ``report``, ``download`` and ``download_checkpoint`` are those of
    ``JobClient``, without the id.
    """

    def __init__(self, info: JobInfo, client: JobClient) -> None:
        self.info = info
        self._client = client

    def __repr__(self) -> str:
        return f"Job(id={self.id!r}, status={self.status!r})"

    @property
    def id(self) -> str:
        """Also the name of its folder, and its label in the metrics."""
        return self.info.id

    @property
    def name(self) -> str:
        """The name in its spec."""
        return self.info.name

    @property
    def status(self) -> Status:
        return self.info.status

    @property
    def exit_code(self) -> int | None:
        """None while it runs and when it was stopped."""
        return self.info.exit_code

    @property
    def message(self) -> str:
        """What it waits for, or why it ended."""
        return self.info.reason

    @property
    def progress(self) -> Progress | None:
        """The newest recorded step."""
        return self.info.progress

    @property
    def ended(self) -> bool:
        """Whether nothing more happens unless it is resumed."""
        return self.status in ENDED

    def refresh(self) -> Job:
        """The job as it is now."""
        return self._client.get(self.id)

    def wait(self, timeout_s: float | None = None, *, progress: bool = False) -> Job:
        """This job once it has ended; see ``JobClient.wait``."""
        return self._client.wait(self.id, timeout_s=timeout_s, progress=progress)

    logs = _of_job(JobClient.logs)
    follow = _of_job(JobClient.follow)
    stop = _of_job(JobClient.stop)
    checkpoint = _of_job(JobClient.checkpoint)
    resume = _of_job(JobClient.resume)
    clone = _of_job(JobClient.clone)
    delete = _of_job(JobClient.delete)
    incidents = _of_job(JobClient.incidents)
    metrics = _of_job(JobClient.metrics)
    checkpoints = _of_job(JobClient.checkpoints)
    report = _of_job(JobClient.report)
    download = _of_job(JobClient.download)
    download_checkpoint = _of_job(JobClient.download_checkpoint)
