"""The driver's side of a running job: what the hub tells, and what Ctrl-C asks for."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import ray

from jobs.observability.console import LiveView


class DriverEvents:
    """Polls the hub for one job and feeds the view."""

    def __init__(self, hub: Any, job: str, view: LiveView, *, grace_s: float) -> None:
        self._hub, self._job, self._view = hub, job, view
        self._grace_s = grace_s
        self._deadline: float | None = None
        self._seq = self._step = 0
        self.phase = "starting"

    @property
    def training(self) -> bool:
        """Whether there is a state worth saving."""
        return self.phase != "starting"

    def poll(self) -> None:
        """Shows what is new."""
        try:
            answer = ray.get(self._hub.status.remote(self._job, self._seq), timeout=2.0)
        except ray.exceptions.RayError:
            return  # a hub that restarts answers the next poll
        for event in answer["events"]:
            self._seq = max(self._seq, event["seq"])
        if answer["status"] is not None:
            self.phase, self._step = answer["status"]["phase"], answer["status"]["step"]
        self._view.update(answer["status"], answer["events"])

    def stop(self) -> None:
        """Asks the job to save its state and end; said again and again, since a hub that dies forgets it."""
        if self._deadline is None:
            self._deadline = time.monotonic() + (self._grace_s if self.training else 0.0)
            text = "saving the state" if self.training else "nothing has been trained yet"
            self.say("warning", f"stopping: {text}; a second Ctrl-C ends at once")
        if self.phase == "saving":
            self._deadline = max(self._deadline, time.monotonic() + 1.0)
        with suppress(ray.exceptions.RayError):
            self._hub.command.remote(self._job, "stop")

    def out_of_time(self) -> bool:
        """Whether the job was asked to stop and did not within its grace."""
        return self._deadline is not None and time.monotonic() > self._deadline

    def say(self, level: str, text: str) -> None:
        """Shows a line of the driver's own."""
        event = {"seq": 0, "time": time.time(), "step": self._step, "level": level, "text": text}
        self._view.update(None, [event])


def metrics_at(hub: Any) -> str:
    """Where the hub serves the metrics."""
    try:
        address: str = ray.get(hub.address.remote(), timeout=5.0)
    except ray.exceptions.RayError:
        return "an address that the hub does not tell"
    return address


@contextmanager
def interrupts() -> Iterator[threading.Event]:
    """An event that Ctrl-C and SIGTERM set; a second one ends the process at once, as ever."""
    seen = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield seen
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def note(number: int, _: Any) -> None:
        seen.set()
        signal.signal(number, signal.default_int_handler)

    for number in before:
        signal.signal(number, note)
    try:
        yield seen
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
