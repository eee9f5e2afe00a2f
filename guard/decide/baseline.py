"""What is normal for one signal: a level that follows the run, and how far above it a value is news."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from typing import Any

from guard.observe.robust_window import RobustWindow

_NORMAL_MAD = 1.4826
"""A Gaussian's standard deviation in units of its MAD."""
_NORMAL_ROUGHNESS = 0.6147
"""The same in units of its roughness: 1 / (1.1503 * sqrt(2))."""
_LOG_ZERO = math.log(1e-30)
"""Stands for a norm of zero on the log scale."""
_HUGE = 1e150
"""Larger magnitudes count as this one on the linear scale, so that differences stay finite."""
_MAX_LOG = 709.0
"""The largest logarithm that ``exp`` takes."""
_REFRESH_ROWS = 16
"""The threshold moves slowly: it is computed anew once in so many accepted values ..."""
_SETTLED_ROWS = 64
"""... after the first few."""


@dataclass(frozen=True, slots=True)
class BaselineSpec:
    """What a ``RobustBaseline`` is made of; rows are observed steps, excesses are on the log scale."""

    level_rows: int
    window_rows: int
    min_history_rows: int
    patience_rows: int
    sigmas: float
    min_excess: float
    signed: bool = False


class RobustBaseline:
    """The running level of one signal, and how far above it a value must lie to be news.

    The level is the median of the last ``level_rows`` accepted values, so that it follows a trend. The excess
    of each accepted value over the level of its time goes into a longer window. News is an excess above

        max(min_excess, sigmas * robust deviation, 1.5 * an excess that the history reached four times).

    The last term leaves a run its habits: one-row jumps that come back again and again are normal, while a
    single outlier moves nothing. Where a quarter of the level's rows lie far above it, as in a run that moves
    between two levels, the excess is measured from nearer to them (``origin``). The scale is logarithmic as
    long as the values allow it; a ``signed`` signal that reaches zero is measured on the linear scale from
    then on, with twice the sigmas.

    Accepted is every value that is not elevated, and an elevated one whose two neighbours on both sides are
    not: the run came back by itself. When ``patience_rows`` of the last ``4 * patience_rows`` values were
    elevated, they are the new normal.
    """

    ELEVATED = 0.7
    """From this share of the threshold on a value waits for its neighbours before it is accepted."""

    _MOST_ROUGH = 3.0
    """The deviation is at least the present roughness and at most so many times: noise may grow or shrink,
    and a trend is not noise."""
    _SLACK = 0.35
    """A value that a quarter of the level's rows reached has no higher ratio than this."""
    _GROSS = 1.0
    """Before there is history only a factor of e above everything seen is news."""
    _GROSS_RANGES = 3.0
    """The same on the linear scale, in units of the range seen, and at least the largest magnitude."""
    _TAIL_MARGIN = 1.5
    _TAIL_SHARE = 128
    """One accepted excess in so many (4 of 512) is the tail that the margin applies to."""
    _USUAL_SHARE = 10
    """One accepted excess in so many lies above the ``usual`` ratio."""
    _SMALL_SAMPLE = 16
    """The threshold grows by this number over the number of accepted values."""
    _LINEAR_MIN_EXCESS = 0.02
    """The least excess on the linear scale, as a share of the largest recent magnitude."""

    __slots__ = (
        "_accepted",
        "_excesses",
        "_flags",
        "_held",
        "_level",
        "_lone",
        "_mask",
        "_quarter",
        "_slack",
        "_value",
        "linear",
        "origin",
        "ready",
        "spec",
        "threshold",
        "usual",
    )

    def __init__(self, spec: BaselineSpec) -> None:
        self.spec = spec
        self.linear = False
        self.ready = False
        self.origin = 0.0
        self.threshold = math.inf
        self.usual = 0.0
        self._level = RobustWindow(spec.level_rows)
        self._excesses = RobustWindow(spec.window_rows)
        self._held: deque[float] = deque(maxlen=spec.patience_rows)
        self._lone: float | None = None
        self._flags = 0
        self._mask = (1 << 4 * spec.patience_rows) - 1
        self._quarter = max(1, spec.level_rows // 4)
        self._slack = 0.0
        self._value = 0.0
        self._accepted = 0

    @property
    def level(self) -> float:
        """The median of the recent accepted values, on the scale in use."""
        return self._level.median

    @property
    def value(self) -> float:
        """The last measured value, on the scale in use."""
        return self._value

    @property
    def excess(self) -> float:
        """How far the last measured value lies above the origin."""
        return self._value - self.origin

    def natural(self, scaled: float) -> float:
        """Back from the scale in use to the signal's own unit."""
        return scaled if self.linear else math.exp(min(scaled, _MAX_LOG))

    def measure(self, value: float) -> float:
        """The excess of a finite value in units of the threshold: 1 or more is news. Remembers it only."""
        if value > 0.0 and not self.linear:
            scaled = math.log(value)
        elif self.spec.signed:
            if not self.linear:
                self._go_linear()
            scaled = min(max(value, -_HUGE), _HUGE)
        else:
            scaled = _LOG_ZERO
        self._value = scaled
        return (scaled - self.origin) / self.threshold

    def settle(self, ratio: float, anomalous: bool) -> bool:
        """Accepts the measured value, or holds it back. True when held values have become the new normal.

        Args:
            ratio: what ``measure`` returned.
            anomalous: whether the step was called anomalous; its value is then held back in any case.
        """
        if not self.ready:
            self._begin(self._value)
            return False
        if ratio >= self.ELEVATED or anomalous:
            return self._hold()
        if self._flags:
            self._flags = self._flags << 1 & self._mask
            if self._flags & 0b11111 == 0b00100 and self._lone is not None:
                self._accept(self._lone)
        self._accept(self._value)
        return False

    def _hold(self) -> bool:
        self._flags = (self._flags << 1 | 1) & self._mask
        self._held.append(self._value)
        self._lone = self._value
        if self._flags.bit_count() < self.spec.patience_rows:
            return False
        self._rebase()
        return True

    def _accept(self, value: float) -> None:
        self._excesses.push(value - self.origin)
        ordered = self._level.push(value)
        count = len(ordered)
        middle = ordered[count // 2]
        quarter = ordered[-self._quarter if count > self._quarter else -1] - self._slack
        self.origin = middle if middle > quarter else quarter
        self._accepted = accepted = self._accepted + 1
        if not accepted % _REFRESH_ROWS or accepted < _SETTLED_ROWS:
            self._refresh()

    def _begin(self, value: float) -> None:
        """The first values: nothing is held back, and only gross excess over the highest is news.

        A norm of zero says nothing yet: the learning rate or the mask may still be zero.
        """
        if value == _LOG_ZERO and not self.linear:
            return
        level = self._level
        if len(level) >= 4:
            self._excesses.push(value - level.median)
        level.push(value)
        self._accepted += 1
        self.ready = len(level) >= self.spec.min_history_rows
        self._refresh()

    def _refresh(self) -> None:
        if self.ready:
            self.threshold = self._ordinary()
            self._slack = self._SLACK * self.threshold
            self.origin = max(self._level.median, self._level.highest(self._quarter) - self._slack)
        elif self._level:
            self.origin = self._level.highest(1)
            self.threshold = self._gross()

    def _gross(self) -> float:
        if not self.linear:
            return self._GROSS
        spread = self._level.highest(1) - self._level.lowest
        return max(self._GROSS_RANGES * spread, self._magnitude()) or math.inf

    def _magnitude(self) -> float:
        return max(abs(self._level.highest(1)), abs(self._level.lowest))

    def _ordinary(self) -> float:
        excesses, spec = self._excesses, self.spec
        rough = _NORMAL_ROUGHNESS * self._level.roughness()
        sigma = _NORMAL_MAD * excesses.median_mad()[1]
        sigma = min(max(sigma, rough), self._MOST_ROUGH * rough)
        tail = excesses.highest(max(2, len(excesses) // self._TAIL_SHARE))
        least, sigmas = spec.min_excess, spec.sigmas
        if self.linear:
            least, sigmas = self._LINEAR_MIN_EXCESS * self._magnitude(), 2 * sigmas
        threshold = max(least, sigmas * sigma, self._TAIL_MARGIN * tail)
        threshold = threshold * (1 + self._SMALL_SAMPLE / len(excesses)) or math.inf
        self.usual = excesses.highest(1 + len(excesses) // self._USUAL_SHARE) / threshold
        return threshold

    def _rebase(self) -> None:
        """What was held back is normal from now on: a level that moved, or a jump that keeps coming back."""
        recent = (1 << self.spec.patience_rows) - 1
        if (self._flags & recent).bit_count() > self.spec.patience_rows // 2:
            held = list(self._held)[-self.spec.min_history_rows :]
            self._level.clear()
            for value in held:
                self._level.push(value)
        else:
            for value in self._held:
                self._excesses.push(value - self._level.median)
        self._refresh()
        self._flags = 0
        self._lone = None

    def _go_linear(self) -> None:
        scale = self.natural(self._level.median) if self._level else 0.0
        self._excesses = RobustWindow(self.spec.window_rows, [e * scale for e in self._excesses.values()])
        self._level = RobustWindow(self.spec.level_rows, [self.natural(v) for v in self._level.values()])
        self._held = deque([self.natural(v) for v in self._held], maxlen=self.spec.patience_rows)
        self._lone = None
        self.linear = True
        self._refresh()

    def state_dict(self) -> dict[str, Any]:
        """Plain lists and numbers."""
        return {
            "level": self._level.state_dict(),
            "excesses": self._excesses.state_dict(),
            "held": list(self._held),
            "lone": self._lone,
            "flags": self._flags,
            "accepted": self._accepted,
            "linear": self.linear,
            "ready": self.ready,
            "origin": self.origin,
            "usual": self.usual,
            "threshold": self.threshold if math.isfinite(self.threshold) else None,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from ``state_dict``."""
        self._level.load_state_dict(state["level"])
        self._excesses.load_state_dict(state["excesses"])
        self._held = deque(state["held"], maxlen=self.spec.patience_rows)
        self._lone = state["lone"]
        self._flags = int(state["flags"])
        self._accepted = int(state["accepted"])
        self.linear = bool(state["linear"])
        self.ready = bool(state["ready"])
        self.origin = float(state["origin"])
        self.usual = float(state["usual"])
        self.threshold = math.inf if state["threshold"] is None else float(state["threshold"])
        self._slack = self._SLACK * self.threshold
