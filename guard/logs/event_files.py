"""Event files of TensorBoard."""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from guard.logs.columns import find_loss
from guard.logs.log import Log, TraceError
from guard.logs.source import Source

_FIRST_EVENT = b"brain.Event:"
_LENGTH, _CHECKSUM = 8, 4


def read_events(source: Source, _: str | None = None) -> Log | None:
    """An event file, or a folder with those of one run."""
    if source.is_folder:
        files = sorted(source.path.rglob("*tfevents*"))
        return _log(source.path, _of_one_run(source.path, files)) if files else None
    if "tfevents" in source.path.name or source.starts_with(_FIRST_EVENT, at=_LENGTH + _CHECKSUM + 11):
        return _log(source.path, [source])
    return None


def _log(path: Path, sources: list[Source]) -> Log:
    steps: dict[int, dict[str, Any]] = {}
    tags: dict[str, None] = {"step": None}
    scalars = [scalar for source in sources for scalar in _scalars(source)]
    if len({step for step, _, _ in scalars}) == 1:  # add_scalar without a step
        scalars = _counted(scalars)
    for step, tag, value in scalars:
        tags[tag] = None
        steps.setdefault(step, {"step": step})[tag] = value
    if not steps:
        raise TraceError(path, 0, "a TensorBoard event file without scalars, or damaged")
    return Log(
        "TensorBoard event file",
        list(tags),
        lambda: iter((0, steps[s]) for s in sorted(steps)),
        {"step": "step"},
    )


def _counted(scalars: list[tuple[int, str, float]]) -> list[tuple[int, str, float]]:
    """Each tag's values in their order."""
    counts: Counter[str] = Counter()
    found = []
    for _, tag, value in scalars:
        found.append((counts[tag], tag, value))
        counts[tag] += 1
    return found


def _of_one_run(folder: Path, files: list[Path]) -> list[Source]:
    """The files of the only run that logs a loss: ``add_scalars`` and evaluations write other folders."""
    runs: dict[Path, list[Source]] = {}
    for file in files:
        runs.setdefault(file.parent, []).append(Source(file))
    if folder in runs or len(runs) == 1:
        return runs.get(folder) or next(iter(runs.values()))
    training = {
        run: sources
        for run, sources in runs.items()
        if find_loss([tag for source in sources for tag in {tag for _, tag, _ in _scalars(source)}])
        and not run.name.startswith(("val", "eval", "test"))
    }
    if len(training) != 1:
        found = ", ".join(str(run.relative_to(folder)) for run in (training or runs))
        raise TraceError(folder, 0, f"event files of several runs: name one of the folders {found}")
    return next(iter(training.values()))


def _scalars(source: Source) -> Iterator[tuple[int, str, float]]:
    for event in _events(source):
        for value in event.summary.value:
            if value.HasField("simple_value"):
                yield event.step, value.tag, value.simple_value
            elif value.HasField("tensor") and value.tensor.dtype == 1:  # DT_FLOAT, as TensorFlow 2 writes it
                numbers = value.tensor.float_val or struct.unpack("<f", value.tensor.tensor_content[:4])
                yield event.step, value.tag, numbers[0]


def _events(source: Source) -> Iterator[Any]:
    """TFRecord: length, its checksum, the data, their checksum. A half-written last event is left."""
    event_class = _event_class(source.path)
    with source.open() as file:
        while len(head := file.read(_LENGTH + _CHECKSUM)) == _LENGTH + _CHECKSUM:
            (length,) = struct.unpack("<Q", head[:_LENGTH])
            data = file.read(length)
            if len(data) < length or len(file.read(_CHECKSUM)) < _CHECKSUM:
                return
            try:
                yield event_class.FromString(data)
            except ValueError as error:
                raise TraceError(source.path, 0, f"a damaged TensorBoard event file: {error}") from error


def _event_class(path: Path) -> Any:
    try:
        from tensorboard.compat.proto.event_pb2 import Event
    except ImportError:
        raise TraceError(
            path,
            0,
            'a TensorBoard event file: to read it, pip install "gradguard[tensorboard]"; or download its '
            "scalars as CSV from TensorBoard's page, and name the columns with --step Step --loss Value",
        ) from None
    return Event
