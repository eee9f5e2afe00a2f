"""Recognizes a log by its content."""

from __future__ import annotations

from collections.abc import Callable

from guard.logs.blocks import read_blocks
from guard.logs.event_files import read_events
from guard.logs.json_document import read_document
from guard.logs.json_lines import read_json_lines
from guard.logs.log import Log, TraceError
from guard.logs.mlflow_files import read_mlflow
from guard.logs.printed import read_printed
from guard.logs.source import Source
from guard.logs.table import read_table

READERS: tuple[Callable[[Source, str | None], Log | None], ...] = (
    read_events,
    read_mlflow,
    read_json_lines,
    read_document,
    read_table,
    read_blocks,
    read_printed,
)
"""Asked in this order; each returns None for what is not its own. Given: the log, the loss that was named."""

IN_A_FOLDER = ("metrics.jsonl", "metrics.csv", "trainer_state.json", "results.csv", "metrics.json")
"""Logs by which the folder of a job, of Lightning, Hugging Face, ultralytics or detectron2 may be given."""


def recognize(source: Source, loss: str | None = None) -> Log:
    """The log, by the first reader that knows it.

    Raises:
        TraceError: no reader does, or it is malformed.
        OSError: the file cannot be opened.
    """
    if source.is_folder:
        file = next((path for name in IN_A_FOLDER if (path := source.path / name).is_file()), None)
        source = source if file is None else Source(file)
    for reader in READERS:
        log = reader(source, loss)
        if log is not None:
            return log
        if reader is read_mlflow and source.is_folder:
            raise TraceError(source.path, 0, "a folder without event files or metric files: name a log in it")
    raise TraceError(source.path, 0, "no column 'loss': the log has no names and numbers; see --regex")
