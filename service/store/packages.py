"""Uploaded working directories."""

import hashlib
import time
from contextlib import suppress

from sqlalchemy import Engine, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from service.store.models import PackageRow


class Packages:
    """Zip files in the database by digest: the same one is stored once."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def add(self, content: bytes) -> str:
        """Stores a zip file that was checked before; returns its digest."""
        digest = hashlib.sha256(content).hexdigest()
        if self.has(digest):
            return digest
        row = PackageRow(sha256=digest, size=len(content), created=time.time(), content=content)
        with suppress(IntegrityError), Session(self._engine) as session, session.begin():
            session.add(row)  # fails if a concurrent request stored it
        return digest

    def has(self, digest: str) -> bool:
        with Session(self._engine) as session:
            return session.get(PackageRow, digest) is not None

    def content(self, digest: str) -> bytes | None:
        """The zip file; None if it is unknown."""
        with Session(self._engine) as session:
            return session.scalar(select(PackageRow.content).where(PackageRow.sha256 == digest))
