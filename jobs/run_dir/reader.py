"""The one reader of a job's folder: of whole files and cut ones, while the job runs or after it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from guard.records import COLUMNS, NUMBERS, Incident
from guard.rows import as_int
from jobs.run_dir.incidents import Journal, join_outcomes
from jobs.run_dir.jsonl import GrowingRows, iter_jsonl, last_rows, parse_row, read_bytes, read_json
from jobs.run_dir.paths import SPEC, RunDir
from jobs.run_dir.plain_file import NotAPlainFile, read_plain
from jobs.run_dir.steps import Evaluation, RolledBack, StepTable
from jobs.spec.job_spec import JobSpec
from jobs.spec.load import parse_document

LARGEST_TEXT = 1 << 20
MOST_NEW_ROWS = 4500
"""After this many new rows a live view gets a thinned history again."""

MOST_EVALUATIONS = 2000


class RunReader:
    """Reads the folder of one job; whatever is missing there is empty. Checkpoints are read elsewhere.

    Args:
        path: the folder, or a bare journal of incidents.
        below: see ``open_plain``; for a reader that may read more than the job may.

    Raises:
        NotAPlainFile: by the methods, where a file is none that may be read.
    """

    def __init__(self, path: Path, below: Path | None = None) -> None:
        self.below = below
        self.folder = RunDir.of_journal(path) if path.is_file() else RunDir(path)

    def exists(self) -> bool:
        """Whether this is the folder of a job."""
        return self.folder.spec.exists() or self.folder.metrics.exists()

    def steps(
        self, columns: Iterable[str] = COLUMNS, *, after_attempt: int = -1, end: int | None = None
    ) -> StepTable:
        """The step attempts after one, and the evaluations; in the first `end` bytes of the file."""
        rows = iter_jsonl(self.folder.metrics, end, below=self.below)
        if after_attempt >= 0:
            rows = (row for row in rows if (as_int(row.get("attempt")) or 0) > after_attempt)
        return StepTable(columns).extend(rows)

    def last_step(self) -> dict[str, Any] | None:
        """The flat columns of the newest step, from the end of the file; None where there is none."""
        for row in last_rows(self.folder.metrics, self.below):
            table = StepTable().extend([row])
            if len(table) and table.columns["step"][0] is not None:
                return {name: column[0] for name, column in table.columns.items()}
        return None

    def last_steps(self, columns: Iterable[str], *, most_bytes: int) -> StepTable:
        """The steps in the last bytes of the file, however long that is."""
        with suppress(OSError):
            size = self.folder.metrics.stat().st_size
            start = max(0, size - most_bytes)
            lines = read_bytes(self.folder.metrics, start, most_bytes, self.below).splitlines()
            return StepTable(columns).extend(row for line in lines if (row := parse_row(line)) is not None)
        return StepTable(columns)

    def incidents(self, *, start: int = 0, limit: int | None = None) -> list[Incident]:
        """The incidents in the order of the journal, each with its outcome and its anchor; arguments as of
        ``JournalWindow``."""
        return self.journal(start=start, limit=limit).incidents

    def journal(self, *, start: int = 0, limit: int | None = None, severest: bool = False) -> Journal:
        """Some of the incidents, and the attempts of all; arguments as of ``JournalWindow``."""
        rows = iter_jsonl(self.folder.incidents, below=self.below)
        return join_outcomes(rows, start, limit, severest=severest)

    def result(self) -> dict[str, Any] | None:
        """The contents of result.json, as they are stored."""
        return read_json(self.folder.result, self.below)

    def spec(self) -> JobSpec | None:
        """The spec that the job ran with; None if there is none that can be read."""
        try:
            return JobSpec.from_dict(parse_document(self.text(SPEC)).data)
        except ValueError:
            return None

    def text(self, name: str) -> str:
        """A short text file of the folder; empty if it is missing or cannot be read."""
        try:
            content = read_plain(self.folder.path / name, self.below, most=LARGEST_TEXT)
        except NotAPlainFile:
            raise
        except OSError:
            return ""
        return content.decode("utf-8", "replace")

    def rows(self, name: str) -> Iterator[dict[str, Any]]:
        """The rows of another file of the folder."""
        return iter_jsonl(self.folder.path / name, below=self.below)

    def total_steps(self) -> int | None:
        """What the spec sets as ``train.max_steps``."""
        try:
            state = self.folder.spec.stat()
        except OSError:
            return None
        return _total_steps(self.folder.spec, self.below, state.st_mtime_ns, state.st_size)

    def checkpoint_place(self) -> str | Path:
        """The folder of the checkpoints, or the URL that the spec sends them to."""
        spec = self.spec()
        remote = spec is not None and spec.train.checkpoint_storage is not None
        return spec.checkpoint_place if remote and spec is not None else self.folder.checkpoints

    def marks(self) -> dict[str, str]:
        """A text for result and metrics that changes whenever the file does; none for a missing file."""
        found = {}
        for name, path in (("result", self.folder.result), ("metrics", self.folder.metrics)):
            with suppress(OSError):
                state = path.stat()
                found[name] = f"{state.st_ino}:{state.st_mtime_ns}:{state.st_size}"
        return found


@lru_cache(maxsize=4096)
def _total_steps(path: Path, below: Path | None, _mtime_ns: int, _size: int) -> int | None:
    """To read a spec takes as long as to read a hundred last rows, and it hardly ever changes."""
    with suppress(NotAPlainFile):
        spec = RunReader(path.parent, below).spec()
        return None if spec is None else spec.train.max_steps
    return None


@dataclass(frozen=True, slots=True)
class StepsUpdate:
    """What is new in a live view: rows after those it has, or with `restarted` a history in their place.

    `numbers` are the columns that hold numbers; `rolled_back` is the whole list of spans of attempts;
    `evaluations` are those since the last update.
    """

    restarted: bool
    columns: dict[str, list[Any]]
    rolled_back: list[tuple[float, float]]
    evaluations: list[Evaluation]
    numbers: tuple[str, ...] = NUMBERS


class LiveSteps:
    """The steps of a job that runs, for one viewer."""

    def __init__(self, files: RunReader, *, points: int) -> None:
        self._files, self._points = files, points
        self._rows = GrowingRows(files.folder.metrics, files.below)
        self._rolled_back = RolledBack()
        self._last, self._new = -1, 0

    def poll(self) -> StepsUpdate | None:
        """What is new since the last call; None where nothing is."""
        if self._rows.restarted():
            return self._history()
        table = StepTable().extend(self._rows.rows())
        if not len(table) and not table.evaluations:
            return None
        self._new += len(table)
        if table.restarts or self._again(table) or self._new > MOST_NEW_ROWS:
            return self._history()
        self._take(table)
        return StepsUpdate(False, table.thinned(len(table)), self._rolled_back.spans, table.evaluations)

    def _again(self, table: StepTable) -> bool:
        """Whether attempts come that were there before: the job was restarted from a checkpoint."""
        return bool(len(table)) and table.columns["attempt"][0] <= self._last

    def _history(self) -> StepsUpdate:
        table = self._files.steps(end=self._rows.place)
        self._rolled_back, self._new, self._last = RolledBack(), 0, -1
        self._take(table)
        evaluations = table.evaluations[-MOST_EVALUATIONS:]
        return StepsUpdate(True, table.thinned(self._points), self._rolled_back.spans, evaluations)

    def _take(self, table: StepTable) -> None:
        self._rolled_back.add(table.columns)
        self._last = table.columns["attempt"][-1] if len(table) else self._last
