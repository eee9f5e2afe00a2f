"""How often a step makes the host wait for the GPU, and how many kernels it launches."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

STEPS = 10


def waits(step: Callable[[], Any]) -> float:
    """Host waits a step, as torch's own synchronization debug mode reports them."""
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for _ in range(STEPS):
                step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum(_is_wait(str(warning.message)) for warning in caught) / STEPS


def _is_wait(message: str) -> bool:
    """Not the notice, once a process, that the mode is a prototype and misses some operations."""
    return "synchroniz" in message and "prototype" not in message


def launches(step: Callable[[], Any]) -> float:
    """Kernel launches a step."""
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as recorded:
        for _ in range(STEPS):
            step()
        torch.cuda.synchronize()
    return sum(e.count for e in recorded.key_averages() if "LaunchKernel" in e.key) / STEPS
