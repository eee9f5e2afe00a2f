"""Working directories that were handed in."""

from __future__ import annotations

import hashlib
import time
from contextlib import suppress

from sqlalchemy import Engine, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from service.store.models import PackageRow


class Packages:
    """The zip files in a database, each under its digest, so that the same one is kept once."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def add(self, content: bytes) -> str:
        """Keeps a zip file, which is to be checked before; returns its digest."""
        digest = hashlib.sha256(content).hexdigest()
        if self.has(digest):
            return digest
        with Session(self._engine) as session:
            row = PackageRow(sha256=digest, size=len(content), created=time.time(), content=content)
            session.add(row)
            with suppress(IntegrityError):  # another request brought the same one
                session.commit()
        return digest

    def has(self, digest: str) -> bool:
        """Whether this one was handed in."""
        with Session(self._engine) as session:
            return session.get(PackageRow, digest) is not None

    def content(self, digest: str) -> bytes | None:
        """The zip file, None if it was not handed in."""
        with Session(self._engine) as session:
            return session.scalar(select(PackageRow.content).where(PackageRow.sha256 == digest))
