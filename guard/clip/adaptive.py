"""Limits of the global norm that follow the run: a multiple of its median, a percentile, a z-score."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from guard.clip.base import Clipper, Step
from guard.config import ClipConfig
from guard.observe.robust_window import RobustWindow
from guard.types import Plan


class AutoClipper(Clipper):
    """``auto``: the global norm is held to ``factor`` times the median of the recent accepted norms.

    The median is that of the spike detector, so an outlier moves nothing, and no limit holds until there is
    enough history. Where ordinary norms are often farther above it (most batches of a triplet loss have no
    gradient at all) the limit is what one accepted norm in 32 exceeds. A median follows a run that slowly
    explodes, and would permit each next stage of it: hence the limit never exceeds ``ceiling``, or twice
    ``factor`` times the first median where that is more. There is no paper; limits relative to a running
    level are in AutoClip and ZClip below, a fixed one in ``norm``.
    """

    _ROOM = 2.0
    """A healthy run's norm may double from its first level before the ceiling limits it: norms grow by less
    than that while a loss falls."""

    def __init__(self, config: ClipConfig, parameters: Sequence[Tensor]) -> None:
        super().__init__(config, parameters)
        self._first: float | None = None

    def expect_change(self) -> None:
        self._first = None

    def _plan(self, step: Step) -> Plan:
        if step.typical is None:
            return Plan(step.seen)
        first = step.typical if self._first is None else self._first
        if step.accepted:
            self._first = first
        factor, ceiling = self.config.factor, self.config.ceiling
        highest = math.inf if ceiling is None else max(ceiling, self._ROOM * factor * first)
        return Plan(step.seen, limit=min(factor * step.typical, highest))

    def _memory(self) -> dict[str, Any]:
        return {"first": self._first}

    def _recall(self, state: dict[str, Any]) -> None:
        first = state.get("first")
        self._first = None if first is None else float(first)


class PercentileClipper(Clipper):
    """``autoclip``: the global norm is held to a percentile of the history of norms, this step's included.

    Source: Seetharaman, Wichern, Pardo, Le Roux, "AutoClip: Adaptive Gradient Clipping for Source Separation
    Networks" (2020), section 2. Deviations: the history is the last ``history_steps`` steps and not the whole
    run, so that memory is bounded and the limit follows the run; only accepted finite norms enter, because
    one NaN among the values makes the percentile NaN for good.
    """

    def __init__(self, config: ClipConfig, parameters: Sequence[Tensor]) -> None:
        super().__init__(config, parameters)
        self._history = RobustWindow(config.history_steps)

    def _plan(self, step: Step) -> Plan:
        if step.accepted:
            self._history.push(step.seen.grad_norm)
        return Plan(step.seen, limit=self._percentile() if len(self._history) else None)

    def _percentile(self) -> float:
        """As in ``numpy.percentile``: linear between the two nearest values."""
        count = len(self._history)
        place = (count - 1) * self.config.percentile / 100
        below = math.floor(place)
        low = self._history.highest(count - below)
        high = self._history.highest(max(1, count - below - 1))
        return low + (high - low) * (place - below)

    def _memory(self) -> dict[str, Any]:
        return self._history.state_dict()

    def _recall(self, state: dict[str, Any]) -> None:
        self._history.load_state_dict(state)


class ZClipper(Clipper):
    """``zclip``: a global norm more than ``z_thresh`` deviations above its running mean is held closer to it.

    Source: Kumar, Owen, Chowdhury, Guera, "ZClip: Adaptive Spike Mitigation for LLM Pre-Training" (2025),
    section 3, with adaptive scaling: a norm with z-score ``z > z_thresh`` is held to
    ``mean + std * z_thresh**2 / z``; mean and variance then absorb what is left of it. They begin as those of
    the first ``warmup_steps`` norms, during which nothing is clipped.

    Deviations: the standard deviation counts as at least 1 % of the mean, because after a quiet warm-up the
    paper's rule clips 1.0001 for good; when as many steps in a row as the warm-up has are clipped, that is a
    new level, and the statistics begin again from those norms, because norms clipped to the mean never move
    it; only accepted finite norms enter, because one NaN ends the paper's protection for good.
    """

    _LEAST_DEVIATION = 0.01
    """Of the mean: after a quiet warm-up the variance is near zero, and every norm would exceed it."""

    def __init__(self, config: ClipConfig, parameters: Sequence[Tensor]) -> None:
        super().__init__(config, parameters)
        self._warmup_steps = config.warmup_steps or 25
        self.mean: float | None = None
        """The running mean of the norms after clipping; None during the warm-up."""
        self._variance = 0.0
        self._recent: list[float] = []

    def _plan(self, step: Step) -> Plan:
        limit = self._limit_of(step.seen.grad_norm)
        if step.accepted:
            self._learn(step.seen.grad_norm, limit)
        return Plan(step.seen, limit=limit)

    def _limit_of(self, norm: float) -> float | None:
        """What this norm is held to; the limit itself falls as the norm rises beyond the threshold."""
        if self.mean is None:
            return None
        deviation = max(math.sqrt(self._variance), self._LEAST_DEVIATION * self.mean)
        threshold = self.config.z_thresh
        highest = self.mean + threshold * deviation
        if not norm > highest:
            return highest
        return self.mean + threshold**2 * deviation**2 / (norm - self.mean)

    def _learn(self, norm: float, limit: float | None) -> None:
        if self.mean is None or limit is None or norm > limit:
            self._recent.append(norm)
            if len(self._recent) == self._warmup_steps:
                self.mean, self._variance = float(np.mean(self._recent)), float(np.var(self._recent))
                self._recent.clear()
                return
        else:
            self._recent.clear()
        if self.mean is not None and limit is not None:
            alpha, kept = self.config.alpha, min(norm, limit)
            self.mean = alpha * self.mean + (1 - alpha) * kept
            self._variance = alpha * self._variance + (1 - alpha) * (kept - self.mean) ** 2

    def _memory(self) -> dict[str, Any]:
        return {"mean": self.mean, "variance": self._variance, "recent": list(self._recent)}

    def _recall(self, state: dict[str, Any]) -> None:
        self.mean = None if state["mean"] is None else float(state["mean"])
        self._variance = float(state["variance"])
        self._recent = [float(norm) for norm in state["recent"]]
