"""A job of the store, as it is told to callers: secrets are stars, and only files below the root are read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from guard.rows import strict
from jobs.client.job_files import JobFiles
from jobs.client.models import AttemptInfo, Event, JobInfo
from service.api.context import Context
from service.masking import MASKED, is_secret, masked
from service.reconcile.adopt import folder_for
from service.reconcile.job_files import files_below
from service.store import ACTIVE, AttemptRow, EventRow, JobRow


def summary(job: JobRow) -> JobInfo:
    """What the store alone says."""
    return JobInfo(
        id=job.id,
        name=job.name,
        status=job.state,  # type: ignore[arg-type]
        reason=job.reason,
        exit_code=job.exit_code,
        priority=job.priority,
        created=job.created,
        started=job.started,
        ended=job.ended,
        submitted_by=job.submitted_by,
        adopted=job.adopted,
        attempt=job.attempt,
        restarts=job.restarts,
        max_restarts=job.max_restarts,
        folder=job.folder,
    )


def listed(service: Context, jobs: Sequence[JobRow]) -> list[JobInfo]:
    """What a listing says; of jobs that train, how far they are."""
    specs = service.store.specs([job.id for job in jobs if job.state in ACTIVE])
    return [_listed(service, job, specs.get(job.id)) for job in jobs]


def _listed(service: Context, job: JobRow, spec: dict[str, Any] | None) -> JobInfo:
    if job.state not in ACTIVE or (files := files_of(service, job)) is None:
        return summary(job)
    return summary(job).model_copy(update={"progress": files.progress(spec)})


def details(service: Context, job: JobRow, attempts: list[AttemptRow]) -> JobInfo:
    """All that is known of a job, without its secrets."""
    files = files_of(service, job)
    return summary(job).model_copy(
        update={
            "spec": None if job.spec is None else strict(masked(job.spec)),
            "env": {name: MASKED if is_secret(name) else str(masked(v)) for name, v in job.env.items()},
            "result": None if job.result is None else strict(job.result),
            "progress": None if files is None else files.progress(job.spec),
            "attempts": [_attempt(row) for row in attempts],
        }
    )


def event(row: EventRow) -> Event:
    """An event, as the stream tells it."""
    return Event(
        seq=row.seq,
        job=row.job_id,
        time=row.time,
        kind=row.kind,
        level=row.level,
        text=row.text,
        data=strict(row.data),
    )


def files_of(service: Context, job: JobRow) -> JobFiles | None:
    """The files of a job, as far as they are below the root."""
    return files_below(folder_for(job, service.root), service.root)


def may_read(allowed: Sequence[str], url: str) -> bool:
    """Whether a URL lies below one of those that are allowed. Its options may name another host:
    they have to be the same."""
    place, _, options = url.partition("?")
    if ".." in place.split("/"):
        return False
    roots = (root.partition("?") for root in allowed)
    return any(place.startswith(f"{base.rstrip('/')}/") and more == options for base, _, more in roots)


def _attempt(row: AttemptRow) -> AttemptInfo:
    return AttemptInfo(
        number=row.number,
        submission_id=row.submission_id,
        started=row.started,
        ended=row.ended,
        outcome=row.outcome,
        message=row.message,
    )
