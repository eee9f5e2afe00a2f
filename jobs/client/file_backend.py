"""What a Ray cluster and a folder of jobs share: jobs without a service are read from their files."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

from jobs.client.backend import Backend
from jobs.client.job_files import JobFiles
from jobs.client.models import CheckpointInfo, Event, JobInfo, JobList, Series
from jobs.client.polling import poll_events


class FileBackend(Backend):
    """The part of a backend that needs no more than the files of a job."""

    @abstractmethod
    def _readable(self, job_id: str) -> JobFiles:
        """The files of a job; raises ``ClientError`` where there are none."""

    def events(self, job_id: str, *, after: int) -> Iterator[Event]:
        return poll_events(self, job_id, after=after)

    def incidents(self, job_id: str) -> list[dict[str, Any]]:
        return self._readable(job_id).incident_rows()

    def metrics(self, job_id: str, columns: Sequence[str], *, after_attempt: int, points: int) -> Series:
        return self._readable(job_id).metrics(columns, after_attempt=after_attempt, points=points)

    def checkpoints(self, job_id: str) -> list[CheckpointInfo]:
        return self._readable(job_id).checkpoints()

    def report(self, job_id: str) -> str:
        return self._readable(job_id).report()

    def close(self) -> None:
        """Nothing is held open."""


def page_of(
    jobs: list[JobInfo], *, statuses: Sequence[str], name: str | None, cursor: str | None, limit: int
) -> JobList:
    """A page of a list that is in memory as a whole; the cursor is the id of the last job before."""
    fit = [j for j in jobs if (not statuses or j.status in statuses) and (not name or name in j.id)]
    start = next((i + 1 for i, job in enumerate(fit) if job.id == cursor), 0)
    part = fit[start : start + limit]
    return JobList(jobs=part, next_cursor=part[-1].id if start + limit < len(fit) else None)
