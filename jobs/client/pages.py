"""Pages of a list that is in memory as a whole."""

from __future__ import annotations

from collections.abc import Sequence

from jobs.client.models import JobInfo, JobList


def page_of(
    jobs: list[JobInfo], *, statuses: Sequence[str], name: str | None, cursor: str | None, limit: int
) -> JobList:
    """A page; the cursor is the id of the last job before."""
    fit = [j for j in jobs if (not statuses or j.status in statuses) and (not name or name in j.id)]
    start = next((i + 1 for i, job in enumerate(fit) if job.id == cursor), 0)
    part = fit[start : start + limit]
    return JobList(jobs=part, next_cursor=part[-1].id if start + limit < len(fit) else None)
