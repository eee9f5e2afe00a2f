"""The processes of a running job, found under its driver, and the ways in which they die."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from tests.integration.harness.runner import Sandbox, descendants

DEADLINE_S = 600
VICTIMS = ("worker", "rank 0", "driver", "controller", "hub", "gcs_server", "raylet")


def find(process: subprocess.Popen[str], victim: str, sandbox: Sandbox, job: str) -> psutil.Process | None:
    """The process of this part of the job; None while there is none."""
    if victim == "driver":
        return psutil.Process(process.pid) if process.poll() is None else None
    family = [p for p in descendants(process) if _matches(p, victim)]
    if victim in ("worker", "rank 0"):
        first = [p for p in family if _has_open(p, sandbox.path / "runs" / job / "metrics.jsonl")]
        family = first if victim == "rank 0" else [p for p in family if p not in first]
    return family[0] if family else None


def _matches(process: psutil.Process, victim: str) -> bool:
    try:
        title = " ".join(process.cmdline())
    except psutil.Error:
        return False
    words = {
        "worker": ("RayTrainWorker",),
        "rank 0": ("RayTrainWorker",),
        "controller": ("TrainController",),
        "hub": ("ray::Hub",),
        "gcs_server": ("gcs_server",),
        "raylet": ("raylet/raylet",),
    }
    return any(word in title for word in words[victim])


def _has_open(process: psutil.Process, path: Path) -> bool:
    try:
        return any(os.path.realpath(path) == file.path for file in process.open_files())
    except psutil.Error:
        return False


def steps(sandbox: Sandbox, job: str) -> list[dict]:
    """The rows of the steps that stand in the metrics file."""
    return [row for row in sandbox.rows(job, "metrics.jsonl") if "action" in row]


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[str], every_s: float = 0.1) -> bool:
    """Polls until the condition holds; false if the process ended first."""
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        if condition():
            return True
        if process.poll() is not None:
            return False
        time.sleep(every_s)
    raise AssertionError("nothing happened in time")
