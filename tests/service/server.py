"""``gradguard serve`` in a process of its own, for tests that talk to it as a user does."""

from __future__ import annotations

import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from jobs import JobClient, JobSpec
from jobs.client import Job
from tests.integration.harness.runner import GRADGUARD, Sandbox

DEADLINE_S = 400
_SERVING = re.compile(r"^serving at (\S+),", re.MULTILINE)


class Server:
    """The service, started; it may be killed and started again. Its output goes to a file, so that it
    never waits for a reader."""

    def __init__(self, sandbox: Sandbox, *options: str, command: tuple[str, ...] = (GRADGUARD,)) -> None:
        self.sandbox, self.options, self.command = sandbox, options, command
        self.url, self._starts = "", 0
        self.start()

    def start(self) -> None:
        """Returns once it answers."""
        self._starts += 1
        with self._log.open("w") as log:
            self.process = subprocess.Popen(
                [*self.command, "serve", "--port=0", "--lease-s=2", *self.options],
                cwd=self.sandbox.path,
                env=self.sandbox.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                text=True,
            )
        until(lambda: _SERVING.search(self.said()) or self.process.poll() is not None)
        found = _SERVING.search(self.said())
        assert found, f"the service ended before it served; it said:\n{self.said()}"
        self.url = found[1]

    def said(self) -> str:
        """All that it has printed since its last start."""
        return self._log.read_text()

    def kill(self) -> None:
        """As ``kill -9`` does."""
        self.process.kill()
        self.process.wait()

    def end(self) -> None:
        """As Ctrl-C does."""
        self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(timeout=120)
        except subprocess.TimeoutExpired:
            self.kill()

    def client(self) -> JobClient:
        """A client of it."""
        return JobClient(self.url)

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """The installed command, against it."""
        return self.sandbox.run(GRADGUARD, *command, f"--address={self.url}")

    def submit(self, name: str, **changes: Any) -> Job:
        """Submits the digits job, with changes."""
        spec = JobSpec.load(self.sandbox.path / self.sandbox.spec(name, **changes))
        return self.client().submit(spec)

    def command_lines(self) -> str:
        """What a list of processes shows of it and of all that it started."""
        process = psutil.Process(self.process.pid)
        return "\n".join(" ".join(one.cmdline()) for one in (process, *process.children(recursive=True)))

    @property
    def _log(self) -> Path:
        return self.sandbox.path / f"serve-{id(self)}-{self._starts}.log"


def until(holds: Callable[[], Any]) -> Any:
    """What it gives, once that is something."""
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        if found := holds():
            return found
        time.sleep(0.2)
    raise AssertionError("nothing happened in time")
