"""Adopts jobs that were submitted to Ray without the service."""

import re
import time
from collections.abc import Mapping
from pathlib import Path

from ray.job_submission import JobDetails, JobStatus
from sqlalchemy.exc import IntegrityError

from jobs.client.ray_backend import folder_of, spec_of, status_of
from jobs.client.submission import MARK, RESERVED, SUPERVISED, noted, noted_folder, noted_package
from jobs.spec.errors import SpecError
from jobs.spec.job_spec import JobSpec
from service.reconcile.capacity import resources_of
from service.store import JobRow, JobStore, Packages

SUBMITTED_BY = "ray job submit"
_VALID_ID = re.compile(r"^[A-Za-z0-9][A-Za-z0-9_.\-]{0,127}$")
_OUR_ENTRYPOINT = re.compile(r"\bjobs\.train\b|\bgradguard train\b")


def adopt(store: JobStore, listing: Mapping[str, JobDetails], root: Path) -> list[str]:
    """Adds every GradGuard job that the store does not know; returns their ids."""
    ours = {i: d for i, d in listing.items() if _VALID_ID.match(i) and _is_ours(d)}
    known = store.known_submissions(list(ours)) if ours else set()
    return [i for i, details in ours.items() if i not in known and _add(store, i, details, root)]


def complete_adopted(store: JobStore, packages: Packages, job: JobRow, root: Path) -> bool:
    """Adds the spec, folder and working directory that an adopted job noted when it started to run, without
    which it cannot be started again. False while it has noted nothing."""
    note = noted(job.submission_id or "", root)
    if (spec := _valid(note.get("spec"))) is None:
        return False
    package = noted_package(note, root)
    required, digest = resources_of(spec), None if package is None else packages.add(package)

    def edit(row: JobRow) -> str | None:
        if row.spec is not None and row.working_dir == digest:
            return None
        row.spec, row.folder, row.working_dir = spec.model_dump(mode="json"), str(note["folder"]), digest
        row.cpus, row.gpus, row.workers = required["CPU"], required["GPU"], spec.scale.workers
        row.tags = list(spec.tags)
        row.max_restarts = 0 if "not_kept" in note else spec.scale.max_failures
        return f"its spec is known now: {note.get('not_kept') or 'it is restarted if its driver dies'}"

    store.change(job.id, edit, kind="note")
    return True


def _valid(document: object) -> JobSpec | None:
    try:
        return JobSpec.from_dict(document) if isinstance(document, dict) else None
    except (SpecError, RecursionError):
        return None


def folder_for(job: JobRow, root: Path) -> Path | None:
    """The folder of a job's files; None while it is unknown."""
    return Path(job.folder) if job.folder else noted_folder(job.submission_id or job.id, root)


def ended_at_ray(details: JobDetails) -> bool:
    return details.status in (JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.STOPPED)


def _is_ours(details: JobDetails) -> bool:
    """A job of another service is not adopted: both would restart it."""
    metadata = details.metadata or {}
    ours = MARK in metadata or bool(_OUR_ENTRYPOINT.search(details.entrypoint or ""))
    return ours and SUPERVISED not in metadata


def _add(store: JobStore, submission_id: str, details: JobDetails, root: Path) -> bool:
    spec, status = spec_of(details), status_of(details)
    folder = noted_folder(submission_id, root) or (folder_of(details) if spec else None)
    required = resources_of(spec) if spec else {"CPU": 0.0, "GPU": 0.0}
    started = (details.start_time or time.time() * 1000) / 1000
    row = JobRow(
        id=submission_id,
        name=(details.metadata or {}).get("name", spec.name if spec else submission_id),
        state=status if status == "starting" else "running",
        reason="adopted",
        created=started,
        started=started,
        submitted_by=SUBMITTED_BY,
        adopted=True,
        attempt=1,
        submission_id=submission_id,
        # one that ended before it was adopted is not restarted: it may have ended long ago
        max_restarts=spec.scale.max_failures if spec and not ended_at_ray(details) else 0,
        folder=None if folder is None else str(folder),
        workers=spec.scale.workers if spec else 1,
        tags=list(spec.tags) if spec else [],
        cpus=required["CPU"],
        gpus=required["GPU"],
        spec=None if spec is None else spec.model_dump(mode="json"),
        env=_env(details),
    )
    try:
        store.add(row)
    except IntegrityError:  # another service was faster, or the id is taken
        return False
    store.begin_attempt(row)
    return True


def _env(details: JobDetails) -> dict[str, str]:
    variables = (details.runtime_env or {}).get("env_vars") or {}
    return {name: str(value) for name, value in variables.items() if not name.startswith(RESERVED)}
