"""What a job client raises.

JobError
└── ClientError
    ├── Unreachable        nothing answers at the address
    ├── NotAllowed         no token, a wrong one, or one with too small a scope
    ├── JobNotFound        there is no job of this id
    ├── JobTimeout         the job did not end in the time it was given
    ├── Conflict           the job is in a state in which this cannot be done
    ├── Refused            the request is wrong; the text has what to write instead
    │   └── Unsupported    the backend at this address does not support that
    └── TryLater           too many requests, or the service cannot answer now
"""

from __future__ import annotations

from jobs.errors import JobError


class ClientError(JobError):
    """Of all errors of a job client."""


class Unreachable(ClientError):
    """Nothing answers at the address."""


class NotAllowed(ClientError):
    """The token is missing, wrong, or of too small a scope."""


class JobNotFound(ClientError):
    """There is no job of this id."""


class JobTimeout(ClientError):
    """The job did not end in the time it was given; it continues."""


class Conflict(ClientError):
    """The job is in a state in which this cannot be done."""


class Refused(ClientError):
    """The request is wrong; the text has what to write instead."""


class Unsupported(Refused):
    """The backend at this address does not support that; the text names one that does."""


class TryLater(ClientError):
    """Too many requests, or the service cannot answer now."""
