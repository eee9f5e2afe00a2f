"""One training job: its spec, data, models, the loop on Ray Train, checkpoints, the client."""

from __future__ import annotations

from typing import TYPE_CHECKING

from guard.lazy import lazy

if TYPE_CHECKING:
    from jobs.client import AsyncJobClient, Job, JobClient
    from jobs.errors import JobError
    from jobs.spec.errors import SpecError
    from jobs.spec.job_spec import JobSpec

__all__ = ["AsyncJobClient", "Job", "JobClient", "JobError", "JobSpec", "SpecError"]

__getattr__ = lazy(
    __name__,
    {
        "AsyncJobClient": "client",
        "Job": "client",
        "JobClient": "client",
        "JobError": "errors",
        "JobSpec": "spec.job_spec",
        "SpecError": "spec.errors",
    },
)
