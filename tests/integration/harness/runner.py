"""Runs the installed command in a process of its own, with its own HOME and working directory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import psutil
import yaml

from jobs.cluster.session import NICENESS

BIN = Path(sys.executable).parent
GRADGUARD = str(BIN / "gradguard")
DEADLINE_S = 600

DIGITS: dict[str, Any] = {
    "name": "digits",
    "seed": 3,
    "storage": "runs",
    "scale": {"workers": 2},
    "model": {"name": "resnet18", "stem": "tiny"},
    "data": {"dataset": "digits", "batch_size": 64},
    "optimizer": {"name": "sgd", "lr": 0.05},
    "train": {"max_steps": 100, "checkpoint_every_steps": 20},
    "guard": {"snapshot": {"every_steps": 10}, "recovery": {"cooldown_steps": 20}},
    "metrics": {"port": 0},
}
"""A small real job: a ResNet-18 on scikit-learn's digits, two workers."""

SMALL: dict[str, Any] = {"name": "shufflenet_v2_x0_5", "stem": "auto"}
"""A model with a thirtieth of the weights, for tests in which it does not matter what is trained."""


class Sandbox:
    """A folder that is HOME and working directory of the commands run in it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "GRADGUARD_"))},
            "HOME": str(path),
            "PYTHONFAULTHANDLER": "1",
            **NICENESS,
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        }

    def project(self, name: str) -> Sandbox:
        """A folder in this one to work in, with the same HOME: what jobs leave in HOME is not in it."""
        inner = Sandbox(self.path / name)
        inner.path.mkdir(exist_ok=True)
        inner.environment = self.environment
        return inner

    def spec(self, name: str = "digits", **changes: Any) -> str:
        """Writes the digits job, with sections changed, and returns its file name."""
        merged = {**DIGITS, "name": name}
        for section, value in changes.items():
            old = merged.get(section)
            merged[section] = {**old, **value} if isinstance(old, dict) else value
        (self.path / f"{name}.yaml").write_text(yaml.safe_dump(merged))
        return f"{name}.yaml"

    def start(self, *command: str, log: IO[str] | None = None) -> subprocess.Popen[str]:
        """Starts a command; its output goes to ``log``, or must be read by the caller."""
        return subprocess.Popen(
            command,
            cwd=self.path,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=log or subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Runs a command to its end; standard error comes with the output."""
        process = self.start(*command)
        try:
            output, _ = process.communicate(timeout=DEADLINE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            output, _ = process.communicate()
            raise AssertionError(f"{command} did not end; it said:\n{output}") from None
        return subprocess.CompletedProcess(command, process.returncode, output)

    def result(self, job: str) -> dict[str, Any]:
        """result.json of a job."""
        found: dict[str, Any] = json.loads((self.path / "runs" / job / "result.json").read_text())
        return found

    def rows(self, job: str, file: str) -> list[dict[str, Any]]:
        """The whole lines of one of a job's JSON-lines files, empty while there is none."""
        path = self.path / "runs" / job / file
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        return [json.loads(line) for line in lines if line.endswith("\n")]


NOISY = "chaos_workload:Noisy"


def noisy(path: Path) -> Sandbox:
    """A sandbox in which ``NOISY`` can be trained."""
    sandbox = Sandbox(path)
    here = Path(__file__).parent
    paths = [str(here), str(here.parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
    sandbox.environment["PYTHONPATH"] = os.pathsep.join(paths)
    return sandbox


def descendants(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """All processes that came from this one; none once it has ended."""
    try:
        return psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def alive(processes: list[psutil.Process]) -> list[str]:
    """Those that still run, zombies aside, after a moment to end in."""
    _, left = psutil.wait_procs(processes, timeout=5)
    return [p.name() for p in left if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


def read_until(process: subprocess.Popen[str], wanted: Callable[[str], bool]) -> str:
    """Reads the output up to the first line that is wanted; fails if the process ends before."""
    seen = line = b""
    assert process.stdout is not None
    # Byte by byte, past Python's buffer: what it buffered would be missing in `communicate`.
    while byte := os.read(process.stdout.fileno(), 1):
        line += byte
        if byte == b"\n":
            seen, line, text = seen + line, b"", line.decode()
            if wanted(text):
                return seen.decode()
    raise AssertionError("the process ended before; it said:\n" + (seen + line).decode())
