"""Reads a job's files safely: the service may read more than its jobs may."""

import os
from pathlib import Path

from jobs.client.job_files import JobFiles
from jobs.run_dir.plain_file import is_inside


def files_below(folder: Path | None, root: Path) -> JobFiles | None:
    """The files in a folder; None if it is not below the root, or is one of the service's own. A job can name
    any folder, and put links into it: none is followed out of its folder."""
    if folder is None:
        return None
    top, real = os.path.realpath(root), os.path.realpath(folder)
    own = os.path.join(top, ".service")  # noqa: PTH118 - fast: for each job of a listing
    if real == top or not is_inside(real, top) or is_inside(real, own):
        return None
    return JobFiles(Path(real), below=Path(real))
