"""What the page is told while it is open: what is new in the store and in files that grow."""

from __future__ import annotations

import codecs
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from guard.rows import strict
from jobs.client.job_files import RunReader
from jobs.report import words
from jobs.report.incidents import join_outcomes
from jobs.run_dir.jsonl import iter_jsonl, parse_row
from service.api.auth import ANYBODY
from service.api.context import Context
from service.api.file_routes import checkpoints
from service.api.problems import Problem
from service.api.view import details, files_of, summary
from service.reconcile.log_spool import log_path, log_size
from service.store import JobRow

Told = tuple[str, Any]
"""A kind, and what goes with it."""

STEP_COLUMNS = (
    "attempt",
    "step",
    "time",
    "loss",
    "grad_norm",
    "clip_threshold",
    "lr",
    "action",
    "verdict",
    "rolled_back_to",
)
SPARK_COLUMNS = ("loss", "grad_norm")
HISTORY_POINTS = 1500
SPARK_POINTS, SPARK_BYTES = 60, 1 << 18
MOST_INCIDENTS = 200
LOG_TAIL = 1 << 16
PIECE = 4 << 20
CHECKPOINT_LOOKS = 20
"""They are looked at every so many looks: they may lie in a bucket."""


class Growing:
    """A file of rows that grows, read on from where it was left."""

    def __init__(self, path: Path) -> None:
        self._path, self._place, self._inode = path, 0, -1

    def began_anew(self) -> bool:
        """True the first time, and where the file was replaced or cut: it is to be read from its beginning.

        What follows is then read from where its last whole line ends now.
        """
        try:
            found = self._path.stat()
        except OSError:
            return False
        if found.st_ino == self._inode and found.st_size >= self._place:
            return False
        self._inode, self._place = found.st_ino, _end_of_lines(self._path, found.st_size)
        return True

    def rows(self) -> list[dict[str, Any]]:
        """The whole rows that are new, not more than fit into a piece."""
        whole = _read(self._path, self._place, PIECE)
        whole = whole[: whole.rfind(b"\n") + 1]
        self._place += len(whole)
        return [row for line in whole.splitlines() if (row := parse_row(line)) is not None]


class JobLive:
    """One job, for one who looks at it: each look tells what is new since the last one."""

    def __init__(self, service: Context, job_id: str) -> None:
        self._service, self._job_id = service, job_id
        self._version: int | None = None
        self._steps: Growing | None = None
        self._journal: tuple[int, int] | None = None
        self._checkpoints: dict[str, Any] = {"shown": [], "problem": ""}
        self._log_place = max(0, log_size(service.root, job_id) - LOG_TAIL)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._looks = 0

    def look(self) -> list[Told]:
        """What is new.

        Raises:
            NoSuchJob: it was deleted.
        """
        job = self._service.store.get(self._job_id)
        files = files_of(self._service, job)
        told = [*self._job(job), *self._log()]
        if files is not None:
            told += [*self._rows(files), *self._incidents(files), *self._kept()]
        self._looks += 1
        return told

    def _job(self, job: JobRow) -> Iterator[Told]:
        if job.version != self._version:
            self._version = job.version
            attempts = self._service.store.attempts(job.id)
            yield "job", details(self._service, job, attempts).model_dump()

    def _log(self) -> Iterator[Told]:
        piece = _read(log_path(self._service.root, self._job_id), self._log_place, LOG_TAIL)
        self._log_place += len(piece)
        if text := self._decoder.decode(piece):
            yield "log", {"text": text}

    def _rows(self, files: RunReader) -> Iterator[Told]:
        self._steps = self._steps or Growing(files.folder.metrics)
        if self._steps.began_anew():
            yield "history", files.metrics(STEP_COLUMNS, points=HISTORY_POINTS).model_dump()
        elif rows := [row for row in self._steps.rows() if "action" in row]:
            yield "steps", {"columns": {n: strict([row.get(n) for row in rows]) for n in STEP_COLUMNS}}

    def _incidents(self, files: RunReader) -> Iterator[Told]:
        try:
            found = files.folder.incidents.stat()
        except OSError:
            return
        if (found.st_mtime_ns, found.st_size) != self._journal:
            self._journal = (found.st_mtime_ns, found.st_size)
            yield "incidents", incidents(files)

    def _kept(self) -> Iterator[Told]:
        """As the API tells of them, which knows what storage may be asked."""
        if self._looks % CHECKPOINT_LOOKS:
            return
        found: dict[str, Any] = {"shown": [], "problem": ""}
        try:
            kept = checkpoints(self._job_id, self._service, ANYBODY)
            found["shown"] = [checkpoint.model_dump() for checkpoint in kept]
        except Problem as problem:
            found["problem"] = problem.detail
        if found != self._checkpoints:
            self._checkpoints = found
            yield "checkpoints", found


class ListLive:
    """The list of jobs, for one who looks at it: each look tells which of them changed."""

    def __init__(self, service: Context, states: list[str], name: str | None, limit: int) -> None:
        self._service, self._states, self._name, self._limit = service, states, name, limit
        self._glances: dict[str, tuple[tuple[int, int], dict[str, Any]]] = {}
        self._told: dict[str, dict[str, Any]] = {}
        self._order: list[str] | None = None

    def look(self) -> list[Told]:
        """The order of the jobs, and those that are not as they were; nothing if all is as it was."""
        page = self._service.store.page(states=self._states, name=self._name, limit=self._limit)
        now = {job.id: {**summary(job).model_dump(), **self._glance(job)} for job in page.jobs}
        changed = [job for id_, job in now.items() if self._told.get(id_) != job]
        if list(now) == self._order and not changed:
            return []
        self._told, self._order = now, list(now)
        return [("jobs", {"order": list(now), "changed": changed, "more": page.next_cursor is not None})]

    def _glance(self, job: JobRow) -> dict[str, Any]:
        """How far it is, and its last stretch; read again only if the file has changed."""
        nothing: dict[str, Any] = {"progress": None, "spark": None}
        files = files_of(self._service, job)
        try:
            found = None if files is None else files.folder.metrics.stat()
        except OSError:
            found = None
        if files is None or found is None:
            return nothing
        key, known = (found.st_mtime_ns, found.st_size), self._glances.get(job.id)
        if known is None or known[0] != key:
            progress = files.progress()
            told = {
                "progress": None if progress is None else progress.model_dump(),
                "spark": _last_stretch(files.folder.metrics, found.st_size),
            }
            known = self._glances[job.id] = (key, told)
        return known[1]


def incidents(files: RunReader) -> dict[str, Any]:
    """The newest incidents with their evidence, each in sentences too.

    ``anchor`` names one on the page: a restarted job may have used a number twice.
    """
    rows = list(iter_jsonl(files.folder.incidents))
    raw = [row for row in rows if row.get("type") == "incident"]
    shown, used = [], Counter[int]()
    for incident, row in zip(join_outcomes(rows), raw, strict=True):
        used[incident.id] += 1
        again = f"-{used[incident.id]}" if used[incident.id] > 1 else ""
        shown.append(
            {
                "id": incident.id,
                "anchor": f"incident-{incident.id}{again}",
                "title": words.title(incident),
                "badge": words.badge(incident),
                "story": words.story(incident),
                "evidence": strict(row),
            }
        )
    return {"total": len(shown), "shown": shown[-MOST_INCIDENTS:]}


def _last_stretch(path: Path, size: int) -> dict[str, list[Any]]:
    """The steps at the end of a metrics file, however long that is, thinned out."""
    lines = _read(path, max(0, size - SPARK_BYTES), SPARK_BYTES).splitlines()
    rows = [row for line in lines if (row := parse_row(line)) is not None and "action" in row]
    stride = max(1, -(-len(rows) // SPARK_POINTS))
    kept = rows[(len(rows) - 1) % stride :: stride]  # the last one always stays
    return {name: strict([row.get(name) for row in kept]) for name in SPARK_COLUMNS}


def _end_of_lines(path: Path, size: int) -> int:
    """Where the last whole line before ``size`` ends."""
    while size > 0:
        start = max(0, size - PIECE)
        if (found := _read(path, start, size - start).rfind(b"\n")) >= 0:
            return start + found + 1
        size = start
    return 0


def _read(path: Path, start: int, length: int) -> bytes:
    try:
        with path.open("rb") as file:
            file.seek(start, os.SEEK_SET)
            return file.read(length)
    except OSError:
        return b""
