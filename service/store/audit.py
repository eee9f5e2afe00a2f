"""The audit log: who did what, with which token. Written in the transaction of what was done."""

import time

from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from service.store.models import AuditRow
from service.store.tokens import Caller


def entry(caller: Caller, action: str, subject: str, detail: str = "") -> AuditRow:
    """A row that is not stored yet."""
    return AuditRow(
        time=time.time(),
        token=caller.name,
        address=caller.address,
        action=action,
        subject=subject,
        detail=detail[:500],
    )


class AuditLog:
    """Reads the log of a database."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def rows(self, *, after: int = 0, subject: str | None = None, limit: int = 200) -> list[AuditRow]:
        """Entries after a sequence number, oldest first; of one job or token, or of all."""
        query = select(AuditRow).where(AuditRow.seq > after).order_by(AuditRow.seq).limit(limit)
        query = query if subject is None else query.where(AuditRow.subject == subject)
        with Session(self._engine, expire_on_commit=False) as session:
            return list(session.scalars(query))
