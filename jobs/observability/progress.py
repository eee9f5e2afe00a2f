"""What a run emits while it runs: rows in metrics.jsonl, live status and events through the hub."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from guard import GradientGuard, StepReport
from guard.record.totals import Totals
from guard.rows import JsonlWriter
from guard.trackers import Trackers
from jobs.observability.counter_carryover import CounterCarryover
from jobs.observability.early_stopping import EarlyStopping
from jobs.observability.event_line import event as event_text
from jobs.observability.gpu import GpuUse
from jobs.observability.hub import CHECKPOINT, STOP, HubLink
from jobs.run_dir.jsonl import cut_back
from jobs.run_dir.paths import RunDir
from jobs.spec.job_spec import JobSpec

logger = logging.getLogger(__name__)

STATUS_INTERVAL_S = 0.5
_RATE_DECAY = 0.95


class Progress:
    """Records and shows one run; only rank 0 writes and pushes.

    Its state is part of the checkpoint, so that a resumed run reports on the whole.
    """

    def __init__(
        self,
        spec: JobSpec,
        folder: RunDir,
        hub: Any,
        guard: GradientGuard,
        total_steps: int,
        *,
        rank: int,
        places: Sequence[str] = (),
        trackers: Trackers | None = None,
        clock: Callable[[], float] = time.monotonic,
        gpu: GpuUse | None = None,
    ) -> None:
        self._spec = spec
        self.gpu = gpu or GpuUse(torch.device("cpu"))
        self.trackers = trackers or Trackers(())
        self.early_stopping = EarlyStopping(spec.train.early_stopping)
        self._clock_s = clock
        self._is_clock = rank == 0
        self._out_of_time = False
        self._started: float | None = None
        self._saved: float | None = None
        self._places = places
        self._guard = guard
        self._total_steps = total_steps
        self._files = {"metrics": folder.metrics, "incidents": folder.incidents} if rank == 0 else {}
        self._sizes: dict[str, int] = {}
        self._rows: JsonlWriter | None = None
        self._link = HubLink(hub, spec.name) if rank == 0 else None
        self._carryover = CounterCarryover(folder.counters)
        self._phase = "starting"
        self._events: list[dict[str, Any]] = []
        self._last: StepReport | None = None
        self.evaluation: dict[str, float] = {}
        """The metrics of the last evaluation."""
        self.confusion: list[list[int]] | None = None
        """The confusion matrix of the last evaluation, where the workload has one."""
        self.evaluated_step: int | None = None
        """The step of the last evaluation in the history that stands."""
        self._failed_writes = 0
        self._step_seconds = self._data_seconds = 0.0
        self._train_seconds = 0.0
        self._clock = self._next_push = time.perf_counter()

    def step(self, report: StepReport, *, data_seconds: float = 0.0) -> None:
        """Records one attempt, which waited so long for its data: a row, a status, an event if the guard did
        something."""
        now = time.perf_counter()
        seconds, self._clock = now - self._clock, now
        self._train_seconds += seconds
        decay = _RATE_DECAY if self._step_seconds else 0.0
        self._step_seconds = decay * self._step_seconds + (1 - decay) * seconds
        self._data_seconds = decay * self._data_seconds + (1 - decay) * data_seconds
        self._last = report
        if report.rolled_back_to is not None and (self.evaluated_step or 0) > report.rolled_back_to:
            self.evaluated_step = None
        special = report.incident is not None or report.overflow
        wants_layers = special or report.attempt % self._spec.train.log_layers_every == 0
        layers = self._guard.layer_norms if wants_layers else None
        self._write(replace(report, time=time.time(), step_seconds=seconds, layers=layers).to_row())
        self.trackers.observe(report)
        if report.incident is not None:
            self.event(*event_text(report.incident, self._places))
        elif report.overflow:
            self.event("info", f"step {report.step}: the loss scaler had an overflow and lowers its scale")
        self.gpu.sample()
        self._push(force=special)

    def evaluated(
        self, metrics: dict[str, float], epoch: float, confusion: list[list[int]] | None = None
    ) -> None:
        """Records an evaluation."""
        self.confusion = confusion
        self.evaluation, self.evaluated_step = metrics, self._guard.steps
        self.early_stopping.add(metrics)
        if self._guard.metrics is not None:
            self._guard.metrics.evaluation(metrics)
            ranks = {str(rank): found for rank, found in enumerate(self.gpu.ranks)}
            busy = {n: one["utilization"] for n, one in ranks.items() if one["utilization"] is not None}
            self._guard.metrics.gpus({n: one["peak_bytes"] for n, one in ranks.items()}, busy)
        self.trackers.evaluation(self._guard.attempts, metrics)
        place = {"attempt": self._guard.attempts, "step": self._guard.steps}
        self._write({"time": time.time(), **place, "eval": {**metrics, "epoch": epoch}})
        figures = ", ".join(f"{name} {value:.4g}" for name, value in metrics.items())
        self.event("info", f"step {self._guard.steps}: {figures}")

    def enter(self, phase: str) -> None:
        """Sets the phase: ``training``, ``evaluating``, ``saving`` or ``finished``."""
        self._phase = phase
        self._push(force=True)
        if phase == "training":
            self._clock = time.perf_counter()

    def event(self, level: str, text: str) -> None:
        """Emits a line to the live view; ``level`` is info, warning or error."""
        if self._link is not None:
            place = {"time": time.time(), "step": self._guard.steps}
            self._events.append({**place, "level": level, "text": text})

    def stop_requested(self) -> bool:
        """Whether a stop of this job was requested."""
        return self._link is not None and STOP in self._link.commands()

    def take_checkpoint_request(self) -> bool:
        """Whether a checkpoint was requested since the last call."""
        if self._link is None or CHECKPOINT not in self._link.commands():
            return False
        self._link.acknowledge(CHECKPOINT)
        return True

    def out_of_time(self) -> bool:
        """Whether ``train.max_hours`` have passed; rank 0 alone looks, and all ranks agree one step later."""
        hours, now = self._spec.train.max_hours, self._clock_s()
        self._started = self._started or now
        if hours is None or not self._is_clock or now - self._started < 3600 * hours:
            return False
        if not self._out_of_time:
            self.event("warning", f"train.max_hours: {hours:g} hours are over, saving the state")
        self._out_of_time = True
        return True

    def take_checkpoint_due(self) -> bool:
        """Whether ``train.checkpoint_every_minutes`` have passed since the last time, on rank 0."""
        minutes, now = self._spec.train.checkpoint_every_minutes, self._clock_s()
        self._saved = self._saved or now
        if minutes is None or not self._is_clock or now - self._saved < 60 * minutes:
            return False
        self._saved = now
        return True

    def totals(self) -> dict[str, Any]:
        """The counts of result.json."""
        totals = self._guard.totals
        share = totals.guard_seconds.sum / self._train_seconds if self._train_seconds else 0.0
        counts = {**_counters(totals), "incidents": totals.incidents, "clips": totals.steps["clipped"]}
        return {**counts, "guard_share": share}

    def _write(self, row: dict[str, Any]) -> None:
        if "metrics" not in self._files:
            return
        try:
            if self._rows is None:
                self._rows = JsonlWriter(self._files["metrics"])
            self._rows.write(row)
        except OSError as error:
            self._failed_writes += 1
            if self._failed_writes == 1:
                logger.warning("cannot write metrics.jsonl: %s; training continues", error.strerror)
                self.event("warning", f"cannot write metrics.jsonl: {error.strerror}; training continues")

    def _push(self, *, force: bool) -> None:
        now = time.perf_counter()
        if self._link is None or self._guard.metrics is None or (now < self._next_push and not force):
            return
        self._next_push = now + STATUS_INTERVAL_S
        events, self._events = self._events, []
        if self._step_seconds:
            self._guard.metrics.timing({"all": self._step_seconds, "data": self._data_seconds})
        self._guard.metrics.gpu(self.gpu.memory(), self.gpu.utilization())
        snapshot = self._carryover.carry(self._guard.metrics.snapshot())
        self._link.push(snapshot, self._status(), events)

    def _status(self) -> dict[str, Any]:
        report, total_steps, epochs = self._last, self._total_steps, self._spec.train.epochs
        totals = self._guard.totals
        rate = 1 / self._step_seconds if self._step_seconds else None
        return {
            "job": self._spec.name,
            "phase": self._phase,
            "step": self._guard.steps,
            "total_steps": total_steps,
            "epoch": None if epochs is None else min(epochs, 1 + self._guard.steps * epochs // total_steps),
            "total_epochs": epochs,
            "loss": report.loss if report else None,
            "grad_norm": report.grad_norm if report else None,
            "clip_share": totals.steps["clipped"] / max(1, self._guard.attempts),
            "steps_per_second": rate,
            "eta_seconds": (total_steps - self._guard.steps) / rate if rate else None,
            "counters": _counters(totals),
            "eval": self.evaluation or None,
            "guard_share": self.totals()["guard_share"],
        }

    def state_dict(self) -> dict[str, Any]:
        """Seconds trained so far, the last evaluation, and how long the files are at this moment."""
        return {
            "train_seconds": self._train_seconds,
            "evaluation": self.evaluation or None,
            "evaluated_step": self.evaluated_step,
            "confusion": self.confusion,
            "early_stopping": self.early_stopping.state_dict(),
            "files": {name: _size(path) for name, path in self._files.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues the totals of ``state_dict``."""
        self._train_seconds, self.evaluation = state["train_seconds"], state["evaluation"] or {}
        self.evaluated_step = state["evaluated_step"]
        self.confusion = state.get("confusion")  # not in a checkpoint of an earlier version
        if "early_stopping" in state:  # not in a checkpoint of an earlier version
            self.early_stopping.load_state_dict(state["early_stopping"])
        self._sizes = {str(name): int(size) for name, size in state["files"].items()}

    def roll_back_files(self) -> bool:
        """Removes the rows that were written after the state that was loaded: their steps come again.

        Call once, after the state was loaded, or where there was none to load. Rows that are missing, as
        where checkpoints are behind a URL and the folder is another one, are reported.

        Returns:
            Whether there were such rows.
        """
        cut = 0
        for name, path in self._files.items():
            size = self._sizes.get(name, 0)
            if _size(path) < size:
                self.event("warning", f"{path.name} lacks earlier rows: this is not the folder of that run")
            try:
                cut += cut_back(path, size)
            except OSError as error:
                logger.warning("cannot write %s: %s; some rows are there twice", path.name, error.strerror)
        return cut > 0


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _counters(totals: Totals) -> dict[str, int]:
    return {
        "anomalies": sum(sum(verdicts.values()) for verdicts in totals.anomalies.values()),
        "skips": totals.skips,
        "rollbacks": sum(totals.rollbacks.values()),
        "steps_lost": totals.steps_lost,
    }
