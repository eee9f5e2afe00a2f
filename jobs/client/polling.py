"""Events of a job that are recorded nowhere: found by polling it."""

from __future__ import annotations

import time
from collections.abc import Iterator

from guard.records import Incident
from jobs.client.backend import Backend
from jobs.client.errors import Unsupported
from jobs.client.models import ENDED, Event, JobInfo
from jobs.report.words import event

POLL_S = 1.0


def poll_events(backend: Backend, job_id: str, *, after: int) -> Iterator[Event]:
    """Changes of status and incidents, numbered from 1 as they are seen, until the job has ended."""
    seq, last, seen = 0, "", set[str]()
    while True:
        job = backend.get(job_id)
        fresh = [_changed(job)] if job.status != last else []
        last = job.status
        for happened in (*_incidents(backend, job, seen), *fresh):
            seq += 1
            if seq > after:
                yield happened.model_copy(update={"seq": seq})
        if job.status in ENDED:
            return
        time.sleep(POLL_S)


def _changed(job: JobInfo) -> Event:
    text = f"{job.status}: {job.reason}" if job.reason else job.status
    level = "error" if job.status in ("failed", "halted") else "info"
    data = {"status": job.status}
    return Event(seq=0, job=job.id, time=time.time(), kind="state", level=level, text=text, data=data)


def _incidents(backend: Backend, job: JobInfo, seen: set[str]) -> Iterator[Event]:
    try:
        rows = backend.incidents(job.id)
    except Unsupported:
        return
    for row in rows:
        if row["anchor"] not in seen:
            seen.add(row["anchor"])
            yield incident_event(job.id, row)


def incident_event(job_id: str, row: dict[str, object]) -> Event:
    """The event of one row of the journal."""
    incident = Incident.from_row(row)
    level, text = event(incident)
    when = time.time() if incident.time is None else incident.time
    return Event(seq=0, job=job_id, time=when, kind="incident", level=level, text=text, data=dict(row))
