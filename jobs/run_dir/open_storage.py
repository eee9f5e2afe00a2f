"""Opens the storage of checkpoints at a path or URL."""

from __future__ import annotations

from pathlib import Path

from jobs.run_dir.storage import LocalStorage, Storage


def open_storage(place: str | Path, below: Path | None = None) -> Storage:
    """The storage at a path or URL. ``below``: no link out of this folder is followed.

    Raises:
        JobError: neither pyarrow nor fsspec supports the URL's scheme.
        OSError: the file system does not respond.
    """
    text = str(place)
    if "://" in text and not text.startswith("file://"):
        from jobs.run_dir.remote_storage import RemoteStorage

        return RemoteStorage(text)
    return LocalStorage(Path(text.removeprefix("file://")), below)
