"""The files of a job, for a service that may read more than its jobs may."""

from __future__ import annotations

from pathlib import Path

from jobs.client.files import JobFiles

READ = ("spec", "metrics", "incidents", "result", "checkpoints", "log", "report")


def files_below(folder: Path | None, root: Path) -> JobFiles | None:
    """The files in a folder, None if it is not below the root. A job can put links into its folder, and name
    any folder as its own: nothing is followed out of the root."""
    if folder is None or not _inside(folder, root):
        return None
    files = JobFiles(folder)
    paths = [getattr(files.folder, name) for name in READ]
    return files if all(_inside(path, root) for path in paths) else None


def _inside(path: Path, root: Path) -> bool:
    try:
        return path.resolve().is_relative_to(root.resolve())
    except (OSError, RuntimeError):
        return False
