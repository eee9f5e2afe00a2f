"""What the store refuses."""

from __future__ import annotations

from jobs.errors import JobError


class StoreError(JobError):
    """The database cannot be used; the text says what to set."""


class NoSuchJob(JobError):
    """The store holds no job of this id."""


class KeyReused(JobError):
    """An idempotency key came again with another request."""


class WrongState(JobError):
    """What was asked for makes no sense in the state that the job is in."""
