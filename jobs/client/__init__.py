"""Submit jobs and follow them from Python: ``JobClient``, and ``AsyncJobClient`` for asyncio."""

from jobs.client.aio import AsyncJobClient
from jobs.client.client import Job, JobClient
from jobs.client.errors import (
    ClientError,
    Conflict,
    JobNotFound,
    JobTimeout,
    NotAllowed,
    Refused,
    TryLater,
    Unreachable,
    Unsupported,
)
from jobs.client.models import CheckpointInfo, Event, JobInfo, JobList, Progress, Series, Status

__all__ = [
    "AsyncJobClient",
    "CheckpointInfo",
    "ClientError",
    "Conflict",
    "Event",
    "Job",
    "JobClient",
    "JobInfo",
    "JobList",
    "JobNotFound",
    "JobTimeout",
    "NotAllowed",
    "Progress",
    "Refused",
    "Series",
    "Status",
    "TryLater",
    "Unreachable",
    "Unsupported",
]
