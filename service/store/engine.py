"""Opens the database: SQLite in a file, or PostgreSQL by URL."""

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError

from service.store.errors import StoreError
from service.store.migrate import upgrade
from service.store.same_file import watch_file

BUSY_MS = 30_000
PRIVATE = 0o600


def open_database(url: str) -> Engine:
    """Connects and brings the tables up to date.

    Args:
        url: ``sqlite:///file`` or ``postgresql://user@host/name``.

    Raises:
        StoreError: it cannot be used; the text names the reason.
    """
    try:
        parsed = make_url(url)
    except ArgumentError:
        raise StoreError("invalid database URL: write sqlite:///FILE or postgresql://HOST/NAME") from None
    backend = parsed.get_backend_name()
    if backend not in ("sqlite", "postgresql"):
        raise StoreError(f"a {backend} database is not supported: write sqlite:///FILE or postgresql://...")
    if backend == "postgresql":
        parsed = parsed.set(drivername="postgresql+psycopg")
    elif parsed.database:
        _make_private(Path(parsed.database))
    try:
        engine = create_engine(
            parsed, pool_pre_ping=backend == "postgresql", pool_size=10, max_overflow=40, pool_timeout=10.0
        )
        if backend == "sqlite":
            event.listen(engine, "connect", _prepare_sqlite)
            if parsed.database:
                watch_file(engine, Path(parsed.database))
        upgrade(engine)
    except (SQLAlchemyError, NoSuchModuleError, ImportError) as error:
        why = str(getattr(error, "orig", None) or error).partition("\n")[0]
        raise StoreError(f"cannot use the database {parsed.render_as_string()}: {why}") from None
    return engine


@contextmanager
def impatient(engine: Engine) -> Iterator[Connection]:
    """A connection that does not wait for a locked SQLite database."""
    with engine.connect() as connection:
        if engine.dialect.name != "sqlite":
            yield connection
            return
        raw: Any = connection.connection.driver_connection
        raw.execute("PRAGMA busy_timeout=0")
        try:
            yield connection
        finally:
            raw.execute(f"PRAGMA busy_timeout={BUSY_MS}")


def _make_private(path: Path) -> None:
    """The file contains the jobs' environment variables: only its owner may read it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, PRIVATE))
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error.strerror}; set --database to another file") from None


def _prepare_sqlite(connection: sqlite3.Connection, _: Any) -> None:
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", f"busy_timeout={BUSY_MS}"):
        connection.execute(f"PRAGMA {pragma}")
