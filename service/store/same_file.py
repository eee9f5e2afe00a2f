"""A SQLite file that is deleted or replaced: what SQLite still writes to the open one is lost."""

from pathlib import Path
from typing import Any

from sqlalchemy import Engine, event

from service.store.errors import StoreError


def watch_file(engine: Engine, file: Path) -> None:
    """From now on the engine works only while the file is the one that is there now.

    Without this SQLite continues on the deleted file, and creates an empty one for its next connection.

    Raises:
        StoreError: by whoever uses the engine: the file was deleted or replaced.
    """
    path = file.absolute()
    before = _identity(path)

    def check(*_: Any) -> None:
        if _identity(path) != before:
            raise StoreError(f"the database {path} was replaced: start the service again")

    for moment in ("do_connect", "checkout", "commit"):
        event.listen(engine, moment, check)


def _identity(path: Path) -> tuple[int, int]:
    try:
        found = path.stat()
    except OSError as error:
        raise StoreError(
            f"the database {path} is gone ({error.strerror}): bring it back and start the service again"
        ) from None
    return found.st_dev, found.st_ino
