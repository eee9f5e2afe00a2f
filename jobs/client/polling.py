"""Events of a job that nobody records: found by looking at it again and again."""

from __future__ import annotations

import time
from collections.abc import Iterator

from jobs.client.backend import Backend
from jobs.client.errors import Unsupported
from jobs.client.models import ENDED, Event, JobInfo


def poll_events(backend: Backend, job_id: str, *, after: int, poll_s: float) -> Iterator[Event]:
    """Changes of status and incidents, numbered from 1 as they are seen, until the job has ended."""
    seq, last, seen = 0, "", set[object]()
    while True:
        job = backend.get(job_id)
        fresh = [_changed(job)] if job.status != last else []
        last = job.status
        for event in (*_incidents(backend, job, seen), *fresh):
            seq += 1
            if seq > after:
                yield event.model_copy(update={"seq": seq})
        if job.status in ENDED:
            return
        time.sleep(poll_s)


def _changed(job: JobInfo) -> Event:
    text = f"{job.status}: {job.reason}" if job.reason else job.status
    level = "error" if job.status in ("failed", "halted") else "info"
    data = {"status": job.status}
    return Event(seq=0, job=job.id, time=time.time(), kind="state", level=level, text=text, data=data)


def _incidents(backend: Backend, job: JobInfo, seen: set[object]) -> Iterator[Event]:
    try:
        rows = backend.incidents(job.id)
    except Unsupported:
        return
    for row in rows:
        if row.get("id") not in seen:
            seen.add(row.get("id"))
            yield incident_event(job.id, row)


def incident_event(job_id: str, row: dict[str, object]) -> Event:
    """The event of one row of the journal."""
    text = f"step {row.get('step')}: {row.get('verdict')}, {row.get('signal')}: {row.get('action')}"
    level = "error" if row.get("action") in ("rolled_back", "halted") else "warning"
    when = row.get("time")
    moment = float(when) if isinstance(when, int | float) else time.time()
    return Event(seq=0, job=job_id, time=moment, kind="incident", level=level, text=text, data=dict(row))
