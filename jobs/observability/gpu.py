"""How much of its GPU this process uses; nothing on a CPU."""

from __future__ import annotations

import logging
import time
from typing import Any

import torch
import torch.distributed as dist

logger = logging.getLogger(__name__)


class GpuUse:
    """Memory by torch's allocator, and utilization by NVML where ``pynvml`` is installed. Does not wait for
    the device.

    Args:
        device: of the training; on a CPU everything is empty.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device if device.type == "cuda" else None
        self._has_nvml = True
        self._busy: list[float] = [0.0, 0.0]
        self._sampled = 0.0
        self.ranks: list[dict[str, Any]] = []
        """``peak_bytes`` and ``utilization`` of every rank, as of the last ``exchange``."""

    def memory(self) -> dict[str, float]:
        """Bytes: ``allocated`` and ``reserved`` now, ``peak`` that was allocated, ``total`` of the device."""
        if self._device is None:
            return {}
        return {
            "allocated": float(torch.cuda.memory_allocated(self._device)),
            "reserved": float(torch.cuda.memory_reserved(self._device)),
            "peak": float(torch.cuda.max_memory_allocated(self._device)),
            "total": float(torch.cuda.get_device_properties(self._device).total_memory),
        }

    def utilization(self) -> float | None:
        """Share of the last moment in which the device computed; None where that is unknown."""
        if self._device is None or not self._has_nvml:
            return None
        try:
            share = torch.cuda.utilization(self._device) / 100
        except Exception as error:  # noqa: BLE001 - whatever NVML lacks here, the training does not need it
            logger.info("no GPU utilization: %s", error)
            self._has_nvml = False
            return None
        self._busy = [self._busy[0] + share, self._busy[1] + 1]
        return share

    def sample(self) -> None:
        """Reads the utilization, at most once a second."""
        if self._device is not None and (now := time.monotonic()) >= self._sampled + 1.0:
            self._sampled = now
            self.utilization()

    def exchange(self, ranks: int) -> None:
        """Every rank calls it after each evaluation, and learns of all others. Collective, on GPUs."""
        own = self.summary()
        if own is None:
            return
        found: list[Any] = [own] * ranks
        if ranks > 1:
            # All-gather of two numbers a rank, after an evaluation that all ranks have finished.
            dist.all_gather_object(found, {key: own[key] for key in ("peak_bytes", "utilization")})
        self.ranks = [{key: one[key] for key in ("peak_bytes", "utilization")} for one in found]

    def summary(self) -> dict[str, Any] | None:
        """For result.json: ``name``, ``peak_bytes``, ``total_bytes``, and the mean ``utilization``; of all
        ``ranks`` what is known."""
        if self._device is None:
            return None
        memory, (busy, times) = self.memory(), self._busy
        return {
            "name": torch.cuda.get_device_name(self._device),
            "peak_bytes": int(memory["peak"]),
            "total_bytes": int(memory["total"]),
            "utilization": busy / times if times else None,
            "ranks": self.ranks,
        }
