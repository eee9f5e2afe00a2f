"""The chart of a job as it is when something happens to it."""

from __future__ import annotations

import logging

from jobs.notify.notice import Notice

logger = logging.getLogger(__name__)


def chart(notice: Notice) -> bytes:
    """The run with its incidents, a PNG; empty where the job has not trained, or cannot be drawn.

    A notice without its chart is better than none: whatever is wrong with the files is only logged.
    """
    files = notice.files
    if notice.event == "started" or files is None:
        return b""
    try:
        if not files.folder.metrics.exists():
            return b""
        from jobs.report.data import read_run  # with matplotlib and numpy, half a second
        from jobs.report.picture import draw

        return draw(read_run(files.folder.path, remote=False, below=files.below))
    except Exception:
        logger.exception("no chart of %s for its notice", notice.job)
        return b""
