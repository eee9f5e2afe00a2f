"""The quota of a token, checked in the transaction that uses it up: no two requests share the last place."""

from dataclasses import dataclass

from sqlalchemy import func, or_, select
from sqlalchemy.orm import Session

from jobs.errors import ENDED
from service.store.errors import QuotaExceeded
from service.store.models import JobRow, TokenRow


@dataclass(frozen=True, slots=True)
class Quota:
    """Most jobs of a token that have not ended, and most GPUs of those; None for no limit."""

    owner: str
    max_jobs: int | None = None
    max_gpus: float | None = None

    def check(self, session: Session, job: JobRow) -> None:
        """Call it after the job was added or changed in this session, whose transaction then ends in order.

        SQLite has one writer at a time; elsewhere the token's row is locked until the transaction ends.

        Raises:
            QuotaExceeded: with this job the token has more than it may.
        """
        if self.max_jobs is None and self.max_gpus is None:
            return
        session.flush()
        session.execute(select(TokenRow.id).where(TokenRow.name == self.owner).with_for_update())
        counted = (or_(JobRow.submitted_by == self.owner, JobRow.id == job.id), JobRow.state.notin_(ENDED))
        query = select(func.count(), func.coalesce(func.sum(JobRow.gpus), 0.0)).where(*counted)
        jobs, gpus = session.execute(query).one()
        if self.max_jobs is not None and jobs > self.max_jobs:
            raise QuotaExceeded(
                f"{self.owner} has {jobs - 1} jobs that have not ended, the most its token allows"
            )
        if self.max_gpus is not None and gpus > self.max_gpus:
            raise QuotaExceeded(
                f"{self.owner} would use {gpus:g} GPUs; its token allows {self.max_gpus:g}: "
                "stop a job or ask for fewer"
            )
