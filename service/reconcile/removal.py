"""Deletes ended jobs: on request, and those that ended long ago."""

import logging
import shutil
import time
from contextlib import suppress
from pathlib import Path

from jobs.errors import ENDED
from service.reconcile.log_spool import log_path
from service.reconcile.ray_api import RayApi, RayUnavailable
from service.store import Caller, JobRow, JobStore, NoSuchJob, WrongState, entry

logger = logging.getLogger(__name__)

RETENTION = Caller("retention", "admin")


def remove_job(
    store: JobStore, ray: RayApi | None, root: Path, job_id: str, caller: Caller, *, files: bool
) -> None:
    """Deletes an ended job; with ``files`` its folder too, unless another job uses it.

    Raises:
        NoSuchJob, WrongState: there is none, it has not ended, or its folder is not the service's to delete.
    """
    submissions = [attempt.submission_id for attempt in store.attempts(job_id)]
    audit = entry(caller, "delete", job_id, "with its files" if files else "")
    job = store.delete(job_id, _must_have_ended, audit)
    for submission in submissions:
        with suppress(RayUnavailable, RuntimeError):  # a dead head has forgotten it
            if ray is not None:
                ray.forget(submission)  # one that Ray still lists would be adopted again
    log_path(root, job_id).unlink(missing_ok=True)
    if files and job.folder is not None and not store.others_use(job):
        _remove_folder(root, Path(job.folder))


def remove_old(store: JobStore, ray: RayApi | None, root: Path, days: float) -> list[str]:
    """Deletes the jobs that ended more than N days ago, with their files; returns their ids."""
    removed = []
    for job_id in store.ended_before(time.time() - days * 86_400):
        try:
            remove_job(store, ray, root, job_id, RETENTION, files=True)
            removed.append(job_id)
        except (NoSuchJob, WrongState) as error:
            logger.warning("retention: %s", error)
    return removed


def _must_have_ended(job: JobRow) -> None:
    if job.state not in ENDED:
        raise WrongState(f"{job.id} is {job.state}: stop it first")


def _remove_folder(root: Path, folder: Path) -> None:
    resolved = folder.resolve()
    own = root.resolve() / ".service"
    if folder.is_symlink() or resolved == root.resolve() or not resolved.is_relative_to(root.resolve()):
        raise WrongState(f"{folder} is not below the storage folder of the service and was not deleted")
    if own == resolved or own.is_relative_to(resolved) or resolved.is_relative_to(own):
        raise WrongState(f"{folder} is the service's own and was not deleted")
    shutil.rmtree(resolved, ignore_errors=True)
