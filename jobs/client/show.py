"""The progress of a job on one line of a terminal, while ``wait`` runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

from jobs.client.models import JobInfo


@contextmanager
def show_progress(stream: TextIO | None) -> Iterator[Callable[[JobInfo], None]]:
    """A function that shows a job; without a stream it does nothing, without a terminal a line a change."""
    last = ""

    def show(job: JobInfo) -> None:
        nonlocal last
        line = describe(job)
        if stream is None or line == last:
            return
        last = line
        stream.write(f"\r\x1b[K{line}" if stream.isatty() else f"{line}\n")
        stream.flush()

    try:
        yield show
    finally:
        if stream is not None and stream.isatty() and last:
            stream.write("\n")


def describe(job: JobInfo) -> str:
    """``digits-4f2a  running  step 40/100  loss 1.2``."""
    parts = [job.id, job.status]
    if job.progress is not None:
        total = "" if job.progress.total_steps is None else f"/{job.progress.total_steps}"
        parts.append(f"step {job.progress.step}{total}")
        if isinstance(job.progress.loss, float):
            parts.append(f"loss {job.progress.loss:.4g}")
    if job.reason and job.status != "running":
        parts.append(job.reason)
    return "  ".join(parts)
