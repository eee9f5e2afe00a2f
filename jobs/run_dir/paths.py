"""The folder of a job: its files, and what happens when there is a job of that name already."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from jobs.errors import JobBusy, JobError, JobFinished
from jobs.run_dir.jsonl import read_json, write_text_atomic
from jobs.spec.job_spec import JobSpec

SPEC, METRICS, INCIDENTS = "spec.yaml", "metrics.jsonl", "incidents.jsonl"
CHECKPOINTS, REPORT, RESULT, LOG = "checkpoints", "report.html", "result.json", "train.log"
HISTORY, SAMPLES = "checkpoints.jsonl", "samples.txt"
TRACE, OPERATORS = "profile/trace.json.gz", "profile/operators.json"


class RunDir:
    """The paths of one job's files."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.spec = path / SPEC
        self.metrics = path / METRICS
        self.incidents = path / INCIDENTS
        self.checkpoints = path / CHECKPOINTS
        self.result = path / RESULT
        self.log = path / LOG
        self.report = path / REPORT
        self.counters = path / ".counters.json"  # the totals that Prometheus was shown

    @classmethod
    def of_journal(cls, journal: Path) -> RunDir:
        """Those of a journal that the guard wrote in a loop of the user's own: nothing else is there."""
        found = cls(journal.with_suffix(""))
        found.incidents, found.report = journal, journal.with_name(f"{journal.stem}-{REPORT}")
        return found

    def prepare(self, spec: JobSpec, *, resume: bool, overwrite: bool) -> bool:
        """Makes the folder ready for a run; whether there is a job to continue.

        Raises:
            JobError: a job of this name exists and neither ``resume`` nor ``overwrite`` nor the spec
                decides what to do, the folder cannot be written, or there are checkpoints under the URL where
                those of a new job would go.
            JobFinished: a finished job would be resumed.
        """
        exists, resume = self._holds_work(), resume or spec.resume == "auto"
        if not resume:
            _must_be_empty(spec.checkpoint_place)
        if exists and overwrite:
            self._set_aside()
        elif exists and not resume:
            raise JobError(
                f"{self.path} already holds a job: continue it with --resume, start from the beginning with "
                "--overwrite (the old folder is kept beside it), or give another name with --set name=..."
            )
        elif exists and (read_json(self.result) or {}).get("status") == "succeeded":
            raise JobFinished(
                f"{self.path} has finished already: nothing to resume; --overwrite starts from the beginning"
            )
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            write_text_atomic(self.spec, spec.to_yaml())
            self.result.unlink(missing_ok=True)
        except OSError as error:
            raise JobError(
                f"cannot write to {self.path}: {error.strerror}; set storage to another folder"
            ) from None
        return exists and not overwrite

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Holds the folder for one run; the lock goes with the process, however that ends.

        Raises:
            JobBusy: another process trains this job now.
            JobError: the folder cannot be made.
        """
        lock = self.path.parent / f".{self.path.name}.lock"
        try:
            lock.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise JobError(
                f"cannot write to {lock.parent}: {error.strerror}; set storage to another folder"
            ) from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise JobBusy(f"{self.path} is being trained by another process now") from None
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)
            os.close(descriptor)

    def has_rows(self) -> bool:
        """Whether a step was tried."""
        return self.metrics.exists() and self.metrics.stat().st_size > 0

    def _holds_work(self) -> bool:
        return self.has_rows() or self.result.exists() or any(self.checkpoints.glob("step-*"))

    def _set_aside(self) -> None:
        number = 1
        while (kept := self.path.with_name(f"{self.path.name}.{number}")).exists():
            number += 1
        self.path.rename(kept)


def _must_be_empty(place: str | Path) -> None:
    """A URL is not moved aside like a folder, and what is there would be taken for this job's."""
    if isinstance(place, Path):
        return
    from jobs.run_dir.open_storage import open_storage
    from jobs.run_dir.storage import shown

    try:
        taken = bool(open_storage(place).names())
    except OSError as error:
        raise JobError(f"cannot read {shown(place)}: {error.strerror or error}") from None
    if taken:
        raise JobError(
            f"{shown(place)} already holds checkpoints: continue with --resume, or start with another "
            "name or train.checkpoint_storage"
        )
