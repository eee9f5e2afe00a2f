"""The report of a job: the page and the picture."""

from __future__ import annotations

from pathlib import Path

from jobs.report.page import write_page
from jobs.report.picture import write_picture


def write_report(job_dir: str | Path) -> Path:
    """Write report.html and report.png from the job's files, any of which may be missing or cut.

    Returns:
        The path of the page.
    """
    page = write_page(job_dir)
    write_picture(job_dir)
    return page
