"""The gradient noise scale: how much larger a batch would still pay off.

Source: McCandlish, Kaplan, Amodei et al., "An Empirical Model of Large-Batch Training" (2018), appendix A.1:
unbiased estimates of the squared true gradient and of the noise from the squared norms of a small and of a
large batch's gradient. Here the small one is a rank's and the large one is that of all ranks; both norms are
known already. Each estimate is averaged over steps before their ratio is taken, since the ratio of two
noisy numbers is biased. Ranks' batches are taken to be of equal size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from guard.types import Floats

DECAY = 0.98
"""A mean over about 1 / (1 - 0.98) = 50 steps: one step's estimate is far noisier than the scale itself."""
LEAST_STEPS = 10
"""Fewer steps give no ratio worth showing."""


@dataclass(frozen=True, slots=True)
class NoiseEstimate:
    """The noise scale, ``tr(covariance) / |gradient|^2``, in two units."""

    ratio: float
    """In global batches: well above 1, a larger batch saves steps; well below, it wastes samples."""
    samples: float | None
    """In samples, where the batch size is known."""


class NoiseScale:
    """Exponential means of both estimates over the accepted steps."""

    def __init__(self) -> None:
        self._signal = 0.0
        self._noise = 0.0
        self._steps = 0
        self._norm = math.nan

    def begin(self, grad_norm: float, *, accepted: bool) -> None:
        """The global norm of this attempt; the local norms of it come with the next one's row."""
        self._norm = grad_norm if accepted else math.nan

    def complete(self, local_norms: Sequence[float] | Floats) -> None:
        """The local norm of each rank in the attempt before; NaN, or a single rank, gives no estimate."""
        ranks, large, self._norm = len(local_norms), self._norm**2, math.nan
        if ranks < 2:
            return
        with np.errstate(over="ignore"):
            small = float(np.square(local_norms).sum()) / ranks
        if not (math.isfinite(small) and math.isfinite(large)):
            return
        self._steps += 1
        self._signal += (1 - DECAY) * ((ranks * large - small) / (ranks - 1) - self._signal)
        self._noise += (1 - DECAY) * ((small - large) / (ranks - 1) - self._noise)

    def estimate(self, batch_samples: int | None = None) -> NoiseEstimate | None:
        """The noise scale; None with too few steps, or where the noise hides the gradient altogether.

        Args:
            batch_samples: samples in a global batch.
        """
        if self._steps < LEAST_STEPS or self._signal <= 0:
            return None
        # ``_noise`` is the covariance's trace over the global batch's size, both means equally biased.
        ratio = max(0.0, self._noise) / self._signal
        return NoiseEstimate(ratio, ratio * batch_samples if batch_samples else None)

    def state_dict(self) -> dict[str, Any]:
        return {"signal": self._signal, "noise": self._noise, "steps": self._steps, "norm": self._norm}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._signal, self._noise = float(state["signal"]), float(state["noise"])
        self._steps, self._norm = int(state["steps"]), float(state["norm"])
