"""The tables of the service. Times are Unix seconds, UTC."""

from typing import Any

from sqlalchemy import JSON, BigInteger, ForeignKey, Index, LargeBinary, Text, UniqueConstraint
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from jobs.client.models import Status

PENDING: tuple[Status, ...] = ("queued", "waiting")
ACTIVE: tuple[Status, ...] = ("starting", "running", "stopping")

DOCUMENT = JSON(none_as_null=True)


class Base(DeclarativeBase):
    """Base of all tables."""

    type_annotation_map = {dict[str, Any]: DOCUMENT, str: Text}  # noqa: RUF012 - as SQLAlchemy reads it


class JobRow(Base):
    """One job, over all its attempts. ``version`` makes every change a compare-and-swap."""

    __tablename__ = "jobs"

    id: Mapped[str] = mapped_column(primary_key=True)
    """Also the name of its folder and its label in the metrics."""
    name: Mapped[str]
    state: Mapped[str]
    reason: Mapped[str] = mapped_column(default="")
    """What it waits for, or why it ended, for display."""
    priority: Mapped[int] = mapped_column(default=0)
    created: Mapped[float]
    started: Mapped[float | None]
    ended: Mapped[float | None]
    submitted_by: Mapped[str]
    """Name of the token, or of the source of an adopted job."""
    adopted: Mapped[bool] = mapped_column(default=False)
    attempt: Mapped[int] = mapped_column(default=0)
    submission_id: Mapped[str | None] = mapped_column(unique=True)
    """Of the current attempt, at Ray; set before it is submitted there."""
    resume: Mapped[bool] = mapped_column(default=False)
    """Whether the next attempt continues from the last good checkpoint."""
    max_restarts: Mapped[int] = mapped_column(default=3)
    restarts: Mapped[int] = mapped_column(default=0)
    not_before: Mapped[float] = mapped_column(default=0.0)
    exit_code: Mapped[int | None]
    folder: Mapped[str | None]
    working_dir: Mapped[str | None]
    cpus: Mapped[float] = mapped_column(default=0.0)
    gpus: Mapped[float] = mapped_column(default=0.0)
    workers: Mapped[int] = mapped_column(default=1)
    tags: Mapped[list[str]] = mapped_column(JSON, default=list)
    """As in its spec."""
    log_start: Mapped[int] = mapped_column(BigInteger, default=0)
    """Offset in the job's log at which the current attempt starts, in bytes."""
    before: Mapped[dict[str, Any] | None] = mapped_column(DOCUMENT)
    """The job's files as they were when the current attempt started: what changed since is of this attempt,
    whatever the machines' clocks show."""
    spec: Mapped[dict[str, Any] | None] = mapped_column(DOCUMENT, deferred=True)
    env: Mapped[dict[str, Any]] = mapped_column(DOCUMENT, default=dict, deferred=True)
    result: Mapped[dict[str, Any] | None] = mapped_column(DOCUMENT, deferred=True)
    version: Mapped[int] = mapped_column()

    __mapper_args__ = {"version_id_col": version}  # noqa: RUF012 - as SQLAlchemy reads it
    __table_args__ = (Index("jobs_by_time", "created", "id"), Index("jobs_by_state", "state", "created"))


class AttemptRow(Base):
    """One submission to Ray."""

    __tablename__ = "attempts"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    submission_id: Mapped[str]
    started: Mapped[float]
    ended: Mapped[float | None]
    outcome: Mapped[str | None]
    message: Mapped[str] = mapped_column(default="")


class EventRow(Base):
    """Something that happened to a job; ``key`` keeps it from being recorded twice."""

    __tablename__ = "events"

    seq: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), index=True)
    time: Mapped[float]
    kind: Mapped[str]
    level: Mapped[str]
    text: Mapped[str]
    data: Mapped[dict[str, Any]] = mapped_column(default=dict)
    key: Mapped[str | None]

    __table_args__ = (UniqueConstraint("job_id", "key"), {"sqlite_autoincrement": True})


class IdempotencyRow(Base):
    """A request that created a job; the same key with the same request gives the same job."""

    __tablename__ = "idempotency_keys"

    owner: Mapped[str] = mapped_column(primary_key=True)
    key: Mapped[str] = mapped_column(primary_key=True)
    request_hash: Mapped[str]
    job_id: Mapped[str]
    created: Mapped[float] = mapped_column(index=True)


class TokenRow(Base):
    """A token, stored as a hash only."""

    __tablename__ = "tokens"

    id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    secret_hash: Mapped[str]
    scope: Mapped[str]
    created: Mapped[float]
    expires: Mapped[float | None]
    last_used: Mapped[float | None]
    revoked: Mapped[float | None]
    max_jobs: Mapped[int | None]
    max_gpus: Mapped[float | None]
    """Most that its jobs may have at a time; None for no limit."""


class AuditRow(Base):
    """Something that a caller did; it stays when the job is deleted."""

    __tablename__ = "audit"

    seq: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    time: Mapped[float]
    token: Mapped[str]
    """Its name; ``local`` without tokens, ``command line`` and ``retention`` for the service itself."""
    address: Mapped[str]
    action: Mapped[str]
    subject: Mapped[str] = mapped_column(index=True)
    """The id of the job, or the name of the token."""
    detail: Mapped[str]

    __table_args__ = ({"sqlite_autoincrement": True},)


class PackageRow(Base):
    """An uploaded working directory, as a zip file named by its digest."""

    __tablename__ = "packages"

    sha256: Mapped[str] = mapped_column(primary_key=True)
    size: Mapped[int] = mapped_column(BigInteger)
    created: Mapped[float]
    content: Mapped[bytes] = mapped_column(LargeBinary, deferred=True)


class LeaseRow(Base):
    """Which service holds a lease, and until when."""

    __tablename__ = "leases"

    name: Mapped[str] = mapped_column(primary_key=True)
    owner: Mapped[str]
    until: Mapped[float]
