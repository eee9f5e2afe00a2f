"""The other methods, written from their papers and sources, with their published defaults.

Each is given the reduced gradients, the mean loss over ranks, and the optimizer. Where a method as published
has a defect that a careful user would work around, it is worked around: an update that is skipped is not
made at all, rather than multiplied with zero (NaN times zero is NaN).
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer


class Rival:
    """No guard at all: every update is made."""

    def __init__(self, parameters: Sequence[Tensor], optimizer: Optimizer) -> None:
        self.parameters = list(parameters)
        self.optimizer = optimizer

    def update(self, loss: float) -> bool:
        """Applies or skips the update; returns whether it was applied."""
        self.clip()
        self.optimizer.step()
        return True

    def clip(self) -> None:
        """Changes the gradients before the update."""

    def norm(self) -> float:
        """The global gradient norm."""
        return float(torch.nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None]))

    def hold_to(self, limit: float) -> None:
        """Clips the global norm to a limit."""
        clip_grad_norm_(self.parameters, limit)


class ClipNorm(Rival):
    """``clip_grad_norm_`` at 1.0, the usual default."""

    def clip(self) -> None:
        self.hold_to(1.0)


class AutoClip(Rival):
    """Seetharaman et al. (2020): clip to the 10th percentile of all norms so far."""

    def __init__(self, parameters: Sequence[Tensor], optimizer: Optimizer, percentile: float = 10.0) -> None:
        super().__init__(parameters, optimizer)
        self._percentile, self._history = percentile, [math.nan][:0]

    def clip(self) -> None:
        self._history.append(self.norm())
        self.hold_to(float(np.percentile(self._history, self._percentile)))


class ZClip(Rival):
    """Kumar et al. (2025), algorithm 1: alpha 0.97, z threshold 2.5, 25 steps of warm-up, adaptive."""

    ALPHA, THRESHOLD, WARMUP = 0.97, 2.5, 25

    def __init__(self, parameters: Sequence[Tensor], optimizer: Optimizer) -> None:
        super().__init__(parameters, optimizer)
        self._warmup: list[float] = []
        self._mean, self._variance = 0.0, 0.0

    def clip(self) -> None:
        norm = self.norm()
        if len(self._warmup) < self.WARMUP:
            self._warmup.append(norm)
            if len(self._warmup) == self.WARMUP:
                self._mean = sum(self._warmup) / self.WARMUP
                self._variance = sum((n - self._mean) ** 2 for n in self._warmup) / self.WARMUP
            return
        limit = self._limit(norm)
        self.hold_to(limit)
        kept = min(norm, limit)
        self._mean = self.ALPHA * self._mean + (1 - self.ALPHA) * kept
        self._variance = self.ALPHA * self._variance + (1 - self.ALPHA) * (kept - self._mean) ** 2

    def _limit(self, norm: float) -> float:
        deviation = math.sqrt(self._variance) + 1e-6
        z = (norm - self._mean) / deviation
        return self._mean + self.THRESHOLD**2 / z * deviation if z > self.THRESHOLD else norm


class AdaGC(Rival):
    """Wang et al. (2025), algorithm 1: per-tensor limits, beta 0.98, 1.05 relative; 1.0 globally at first."""

    BETA, RELATIVE, ABSOLUTE, WARMUP = 0.98, 1.05, 1.0, 100

    def __init__(self, parameters: Sequence[Tensor], optimizer: Optimizer) -> None:
        super().__init__(parameters, optimizer)
        self._gamma: list[float] = []
        self._steps = 0

    def clip(self) -> None:
        self._steps += 1
        if self._steps <= self.WARMUP:
            self.hold_to(self.ABSOLUTE)
            norms = self._norms()
            self._gamma = [min(a, b) for a, b in zip(self._gamma or norms, norms, strict=True)]
            return
        for i, norm in enumerate(self._norms()):
            gradient = self.parameters[i].grad
            assert gradient is not None
            limit = self.RELATIVE * self._gamma[i]
            if norm > limit:
                gradient.mul_(limit / norm)
            self._gamma[i] = self.BETA * self._gamma[i] + (1 - self.BETA) * min(norm, limit)

    def _norms(self) -> list[float]:
        return [float(p.grad.norm()) for p in self.parameters if p.grad is not None]


class SkipStep(Rival):
    """OLMo-core's skip-step optimizers: no update where loss or norm is beyond 6 deviations of the last 128.

    Every value enters the window, skipped or not, as there. It clips to 1.0 too, as its users do.
    """

    SIGMAS, WINDOW, LEAST = 6.0, 128, 64

    def __init__(self, parameters: Sequence[Tensor], optimizer: Optimizer) -> None:
        super().__init__(parameters, optimizer)
        self._losses: deque[float] = deque(maxlen=self.WINDOW)
        self._norms: deque[float] = deque(maxlen=self.WINDOW)

    def update(self, loss: float) -> bool:
        norm = self.norm()
        fine = self._fine(self._losses, loss) and self._fine(self._norms, norm)
        if fine:
            self.hold_to(1.0)
            self.optimizer.step()
        return fine

    def _fine(self, window: deque[float], value: float) -> bool:
        known = list(window)
        window.append(value)
        if len(known) < self.LEAST:
            return True
        if not all(map(math.isfinite, known)):
            return False  # the mean and the deviation of the window are NaN
        return value <= statistics.fmean(known) + self.SIGMAS * statistics.stdev(known)


RIVALS: dict[str, Callable[[Sequence[Tensor], Optimizer], Rival]] = {
    "no guard": Rival,
    "clip 1.0": ClipNorm,
    "AutoClip": AutoClip,
    "ZClip": ZClip,
    "AdaGC": AdaGC,
    "skip-step 6 sigma": SkipStep,
    "stop and restart": ClipNorm,
}
RESTARTS = "stop and restart"
GUARD = "GradGuard"
METHODS = (*RIVALS, GUARD)
