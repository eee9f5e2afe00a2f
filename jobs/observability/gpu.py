"""How much of its GPU this process uses; nothing on a CPU."""

from __future__ import annotations

import logging
from typing import Any

import torch

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

    def summary(self) -> dict[str, Any] | None:
        """For result.json: ``name``, ``peak_bytes``, ``total_bytes``, and the mean ``utilization``."""
        if self._device is None:
            return None
        memory, (busy, times) = self.memory(), self._busy
        return {
            "name": torch.cuda.get_device_name(self._device),
            "peak_bytes": int(memory["peak"]),
            "total_bytes": int(memory["total"]),
            "utilization": busy / times if times else None,
        }
