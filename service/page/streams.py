"""What the page of one job receives while it is open: what is new in the store and in its files."""

import codecs
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from guard.rows import strict
from jobs.report import words
from jobs.report.advice import advice
from jobs.report.bad_samples import offenders
from jobs.report.spec_parts import spec_parts
from jobs.run_dir.incidents import Journal, JournalWindow
from jobs.run_dir.jsonl import GrowingRows
from jobs.run_dir.plain_file import NotAPlainFile
from jobs.run_dir.reader import LiveSteps, RunReader
from jobs.spec.masking import masked_spec
from service.api.context import Context
from service.api.view import details, files_of, mask_of, readable_checkpoints
from service.reconcile.log_spool import log_size, read_log
from service.store import JobRow

Message = tuple[str, Any]
"""A kind, and its data."""

HISTORY_POINTS = 1500
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
        self._rows_of_journal: GrowingRows | None = None
        self._journal = JournalWindow()
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
        parts = () if files is None else (self._rows(files), self._incidents(job, files), self._kept(job))
        for part in parts:
            with suppress(NotAPlainFile):  # GET names it
                messages += part
        self._polls += 1
        return messages

    def _job(self, job: JobRow) -> Iterator[Message]:
        if job.version != self._version:
            self._version = job.version
            attempts = self._service.store.attempts(job.id)
            known = details(self._service, job, attempts).model_dump()
            parts = None if job.spec is None else spec_parts(masked_spec(job.spec))._asdict()
            yield "job", {**known, "spec_parts": parts}

    def _log(self) -> Iterator[Message]:
        piece = read_log(self._service.root, self._job_id, self._log_place, LOG_TAIL)
        self._log_place += len(piece)
        if text := self._decoder.decode(piece):
            yield "log", {"text": text}

    def _rows(self, files: RunReader) -> Iterator[Message]:
        self._steps = self._steps or LiveSteps(files, points=HISTORY_POINTS)
        if (update := self._steps.poll()) is not None:
            kind = "history" if update.restarted else "steps"
            yield (
                kind,
                {
                    "columns": update.columns,
                    "numbers": update.numbers,
                    "rolled_back": update.rolled_back,
                    "evaluations": [strict(asdict(evaluation)) for evaluation in update.evaluations],
                },
            )

    def _incidents(self, job: JobRow, files: RunReader) -> Iterator[Message]:
        growing = self._rows_of_journal or GrowingRows(files.folder.incidents, files.below)
        self._rows_of_journal = growing
        changed = growing.restarted()
        if changed:
            growing.place, self._journal = 0, JournalWindow(-1, MOST_INCIDENTS)
        while rows := growing.rows():
            self._journal.add(rows)
            changed = True
        if changed:
            yield "incidents", mask_of(job).document(incidents(self._journal.journal()))

    def _kept(self, job: JobRow) -> Iterator[Message]:
        if self._polls % CHECKPOINT_POLLS:
            return
        kept, problem = readable_checkpoints(self._service, job)
        found = {"shown": [checkpoint.model_dump() for checkpoint in kept], "problem": problem}
        if found != self._checkpoints:
            self._checkpoints = found
            yield "checkpoints", found


def file_mark(path: Path) -> tuple[int, int] | None:
    """Changes with the file; None if there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size


def incidents(journal: Journal) -> dict[str, Any]:
    """The newest incidents with their evidence, each in sentences too."""
    found, attempts = journal
    shown = [
        {
            "id": incident.id,
            "anchor": incident.anchor,
            "title": words.title(incident),
            "badge": words.badge(incident),
            "story": words.story(incident),
            "advice": advice(incident),
            "evidence": incident.to_row(),
        }
        for incident in found
    ]
    worst, more = offenders(found)
    bad = {"offenders": [asdict(offender) for offender in worst], "more_offenders": more}
    return {"total": len(attempts), "shown": shown, **bad}
