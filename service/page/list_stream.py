"""What the list of jobs receives while it is open."""

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from guard.rows import as_float, strict
from jobs.client.job_files import JobFiles
from jobs.errors import ENDED
from jobs.run_dir.jsonl import GrowingRows
from jobs.run_dir.plain_file import NotAPlainFile
from service.api.context import Context
from service.api.view import files_of, summary
from service.page.streams import Message, file_mark
from service.store import JobRow

SPARK_COLUMNS = ("loss", "grad_norm")
SPARK_POINTS, SPARK_BYTES = 60, 1 << 18
_NOTHING: dict[str, Any] = {"progress": None, "spark": None, "accuracy": None}


class ListLive:
    """The list of jobs, for one viewer: each poll returns those that changed."""

    def __init__(self, service: Context, states: list[str], name: str | None, limit: int) -> None:
        self._service, self._states, self._name, self._limit = service, states, name, limit
        self._steps: dict[str, tuple[object, dict[str, Any]]] = {}
        self._journals: dict[str, tuple[GrowingRows, int]] = {}
        self._results: dict[str, tuple[int, float | None]] = {}
        self._sent: dict[str, dict[str, Any]] = {}
        self._order: list[str] | None = None

    def poll(self) -> list[Message]:
        """The order of the jobs, and those that changed; nothing if all is the same."""
        page = self._service.store.page(states=self._states, name=self._name, limit=self._limit)
        self._read_results(page.jobs)
        now = {job.id: {**summary(job).model_dump(), **self._summary(job)} for job in page.jobs}
        changed = [job for id_, job in now.items() if self._sent.get(id_) != job]
        if list(now) == self._order and not changed:
            return []
        self._sent, self._order = now, list(now)
        return [("jobs", {"order": list(now), "changed": changed, "more": page.next_cursor is not None})]

    def _summary(self, job: JobRow) -> dict[str, Any]:
        """Steps and incidents; read again only if their files have changed."""
        files = files_of(self._service, job)
        if files is None:
            return {**_NOTHING, "incidents": None}
        found = {**_NOTHING, "incidents": None}
        with suppress(NotAPlainFile):  # GET names it
            found = {**self._of_steps(job, files), "incidents": self._count(job, files)}
        final = self._results.get(job.id, (0, None))[1]
        return found if final is None else {**found, "accuracy": final}

    def _of_steps(self, job: JobRow, files: JobFiles) -> dict[str, Any]:
        """The newest step, the last stretch as a spark line, and the newest accuracy in it."""
        mark = file_mark(files.folder.metrics)
        if mark is None:
            return _NOTHING
        known = self._steps.get(job.id)
        if known is None or known[0] != mark:
            progress = files.progress()
            table = files.last_steps(SPARK_COLUMNS, most_bytes=SPARK_BYTES)
            thinned = table.thinned(SPARK_POINTS)
            measured = [accuracy(e.metrics) for e in table.evaluations]
            last = next((value for value in reversed(measured) if value is not None), None)
            read = {
                "progress": None if progress is None else progress.model_dump(),
                "spark": {name: thinned[name] for name in SPARK_COLUMNS},
                "accuracy": last if last is not None or known is None else known[1]["accuracy"],
            }
            known = self._steps[job.id] = (mark, read)
        return known[1]

    def _count(self, job: JobRow, files: JobFiles) -> int | None:
        """How many incidents the journal has."""
        if file_mark(files.folder.incidents) is None:
            return None if file_mark(files.folder.metrics) is None else 0
        growing, count = self._journals.get(job.id) or (GrowingRows(files.folder.incidents, files.below), 0)
        if growing.restarted():
            growing.place = count = 0
        while rows := growing.rows():
            count += sum(row.get("type") == "incident" for row in rows)
        self._journals[job.id] = growing, count
        return count

    def _read_results(self, jobs: list[JobRow]) -> None:
        """The accuracy in the results of jobs that have ended since the last poll."""
        fresh = [
            job for job in jobs if job.state in ENDED and self._results.get(job.id, (-1,))[0] != job.version
        ]
        results = self._service.store.results([job.id for job in fresh])
        for job in fresh:
            found = (results.get(job.id) or {}).get("metrics")
            self._results[job.id] = (job.version, accuracy(found if isinstance(found, Mapping) else {}))


def accuracy(metrics: Mapping[str, Any]) -> float | None:
    """The first metric that is an accuracy."""
    named = (value for name, value in metrics.items() if name.endswith("accuracy"))
    found = strict(as_float(next(named, None)))
    return found if isinstance(found, float) else None
