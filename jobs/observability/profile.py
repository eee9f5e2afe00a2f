"""A trace of a few steps by torch's profiler, in the job's folder."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from jobs.run_dir.jsonl import write_json_atomic
from jobs.run_dir.paths import OPERATORS, TRACE

logger = logging.getLogger(__name__)

SKIPPED_STEPS, WARMUP_STEPS = 4, 1
MOST_OPERATORS = 12


class StepProfiler:
    """Records the attempts after the first five of this start, on rank 0; after that it does nothing.

    Args:
        steps: to record; 0: none.
        folder: of the job; the trace is a Chrome trace, for ui.perfetto.dev, beside a table of operators.
        device: of the training.
        show: gets a level and a line of the live view.
    """

    def __init__(
        self, steps: int, folder: Path, device: torch.device, show: Callable[[str, str], None]
    ) -> None:
        self._steps, self._folder, self._device, self._show = steps, folder, device, show
        self._profile = self._open() if steps else None
        self._attempts = 0

    def step(self) -> None:
        """Call after each attempt."""
        if self._profile is None:
            return
        self._attempts += 1
        self._profile.step()
        if self._attempts == SKIPPED_STEPS + WARMUP_STEPS + self._steps:
            self._profile.stop()
            self._profile = None

    def close(self) -> None:
        """Ends the recording where the training ended before it."""
        if self._profile is not None:
            open_, self._profile = self._profile, None
            open_.stop()
            if self._attempts <= SKIPPED_STEPS + WARMUP_STEPS:
                self._show("warning", f"no profile: it starts after {SKIPPED_STEPS + WARMUP_STEPS} steps")

    def _open(self) -> profile:
        activities = [ProfilerActivity.CPU]
        if self._device.type == "cuda":
            activities.append(ProfilerActivity.CUDA)
        plan = schedule(skip_first=SKIPPED_STEPS, wait=0, warmup=WARMUP_STEPS, active=self._steps, repeat=1)
        opened = profile(activities=activities, schedule=plan, on_trace_ready=self._write)
        opened.start()
        return opened

    def _write(self, recorded: profile) -> None:
        """A failure, as a full disk, does not fail the training."""
        try:
            trace = self._folder / TRACE
            trace.parent.mkdir(parents=True, exist_ok=True)
            recorded.export_chrome_trace(str(trace))
            operators = self._operators(recorded)
            table = {"steps": self._steps, "device": self._device.type, "operators": operators}
            write_json_atomic(self._folder / OPERATORS, table)
        except (OSError, RuntimeError) as error:
            logger.warning("no profile: %s", error)
            self._show("warning", f"no profile: {error}")
            return
        most = ", ".join(f"{row['name']} {100 * row['share']:.0f} %" for row in operators[:3])
        line = f"profiled {self._steps} steps: {trace}, for ui.perfetto.dev; most time: {most}"
        self._show("info", line)

    def _operators(self, recorded: profile) -> list[dict[str, Any]]:
        """Those that took the most time themselves, on the GPU where there is one, else on the CPU."""
        field = "self_device_time_total" if self._device.type == "cuda" else "self_cpu_time_total"
        found = [event for event in recorded.key_averages() if not event.key.startswith("ProfilerStep")]
        total = sum(getattr(event, field) for event in found) or 1.0
        found.sort(key=lambda event: getattr(event, field), reverse=True)
        return [
            {
                "name": event.key,
                "seconds": getattr(event, field) / 1e6,
                "share": getattr(event, field) / total,
                "calls": event.count,
            }
            for event in found[:MOST_OPERATORS]
        ]
