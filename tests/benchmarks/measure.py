"""Timing on a noisy machine: variants are interleaved round by round, and medians are compared."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

PROGRESS = "... "
"""Prefix of a line of progress."""


def interleaved(variants: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Runs each variant once a round, in turn; each returns its own seconds."""
    for variant in variants.values():
        variant()  # warms up
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(rounds):
        for name, variant in variants.items():
            seconds[name].append(variant())
    return seconds


def timed(work: Callable[[], Any]) -> float:
    """Seconds of one call, with what it started on a GPU."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    started = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


def progress(text: str) -> None:
    """Prints progress on standard error, which the suite shows."""
    print(f"{PROGRESS}{text}", file=sys.stderr, flush=True)


def machine() -> dict[str, Any]:
    """The machine that the figures come from."""
    return {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        **{name: _version(name) for name in ("torch", "torchvision", "ray")},
        "commit": _commit(),
    }


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _processor() -> str:
    """The name of the CPU."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


def _commit() -> str:
    """The commit of this repository; with a plus if the code has changed since."""
    here = Path(__file__).parent
    try:
        described = subprocess.run(
            ("git", "describe", "--always", "--dirty=+", "--exclude=*"),
            cwd=here,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return described.stdout.strip()


Tables = Mapping[str, Sequence[Mapping[str, Any]]]
"""Rows by the title of their table; the rows of a table have the same columns."""


def publish(benchmark: str, tables: Tables, json_path: Path | None, *, seeds: Sequence[int] = ()) -> None:
    """Prints tables and JSON, and writes the JSON if asked to.

    ``seeds`` are those of the runs; none if nothing is random.
    """
    for title, rows in tables.items():
        table = Table(*rows[0], title=title, box=None)
        for row in rows:
            table.add_row(*(f"{v:.4g}" if isinstance(v, float) else str(v) for v in row.values()))
        Console(width=200).print(table)
    found = {"benchmark": benchmark, "machine": machine(), "seeds": list(seeds), "tables": tables}
    text = json.dumps(found, indent=2)
    print(text)
    if json_path:
        json_path.write_text(text + "\n")


def show(
    title: str, rows: list[dict[str, Any]], json_path: Path | None, *, seeds: Sequence[int] = ()
) -> None:
    """Publishes a single table."""
    publish(title, {title: rows}, json_path, seeds=seeds)


def median_ms(seconds: list[float]) -> float:
    """The median, in milliseconds."""
    return 1e3 * statistics.median(seconds)
