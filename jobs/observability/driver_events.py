"""The driver's side of a running job: status and events from the hub, and Ctrl-C."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import ray

from jobs.observability.console import LiveView

Tell = Callable[..., None]
"""Sends a notice: its event, the sentence, the step, and figures as in result.json."""
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class DriverEvents:
    """Polls the hub for one job, feeds the view, and tells of rollbacks."""

    def __init__(self, hub: Any, job: str, view: LiveView, tell: Tell, *, grace_s: float) -> None:
        self._hub, self._job, self._view, self._tell = hub, job, view, tell
        self._rollbacks: int | None = None
        self._grace_s = grace_s
        self._deadline: float | None = None
        self._seq = self._step = 0
        self.phase = "starting"

    def poll(self) -> None:
        """Shows new status and events."""
        try:
            answer = ray.get(self._hub.status.remote(self._job, self._seq), timeout=2.0)
        except ray.exceptions.RayError:
            return  # a hub that restarts answers the next poll
        for event in answer["events"]:
            self._seq = max(self._seq, event["seq"])
        if answer["status"] is not None:
            self.phase, self._step = answer["status"]["phase"], answer["status"]["step"]
            self._tell_of_rollbacks(answer["status"], answer["events"])
        self._view.update(answer["status"], answer["events"])

    def _tell_of_rollbacks(self, status: Mapping[str, Any], events: Sequence[Mapping[str, Any]]) -> None:
        """A job that continues has had some before."""
        count = status["counters"]["rollbacks"]
        if self._rollbacks is not None and count > self._rollbacks:
            why = next((event["text"] for event in reversed(events) if event["level"] != "info"), "")
            sentence = f"{self._job} was rolled back at step {self._step}; {count} so far"
            figures = {**status["counters"], "error": why}
            self._tell("rolled_back", f"{sentence}: {why}" if why else f"{sentence}.", self._step, figures)
        self._rollbacks = count

    def stop(self) -> None:
        """Asks the job to save its state and end. Call it repeatedly: a hub that is restarted has lost it."""
        if self._deadline is None:
            started = self.phase != "starting"  # there is a state to save
            self._deadline = time.monotonic() + (self._grace_s if started else 0.0)
            text = "saving the state" if started else "nothing has been trained yet"
            self.show("warning", f"stopping: {text}; a second Ctrl-C ends at once")
        if self.phase == "saving":
            self._deadline = max(self._deadline, time.monotonic() + 1.0)
        with suppress(ray.exceptions.RayError):
            self._hub.command.remote(self._job, "stop")

    def is_out_of_time(self) -> bool:
        """Whether the job was asked to stop and has not within its grace period."""
        return self._deadline is not None and time.monotonic() > self._deadline

    def show(self, level: str, text: str) -> None:
        """Shows an event of the driver itself."""
        event = {"seq": 0, "time": time.time(), "step": self._step, "level": level, "text": text}
        self._view.update(None, [event])


def metrics_at(hub: Any) -> str:
    """The URL at which the hub serves the metrics."""
    try:
        return str(ray.get(hub.address.remote(), timeout=5.0))
    except ray.exceptions.RayError:
        return "an unknown address: the hub does not answer"


@contextmanager
def interrupts() -> Iterator[threading.Event]:
    """An event that Ctrl-C, SIGTERM and SIGHUP set; a second Ctrl-C or SIGTERM raises KeyboardInterrupt.

    SIGHUP stays ignored under ``nohup``; a terminal that closes may send it several times.
    """
    seen = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield seen
        return
    found = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    if found[signal.SIGHUP] == signal.SIG_IGN:
        del found[signal.SIGHUP]

    def on_signal(number: int, _: Any) -> None:
        seen.set()
        if number != signal.SIGHUP:
            signal.signal(number, signal.default_int_handler)

    for number in found:
        signal.signal(number, on_signal)
    try:
        yield seen
    finally:
        for number, handler in found.items():
            signal.signal(number, handler)
