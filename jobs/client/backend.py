"""What a job client needs from the backend at its address."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

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


class Backend(Protocol):
    """A service, a Ray cluster, or a folder of jobs. All raise ``ClientError``."""

    def submit(self, request: SubmitRequest) -> JobInfo:
        """Submits a job."""

    def page(self, *, statuses: Sequence[str], name: str | None, cursor: str | None, limit: int) -> JobList:
        """Some jobs, the newest first."""

    def get(self, job_id: str) -> JobInfo:
        """A job with all that is known of it."""

    def stop(self, job_id: str) -> None:
        """Requests that a job saves its state and ends."""

    def checkpoint(self, job_id: str) -> None:
        """Asks a running job to save a checkpoint now."""

    def resume(self, job_id: str) -> JobInfo:
        """Continues an ended job from its last good checkpoint."""

    def delete(self, job_id: str, *, files: bool) -> None:
        """Removes an ended job."""

    def clone(self, job_id: str, changes: Sequence[str], *, priority: int | None) -> JobInfo:
        """Submits a job like this one, with changes of its spec."""

    def logs(self, job_id: str, *, follow: bool, offset: int) -> Iterator[str]:
        """What the job printed, from a byte on."""

    def events(self, job_id: str, *, after: int) -> Iterator[Event]:
        """What happens to a job, until it has ended."""

    def incidents(self, job_id: str) -> list[dict[str, Any]]:
        """Its incidents."""

    def metrics(self, job_id: str, columns: Sequence[str], *, after_attempt: int, points: int) -> Series:
        """Its metrics."""

    def checkpoints(self, job_id: str) -> list[CheckpointInfo]:
        """Its checkpoints."""

    def report(self, job_id: str) -> str:
        """Its report as HTML."""

    def close(self) -> None:
        """Closes connections."""
