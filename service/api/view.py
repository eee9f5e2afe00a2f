"""A job of the store, as callers see it: secrets are masked, and only files below the root are read."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from guard.rows import strict
from jobs.client.job_files import JobFiles
from jobs.client.models import AttemptInfo, CheckpointInfo, Event, JobInfo
from jobs.spec.masking import MASKED, Mask, is_secret, masked, masked_result, masked_spec, names_of
from service.api.context import Context
from service.reconcile.adopt import folder_for
from service.reconcile.job_files import files_below
from service.store import ACTIVE, AttemptRow, EventRow, JobRow

_STORED = (JobInfo.model_fields.keys() & JobRow.__table__.columns.keys()) - {"spec", "env", "result"}
"""Fields that are shown as they are stored; the documents are loaded only where they are needed."""


def summary(job: JobRow) -> JobInfo:
    """The fields that the store alone knows."""
    return JobInfo.model_validate({"status": job.state, **{name: getattr(job, name) for name in _STORED}})


def listed(service: Context, jobs: Sequence[JobRow]) -> list[JobInfo]:
    """The entries of a listing; jobs that train have their progress too, those that ended their result."""
    specs = service.store.specs([job.id for job in jobs if job.state in ACTIVE])
    results = service.store.results([job.id for job in jobs if job.state not in ACTIVE])
    return [_listed(service, job, specs.get(job.id), results.get(job.id)) for job in jobs]


def _listed(
    service: Context, job: JobRow, spec: dict[str, Any] | None, result: dict[str, Any] | None
) -> JobInfo:
    if result is not None:
        return summary(job).model_copy(update={"result": strict(masked_result(result))})
    if job.state not in ACTIVE or (files := files_of(service, job)) is None:
        return summary(job)
    return summary(job).model_copy(update={"progress": files.progress(spec)})


def details(service: Context, job: JobRow, attempts: list[AttemptRow]) -> JobInfo:
    """Everything known of a job, without its secrets."""
    files = files_of(service, job)
    return summary(job).model_copy(
        update={
            "spec": None if job.spec is None else strict(masked_spec(job.spec)),
            "env": shown_env(job),
            "result": None if job.result is None else strict(masked_result(job.result, job.spec, job.env)),
            "progress": None if files is None else files.progress(job.spec),
            "attempts": [AttemptInfo.model_validate(row, from_attributes=True) for row in attempts],
        }
    )


def shown_env(job: JobRow) -> dict[str, str]:
    """The environment of a job, its secrets masked."""
    names = names_of(job.spec)
    shown = {name: masked(value, more=names) for name, value in job.env.items()}
    return {name: MASKED if is_secret(name, names) else str(value) for name, value in shown.items()}


def event(row: EventRow) -> Event:
    data = strict(row.data)
    return Event(
        seq=row.seq, job=row.job_id, time=row.time, kind=row.kind, level=row.level, text=row.text, data=data
    )


def files_of(service: Context, job: JobRow) -> JobFiles | None:
    """The files of a job; None if they are not below the root."""
    return files_below(folder_for(job, service.root), service.root)


def mask_of(job: JobRow) -> Mask:
    """Masks the secrets of a job, which its own code may have written into its files."""
    return Mask(job.env, job.spec)


def readable_checkpoints(service: Context, job: JobRow) -> tuple[list[CheckpointInfo], str]:
    """The checkpoints of a job, oldest first, and why they cannot be read; empty if they can."""
    files = files_of(service, job)
    if files is None:
        return [], ""
    place = files.checkpoint_place()
    if not may_read(service.checkpoint_urls, place):
        advice = f"start it with --checkpoint-url, for {masked(str(place))}"
        return [], f"the checkpoints of {job.id} are in a storage that this service may not read: {advice}"
    try:
        return files.checkpoints(), ""
    except OSError as error:
        return [], f"the checkpoints of {job.id} cannot be read: {error.strerror or error}"


def may_read(allowed: Sequence[str], place: str | Path) -> bool:
    """Whether the service may read checkpoints here: a folder, or below an allowed URL with equal options.

    A spec can name any host, in the options too.
    """
    if isinstance(place, Path):
        return True
    place, _, options = place.partition("?")
    if ".." in place.split("/"):
        return False
    roots = (root.partition("?") for root in allowed)
    return any(place.startswith(f"{base.rstrip('/')}/") and more == options for base, _, more in roots)
