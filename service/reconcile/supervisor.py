"""The service's control loop: of all services on one database, one runs it at a time."""

import logging
import threading
import time
from pathlib import Path

from ray.job_submission import JobDetails

from jobs.notify import Notifier
from jobs.spec.errors import SpecError
from service.reconcile.adopt import adopt, complete_adopted, ended_at_ray, folder_for
from service.reconcile.capacity import free, never_fits, resources_of, waits_for
from service.reconcile.job_files import files_below
from service.reconcile.job_reconciler import JobReconciler, in_backoff, spec_for
from service.reconcile.log_spool import LogTails, log_size
from service.reconcile.ray_api import RayApi, RayUnavailable
from service.reconcile.removal import remove_old
from service.store import ACTIVE, PENDING, JobRow, JobStore, Lease, Packages

logger = logging.getLogger(__name__)

TICK_S = 1.0
TIDY_EVERY_S = 3600.0
LEASE = "supervisor"


class Supervisor(threading.Thread):
    """Starts, follows and adopts jobs until it is closed.

    Args:
        store: the jobs.
        packages: their working directories.
        ray: the cluster.
        root: the storage folder of the service.
        lease_s: after this time without a renewal another service takes over.
        keep_days: jobs that ended longer ago are deleted with their files; None to keep all.
    """

    def __init__(
        self,
        store: JobStore,
        packages: Packages,
        ray: RayApi,
        root: Path,
        *,
        lease_s: float = 10.0,
        keep_days: float | None = None,
        notices: Notifier | None = None,
    ) -> None:
        super().__init__(name="supervisor", daemon=True)
        self._store, self._packages, self._ray, self._root = store, packages, ray, root
        self._lease = Lease(store.engine, LEASE, ttl_s=lease_s)
        self._tails = LogTails(ray.tail, root)
        self._reconciler = JobReconciler(store, ray, self._tails, root, notices)
        self._completed: set[str] = set()
        self._keep_days = keep_days
        self._closing = threading.Event()
        self._next_tidy = time.monotonic()
        self._last_error = ""
        self.leading = False
        self.ray_answers = False
        self.ray_problem = ""
        self.last_tick = time.monotonic()

    def run(self) -> None:
        """Ticks until it is closed; an error in one tick is tried again in the next."""
        while not self._closing.wait(TICK_S):
            try:
                self.tick()
            except Exception as error:
                if repr(error) != self._last_error:
                    logger.error("a tick of the supervisor failed; the next one tries again", exc_info=error)
                self._last_error = repr(error)
        if self.leading:
            self._lease.release()
        self._tails.close()

    def close(self) -> None:
        """Ends the loop; jobs continue."""
        self._closing.set()
        if self.is_alive():
            self.join(30.0)

    def tick(self) -> None:
        self.last_tick = time.monotonic()
        self.leading = self._lease.hold()
        listing = self._list_ray_jobs()
        if not self.leading:
            return
        if listing is None:
            for job in self._store.in_states(PENDING):
                self._wait(job, "waiting for the Ray cluster, which does not answer")
            return
        for job_id in adopt(self._store, listing, self._root):
            logger.info("adopted %s", job_id)
        for job in self._store.in_states(ACTIVE):
            self._reconcile(job, listing.get(job.submission_id or ""))
        self._start_what_fits()
        self._tidy()

    def _list_ray_jobs(self) -> dict[str, JobDetails] | None:
        try:
            listing = self._ray.jobs()
        except (RayUnavailable, RuntimeError) as error:
            if str(error) != self.ray_problem:
                logger.warning("%s", error)
            self.ray_answers, self.ray_problem = False, str(error)
            return None
        self.ray_answers, self.ray_problem = True, ""
        return listing

    def _reconcile(self, job: JobRow, details: JobDetails | None) -> None:
        """An error of one job does not keep the others from being reconciled."""
        try:
            incomplete = job.adopted and job.attempt == 1 and job.id not in self._completed
            runs = incomplete and details is not None and not ended_at_ray(details)
            if runs and complete_adopted(self._store, self._packages, job, self._root):
                self._completed.add(job.id)
            wanted = job.working_dir if job.state == "starting" else None
            package = None if wanted is None else self._packages.content(wanted)
            self._reconciler.reconcile(job, details, package)
        except (RayUnavailable, SpecError, RuntimeError) as error:
            logger.warning("%s: %s", job.id, error)

    def _start_what_fits(self) -> None:
        if not (waiting := self._store.in_states(PENDING)):
            return
        capacity = self._ray.capacity()
        left = free(capacity, self._store.in_states(ACTIVE))
        blocked = False
        for job in waiting:
            if in_backoff(job, time.time()):
                continue
            needed = resources_of(spec_for(self._store.get(job.id)), capacity)
            never = never_fits(needed, job.workers, capacity.nodes)
            reason = f"waiting: {never}" if never else waits_for(needed, left)
            if reason is None and blocked:
                reason = "waiting for jobs that are older or have a higher priority"
            if reason is not None:
                blocked = blocked or never is None
                self._wait(job, reason)
            else:
                self._start(job, needed)
                left = {name: left[name] - needed[name] for name in left}

    def _start(self, job: JobRow, needed: dict[str, float]) -> None:
        """Records the attempt and its id before Ray gets it: whenever the service dies, the next one knows
        which submission to look for."""
        log_start, files = log_size(self._root, job.id), files_below(folder_for(job, self._root), self._root)
        before = {} if files is None else files.marks()

        def edit(row: JobRow) -> str | None:
            if row.state not in PENDING:
                return None
            row.attempt += 1
            row.state, row.submission_id = "starting", f"{row.id}-a{row.attempt}"
            row.reason, row.log_start, row.before = "starting its workers", log_start, before
            row.cpus, row.gpus = needed["CPU"], needed["GPU"]
            return f"starting: attempt {row.attempt}"

        started = self._store.change(job.id, edit)
        if started.state == "starting" and started.attempt == job.attempt + 1:
            self._store.begin_attempt(started)
            self._reconcile(started, None)

    def _wait(self, job: JobRow, reason: str) -> None:
        if job.state == "waiting" and job.reason == reason:
            return

        def edit(row: JobRow) -> str | None:
            if row.state not in PENDING or row.reason == reason:
                return None
            row.state, row.reason = "waiting", reason
            return reason

        self._store.change(job.id, edit)

    def _tidy(self) -> None:
        if time.monotonic() >= self._next_tidy:
            self._next_tidy = time.monotonic() + TIDY_EVERY_S
            self._store.delete_old_keys()
            for job_id in self._too_old():
                logger.info("deleted %s, which ended more than %g days ago", job_id, self._keep_days)

    def _too_old(self) -> list[str]:
        days = self._keep_days
        return [] if days is None else remove_old(self._store, self._ray, self._root, days)
