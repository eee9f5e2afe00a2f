"""``gradguard serve`` in a process of its own, for tests that talk to it as a user does."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import psutil

from jobs import JobClient, JobSpec
from jobs.client import Job
from tests.integration.harness.runner import GRADGUARD, Sandbox
from tests.waiting import interrupt, until

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
            options = ("--port=0", "--lease-s=2", *self.options)
            self.process = self.sandbox.start(*self.command, "serve", *options, log=log)
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
        interrupt(self.process)

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
