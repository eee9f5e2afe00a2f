"""One training job: its spec, data, models, the loop on Ray Train, checkpoints, the client."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jobs.client import AsyncJobClient, Job, JobClient
    from jobs.spec import JobSpec

__all__ = ["AsyncJobClient", "Job", "JobClient", "JobSpec"]


def __getattr__(name: str) -> Any:
    """Imports on first use: a spec can be checked without importing Ray."""
    if name == "JobSpec":
        from jobs.spec import JobSpec

        return JobSpec
    if name in ("AsyncJobClient", "Job", "JobClient"):
        from jobs import client

        return getattr(client, name)
    raise AttributeError(f"module 'jobs' has no attribute {name!r}")
