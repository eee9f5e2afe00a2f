"""What is normal for one signal: a level that follows the run, and how far above it a value is anomalous.

A constant without another reason was chosen on the recorded runs of ``tests/benchmarks/bench_detection.py``;
``tests/guard/decide/test_traces.py`` shows that the result does not hang on its exact value.
"""

from __future__ import annotations

import math
from collections import deque
from math import exp, log
from typing import Any

from guard.config import DetectConfig
from guard.observe.robust_window import RobustWindow
from guard.records import Kind, Signal, Verdict

_NORMAL_MAD = 1.4826
"""Standard deviation over MAD of a Gaussian: 1 / 0.6745, its third quartile (Rousseeuw and Croux, 1993)."""
_NORMAL_ROUGHNESS = 0.6147
"""The same for roughness: two neighbours differ by sqrt(2) deviations, and the upper quartile of such a
difference is 1.1503 of its own: 1 / (1.1503 * sqrt(2))."""
LOG_ZERO = math.log(1e-30)
"""A norm of zero has no logarithm: it counts as a norm far below any that trains a network."""
_HUGE = 1e150
"""Larger magnitudes count as this on the linear scale: even the square of a difference is then finite."""
_MAX_LOG = 709.0
"""The largest logarithm that ``exp`` takes: float64 ends at exp(709.78)."""
_REFRESH_ROWS = 16
"""The threshold comes from up to 512 values, so 16 new ones (3 %) hardly move it: it is recomputed with
every 16th ..."""
_SETTLED_ROWS = 64
"""... and with each of the first 64, where one value still counts for more than 1 %."""


Measured = tuple[float, float]
"""A value against its baseline: its excess in units of the threshold, and itself on the scale in use."""


class RobustBaseline:
    """The running level of one signal, and how far above it a value must be to be anomalous.

    The level is the median of the last ``level_rows`` accepted values, so that it follows a trend. The excess
    of each accepted value over the level at its time goes into a longer window. Anomalous is an excess above

        max(min_excess, sigmas * robust deviation, 1.5 * the excess that 4 in 512 accepted values reach).

    The last term is for runs with regular one-row jumps: those are normal there, while up to three lone
    outliers in the window (two in one of less than 128) move nothing. In a run that alternates between two
    levels, at least a quarter of the level's rows are far above the median; the excess is then measured from
    just below those rows (``reference``). The scale is logarithmic as long as the values allow it; a
    ``signed`` signal that reaches zero is measured on the linear scale from then on (``for_value``), with
    twice the sigmas. Before the first value other than zero the scale is unknown, and nothing is learned.

    Below its ``floor`` a signal has no meaning (memorised, a loss goes from 1e-6 back to 1e-2): what is
    anomalous also exceeds the floor by ``min_excess``. It is given, or learned: a fiftieth of the first
    level of the loss, and at most 0.01; on the linear scale it is the least threshold.

    A value is accepted if it is not elevated, or if it is a single elevated one between two that are not, on
    each side: the run recovered without help. When ``patience`` of the last ``4 * patience`` values
    were elevated, they are the new normal.

    Args:
        min_excess: of this signal, on the log scale.
        signed: whether the signal may reach zero; such a signal has a floor.
        of_batch: whether it is of one batch alone, so that the first few values say little.
    """

    ELEVATED = 0.7
    """From this share of the threshold on, a value is quarantined until its neighbours are known: a rise that
    stays just below the threshold must not raise the level."""

    _MOST_ROUGH = 3.0
    """The deviation is held between once and three times the present roughness: noise may grow or shrink,
    but what exceeds three times the step-to-step noise is trend."""
    _SLACK = 0.35
    """The upper quartile of the level's rows has at most this ratio: half of ``ELEVATED``, so that the upper
    of two levels is accepted with its own noise."""
    _GROSS = 1.0
    """Without a history only a factor of e (1 on the log scale) above all values so far is anomalous, ..."""
    _FEW = 3
    """of fewer losses or gradient norms e times that for each that is missing: 20 times the only one, 7 times
    two. Of 720 healthy starts (ten networks, batches of 2 to 32) 23 had an alarm in 12 steps, not 88."""
    _GROSS_RANGES = 3.0
    """The same on the linear scale: three times the range seen, and at least the largest magnitude."""
    _TAIL_MARGIN = 1.5
    """A jump is anomalous if it is half as large again as the jumps the run makes anyway."""
    _TAIL_SHARE = 128
    """One accepted excess in 128 (4 of 512) is the tail ..."""
    _FEWEST = 4
    """... but never fewer than four, of a history of less than 128 three: lone outliers are no habit."""
    _PEAK_SHARE = 32
    """One accepted excess in 32 (16 of 512) is the peak of ordinary rows; a few outliers do not move it."""
    _COMMON_SHARE = 10
    """One accepted excess in ten is above ``tail_ratio``: what happens that often is no evidence."""
    _SMALL_SAMPLE = 16
    """The threshold grows by 16 / n, n accepted values: 2.3-fold at 12 values, 3 % at 512. A deviation from
    few values is too small too often."""
    _FLOOR = 0.01
    """A loss below this is small for all common losses (nats, normalized errors, beta times KL) ..."""
    _FLOOR_SHARE = 0.02
    """... unless the run began that low: then a fiftieth of its first level is."""
    _LINEAR_MIN_EXCESS = 0.02
    """The least excess on the linear scale, of the largest recent magnitude: there a share of the level means
    nothing, since the level may be zero."""

    def __init__(
        self, config: DetectConfig, min_excess: float, *, signed: bool = False, of_batch: bool = False
    ) -> None:
        self.config = config
        self._min_excess = min_excess
        self._signed, self._few = signed, self._FEW if of_batch else 0
        self.linear = False
        self.ready = False
        self.reference = 0.0
        self.threshold = math.inf
        self.tail_ratio = 0.0
        self._level = RobustWindow(config.level_rows)
        self._excesses = RobustWindow(config.window)
        self._quarantine: deque[float] = deque(maxlen=config.patience)
        self._isolated: float | None = None
        self._flags = 0
        """Bit i: whether the value i rows ago was elevated."""
        self._mask = (1 << 4 * config.patience) - 1
        self._quarter = max(1, config.level_rows // 4)
        self._slack = 0.0
        self._accepted = 0
        self._to_learn = config.min_history
        self.meaningful = -math.inf
        """The level when the loss was last above its floor."""
        self.floor = _floor(config.loss_floor) if signed else -math.inf
        """On the log scale; -inf for none, or before it is learned."""

    @property
    def level(self) -> float:
        """The median of the recent accepted values, on the scale in use."""
        return self._level.median

    @property
    def alarm(self) -> float:
        """From which value on one is anomalous, on the scale in use."""
        return max(self.reference + self.threshold, self.floor + self._min_excess)

    @property
    def meaningless(self) -> bool:
        """Whether the signal is below its floor: steps that are longer there gain and lose nothing."""
        return self.ready and not self.linear and self.level < self.floor

    @property
    def gained(self) -> float:
        """The level, but the floor where it is below, on the scale in use."""
        return self.floor if self.meaningless else self.level

    @property
    def peak(self) -> float:
        """The value that one accepted in 32 exceeds, on the scale in use."""
        excesses = self._excesses
        return self.reference + excesses.highest(self._rank(self._PEAK_SHARE)) if excesses else self.reference

    def first_level(self) -> float:
        """Of a signal that has just become known. On the linear scale, where most values may be zero and some
        not, the largest that would have been ordinary so far."""
        return self._level.highest(1) + self._first_threshold() if self.linear else self.unscale(self.level)

    def verdict(self, kind: Kind, signal: Signal, ratio: float) -> Verdict:
        """What a value of this ratio to the threshold means, with the median that it was compared with."""
        baseline = self.unscale(self.reference) if self.ready else None
        return Verdict(kind, signal, ratio * self.config.sigmas, baseline)

    def unscale(self, scaled: float) -> float:
        """From the scale in use to the signal's own unit."""
        return scaled if self.linear else exp(scaled if scaled < _MAX_LOG else _MAX_LOG)

    def for_value(self, value: float) -> RobustBaseline:
        """Itself; where a signed value has no logarithm, a copy on the linear scale. Changes nothing."""
        if value > 0.0 or self.linear or not self._signed or (value == 0.0 and not self._level):
            return self
        return self._linearized()

    def measure(self, value: float) -> Measured:
        """A finite value against the baseline: anomalous from a ratio of 1 on. Changes nothing."""
        if value > 0.0 and not self.linear:
            scaled = log(value)
        elif self.linear:
            scaled = min(max(value, -_HUGE), _HUGE)
        else:
            scaled = LOG_ZERO
        ratio = (scaled - self.reference) / self.threshold
        if ratio > 0.0:
            floor, margin = (self.floor, self._min_excess) if self.ready else (self._first_floor, self._GROSS)
            if scaled - floor < margin * ratio:
                ratio = (scaled - floor) / margin
        return ratio, scaled

    @property
    def _first_floor(self) -> float:
        """Before a level is known: batches of two begin at 1e-4 and at 1e-2 alike."""
        learns = self._signed and not self.linear and self.config.loss_floor is None
        return log(self._FLOOR) if learns and self.floor == -math.inf else self.floor

    def learn(self, measured: Measured, anomalous: bool, *, meaningful: bool = False) -> bool:
        """Accepts a value, or quarantines it. True when quarantined values have become the new normal.

        Args:
            measured: what ``measure`` returned.
            anomalous: whether the step was called anomalous; its value is then quarantined in any case.
            meaningful: whether the loss of the step is one that has a meaning.
        """
        ratio, value = measured
        if meaningful and self.ready:
            self.meaningful = self.level
        if not self.ready:
            self._learn_first(value)
            return False
        if ratio >= self.ELEVATED or anomalous:
            return self._hold_back(value)
        if self._flags:
            self._flags = self._flags << 1 & self._mask
            if self._flags & 0b11111 == 0b00100 and self._isolated is not None:
                self._accept(self._isolated)
        self._accept(value)
        return False

    def relearn(self, rows: int, first: float | None = None) -> None:
        """The next ``rows`` values (at least ``min_history``) make a new level; the noise stays known.

        Args:
            first: the first of these values, which is known already.
        """
        self._level.clear()
        self._quarantine.clear()
        self._flags, self._isolated = 0, None
        self._to_learn = max(rows, self.config.min_history)
        self.ready, self.reference, self.threshold = False, 0.0, math.inf
        if first is not None and math.isfinite(first):
            self._learn_first(self.measure(first)[1])

    def raise_floor(self, value: float) -> None:
        """Values up to this one are normal from now on."""
        self.floor = max(self.floor, log(value))
        self._refresh()

    def _hold_back(self, value: float) -> bool:
        self._flags = (self._flags << 1 | 1) & self._mask
        self._quarantine.append(value)
        self._isolated = value
        if self._flags.bit_count() < self.config.patience:
            return False
        self._rebase()
        return True

    def _accept(self, value: float) -> None:
        self._excesses.push(value - (self.reference if self.reference > self.floor else self.floor))
        ordered = self._level.push(value)
        count = len(ordered)
        middle = ordered[count // 2]
        quarter = ordered[-self._quarter if count > self._quarter else -1] - self._slack
        self.reference = middle if middle > quarter else quarter
        self._accepted = accepted = self._accepted + 1
        if not accepted % _REFRESH_ROWS or accepted < _SETTLED_ROWS:
            self._refresh()

    def _learn_first(self, value: float) -> None:
        """Without a history nothing is quarantined.

        A zero teaches nothing yet: the learning rate, the mask or the loss itself may still be zero.
        """
        if value == LOG_ZERO and not self.linear:
            return
        level = self._level
        if len(level) >= 4:
            self._excesses.push(value - level.median)
        level.push(value)
        self._accepted += 1
        self._to_learn -= 1
        self.ready = self._to_learn <= 0
        learns_floor = self._signed and not self.linear and self.config.loss_floor is None
        if self.ready and learns_floor and self.floor == -math.inf:
            self.floor = log(min(self._FLOOR, self._FLOOR_SHARE * exp(level.median)))
        self._refresh()

    def _refresh(self) -> None:
        if self.ready:
            self.threshold = self._ordinary_threshold()
            self._slack = self._SLACK * self.threshold
            quarter = self._level.highest(self._quarter) - self._slack
            self.reference = max(self._level.median, quarter)
        elif self._level:
            self.reference = self._level.highest(1)
            self.threshold = self._first_threshold()

    def _first_threshold(self) -> float:
        missing = max(0, self._few - self._accepted)
        if not self.linear:
            return self._GROSS + missing
        spread, magnitude = self._level.highest(1) - self._level.lowest, self._magnitude()
        least = max(self._GROSS_RANGES * spread, magnitude) * exp(missing)
        return max(least, self._linear_floor()) if magnitude else math.inf

    def _magnitude(self) -> float:
        return max(abs(self._level.highest(1)), abs(self._level.lowest))

    def _ordinary_threshold(self) -> float:
        excesses, count = self._excesses, len(self._excesses)
        rough = _NORMAL_ROUGHNESS * self._level.roughness()
        sigma = _NORMAL_MAD * excesses.median_mad()[1]
        sigma = min(max(sigma, rough), self._MOST_ROUGH * rough)
        tail = excesses.highest(self._rank(self._TAIL_SHARE))
        least, sigmas = self._min_excess, self.config.sigmas
        if self.linear:
            least, sigmas = max(self._LINEAR_MIN_EXCESS * self._magnitude(), self._linear_floor()), 2 * sigmas
        threshold = max(least, sigmas * sigma, self._TAIL_MARGIN * tail)
        threshold = threshold * (1 + self._SMALL_SAMPLE / count) or math.inf
        common = max(self._rank(self._TAIL_SHARE), 1 + count // self._COMMON_SHARE)
        self.tail_ratio = excesses.highest(common) / threshold
        return threshold

    def _rank(self, share: int) -> int:
        """The place from above of the excess that one accepted value in ``share`` exceeds."""
        count = len(self._excesses)
        return max(self._FEWEST - (count < self._TAIL_SHARE), count // share)

    def _linear_floor(self) -> float:
        return 2 * (self._FLOOR if self.config.loss_floor is None else self.config.loss_floor)

    def _rebase(self) -> None:
        """Quarantined values are normal from now on: a level that moved, or a jump that keeps coming back."""
        patience = self.config.patience
        if (self._flags & (1 << patience) - 1).bit_count() > patience // 2:
            moved = list(self._quarantine)[-self.config.min_history :]
            self._level.clear()
            for value in moved:
                self._level.push(value)
        else:
            for value in self._quarantine:
                self._excesses.push(value - self._level.median)
        self._refresh()
        self._flags = 0
        self._isolated = None

    def _linearized(self) -> RobustBaseline:
        """A copy with the same history on the linear scale."""
        linear = RobustBaseline(self.config, self._min_excess, signed=self._signed, of_batch=self._few > 0)
        scale = self.unscale(self._level.median) if self._level else 0.0
        linear.linear, linear.ready, linear.floor = True, self.ready, -math.inf
        linear._excesses = RobustWindow(self.config.window, [e * scale for e in self._excesses.values()])
        linear._level = RobustWindow(self.config.level_rows, [self.unscale(v) for v in self._level.values()])
        linear._quarantine.extend(self.unscale(v) for v in self._quarantine)
        linear._flags, linear._accepted, linear._to_learn = self._flags, self._accepted, self._to_learn
        linear._refresh()
        return linear

    def state_dict(self) -> dict[str, Any]:
        return {
            "level": self._level.state_dict(),
            "excesses": self._excesses.state_dict(),
            "held": list(self._quarantine),
            "lone": self._isolated,
            "flags": self._flags,
            "accepted": self._accepted,
            "to_learn": self._to_learn,
            "linear": self.linear,
            "ready": self.ready,
            "floor": self.floor if math.isfinite(self.floor) else None,
            "origin": self.reference,
            "usual": self.tail_ratio,
            "meaningful": self.meaningful if math.isfinite(self.meaningful) else None,
            "threshold": self.threshold if math.isfinite(self.threshold) else None,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._level.load_state_dict(state["level"])
        self._excesses.load_state_dict(state["excesses"])
        self._quarantine = deque(state["held"], maxlen=self.config.patience)
        self._isolated = state["lone"]
        self._flags = int(state["flags"])
        self._accepted = int(state["accepted"])
        self._to_learn = int(state.get("to_learn", self.config.min_history - len(self._level)))
        self.linear = bool(state["linear"])
        if "floor" in state:
            self.floor = -math.inf if state["floor"] is None else float(state["floor"])
        self.ready = bool(state["ready"])
        self.reference = float(state["origin"])
        self.tail_ratio = float(state["usual"])
        meaningful = state.get("meaningful")
        self.meaningful = -math.inf if meaningful is None else float(meaningful)
        self.threshold = math.inf if state["threshold"] is None else float(state["threshold"])
        self._slack = self._SLACK * self.threshold


def _floor(value: float | None) -> float:
    return log(value) if value else -math.inf
