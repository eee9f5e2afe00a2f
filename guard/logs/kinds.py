"""Recognizes a log by its content."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from guard.logs.blocks import read_blocks
from guard.logs.event_files import read_events
from guard.logs.json_document import read_document
from guard.logs.json_lines import read_json_lines
from guard.logs.log import Log, TraceError
from guard.logs.mlflow_files import read_mlflow
from guard.logs.printed import read_printed
from guard.logs.source import Source
from guard.logs.table import read_table
from guard.logs.wrapped import unwrapped

_Reader = Callable[[Source, str | None], Log | None]
_STORES: tuple[_Reader, ...] = (read_events, read_mlflow)
_TEXTS: tuple[_Reader, ...] = (
    read_json_lines,
    read_document,
    read_table,
    read_blocks,
    read_printed,
)
"""Asked in this order, after the stores; each returns None for what is not its own. Given: the log, the loss
that was named.
"""

IN_A_FOLDER = (
    "metrics.jsonl",
    "metrics.csv",
    "trainer_state.json",
    "results.csv",
    "metrics.json",
    "scalars.json",
    "trainer_log.jsonl",
    "progress.csv",
    "history.csv",
    "summary.csv",
    "main.log",
    "output.log",
    "train.log",
    "log.txt",
)
"""Logs by which a folder may be given, the best first: of a job, Lightning, Hugging Face, ultralytics,
detectron2, mm*, LLaMA-Factory, Ray Tune, fastai, timm, llm.c, W&B and others."""
_LISTED = 8


def recognize(source: Source, loss: str | None = None) -> Log:
    """The log, by the first reader that knows it.

    Raises:
        TraceError: no reader does, or it is malformed.
        OSError: the file cannot be opened.
    """
    if source.is_folder:
        file = next((path for name in IN_A_FOLDER if (path := source.path / name).is_file()), None)
        source = source if file is None else Source(file)
    stored = _first(_STORES, source, loss)
    if stored is not None:
        return stored
    if source.is_folder:
        return recognize(Source(_only_log(source.path)), loss)
    if not source.head:
        raise TraceError(source.path, 0, "is empty: nothing was logged yet")
    log = _first(_TEXTS, unwrapped(source), loss)
    if log is None:
        raise TraceError(source.path, 0, "no column 'loss': the log has no names and numbers; see --regex")
    return log


def _first(readers: tuple[_Reader, ...], source: Source, loss: str | None) -> Log | None:
    return next((log for reader in readers if (log := reader(source, loss)) is not None), None)


def _only_log(folder: Path) -> Path:
    """The log in the folders below; of the checkpoints of one run the last one's.

    Raises:
        TraceError: there is none, or several.
    """
    found = [path for name in IN_A_FOLDER for path in sorted(folder.rglob(name))]
    if len({path.parent.parent for path in found if _checkpoint(path) is not None}) == 1:
        found = [max(found, key=lambda path: _checkpoint(path) or -1)]
    if len({path.parent for path in found}) == 1:
        found = found[:1]
    if not found:
        raise TraceError(folder, 0, "a folder without event files or metric files: name a log in it")
    if len(found) > 1:
        names = ", ".join(str(path.relative_to(folder)) for path in found[:_LISTED])
        raise TraceError(folder, 0, f"logs of several runs: name one of {names}")
    return found[0]


def _checkpoint(path: Path) -> int | None:
    """The step of a checkpoint of Hugging Face."""
    found = re.fullmatch(r"checkpoint-(\d+)", path.parent.name)
    return int(found[1]) if found else None
