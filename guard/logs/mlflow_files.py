"""Metric files of MLflow: ``timestamp value step`` a line, one file for each metric."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from guard.logs.log import Log, TraceError
from guard.logs.source import Source

_LINE = re.compile(r"^\d{12,14} (\S+) (\d+)\s*$")


def read_mlflow(source: Source, _: str | None = None) -> Log | None:
    """A metric file, a run's folder, or a folder with one run in it."""
    if source.is_folder:
        folder = _metrics_folder(source.path)
        if folder is None:
            return None
        return _log({file.relative_to(folder).as_posix(): Source(file) for file in _files(folder)})
    if source.head and all(_LINE.match(line) for line in source.head):
        name = source.path.name
        return _log({name: source}, {"loss": name})
    return None


def _log(metrics: dict[str, Source], columns: dict[str, str] | None = None) -> Log:
    steps: dict[int, dict[str, Any]] = {}
    for name, source in metrics.items():
        for step, value in _points(source):
            steps.setdefault(step, {"step": step})[name] = value
    names = ["step", *metrics]
    return Log("MLflow metrics", names, lambda: iter((0, steps[s]) for s in sorted(steps)), columns or {})


def _points(source: Source) -> Iterator[tuple[int, str]]:
    for line, text in enumerate(source.lines(), start=1):
        found = _LINE.match(text)
        if found is None:
            raise TraceError(source.path, line, "not a line of MLflow: timestamp, value and step")
        yield int(found[2]), found[1]


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _metrics_folder(path: Path) -> Path | None:
    if path.name == "metrics":
        return path
    folders = [found for found in sorted(path.rglob("metrics")) if found.is_dir() and _files(found)]
    if len(folders) > 1:
        runs = ", ".join(str(found.parent.relative_to(path)) for found in folders)
        raise TraceError(path, 0, f"metrics of several MLflow runs: name one of the folders {runs}")
    return folders[0] if folders else None
