"""Jobs at a Ray cluster: Ray Jobs lists them, and their files may be on this machine."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn, cast

import yaml
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from jobs.client.backend import SubmitRequest, Wanted
from jobs.client.errors import ClientError, Conflict, JobNotFound, Refused, Unreachable, Unsupported
from jobs.client.file_backend import FileBackend, page_of
from jobs.client.hub_command import deliver
from jobs.client.job_files import JobFiles
from jobs.client.models import ENDED, JobInfo, JobList, Status
from jobs.client.submission import (
    MARK,
    SPEC_VARIABLE,
    default_root,
    entrypoint,
    noted,
    noted_folder,
    runtime_env,
)
from jobs.errors import EXIT_CODES
from jobs.ray_internals.messages import is_agent_missing
from jobs.spec.errors import SpecError
from jobs.spec.job_spec import JobSpec
from jobs.spec.yaml_text import load_yaml

POLL_S = 1.0
AGENT_TIMEOUT_S = 60.0
LONGEST_NAME = 55
_STATUS: dict[JobStatus, Status] = {
    JobStatus.PENDING: "starting",
    JobStatus.RUNNING: "running",
    JobStatus.SUCCEEDED: "succeeded",
    JobStatus.FAILED: "failed",
    JobStatus.STOPPED: "stopped",
}


def new_id(name: str) -> str:
    """An id for a job of this name: also its folder under ``storage`` and its label in the metrics."""
    return f"{name[:LONGEST_NAME]}-{secrets.token_hex(3)}"


def status_of(details: JobDetails) -> Status:
    """The status of a job at Ray."""
    if details.status == JobStatus.FAILED and details.driver_exit_code == EXIT_CODES["halted"]:
        return "halted"
    return _STATUS[details.status]


class RayBackend(FileBackend):
    """Talks to the dashboard of a Ray cluster."""

    def __init__(self, address: str) -> None:
        try:
            self._ray = JobSubmissionClient(address)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise Unreachable(
                f"no Ray cluster answers at {address}: set --address to the URL of its dashboard or of a "
                "gradguard service, or to a folder of jobs, such as runs"
            ) from error

    def submit(self, request: SubmitRequest) -> JobInfo:
        """Only a service has priorities and starts jobs again."""
        if request.priority or request.max_restarts is not None or request.key is not None:
            _needs_service("priorities, restarts and idempotency keys")
        job_id = new_id(request.spec.name)
        named = request.spec.model_copy(update={"name": job_id})
        self._submit(
            entrypoint=entrypoint(),
            submission_id=job_id,
            metadata={MARK: "job", "name": request.spec.name, "tags": " ".join(request.spec.tags)},
            runtime_env=runtime_env(named, working_dir=request.working_dir, env=request.env),
        )
        return self.get(job_id)

    def page(self, wanted: Wanted, *, cursor: str | None, limit: int) -> JobList:
        ours = [d for d in self._ray.list_jobs() if (d.metadata or {}).get(MARK)]
        jobs = [_info(d) for d in sorted(ours, key=lambda d: d.start_time or 0, reverse=True)]
        return page_of(jobs, wanted, cursor=cursor, limit=limit)

    def get(self, job_id: str) -> JobInfo:
        return _info(self._details(job_id), self._files(job_id))

    def stop(self, job_id: str) -> None:
        self._details(job_id)
        self._ray.stop_job(job_id)

    def checkpoint(self, job_id: str) -> None:
        """See ``Backend``. The command goes through the metrics hub of the cluster."""
        details = self._details(job_id)
        if (status := status_of(details)) != "running":
            raise Conflict(f"{job_id} is {status}: only a running job saves a checkpoint")
        spec = spec_of(details)
        name = str(noted(job_id).get("job") or (job_id if spec is None else spec.name))
        deliver(self._ray, name, "checkpoint")

    def resume(self, job_id: str) -> JobInfo:
        _needs_service(f"resuming {job_id}")

    def clone(self, job_id: str, changes: Sequence[str], *, priority: int | None) -> JobInfo:  # noqa: ARG002
        _needs_service(f"cloning {job_id}")

    def delete(self, job_id: str, *, files: bool) -> None:
        self._details(job_id)
        if files:
            _needs_service("deleting the files of a job")
        try:
            self._ray.delete_job(job_id)
        except RuntimeError as error:
            raise Refused(f"{job_id} has not ended: stop it first") from error

    def logs(self, job_id: str, *, follow: bool, offset: int) -> Iterator[str]:
        self._details(job_id)
        if not follow:
            yield self._ray.get_job_logs(job_id).encode()[offset:].decode(errors="replace")
            return
        left = offset
        for piece in _drain(cast(AsyncGenerator[str, None], self._ray.tail_job_logs(job_id))):
            raw = piece.encode()
            if len(raw) > left:
                yield raw[left:].decode(errors="replace")
            left = max(0, left - len(raw))

    def _submit(self, **job: Any) -> None:
        """A head that has just started has no agent yet to run a job: then wait for one."""
        deadline = time.monotonic() + AGENT_TIMEOUT_S
        while True:
            try:
                self._ray.submit_job(**job)
            except RuntimeError as error:
                if not is_agent_missing(str(error)):
                    raise Refused(f"the cluster refused the job: {error}") from error
                if time.monotonic() > deadline:
                    raise ClientError("the cluster has had no node to run a job for a minute") from error
                time.sleep(POLL_S)
            else:
                return

    def _details(self, job_id: str) -> JobDetails:
        try:
            return self._ray.get_job_info(job_id)
        except RuntimeError as error:
            raise JobNotFound(f"there is no job {job_id}: `ray job list` shows all") from error
        except OSError as error:
            raise Unreachable(f"the Ray cluster does not answer any more: {error}") from error

    def _files(self, job_id: str) -> JobFiles | None:
        folder = noted_folder(job_id) or folder_of(self._details(job_id))
        return JobFiles(folder) if folder is not None and folder.is_dir() else None

    def _readable(self, job_id: str) -> JobFiles:
        files = self._files(job_id)
        if files is None:
            raise Unsupported(
                f"the files of {job_id} are not on this machine: ask the gradguard service of the cluster, "
                "or look on the machine where the job runs"
            )
        return files


def spec_of(details: JobDetails) -> JobSpec | None:
    """The spec that a job was submitted with, unless it is in a file of the job's own."""
    text = ((details.runtime_env or {}).get("env_vars") or {}).get(SPEC_VARIABLE)
    try:
        return None if text is None else JobSpec.from_dict(load_yaml(text)[1])
    except (SpecError, yaml.YAMLError, TypeError, ValueError, RecursionError):
        return None


def folder_of(details: JobDetails) -> Path | None:
    """The folder of a job's files, by its spec."""
    spec = spec_of(details)
    return None if spec is None else default_root() / Path(spec.storage).expanduser() / spec.name


def _info(details: JobDetails, files: JobFiles | None = None) -> JobInfo:
    job_id = details.submission_id or details.job_id or ""
    status = status_of(details)
    message = (details.message or "").strip().rpartition("\n")[2][:300]
    return JobInfo(
        id=job_id,
        name=(details.metadata or {}).get("name", job_id),
        status=status,
        reason=message if status in ENDED else "",
        exit_code=details.driver_exit_code,
        created=_seconds(details.start_time),
        started=_seconds(details.start_time),
        ended=_seconds(details.end_time),
        folder=None if files is None else str(files.folder.path),
        tags=(details.metadata or {}).get("tags", "").split(),
        progress=None if files is None else files.progress(),
        result=None if files is None else files.result(),
    )


def _seconds(milliseconds: int | None) -> float | None:
    return None if not milliseconds else milliseconds / 1000


def _needs_service(what: str) -> NoReturn:
    raise Unsupported(f"{what} needs a gradguard service: start one with `gradguard serve --address URL`")


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
