"""The pipeline of each mode."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from guard.arguments import check_deferred
from guard.deferred_step import DeferredStepPipeline
from guard.observe.host_copy import HostCopy
from guard.parts import StepParts
from guard.step import StepPipeline
from guard.types import Agreed, Observation


@dataclass(frozen=True, slots=True)
class _Measured:
    host: HostCopy
    shape: torch.Size
    owners: list[int]


class UnguardedStepPipeline(StepPipeline):
    """Mode ``off`` on a device: loss and norm in a report are of the step before, so that the host waits for
    nothing; in the first report they are its own. Norms of sharded gradients are read at once."""

    def __init__(self, parts: StepParts) -> None:
        super().__init__(parts)
        self._before: _Measured | None = None

    def _observe(self) -> tuple[Agreed, Observation]:
        if self._observer.shards is not None:
            return super()._observe()
        pieces, owners = self._observer.measure()
        rows, rate = self._gather_rows(pieces.sum()), self._state.rate
        now = _Measured(HostCopy([rows, pieces, *rate.on_device()]), rows.shape, owners)
        before, self._before = self._before or now, now
        read, squares, *rates = before.host.read()
        rate.learn(rates)
        return self._read(read.reshape(before.shape), squares, before.owners)


def make_pipeline(parts: StepParts) -> StepPipeline:
    """That of the mode.

    Raises:
        GuardError: a step cannot be decided on the device, as mode ``deferred`` needs it.
    """
    if parts.config.mode == "deferred":
        check_deferred(parts.config, parts.state.fused, parts.device)
        return DeferredStepPipeline(parts)
    if parts.config.mode == "off" and parts.device.type == "cuda":
        return UnguardedStepPipeline(parts)
    return StepPipeline(parts)
