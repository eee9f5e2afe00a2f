"""The slow faults: a loss that creeps up, and a gradient that vanishes."""

from __future__ import annotations

import math
from collections import deque
from typing import Any

from guard.decide.baseline import RobustBaseline
from guard.records import Verdict

_MEMORY = 64
"""Past levels that are remembered: 1,536 steps at 24 a block, so that a rise over an epoch is seen."""
_VANISHED = math.log(100)
"""A norm has vanished at a hundredth of its highest level, beyond what the loss has fallen by: near a minimum
the gradient falls with the loss, but not by two orders of magnitude more."""


class SlowTrend:
    """Past levels of loss and gradient norm, one for each block of steps, on the log scale.

    A fault is reported once; the memory then restarts, so that only a further rise or fall is reported again.
    """

    __slots__ = ("_grads", "_losses")

    def __init__(self) -> None:
        self._losses: deque[float] = deque(maxlen=_MEMORY)
        self._grads: deque[float] = deque(maxlen=_MEMORY)

    def drift(self, loss: float, threshold: float) -> float | None:
        """The lowest past level, when the loss has risen above it by the threshold and is still rising."""
        losses = self._losses
        if len(losses) < 2 or not losses[-2] < losses[-1] < loss:
            return None
        lowest = min(losses)
        return lowest if loss - lowest >= threshold else None

    def vanished(self, loss: float | None, grad: float) -> float | None:
        """The highest past norm, if the norm has fallen from it by far more than the loss (None: unknown)."""
        if not self._grads:
            return None
        highest = max(self._grads)
        fallen = highest - grad
        if fallen < _VANISHED:
            return None
        if loss is not None:
            fallen -= max(0.0, self._losses[self._grads.index(highest)] - loss)
        return highest if fallen >= _VANISHED else None

    def push(self, loss: float, grad: float | None) -> None:
        self._losses.append(loss)
        self._grads.append(-math.inf if grad is None else grad)

    def clear(self) -> None:
        self._losses.clear()
        self._grads.clear()

    def state_dict(self) -> dict[str, Any]:
        return {"losses": list(self._losses), "grads": [None if g == -math.inf else g for g in self._grads]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.clear()
        for loss, grad in zip(state["losses"], state["grads"], strict=True):
            self.push(loss, grad)


class SlowFaults:
    """Judges the levels of loss and gradient, once for each block of steps.

    Args:
        sigmas: what the score of a verdict is counted in.
    """

    def __init__(self, sigmas: float) -> None:
        self._sigmas, self.trend = sigmas, SlowTrend()
        self.linear = False
        """Whether past levels of the loss are on a linear scale."""

    def rescaled(self, loss: RobustBaseline) -> bool:
        """Whether the loss has another scale than before; what was remembered is then void."""
        if loss.linear == self.linear:
            return False
        self.linear = loss.linear
        self.trend.clear()
        return True

    def judge(self, loss: RobustBaseline, grad: RobustBaseline, norm: float | None) -> Verdict | None:
        """Whether the loss has crept up, or the gradient faded away.

        Args:
            loss: ready.
            grad: perhaps not.
            norm: the level of the gradient, on the log scale, zero included; None while it is not ready.
        """
        verdict = self._drift(loss) or self._vanishing(loss, grad, norm)
        if verdict is not None:
            self.trend.clear()
        self.trend.push(loss.level, norm)
        return verdict

    def _drift(self, loss: RobustBaseline) -> Verdict | None:
        if (lowest := self.trend.drift(loss.level, loss.threshold)) is None:
            return None
        score = (loss.level - lowest) / loss.threshold * self._sigmas
        return Verdict("drift", "loss", score, loss.unscale(lowest))

    def _vanishing(self, loss: RobustBaseline, grad: RobustBaseline, norm: float | None) -> Verdict | None:
        if norm is None:
            return None
        if (highest := self.trend.vanished(None if loss.linear else loss.level, norm)) is None:
            return None
        score = (highest - norm) / grad.threshold * self._sigmas
        return Verdict("vanishing", "grad_norm", score, grad.unscale(highest))
