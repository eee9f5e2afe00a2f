"""A folder of jobs without a server: what is stored there can be read, and nothing can be changed."""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from jobs.client.backend import SubmitRequest, Wanted
from jobs.client.errors import JobNotFound, Unreachable, Unsupported
from jobs.client.file_backend import FileBackend, page_of
from jobs.client.job_files import JobFiles
from jobs.client.models import STATUSES, JobInfo, JobList, Status
from jobs.errors import EXIT_CODES
from jobs.run_dir.plain_file import NotAPlainFile
from jobs.spec.errors import did_you_mean
from jobs.spec.masking import masked_spec


class FolderBackend(FileBackend):
    """Reads ``<folder>/<job>/``, or the folder of one job."""

    def __init__(self, folder: str | Path) -> None:
        self._root = Path(str(folder).removeprefix("file://")).expanduser()
        if not self._root.is_dir():
            url = re.fullmatch(r"[\w.-]+:\d+/?", str(folder))
            wanted = f"write http://{folder} if it is a URL" if url else "give the storage folder of the jobs"
            raise Unreachable(f"{self._root} is no folder: {wanted}")

    def page(self, wanted: Wanted, *, cursor: str | None, limit: int) -> JobList:
        alone = JobFiles(self._root).exists()
        folders = [self._root] if alone else [p for p in self._root.iterdir() if JobFiles(p).exists()]
        folders.sort(key=lambda path: path.stat().st_mtime, reverse=True)
        jobs = [self._info_or_why_not(JobFiles(path)) for path in folders]
        return page_of(jobs, wanted, cursor=cursor, limit=limit)

    def get(self, job_id: str) -> JobInfo:
        files = self._readable(job_id)
        spec = files.spec()
        shown = None if spec is None else masked_spec(spec.model_dump(mode="json"))
        return self._info(files).model_copy(update={"spec": shown, "result": files.result()})

    def logs(self, job_id: str, *, follow: bool, offset: int) -> Iterator[str]:
        """The log of Ray and of failures; what a job prints is available from Ray or the service."""
        path = self._readable(job_id).folder.log
        if path.exists() and not follow:
            yield path.read_bytes()[offset:].decode(errors="replace")
        elif follow:
            _read_only("following a log")

    def submit(self, request: SubmitRequest) -> JobInfo:
        _read_only(f"submitting {request.spec.name}")

    def stop(self, job_id: str) -> None:
        _read_only(f"stopping {job_id}")

    def checkpoint(self, job_id: str) -> None:
        """Refused."""
        _read_only(f"requesting a checkpoint of {job_id}")

    def resume(self, job_id: str) -> JobInfo:
        _read_only(f"resuming {job_id}")

    def delete(self, job_id: str, *, files: bool) -> None:  # noqa: ARG002
        _read_only(f"deleting {job_id}")

    def clone(self, job_id: str, changes: Sequence[str], *, priority: int | None) -> JobInfo:  # noqa: ARG002
        _read_only(f"cloning {job_id}")

    def _readable(self, job_id: str) -> JobFiles:
        for path in (self._root / job_id, self._root):
            if path.name == job_id and JobFiles(path).exists():
                return JobFiles(path)
        jobs = [path.name for path in self._root.glob("*") if JobFiles(path).exists()]
        question = did_you_mean(job_id, jobs)
        raise JobNotFound(f"there is no job {job_id} in {self._root}{f'; {question}' if question else ''}")

    def _info_or_why_not(self, files: JobFiles) -> JobInfo:
        """One job whose files cannot be read does not hide the others."""
        try:
            return self._info(files)
        except NotAPlainFile as error:
            name = files.folder.path.name
            return JobInfo(id=name, name=name, status="failed", reason=str(error))

    def _info(self, files: JobFiles) -> JobInfo:
        path, result, progress = files.folder.path, files.result() or {}, files.progress()
        spec = files.spec()
        status, reason = _status(path, result)
        return JobInfo(
            id=path.name,
            name=path.name,
            status=status,
            reason=reason,
            exit_code=None if status == "stopped" else EXIT_CODES.get(status),
            created=_changed(files.folder.spec),
            started=_changed(files.folder.spec),
            ended=_changed(files.folder.result) or (None if status == "running" else _changed(path)),
            folder=str(path),
            tags=[] if spec is None else list(spec.tags),
            progress=progress,
            result=result or None,
        )


def _changed(path: Path) -> float | None:
    """When a file was written last; the spec is written when a job starts, its result when it ends."""
    try:
        return path.stat().st_mtime
    except OSError:
        return None


def _status(path: Path, result: dict[str, Any]) -> tuple[Status, str]:
    known = result.get("status")
    if known in STATUSES:
        return known, str(result.get("error") or "")
    if _is_training(path):
        return "running", ""
    return "failed", "ended without a result: it was killed, or its machine died; --resume continues it"


def _is_training(path: Path) -> bool:
    """Whether a process of this machine holds the job's lock."""
    try:
        descriptor = os.open(path.parent / f".{path.name}.lock", os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def _read_only(what: str) -> NoReturn:
    raise Unsupported(f"{what} is not possible: a folder is only read; give the URL of a service or of Ray")
