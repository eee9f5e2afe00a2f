"""What the page receives while it is open: what is new in the store and in the files of a job."""

import codecs
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from jobs.report import words
from jobs.run_dir.plain_file import NotAPlainFile
from jobs.run_dir.reader import LiveSteps, RunReader
from service.api.context import Context
from service.api.view import details, files_of, readable_checkpoints, summary
from service.reconcile.log_spool import log_size, read_log
from service.store import JobRow

Message = tuple[str, Any]
"""A kind, and its data."""

SPARK_COLUMNS = ("loss", "grad_norm")
HISTORY_POINTS = 1500
SPARK_POINTS, SPARK_BYTES = 60, 1 << 18
MOST_INCIDENTS = 200
LOG_TAIL = 1 << 16
CHECKPOINT_POLLS = 20
"""Polls from one reading of the checkpoints to the next: they may be in a bucket."""


class JobLive:
    """One job, for one viewer: each poll returns what is new since the last one."""

    def __init__(self, service: Context, job_id: str) -> None:
        self._service, self._job_id = service, job_id
        self._version: int | None = None
        self._steps: LiveSteps | None = None
        self._journal: tuple[int, int] | None = None
        self._checkpoints: dict[str, Any] = {"shown": [], "problem": ""}
        self._log_place = max(0, log_size(service.root, job_id) - LOG_TAIL)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._polls = 0

    def poll(self) -> list[Message]:
        """What is new.

        Raises:
            NoSuchJob: it was deleted.
        """
        job = self._service.store.get(self._job_id)
        files = files_of(self._service, job)
        messages = [*self._job(job), *self._log()]
        for part in () if files is None else (self._rows(files), self._incidents(files), self._kept(job)):
            with suppress(NotAPlainFile):  # GET names it
                messages += part
        self._polls += 1
        return messages

    def _job(self, job: JobRow) -> Iterator[Message]:
        if job.version != self._version:
            self._version = job.version
            attempts = self._service.store.attempts(job.id)
            yield "job", details(self._service, job, attempts).model_dump()

    def _log(self) -> Iterator[Message]:
        piece = read_log(self._service.root, self._job_id, self._log_place, LOG_TAIL)
        self._log_place += len(piece)
        if text := self._decoder.decode(piece):
            yield "log", {"text": text}

    def _rows(self, files: RunReader) -> Iterator[Message]:
        self._steps = self._steps or LiveSteps(files, points=HISTORY_POINTS)
        if (update := self._steps.poll()) is not None:
            kind = "history" if update.restarted else "steps"
            names = {"columns": update.columns, "numbers": update.numbers}
            yield kind, {**names, "rolled_back": update.rolled_back}

    def _incidents(self, files: RunReader) -> Iterator[Message]:
        mark = _mark(files.folder.incidents)
        if mark not in (None, self._journal):
            self._journal = mark
            yield "incidents", incidents(files)

    def _kept(self, job: JobRow) -> Iterator[Message]:
        if self._polls % CHECKPOINT_POLLS:
            return
        kept, problem = readable_checkpoints(self._service, job)
        found = {"shown": [checkpoint.model_dump() for checkpoint in kept], "problem": problem}
        if found != self._checkpoints:
            self._checkpoints = found
            yield "checkpoints", found


class ListLive:
    """The list of jobs, for one viewer: each poll returns those that changed."""

    def __init__(self, service: Context, states: list[str], name: str | None, limit: int) -> None:
        self._service, self._states, self._name, self._limit = service, states, name, limit
        self._summaries: dict[str, tuple[tuple[int, int], dict[str, Any]]] = {}
        self._sent: dict[str, dict[str, Any]] = {}
        self._order: list[str] | None = None

    def poll(self) -> list[Message]:
        """The order of the jobs, and those that changed; nothing if all is the same."""
        page = self._service.store.page(states=self._states, name=self._name, limit=self._limit)
        now = {job.id: {**summary(job).model_dump(), **self._summary(job)} for job in page.jobs}
        changed = [job for id_, job in now.items() if self._sent.get(id_) != job]
        if list(now) == self._order and not changed:
            return []
        self._sent, self._order = now, list(now)
        return [("jobs", {"order": list(now), "changed": changed, "more": page.next_cursor is not None})]

    def _summary(self, job: JobRow) -> dict[str, Any]:
        """The newest step, and the last stretch as a spark line; read again only if the file has changed."""
        files = files_of(self._service, job)
        key = None if files is None else _mark(files.folder.metrics)
        if files is None or key is None:
            return {"progress": None, "spark": None}
        known = self._summaries.get(job.id)
        if known is None or known[0] != key:
            progress = files.progress()
            spark = files.last_steps(SPARK_COLUMNS, most_bytes=SPARK_BYTES).thinned(SPARK_POINTS)
            read = {
                "progress": None if progress is None else progress.model_dump(),
                "spark": {name: spark[name] for name in SPARK_COLUMNS},
            }
            known = self._summaries[job.id] = (key, read)
        return known[1]


def _mark(path: Path) -> tuple[int, int] | None:
    """Changes with the file; None if there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size


def incidents(files: RunReader) -> dict[str, Any]:
    """The newest incidents with their evidence, each in sentences too."""
    found = files.incidents()
    shown = [
        {
            "id": incident.id,
            "anchor": incident.anchor,
            "title": words.title(incident),
            "badge": words.badge(incident),
            "story": words.story(incident),
            "evidence": incident.to_row(),
        }
        for incident in found[-MOST_INCIDENTS:]
    ]
    return {"total": len(found), "shown": shown}
