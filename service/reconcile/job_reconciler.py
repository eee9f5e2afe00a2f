"""Reconciles one job with Ray: its next state, from Ray's status and the files in its folder."""

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ray.job_submission import JobDetails, JobStatus

from jobs.client.file_backend import incident_event
from jobs.client.job_files import JobFiles
from jobs.errors import ENDED
from jobs.notify import Notice, Notifier
from jobs.notify.notice import of_status
from jobs.run_dir.incidents import NewIncidents
from jobs.spec.job_spec import JobSpec
from jobs.spec.masking import Mask
from jobs.spec.notify import NoticeKind
from service.reconcile.adopt import ended_at_ray, folder_for
from service.reconcile.job_files import files_below
from service.reconcile.log_spool import LogTails, log_size, read_log
from service.reconcile.outcome import AttemptOutcome, outcome_of, without_secrets
from service.reconcile.ray_api import RayApi, RayRefused, RaySubmission
from service.store import JobRow, JobStore

logger = logging.getLogger(__name__)

BACKOFF_S = 2.0
LONGEST_BACKOFF_S = 60.0
GRACE_S = 30.0
"""How long a log may take to arrive after its job ended, and a folder to appear after it started."""

LOG_END_BYTES = 4000
_Edit = Callable[[JobRow], str]


class JobReconciler:
    """Takes the jobs that are at Ray through their states."""

    def __init__(
        self, store: JobStore, ray: RayApi, tails: LogTails, root: Path, notices: Notifier | None = None
    ) -> None:
        self._store, self._ray, self._tails, self._root = store, ray, tails, root
        self._notices = notices or Notifier(())
        self._ended: dict[str, float] = {}
        self._started: dict[str, float] = {}
        self._incidents: dict[str, NewIncidents] = {}

    def reconcile(self, job: JobRow, details: JobDetails | None, package: bytes | None) -> None:
        """One pass over a job that is starting, running or stopping.

        Args:
            job: as the store has it.
            details: of its submission, from Ray's last listing.
            package: its working directory.
        """
        submission = job.submission_id or ""
        if details is None:
            details = self._ray.job(submission)  # the listing may be older than the job's row
        if details is None and job.state == "starting" and not (job.adopted and job.attempt == 1):
            self._submit(job, package)
            return
        if details is not None:
            whole = self._store.get(job.id)
            self._tails.follow(submission, job.id, job.log_start, Mask(whole.env, whole.spec))
        self._record_incidents(job)
        if details is None or ended_at_ray(details):
            if details is None or self._log_is_complete(submission):
                self._end(job, details)
            return
        if job.state == "stopping":
            self._ray.stop(submission)
        elif job.state == "starting" and details.status == JobStatus.RUNNING and self._is_training(job):
            self._mark_running(job)

    def _submit(self, job: JobRow, package: bytes | None) -> None:
        """Submits an attempt that the store has recorded; twice is the same as once."""
        whole = self._store.get(job.id)
        if whole.spec is None or whole.submission_id != job.submission_id or whole.state != "starting":
            return
        submission, spec = job.submission_id or "", spec_for(whole)
        attempt = RaySubmission(job.id, submission, job.name, spec, whole.env, package, whole.resume)
        try:
            self._ray.submit(attempt)
        except RayRefused as error:
            self._finish(job, AttemptOutcome("failed", f"Ray refused it: {error}", None, None))

    def _is_training(self, job: JobRow) -> bool:
        """A job that Ray calls running may still wait for its workers: it trains once it records steps."""
        files, before = self._files(job), job.before or {}
        recorded = None if files is None else files.marks().get("metrics")
        if recorded is not None and recorded != before.get("metrics"):
            return True
        since = self._started.setdefault(job.submission_id or "", time.monotonic())
        seen = files is not None and files.folder.path.exists()
        return not seen and time.monotonic() - since > GRACE_S

    def _log_is_complete(self, submission: str) -> bool:
        since = self._ended.setdefault(submission, time.monotonic())
        return self._tails.done(submission) or time.monotonic() - since > GRACE_S

    def _end(self, job: JobRow, details: JobDetails | None) -> None:
        start = max(0, log_size(self._root, job.id) - LOG_END_BYTES)
        log_end = read_log(self._root, job.id, start, LOG_END_BYTES).decode(errors="replace")
        outcome = outcome_of(
            details, self._files(job), before=job.before, stopping=job.state == "stopping", log_end=log_end
        )
        whole = self._store.get(job.id)
        outcome = without_secrets(outcome, whole.spec, whole.env)
        if outcome.kind != "lost":
            self._finish(job, outcome)
        elif whole.spec is None:
            self._give_up(job, outcome, "its spec is not known here: submit it again with --resume")
        elif job.restarts >= job.max_restarts:
            self._give_up(job, outcome, f"it was restarted {job.restarts} times, the most allowed")
        else:
            self._restart(job, outcome)

    def _give_up(self, job: JobRow, outcome: AttemptOutcome, why: str) -> None:
        self._finish(job, replace(outcome, kind="failed", reason=f"{outcome.reason}; {why}"))

    def _restart(self, job: JobRow, outcome: AttemptOutcome) -> None:
        pause = min(LONGEST_BACKOFF_S, BACKOFF_S * 2.0**job.restarts)

        def edit(row: JobRow) -> str:
            row.state, row.restarts, row.resume = "queued", row.restarts + 1, True
            row.not_before = time.time() + pause
            row.reason = f"{outcome.reason}: restart {row.restarts} of {row.max_restarts}"
            return f"queued: {row.reason}"

        self._end_attempt(job, outcome, edit, "warning")

    def _finish(self, job: JobRow, outcome: AttemptOutcome) -> None:
        def edit(row: JobRow) -> str:
            row.state, row.reason, row.exit_code = outcome.kind, outcome.reason, outcome.exit_code
            row.result, row.ended = outcome.result, max(time.time(), row.started or row.created)
            return f"{outcome.kind}: {outcome.reason}" if outcome.reason else outcome.kind

        level = "error" if outcome.kind in ("failed", "halted") else "info"
        self._end_attempt(job, outcome, edit, level)
        why = f": {outcome.reason}" if outcome.reason else ""
        result = {**(outcome.result or {}), "error": outcome.reason}
        steps = int(result.get("steps") or 0)
        sentence = f"{job.id} {outcome.kind} after {steps} steps{why}"
        self._tell(job, of_status(outcome.kind), sentence, steps, result)

    def _end_attempt(self, job: JobRow, outcome: AttemptOutcome, edit: _Edit, level: str) -> None:
        """Records the end, changes the job unless it is in another attempt, and frees what is in memory."""
        self._store.end_attempt(job, outcome.kind, outcome.reason)
        self._store.change(job.id, lambda row: edit(row) if _same(row, job) else None, level=level)
        submission = job.submission_id or ""
        self._tails.forget(submission)
        self._ended.pop(submission, None)
        self._started.pop(submission, None)

    def _mark_running(self, job: JobRow) -> None:
        def edit(row: JobRow) -> str | None:
            if not _same(row, job) or row.state != job.state:
                return None
            row.state, row.reason, row.started = "running", "", row.started or time.time()
            if row.folder is None and (folder := folder_for(row, self._root)) is not None:
                row.folder = str(folder)
            return row.state

        if self._store.change(job.id, edit).started != job.started:
            self._tell(job, "started", f"{job.id} started with {job.workers} workers")

    def _tell(
        self,
        job: JobRow,
        event: NoticeKind,
        sentence: str,
        step: int = 0,
        figures: Mapping[str, Any] | None = None,
    ) -> None:
        notice = Notice(job.id, event, sentence, step, files=self._files(job))
        self._notices.emit(notice.with_figures(figures or {}))

    def _record_incidents(self, job: JobRow) -> None:
        files = self._files(job)
        if files is None:
            return
        seen = self._incidents.setdefault(job.id, NewIncidents(files.folder.incidents, files.below))
        for row in seen.fresh():
            event = incident_event(job.id, row)
            key = f"incident-{row.get('id')}-{row.get('time')}"
            short = {k: v for k, v in row.items() if not isinstance(v, list | dict)}  # without the evidence
            self._store.add_event(job.id, "incident", event.level, event.text, short, key=key)
            if row.get("action") == "rolled_back":
                figures = {"error": event.text, "rollbacks": seen.rollbacks + 1}
                step = int(row.get("step") or 0)
                self._tell(job, "rolled_back", f"{job.id}: {event.text}", step, figures)

    def _files(self, job: JobRow) -> JobFiles | None:
        return files_below(folder_for(job, self._root), self._root)


def in_backoff(job: JobRow, now: float) -> bool:
    """Whether its next attempt is not due yet. A wait beyond any backoff means the clock was set back."""
    return 0 < job.not_before - now <= LONGEST_BACKOFF_S


def spec_for(job: JobRow) -> JobSpec:
    """The job's spec, named by its id; an adopted job keeps its own name."""
    spec = job.spec or {}
    return JobSpec.from_dict(spec if job.adopted else {**spec, "name": job.id})


def _same(row: JobRow, seen: JobRow) -> bool:
    """Whether a job is still in the attempt that was examined."""
    return row.state not in ENDED and row.attempt == seen.attempt and row.submission_id == seen.submission_id
