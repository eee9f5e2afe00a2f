"""Errors of the store."""

from jobs.errors import JobError


class StoreError(JobError):
    """The database cannot be used; the text names the setting to change."""


class NoSuchJob(JobError):
    """No job has this id."""


class KeyReused(JobError):
    """An idempotency key was used before with another request."""


class QuotaExceeded(JobError):
    """The token of a request does not allow this much at a time."""


class WrongState(JobError):
    """The request does not apply to a job in this state."""
