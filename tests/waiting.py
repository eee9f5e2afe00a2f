"""Waits for what other processes and threads do."""

from __future__ import annotations

import signal
import subprocess
import threading
import time
from collections.abc import Callable
from typing import Any


def until(holds: Callable[[], Any], within_s: float = 400.0, what: str = "nothing happened in time") -> Any:
    """The first true value of ``holds``; fails with ``what`` after ``within_s``."""
    pause, end = threading.Event(), time.monotonic() + within_s
    while time.monotonic() < end:
        if found := holds():
            return found
        pause.wait(0.05)
    raise AssertionError(f"not within {within_s:g} s: {what}")


def interrupt(process: subprocess.Popen[str], within_s: float = 120.0) -> None:
    """Ends a process as Ctrl-C does; kills it where that does not help."""
    process.send_signal(signal.SIGINT)
    try:
        process.communicate(timeout=within_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
