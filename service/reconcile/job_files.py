"""Reads a job's files safely: the service may read more than its jobs may."""

import os
from pathlib import Path

from jobs.client.job_files import JobFiles

READ = ("spec", "metrics", "incidents", "result", "checkpoints", "log", "report")


def files_below(folder: Path | None, root: Path) -> JobFiles | None:
    """The files in a folder; None if it is not below the root. A job can name any folder, and put links into
    it: no link is followed out of the root."""
    if folder is None:
        return None
    top, real = os.path.realpath(root), os.path.realpath(folder)
    if not _inside(real, top):
        return None
    files = JobFiles(folder)
    for name in READ:
        path = os.path.join(real, getattr(files.folder, name).name)  # noqa: PTH118 - fast: for each job of a listing
        if os.path.islink(path) and not _inside(os.path.realpath(path), top):  # noqa: PTH114 - as above
            return None
    return files


def _inside(real: str, top: str) -> bool:
    return real == top or real.startswith(f"{top.rstrip(os.sep)}{os.sep}")
