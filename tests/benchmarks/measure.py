"""Timing on a noisy machine: variants are interleaved round by round, and medians are compared."""

from __future__ import annotations

import json
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table


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


def machine() -> dict[str, Any]:
    """What the figures were taken on."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or "CPU"
    return {"device": device, "threads": torch.get_num_threads(), "torch": torch.__version__}


def show(title: str, rows: list[dict[str, Any]], json_path: Path | None) -> None:
    """Prints a table and JSON, and writes the JSON if asked to."""
    table = Table(*rows[0], title=title, box=None)
    for row in rows:
        table.add_row(*(f"{v:.4g}" if isinstance(v, float) else str(v) for v in row.values()))
    Console(width=160).print(table)
    text = json.dumps({"benchmark": title, "machine": machine(), "rows": rows}, indent=2)
    print(text)
    if json_path:
        json_path.write_text(text + "\n")


def median_ms(seconds: list[float]) -> float:
    """The median, in milliseconds."""
    return 1e3 * statistics.median(seconds)
