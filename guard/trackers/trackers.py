"""All trackers of a run, each in a thread of its own: one that does not answer keeps no other waiting."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
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
        self._counting = threading.Lock()
        self._trackers = [_Tracked(tracker, self._count, resume=resume) for tracker in trackers]
        settings = flat(spec or {})
        for tracked in self._trackers:
            own = tracked.config.folder if tracked.config else None
            tracked.put("open", name, settings, Path(own or folder))

    def observe(self, report: StepReport) -> None:
        """An attempt: its figures where one is due, and its incident. Returns at once."""
        if report.pending:
            return
        for tracked in self._trackers:
            every = tracked.config.every if tracked.config else 1
            if report.incident is not None or report.attempt % every == 0:
                tracked.put("values", report.attempt, values_of(report))
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
                tracked.put("artefact", path)

    def close(self, status: str = "succeeded") -> None:
        """Ends the run everywhere, within ``CLOSING_S``."""
        self._each("close", status)
        until = time.monotonic() + CLOSING_S
        for tracked in self._trackers:
            tracked.end()
        for tracked in self._trackers:
            if left := tracked.lost(until):
                self._count("queue", left)
                lost = f"the last {left} calls are lost"
                log.warning("tracker %s: no answer for %g s: %s", tracked.kind, CLOSING_S, lost)

    def _each(self, call: str, *arguments: Any) -> None:
        for tracked in self._trackers:
            tracked.put(call, *arguments)

    def _count(self, kind: str, calls: int = 1) -> int:
        """Counts failed calls; how many there were before."""
        with self._counting:
            before = self.failures.get(kind, 0)
            self.failures[kind] = before + calls
        return before


class _Tracked:
    """A tracker with its configuration, if it has one, and the thread that calls it."""

    def __init__(self, tracker: TrackConfig | Tracker, count: Callable[[str], int], *, resume: bool) -> None:
        self.config = tracker if isinstance(tracker, TrackConfig) else None
        self._tracker: Tracker = make(tracker, resume=resume) if isinstance(tracker, TrackConfig) else tracker
        self.kind: str = self.config.kind if self.config else type(tracker).__name__
        self._count, self._broken = count, False
        self._queue: queue.SimpleQueue[tuple[str, tuple[Any, ...]] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name=f"tracker {self.kind}", daemon=True)
        self._thread.start()

    def put(self, call: str, *arguments: Any) -> None:
        """A call, in the order of calls; returns at once."""
        if self._queue.qsize() < LONGEST_QUEUE:
            self._queue.put((call, arguments))
        else:
            self._count("queue")

    def end(self) -> None:
        """No call follows; returns at once."""
        self._queue.put(None)

    def lost(self, until: float) -> int:
        """Waits until then for the calls so far. How many are lost, since the tracker has not answered."""
        self._thread.join(max(0.0, until - time.monotonic()))
        # With the end mark, and without the call that does not answer.
        return self._queue.qsize() if self._thread.is_alive() else 0

    def _work(self) -> None:
        while (item := self._queue.get()) is not None:
            self._call(*item)

    def _call(self, call: str, arguments: tuple[Any, ...]) -> None:
        if self._broken:
            self._count(self.kind)
            return
        try:
            getattr(self._tracker, call)(*arguments)
        except Exception as error:  # noqa: BLE001 - whatever a tracker raises, the training goes on
            self._broken = call == "open"
            if not self._count(self.kind):
                lost = "nothing is tracked there" if self._broken else "the next calls are tried"
                log.warning("tracker %s: %s failed: %s; %s", self.kind, call, _reason(error, self.kind), lost)


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
