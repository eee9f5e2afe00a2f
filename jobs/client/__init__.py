"""Submit jobs and follow them from Python: ``JobClient``, and ``AsyncJobClient`` for asyncio.

``client``: ``JobClient`` and ``Job``
``aio``: the same for asyncio
``connect``: finds out what is at an address
``backend``: the interface of the three below
``service_backend``: a service
``ray_backend``: Ray Jobs
``folder_backend``: a folder of jobs, read only
``file_backend``: what the two share; events of a job that nobody records
``models``: the results
``job_files``: the files of a job
``show``: progress on one line
``hub_command``: passes a command to a running job on a Ray cluster
``submission``: how a job is passed to Ray Jobs
``working_dir``: a folder packed into a zip file
``errors``: what a client raises
"""

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
