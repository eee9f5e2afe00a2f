"""All trackers of a run, in the background."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from guard.records import Incident
from guard.trackers.base import Tracker
from guard.trackers.config import TrackConfig
from guard.trackers.csv_file import CsvFile
from guard.trackers.mlflow_run import MlflowRun
from guard.trackers.tensorboard_files import TensorBoardFiles
from guard.trackers.wandb_run import WandbRun
from guard.types import StepReport

log = logging.getLogger("guard")

CLOSING_S = 60.0
"""How long the end of a run waits for its trackers."""
LONGEST_QUEUE = 10_000
_VALUES = ("step", "loss", "grad_norm", "update_norm", "clip_coef", "learning_rate", "step_seconds")
_LEVELS = {"applied": "info", "clipped": "info", "halted": "error"}


class Trackers:
    """Sends a run's figures, incidents and files to its trackers; a failure is counted, and stops nothing.

    Args:
        trackers: configurations, or trackers of your own.
        name: of the run.
        spec: its settings; nested sections become dotted names.
        folder: for files of trackers that name none.
        resume: continue the runs of MLflow, W&B and trackio whose ids are in the folder.

    Attributes:
        failures: how many calls failed, by kind of tracker; ``queue``: calls that found the queue full, or
            that a tracker which did not answer never got.
    """

    def __init__(
        self,
        trackers: Sequence[TrackConfig | Tracker],
        *,
        name: str = "run",
        spec: Mapping[str, Any] | None = None,
        folder: str | Path = "track",
        resume: bool = False,
    ) -> None:
        self.failures: dict[str, int] = {}
        self._trackers = [_Tracked(tracker, resume=resume) for tracker in trackers]
        self._queue: queue.Queue[tuple[_Tracked, str, tuple[Any, ...]] | None] = queue.Queue(LONGEST_QUEUE)
        self._thread = threading.Thread(target=self._work, name="trackers", daemon=True)
        if self._trackers:
            self._thread.start()
        settings = flat(spec or {})
        for tracked in self._trackers:
            own = tracked.config.folder if tracked.config else None
            self._put(tracked, "open", name, settings, Path(own or folder))

    def observe(self, report: StepReport) -> None:
        """An attempt: its figures where one is due, and its incident. Returns at once."""
        if report.pending:
            return
        for tracked in self._trackers:
            every = tracked.config.every if tracked.config else 1
            if report.incident is not None or report.attempt % every == 0:
                self._put(tracked, "values", report.attempt, values_of(report))
        if report.incident is not None:
            self.incident(report.incident)

    def incident(self, incident: Incident) -> None:
        """An incident as an event."""
        title = f"{incident.verdict} of {incident.signal} at step {incident.step}: {incident.action}"
        level = _LEVELS.get(incident.action, "warning")
        self._each("event", incident.attempt or 0, level, title, incident.reason)

    def evaluation(self, attempt: int, metrics: Mapping[str, float]) -> None:
        """The figures of an evaluation."""
        self._each("values", attempt, {f"eval/{name}": float(value) for name, value in metrics.items()})

    def artefact(self, path: Path) -> None:
        """A file or folder of the run, for those that want artefacts."""
        for tracked in self._trackers:
            if tracked.config is None or tracked.config.artefacts:
                self._put(tracked, "artefact", path)

    def close(self, status: str = "succeeded") -> None:
        """Ends the run everywhere, within ``CLOSING_S``."""
        self._each("close", status)
        if self._thread.is_alive():
            self._queue.put(None)
            self._thread.join(CLOSING_S)
        if self._thread.is_alive():
            left = self._queue.qsize()  # with the end mark, and without the call that does not answer
            self.failures["queue"] = self.failures.get("queue", 0) + left
            log.warning("trackers: no answer for %g s: the last %d calls are lost", CLOSING_S, left)

    def _each(self, call: str, *arguments: Any) -> None:
        for tracked in self._trackers:
            self._put(tracked, call, *arguments)

    def _put(self, tracked: _Tracked, call: str, *arguments: Any) -> None:
        try:
            self._queue.put_nowait((tracked, call, arguments))
        except queue.Full:
            self.failures["queue"] = self.failures.get("queue", 0) + 1

    def _work(self) -> None:
        while (item := self._queue.get()) is not None:
            self._call(*item)

    def _call(self, tracked: _Tracked, call: str, arguments: tuple[Any, ...]) -> None:
        if tracked.broken:
            self._count(tracked)
            return
        try:
            getattr(tracked.tracker, call)(*arguments)
        except Exception as error:  # noqa: BLE001 - whatever a tracker raises, the training goes on
            tracked.broken = call == "open"
            if not self._count(tracked):
                lost = "nothing is tracked there" if tracked.broken else "the next calls are tried"
                log.warning(
                    "tracker %s: %s failed: %s; %s", tracked.kind, call, _reason(error, tracked.kind), lost
                )

    def _count(self, tracked: _Tracked) -> int:
        """Counts a failure; how many there were before."""
        before = self.failures.get(tracked.kind, 0)
        self.failures[tracked.kind] = before + 1
        return before


class _Tracked:
    """A tracker, its configuration if it has one, and whether it could be opened."""

    def __init__(self, tracker: TrackConfig | Tracker, *, resume: bool) -> None:
        self.config = tracker if isinstance(tracker, TrackConfig) else None
        self.tracker: Tracker = make(tracker, resume=resume) if isinstance(tracker, TrackConfig) else tracker
        self.kind: str = self.config.kind if self.config else type(tracker).__name__
        self.broken = False


def make(config: TrackConfig, *, resume: bool = False) -> Tracker:
    """The tracker of a configuration; its library is imported when the run is opened."""
    if config.kind == "csv":
        return CsvFile()
    if config.kind == "tensorboard":
        return TensorBoardFiles()
    if config.kind == "mlflow":
        return MlflowRun(config.project, config.url, resume=resume)
    return WandbRun(config.kind, config.project, offline=config.offline, resume=resume)


def values_of(report: StepReport) -> dict[str, float]:
    """The figures of an attempt that are known, non-finite ones included."""
    row = {name: getattr(report, name, None) for name in _VALUES}
    return {name: float(value) for name, value in row.items() if isinstance(value, int | float)}


def flat(spec: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested sections as dotted names: ``optimizer.lr``."""
    found: dict[str, Any] = {}
    for key, value in spec.items():
        name = f"{prefix}{key}"
        found |= flat(value, f"{name}.") if isinstance(value, Mapping) and value else {name: value}
    return found


def _reason(error: Exception, kind: str) -> str:
    if isinstance(error, ModuleNotFoundError):
        return f'{error}: pip install "gradguard[{kind}]"'
    return " ".join(f"{type(error).__name__}: {error}".split())[:500]
