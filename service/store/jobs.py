"""The jobs in the database. Every change of one is a compare-and-swap."""

import base64
import binascii
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Engine, Select, Text, cast, delete, func, select, tuple_
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session, sessionmaker, undefer
from sqlalchemy.orm.exc import StaleDataError

from jobs.errors import ENDED, JobError
from service.store.errors import KeyReused, NoSuchJob
from service.store.models import AttemptRow, AuditRow, EventRow, IdempotencyRow, JobRow
from service.store.quota import Quota

KEYS_KEPT_S = 7 * 86_400.0
TRIES = 20


@dataclass(frozen=True, slots=True)
class Page:
    """Some jobs, newest first, and the cursor of the next page."""

    jobs: list[JobRow]
    next_cursor: str | None


@dataclass(frozen=True, slots=True)
class IdempotencyKey:
    """Makes a submission repeatable: the same key from the same caller is the same submission."""

    owner: str
    key: str
    digest: str


class JobStore:
    """Jobs, attempts and events. Returned rows are copies: changes go through ``change``."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._session = sessionmaker(engine, expire_on_commit=False)

    def add(
        self,
        job: JobRow,
        request: IdempotencyKey | None = None,
        audit: AuditRow | None = None,
        quota: Quota | None = None,
    ) -> tuple[JobRow, bool]:
        """Adds a job; returns it and true, or the job that this request created before and false.

        Raises:
            KeyReused: the idempotency key was used before with another request.
            QuotaExceeded: the quota does not allow one more.
        """
        try:
            with self._session.begin() as session:
                session.add(job)
                session.flush()
                if request is not None:
                    key = {"owner": request.owner, "key": request.key, "request_hash": request.digest}
                    session.add(IdempotencyRow(**key, job_id=job.id, created=job.created))
                session.add(_event(job, "state", "info", f"{job.state}: {job.reason or 'submitted'}"))
                session.add_all([audit] if audit is not None else [])
                if quota is not None:
                    quota.check(session, job)
        except IntegrityError:
            earlier = self.created_by(request) if request is not None else None
            if earlier is None:
                raise
            return earlier, False
        return self.get(job.id), True

    def created_by(self, request: IdempotencyKey) -> JobRow | None:
        """The job that this request created before.

        Raises:
            KeyReused: the key was used with another request.
        """
        with self._session() as session:
            row = session.get(IdempotencyRow, (request.owner, request.key))
            if row is None:
                return None
            if row.request_hash != request.digest:
                raise KeyReused(f"the idempotency key {request.key} was used for another request: change it")
            return session.get(JobRow, row.job_id)

    def get(self, job_id: str) -> JobRow:
        """A job with all its fields.

        Raises:
            NoSuchJob: no job has this id.
        """
        with self._session() as session:
            return _one(session, job_id)

    def page(
        self,
        *,
        states: Sequence[str] = (),
        name: str | None = None,
        tag: str | None = None,
        cursor: str | None = None,
        limit: int = 50,
    ) -> Page:
        """Jobs, newest first.

        Args:
            states: only jobs in one of these states; all if empty.
            name: only jobs whose name or id contains this.
            tag: only jobs with this tag.
            cursor: from the previous page.
            limit: most jobs on a page.

        Raises:
            JobError: the cursor is invalid.
        """
        query = select(JobRow).order_by(JobRow.created.desc(), JobRow.id.desc()).limit(limit + 1)
        if states:
            query = query.where(JobRow.state.in_(states))
        if name:
            query = query.where(JobRow.id.contains(name, autoescape=True))
        if tag:
            query = query.where(cast(JobRow.tags, Text).contains(f'"{tag}"', autoescape=True))
        if cursor:
            query = query.where(tuple_(JobRow.created, JobRow.id) < tuple_(*_position(cursor)))
        rows = self._all(query)
        more = len(rows) > limit
        return Page(rows[:limit], _cursor(rows[limit - 1]) if more else None)

    def specs(self, job_ids: Sequence[str]) -> dict[str, dict[str, Any] | None]:
        """The specs of these jobs, by id."""
        if not job_ids:
            return {}
        with self._session() as session:
            rows = session.execute(select(JobRow.id, JobRow.spec).where(JobRow.id.in_(job_ids)))
            return {str(job_id): spec for job_id, spec in rows}

    def results(self, job_ids: Sequence[str]) -> dict[str, dict[str, Any] | None]:
        """The results of these jobs, by id."""
        if not job_ids:
            return {}
        with self._session() as session:
            rows = session.execute(select(JobRow.id, JobRow.result).where(JobRow.id.in_(job_ids)))
            return {str(job_id): result for job_id, result in rows}

    def in_states(self, states: Sequence[str]) -> list[JobRow]:
        """All jobs in these states, by priority, then oldest first."""
        order = (JobRow.priority.desc(), JobRow.created, JobRow.id)
        return self._all(select(JobRow).where(JobRow.state.in_(states)).order_by(*order))

    def known_submissions(self, submission_ids: Sequence[str]) -> set[str]:
        """Which of these submissions to Ray belong to a job here, earlier attempts included."""
        now = select(JobRow.submission_id).where(JobRow.submission_id.in_(submission_ids))
        before = select(AttemptRow.submission_id).where(AttemptRow.submission_id.in_(submission_ids))
        with self._session() as session:
            return {row for row in (*session.scalars(now), *session.scalars(before)) if row}

    def counts(self) -> dict[str, int]:
        """Number of jobs by state."""
        with self._session() as session:
            rows = session.execute(select(JobRow.state, func.count()).group_by(JobRow.state))
            return {str(state): int(number) for state, number in rows}

    def change(
        self,
        job_id: str,
        edit: Callable[[JobRow], str | None],
        *,
        kind: str = "state",
        level: str = "info",
        audit: Callable[[], AuditRow] | None = None,
        quota: Quota | None = None,
    ) -> JobRow:
        """Applies ``edit`` to the job as it is now, again if it was changed concurrently.

        ``edit`` returns the text of the event to record, or None; if it raises, nothing is changed. ``audit``
        makes the entry for a change.

        Raises:
            NoSuchJob: no job has this id.
            QuotaExceeded: the quota does not allow the change.
        """
        for _ in range(TRIES):
            with suppress(StaleDataError), self._session.begin() as session:
                job = _one(session, job_id)
                if (text := edit(job)) is not None:
                    session.add(_event(job, kind, level, text))
                    session.add_all([audit()] if audit is not None else [])
                    if quota is not None:
                        quota.check(session, job)
                return job  # if the commit that follows comes too late, the next try begins
        raise JobError(f"{job_id} is being changed by other requests; try again")

    def delete(self, job_id: str, check: Callable[[JobRow], None], audit: AuditRow | None = None) -> JobRow:
        """Deletes a job, unless ``check`` raises."""
        with self._session.begin() as session:
            job = _one(session, job_id)
            check(job)
            for table in (EventRow, AttemptRow, IdempotencyRow):
                session.execute(delete(table).where(table.job_id == job_id))
            session.delete(job)
            session.add_all([audit] if audit is not None else [])
            return job

    def note(self, audit: AuditRow) -> None:
        """Records what changed no row of a job."""
        with self._session.begin() as session:
            session.add(audit)

    def ended_before(self, when: float) -> list[str]:
        """The ids of the jobs that ended before a time, oldest first."""
        ended = func.coalesce(JobRow.ended, JobRow.created)  # of a version that did not record it
        query = select(JobRow.id).where(JobRow.state.in_(ENDED), ended < when).order_by(ended)
        with self._session() as session:
            return list(session.scalars(query))

    def others_use(self, job: JobRow) -> bool:
        """Whether another job has the same folder, or one inside of it."""
        inside = JobRow.folder.startswith(f"{job.folder}/", autoescape=True)
        others = select(JobRow.id).where((JobRow.folder == job.folder) | inside, JobRow.id != job.id)
        with self._session() as session:
            return session.scalar(others.limit(1)) is not None

    def begin_attempt(self, job: JobRow) -> None:
        """Records the start of the job's current attempt."""
        attempt = {"job_id": job.id, "number": job.attempt, "submission_id": job.submission_id or ""}
        with self._session.begin() as session:
            session.merge(AttemptRow(**attempt, started=time.time(), message=""))

    def end_attempt(self, job: JobRow, outcome: str, message: str) -> None:
        """Records how the current attempt ended."""
        with self._session.begin() as session:
            row = session.get(AttemptRow, (job.id, job.attempt))
            if row is not None and row.ended is None:
                row.ended, row.outcome, row.message = time.time(), outcome, message

    def attempts(self, job_id: str) -> list[AttemptRow]:
        """The attempts of a job, oldest first."""
        return self._all(select(AttemptRow).where(AttemptRow.job_id == job_id).order_by(AttemptRow.number))

    def add_event(
        self, job_id: str, kind: str, level: str, text: str, data: dict[str, Any], *, key: str | None = None
    ) -> bool:
        """Records an event; false if one with this key exists already, or the job was deleted."""
        row = EventRow(job_id=job_id, time=time.time(), kind=kind, level=level, text=text, data=data, key=key)
        try:
            with self._session.begin() as session:
                session.add(row)
        except IntegrityError:
            return False
        return True

    def events(self, job_id: str | None, *, after: int = 0, limit: int = 200) -> list[EventRow]:
        """Events after a sequence number, oldest first; of all jobs if ``job_id`` is None."""
        query = select(EventRow).where(EventRow.seq > after).order_by(EventRow.seq).limit(limit)
        return self._all(query if job_id is None else query.where(EventRow.job_id == job_id))

    def delete_old_keys(self) -> None:
        """Idempotency keys are valid for a week."""
        with self._session.begin() as session:
            session.execute(delete(IdempotencyRow).where(IdempotencyRow.created < time.time() - KEYS_KEPT_S))

    def _all(self, query: Select[Any]) -> list[Any]:
        with self._session() as session:
            return list(session.scalars(query))


def _one(session: Session, job_id: str) -> JobRow:
    whole = [undefer(JobRow.spec), undefer(JobRow.env), undefer(JobRow.result)]
    job = session.get(JobRow, job_id, options=whole)
    if job is None:
        raise NoSuchJob(f"there is no job {job_id}: `gradguard list` shows all")
    return job


def _event(job: JobRow, kind: str, level: str, text: str) -> EventRow:
    data = {"status": job.state, "attempt": job.attempt}
    return EventRow(job_id=job.id, time=time.time(), kind=kind, level=level, text=text, data=data)


def _cursor(job: JobRow) -> str:
    return base64.urlsafe_b64encode(f"{job.created!r} {job.id}".encode()).decode()


def _position(cursor: str) -> tuple[float, str]:
    try:
        created, _, job_id = base64.urlsafe_b64decode(cursor.encode()).decode().partition(" ")
        return float(created), job_id
    except (ValueError, binascii.Error):
        raise JobError("the cursor is invalid: omit it to start from the newest job") from None
