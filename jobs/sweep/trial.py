"""One job as a trial of Ray Tune: it reports each evaluation, and saves its state when Tune ends it."""

from __future__ import annotations

import math
import threading
import time
from pathlib import Path
from typing import Any

from ray import tune
from rich.console import Console

from jobs.cluster.driver import run_job
from jobs.errors import JobFinished
from jobs.run_dir.jsonl import GrowingRows
from jobs.run_dir.paths import RunDir
from jobs.spec.job_spec import JobSpec

POLL_S, TURN_S = 0.2, 1.0
LOG = "trial.log"


class JobTrial(tune.Trainable):
    """Trains the job ``specs[config["number"]]`` in a thread; ``step`` returns within about a second.

    A result has ``evaluations``, their number so far, ``value``, the metric in the last one, and ``ended``
    where the job has: Tune ended the others. A job that has trained already reports its evaluations again.
    """

    def setup(self, config: dict[str, Any], specs: list[dict[str, Any]], metric: str, stop: str) -> None:
        """Starts the job, or continues it.

        Args:
            config: of Tune.
            specs: of all trials.
            metric: as ``min:test_loss``.
            stop: a file; once it exists the job saves its state and ends.
        """
        self._specs, self._stop_file = specs, Path(stop)
        direction, _, self._metric = metric.partition(":")
        self._worst = -math.inf if direction == "max" else math.inf
        self._begin(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """The next trial in the same process, which has imported everything."""
        self.cleanup()
        self._begin(new_config)
        return True

    def _begin(self, config: dict[str, Any]) -> None:
        self._spec = JobSpec.from_dict(self._specs[config["number"]])
        self._folder = RunDir(self._spec.job_dir)
        self._rows = GrowingRows(self._folder.metrics)
        self._waiting: list[float] = []
        self._evaluations, self._step, self._value = 0, -1, self._worst
        self._error = ""
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="job", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        if self._stop_file.exists():
            return
        self._folder.path.mkdir(parents=True, exist_ok=True)
        try:
            with (self._folder.path / LOG).open("a", encoding="utf-8") as log:
                console = Console(file=log, width=110)
                result = run_job(self._spec, console=console, address="auto", resume=True, closed=self._end)
                self._error = str(result["error"] or "")
        except JobFinished:
            return
        except Exception as error:  # noqa: BLE001 - becomes the trial's line in the table
            self._error = str(error)

    def step(self) -> dict[str, Any]:
        """The next evaluation, or the last one again where none comes within a second."""
        end = time.monotonic() + TURN_S
        while time.monotonic() < end:
            alive = self._thread.is_alive()
            if self._stop_file.exists():
                self._end.set()
            self._read()
            if self._waiting:
                self._value, self._evaluations = self._waiting.pop(0), self._evaluations + 1
                break
            if not alive:
                return {**self._state(), "ended": True, "error": self._error, tune.result.DONE: True}
            time.sleep(POLL_S)
        return self._state()

    def _state(self) -> dict[str, Any]:
        return {"evaluations": self._evaluations, "value": self._value, "ended": False, "error": ""}

    def _read(self) -> None:
        """A job that was restarted cuts its file back, and evaluates some steps again."""
        path = self._folder.metrics
        if path.exists() and path.stat().st_size < self._rows.place:
            self._rows = GrowingRows(path)
        for row in self._rows.rows():
            if "eval" in row and row.get("step", 0) > self._step:
                self._step = row["step"]
                value = row["eval"].get(self._metric)
                if value is None:
                    known = ", ".join(name for name in row["eval"] if name != "epoch")
                    self._error = f"no metric {self._metric}; the evaluations have {known}"
                    self._end.set()
                    return
                known_value = isinstance(value, int | float) and math.isfinite(value)
                self._waiting.append(float(value) if known_value else self._worst)

    def cleanup(self) -> None:
        """Lets the job save its state; Tune calls it where it ends a trial."""
        self._end.set()
        self._thread.join(2 * self._spec.scale.stop_grace_s)
