"""What a Ray cluster and a folder of jobs share: jobs are read from their files, and polled for events."""

from __future__ import annotations

import shutil
import time
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from guard.records import Incident
from jobs.client.backend import Backend, Wanted
from jobs.client.errors import JobNotFound, Unsupported
from jobs.client.job_files import JobFiles
from jobs.client.models import ENDED, CheckpointInfo, Event, JobInfo, JobList, Series
from jobs.observability.event_line import event
from jobs.run_dir.incidents import NewIncidents
from jobs.run_dir.plain_file import open_plain

POLL_S = 1.0


class FileBackend(Backend):
    """The part of a backend that needs no more than the files of a job."""

    @abstractmethod
    def _readable(self, job_id: str) -> JobFiles:
        """The files of a job; raises ``ClientError`` where there are none."""

    def events(self, job_id: str, *, after: int) -> Iterator[Event]:
        """Changes of status and incidents, numbered from 1 as they are seen, until the job has ended."""
        seq, last, journal = 0, "", None
        while True:
            job = self.get(job_id)
            fresh = [_changed(job)] if job.status != last else []
            last = job.status
            with suppress(Unsupported):
                files = self._readable(job.id)
                journal = journal or NewIncidents(files.folder.incidents, files.below)
            found = () if journal is None else (incident_event(job.id, row) for row in journal.fresh())
            for happened in (*found, *fresh):
                seq += 1
                if seq > after:
                    yield happened.model_copy(update={"seq": seq})
            if job.status in ENDED:
                return
            time.sleep(POLL_S)

    def incidents(self, job_id: str, newest: int | None) -> list[dict[str, Any]]:
        return self._readable(job_id).incident_rows(start=0 if newest is None else -1, limit=newest)

    def metrics(self, job_id: str, columns: Sequence[str], *, after_attempt: int, points: int) -> Series:
        return self._readable(job_id).metrics(columns, after_attempt=after_attempt, points=points)

    def checkpoints(self, job_id: str) -> list[CheckpointInfo]:
        return self._readable(job_id).checkpoints()

    def report(self, job_id: str) -> str:
        return self._readable(job_id).report()

    def download(self, job_id: str, name: str, to: BinaryIO) -> None:
        """See ``Backend``."""
        files = self._readable(job_id)
        try:
            with open_plain(files.folder.path / name, files.below) as file:
                shutil.copyfileobj(file, to)
        except FileNotFoundError:
            raise JobNotFound(f"{job_id} has no {name} yet") from None

    def download_checkpoint(self, job_id: str, step: int, to: Path) -> None:
        """See ``Backend``."""
        folder = self._readable(job_id).checkpoint_of(step)
        shutil.copytree(folder, to / folder.name)

    def close(self) -> None:
        """Nothing is held open."""


def _changed(job: JobInfo) -> Event:
    text = f"{job.status}: {job.reason}" if job.reason else job.status
    level = "error" if job.status in ("failed", "halted") else "info"
    data = {"status": job.status}
    return Event(seq=0, job=job.id, time=time.time(), kind="state", level=level, text=text, data=data)


def incident_event(job_id: str, row: dict[str, object]) -> Event:
    """The event of one row of the journal."""
    incident = Incident.from_row(row)
    level, text = event(incident)
    when = time.time() if incident.time is None else incident.time
    return Event(seq=0, job=job_id, time=when, kind="incident", level=level, text=text, data=dict(row))


def page_of(jobs: list[JobInfo], wanted: Wanted, *, cursor: str | None, limit: int) -> JobList:
    """A page of a list that is in memory as a whole; the cursor is the id of the last job before."""
    fit = [job for job in jobs if _fits(job, wanted)]
    start = next((i + 1 for i, job in enumerate(fit) if job.id == cursor), 0)
    part = fit[start : start + limit]
    return JobList(jobs=part, next_cursor=part[-1].id if start + limit < len(fit) else None)


def _fits(job: JobInfo, wanted: Wanted) -> bool:
    state = not wanted.statuses or job.status in wanted.statuses
    return state and (wanted.name or "") in job.id and (wanted.tag is None or wanted.tag in job.tags)
