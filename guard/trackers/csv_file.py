"""A CSV file; what ``gradguard replay`` and any spreadsheet read."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from guard.trackers.base import Values

_COLUMNS = ("attempt", "step", "loss", "grad_norm", "learning_rate", "event")


class CsvFile:
    """``track.csv`` with one row for each point, and ``artefacts/``. New names become columns."""

    def __init__(self) -> None:
        self._columns = list(_COLUMNS)
        self._path = Path("track.csv")
        self._file: TextIO | None = None

    def open(self, name: str, spec: Mapping[str, Any], folder: Path) -> None:  # noqa: ARG002
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / "track.csv"
        if self._path.exists():  # a run that continues
            with self._path.open(newline="") as file:
                self._columns = next(csv.reader(file), list(_COLUMNS))
        self._file = self._path.open("a", newline="")
        if self._file.tell() == 0:
            csv.writer(self._file).writerow(self._columns)

    def values(self, at: int, values: Values) -> None:
        self._write({"attempt": at, **values})

    def event(self, at: int, level: str, title: str, text: str) -> None:
        self._write({"attempt": at, "event": f"{level}: {title}: {text}"})

    def artefact(self, path: Path) -> None:
        to = self._path.parent / "artefacts" / path.name
        to.parent.mkdir(exist_ok=True)
        (shutil.copytree if path.is_dir() else shutil.copyfile)(path, to)

    def close(self, status: str) -> None:  # noqa: ARG002
        if self._file is not None:
            self._file.close()

    def _write(self, row: Mapping[str, Any]) -> None:
        if self._file is None:
            raise RuntimeError(f"{self._path} is not open")
        if not row.keys() <= set(self._columns):
            self._widen([name for name in row if name not in self._columns])
        csv.DictWriter(self._file, self._columns).writerow(dict(row))
        self._file.flush()

    def _widen(self, names: list[str]) -> None:
        """Evaluations have columns of their own: the file is written again with them."""
        assert self._file is not None
        self._file.close()
        with self._path.open(newline="") as file:
            rows = list(csv.DictReader(file))
        self._columns += names
        self._file = self._path.open("w", newline="")
        writer = csv.DictWriter(self._file, self._columns)
        writer.writeheader()
        writer.writerows(rows)
