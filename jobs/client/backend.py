"""What a job client needs from the backend at its address."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from jobs.client.models import CheckpointInfo, Event, JobInfo, JobList, Series
from jobs.spec.job_spec import JobSpec


@dataclass(frozen=True, slots=True)
class SubmitRequest:
    """A job to submit, and its options."""

    spec: JobSpec
    working_dir: Path | None = None
    priority: int = 0
    max_restarts: int | None = None
    env: dict[str, str] = field(default_factory=dict)
    key: str | None = None


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which jobs of a list: of one of these statuses, whose id contains the name, with the tag; else all."""

    statuses: Sequence[str] = ()
    name: str | None = None
    tag: str | None = None


class Backend(Protocol):
    """A service, a Ray cluster, or a folder of jobs, as ``JobClient`` uses it. All raise ``ClientError``.

    ``page``: some jobs, the newest first; ``events``: what ``JobClient.follow`` yields;
    ``download_checkpoint``: adds the checkpoint's folder to a folder.
    """

    def submit(self, request: SubmitRequest) -> JobInfo: ...
    def page(self, wanted: Wanted, *, cursor: str | None, limit: int) -> JobList: ...
    def get(self, job_id: str) -> JobInfo: ...
    def stop(self, job_id: str) -> None: ...
    def checkpoint(self, job_id: str) -> None: ...
    def resume(self, job_id: str) -> JobInfo: ...
    def delete(self, job_id: str, *, files: bool) -> None: ...
    def clone(self, job_id: str, changes: Sequence[str], *, priority: int | None) -> JobInfo: ...
    def logs(self, job_id: str, *, follow: bool, offset: int) -> Iterator[str]: ...
    def events(self, job_id: str, *, after: int) -> Iterator[Event]: ...
    def incidents(self, job_id: str, newest: int | None) -> list[dict[str, Any]]: ...
    def metrics(self, job_id: str, columns: Sequence[str], *, after_attempt: int, points: int) -> Series: ...
    def checkpoints(self, job_id: str) -> list[CheckpointInfo]: ...
    def report(self, job_id: str) -> str: ...
    def download(self, job_id: str, name: str, to: BinaryIO) -> None: ...
    def download_checkpoint(self, job_id: str, step: int, to: Path) -> None: ...
    def close(self) -> None: ...
