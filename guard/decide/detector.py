"""Healthy or not: a verdict on each step from its loss and norms. Pure: no torch, no clock, no I/O.

Each value is measured against the run's own level and noise (``RobustBaseline``); a ratio of 1 is news.
The loss's ratios, cut off at 1 so that no single row can carry the sum, add up over rows, less an allowance:
Page's cumulative sum (Biometrika 41, 1954), made robust. A norm that is up in the same row, or in the two
rows before, confirms the loss and raises the cut-off. Hence one row is suspect; two rows, or loss and norm
together, are a spike; a rise that falls short of the threshold must last longer; and what a run does all the
time adds nothing.
"""

from __future__ import annotations

import copy
import math
from math import isfinite
from typing import Any

from guard.config import DetectConfig
from guard.decide.baseline import BaselineSpec, RobustBaseline
from guard.decide.drift import SlowTrend
from guard.decide.runaway_updates import RunawayUpdates, UpdateSample
from guard.types import Kind, Signal, Verdict

_ALLOWANCE = 0.4
"""What a row's ratio must exceed to count as evidence; as much is forgotten in each row."""
_ENOUGH = 0.95
"""Evidence for a spike: less than two rows at the threshold give, more than one."""
_TRUST = 0.6
"""By so much a norm that is up raises the cut-off of what a single row counts for."""
_MOST = 1.2
"""Evidence that is kept: that of two rows at the threshold, so that a spike is soon over."""
_NORM_SUSPECT = math.log(3)
"""A norm alone is suspect from three times its level on."""
_NORM_SURGE = math.log(5)
"""A norm alone is a spike when in two of three rows it exceeds five times its level and ..."""
_SURGE = 2.0
"""... twice its threshold."""
_OVERWHELMING = 3.0
"""One row is enough from three times the threshold on, if it also exceeds ..."""
_OVERWHELMING_LOSS = math.log(2)
"""... twice the level of the loss, or ..."""
_OVERWHELMING_UPDATE = math.log(10)
"""... ten times that of the update, which has been applied: skipping the next one does not help."""
_BUFFER_JUMP = math.log(10)
"""A jump of the buffers is suspect from ten times its level on: a short last batch alone makes it large."""


class SpikeDetector:
    """Judges steps one by one; a deterministic function of the numbers it was shown.

    Args:
        config: the thresholds; the defaults were chosen on recorded runs and suit runs nobody has tuned.
    """

    __slots__ = (
        "_buffers",
        "_evidence",
        "_grad",
        "_levels",
        "_linear",
        "_loss",
        "_norms",
        "_ratios",
        "_rows",
        "_surges",
        "_trend",
        "_update",
        "_wandering",
        "config",
    )

    def __init__(self, config: DetectConfig | None = None) -> None:
        self.config = config or DetectConfig()
        self._loss = RobustBaseline(self._spec(self.config.min_excess, signed=True))
        self._grad = RobustBaseline(self._spec(self.config.min_excess_norm))
        self._update = RobustBaseline(self._spec(self.config.min_excess_norm))
        self._buffers = RobustBaseline(self._spec(math.expm1(_BUFFER_JUMP)))
        self._levels: dict[Signal, RobustBaseline] = {
            "loss": self._loss,
            "grad_norm": self._grad,
            "update_norm": self._update,
            "buffers": self._buffers,
        }
        self._evidence = 0.0
        self._norms = (0.0, 0.0)
        self._ratios = (0.0, 0.0, 0.0)
        self._surges = 0
        self._rows = 0
        self._trend = SlowTrend()
        self._wandering = RunawayUpdates()
        self._linear = False

    def _spec(self, min_excess: float, *, signed: bool = False) -> BaselineSpec:
        config = self.config
        return BaselineSpec(
            level_rows=config.level_rows,
            window_rows=config.window,
            min_history_rows=config.min_history,
            patience_rows=config.patience,
            sigmas=config.sigmas,
            min_excess=math.log1p(min_excess),
            signed=signed,
        )

    def observe(
        self,
        loss: float | None,
        grad_norm: float | None = None,
        update_norm: float | None = None,
        buffer_jump: float | None = None,
    ) -> Verdict:
        """Judges one step.

        Args:
            loss: the loss of this step, of any sign; None when it was not measured.
            grad_norm: the global gradient norm of this step, before clipping.
            update_norm: the norm of the previous step's parameter change, best divided by its learning rate.
            buffer_jump: how far this step's forward moved the floating-point buffers.
        """
        if (
            (loss is not None and not isfinite(loss))
            or (grad_norm is not None and not isfinite(grad_norm))
            or (update_norm is not None and not isfinite(update_norm))
            or (buffer_jump is not None and not isfinite(buffer_jump))
        ):
            return self._nonfinite(loss, grad_norm, update_norm)
        on_loss = 0.0 if loss is None else self._loss.measure(loss)
        on_grad = 0.0 if grad_norm is None else self._grad.measure(grad_norm)
        on_update = 0.0 if update_norm is None else self._update.measure(update_norm)
        self._ratios = (on_loss, on_grad, on_update)
        verdict = self._judge(on_loss, on_grad, on_update)
        if update_norm is not None and update_norm > 0.0:
            verdict = self._judge_wandering(verdict, learn=True)
        spike = verdict.signal if verdict.kind == "spike" else None
        if loss is not None and self._loss.settle(on_loss, spike == "loss"):
            self._evidence = 0.0
            self._trend.clear()
        if grad_norm is not None:
            self._grad.settle(on_grad, spike == "grad_norm")
        if update_norm is not None:
            self._update.settle(on_update, spike == "update_norm")
        if buffer_jump is not None:
            verdict = self._judge_buffers(buffer_jump, verdict)
        self._rows = rows = self._rows + 1
        if rows % self._loss.spec.level_rows or verdict.kind != "ok":
            return verdict
        return self._judge_trend() or verdict

    def foresee(
        self,
        loss: float,
        grad_norm: float,
        update_norm: float | None = None,
        buffer_jump: float | None = None,
    ) -> Verdict:
        """What ``observe`` would say, but for drift and vanishing; changes nothing and learns nothing."""
        if loss <= 0.0 and not self._loss.linear:
            return copy.deepcopy(self).observe(loss, grad_norm, update_norm, buffer_jump)
        row = (loss, grad_norm, update_norm, buffer_jump)
        if not all(value is None or isfinite(value) for value in row):
            return self._nonfinite(loss, grad_norm, update_norm)
        kept = self._evidence, self._norms, self._surges
        on_update = 0.0 if update_norm is None else self._update.measure(update_norm)
        verdict = self._judge(self._loss.measure(loss), self._grad.measure(grad_norm), on_update)
        self._evidence, self._norms, self._surges = kept
        if update_norm is not None and update_norm > 0.0:
            verdict = self._judge_wandering(verdict, learn=False)
        if verdict.kind == "ok" and buffer_jump is not None:
            on_buffers = self._buffers.measure(buffer_jump)
            if on_buffers >= 1.0 and self._buffers.excess >= _BUFFER_JUMP:
                return self._verdict("suspect", "buffers", on_buffers)
        return verdict

    def ratios(self) -> dict[str, float]:
        """The excess of the last row over the run's level, in units of what is news; by signal."""
        return dict(zip(("loss", "grad_norm", "update_norm"), self._ratios, strict=True))

    @property
    def ready(self) -> bool:
        """Whether there is enough history for the ordinary thresholds."""
        return self._loss.ready and self._grad.ready

    def limits(self) -> tuple[float, float]:
        """The loss and the gradient norm from which on a single row is more than ``ok``."""
        loss, grad = self._loss, self._grad
        norm = grad.natural(grad.origin + max(grad.threshold, _NORM_SUSPECT))
        return loss.natural(loss.origin + loss.threshold), norm

    def typical(self, signal: Signal) -> float | None:
        """The median of the recent accepted values of a signal; None until there is enough history."""
        level = self._levels[signal]
        return level.natural(level.level) if level.ready else None

    def _judge_buffers(self, jump: float, verdict: Verdict) -> Verdict:
        """A jump of the buffers makes an otherwise normal step suspect."""
        ratio = self._buffers.measure(jump)
        suspect = ratio >= 1.0 and self._buffers.excess >= _BUFFER_JUMP
        self._buffers.settle(ratio, verdict.kind != "ok")
        return self._verdict("suspect", "buffers", ratio) if suspect and verdict.kind == "ok" else verdict

    def _judge_wandering(self, verdict: Verdict, *, learn: bool) -> Verdict:
        """Weights that moved ever farther, for nothing, are a spike of the update."""
        loss, grad, update = self._loss, self._grad, self._update
        if not (loss.ready and grad.ready):
            return verdict
        stretch = UpdateSample(update.value, loss.level, max(grad.level, grad.value))
        longest = self._wandering.judge(self._rows, stretch) if verdict.kind in ("ok", "suspect") else None
        if longest is not None:
            score = (stretch.update_norm - longest) / update.threshold * update.spec.sigmas
            verdict = Verdict("spike", "update_norm", score, update.natural(longest))
        if learn:
            self._wandering.settle(self._rows, stretch, spike=verdict.kind == "spike")
        return verdict

    def _judge(self, on_loss: float, on_grad: float, on_update: float) -> Verdict:
        """The verdict on a row of ratios."""
        on_norm = on_grad if on_grad > on_update else on_update
        last, before = self._norms
        self._norms = (on_norm, last)
        self._surges = self._surges << 1 & 0b110
        level = self._loss
        usual = level.usual
        allowance = usual if usual > _ALLOWANCE else _ALLOWANCE
        if on_loss <= allowance and on_norm < 1.0:
            evidence = self._evidence + on_loss - allowance
            self._evidence = evidence if evidence > 0.0 else 0.0
            baseline = level.natural(level.origin) if level.ready else None
            return Verdict("ok", "loss", on_loss * level.spec.sigmas, baseline)
        led = min(max(on_norm, last, before, 0.0), 1.0) if level.ready else 0.0
        evidence = self._evidence + min(on_loss, 1.0 + _TRUST * led) - allowance
        self._evidence = evidence = min(max(evidence, 0.0), _MOST)
        if on_loss > allowance and (evidence >= _ENOUGH or self._overwhelming(on_loss)):
            return self._verdict("spike", "loss", on_loss)
        signal: Signal = "grad_norm" if on_grad >= on_update else "update_norm"
        kind = self._judge_norm(on_norm, signal)
        if on_loss >= 1.0 and kind != "spike":
            return self._verdict("suspect", "loss", on_loss)
        return self._verdict(kind, signal, on_norm) if kind != "ok" else self._verdict("ok", "loss", on_loss)

    def _overwhelming(self, on_loss: float) -> bool:
        return on_loss >= _OVERWHELMING and (self._loss.linear or self._loss.excess >= _OVERWHELMING_LOSS)

    def _judge_norm(self, on_norm: float, signal: Signal) -> Kind:
        """The verdict on a norm alone."""
        excess = self._levels[signal].excess
        if on_norm >= _SURGE and excess >= _NORM_SURGE:
            self._surges |= 1
            applied = signal == "update_norm" and on_norm >= _OVERWHELMING and excess >= _OVERWHELMING_UPDATE
            if applied or self._surges.bit_count() >= 2:
                return "spike"
        return "suspect" if on_norm >= 1.0 and excess >= _NORM_SUSPECT else "ok"

    def _verdict(self, kind: Kind, signal: Signal, ratio: float) -> Verdict:
        level = self._levels[signal]
        baseline = level.natural(level.origin) if level.ready else None
        return Verdict(kind, signal, ratio * level.spec.sigmas, baseline)

    def _nonfinite(self, loss: float | None, grad_norm: float | None, update_norm: float | None) -> Verdict:
        signal: Signal = "buffers"
        row = (loss, grad_norm, update_norm)
        loss_ratio, grad_ratio, update_ratio = (
            math.inf if value is not None and not isfinite(value) else 0.0 for value in row
        )
        self._ratios = (loss_ratio, grad_ratio, update_ratio)
        if update_norm is not None and not isfinite(update_norm):
            signal = "update_norm"
        elif loss is not None and not isfinite(loss):
            signal = "loss"
        elif grad_norm is not None and not isfinite(grad_norm):
            signal = "grad_norm"
        return Verdict("nonfinite", signal, math.inf, self.typical(signal))

    def _judge_trend(self) -> Verdict | None:
        """Once in ``level_rows`` steps: has the loss crept up, or the gradient faded away?"""
        loss, grad, trend = self._loss, self._grad, self._trend
        if not loss.ready:
            return None
        if loss.linear != self._linear:
            self._linear = loss.linear
            trend.clear()
            self._wandering.clear()
        verdict = self._drift() or self._vanishing()
        if verdict is not None:
            trend.clear()
        trend.push(loss.level, grad.level if grad.ready else None)
        return verdict

    def _drift(self) -> Verdict | None:
        loss = self._loss
        lowest = self._trend.drift(loss.level, loss.threshold)
        if lowest is None:
            return None
        score = (loss.level - lowest) / loss.threshold * loss.spec.sigmas
        return Verdict("drift", "loss", score, loss.natural(lowest))

    def _vanishing(self) -> Verdict | None:
        loss, grad = self._loss, self._grad
        if not grad.ready:
            return None
        highest = self._trend.vanished(None if loss.linear else loss.level, grad.level)
        if highest is None:
            return None
        score = (highest - grad.level) / grad.threshold * grad.spec.sigmas
        return Verdict("vanishing", "grad_norm", score, grad.natural(highest))

    def state_dict(self) -> dict[str, Any]:
        """All that it remembers, as plain lists and numbers."""
        return {
            "levels": {signal: level.state_dict() for signal, level in self._levels.items()},
            "evidence": self._evidence,
            "norms": list(self._norms),
            "surges": self._surges,
            "rows": self._rows,
            "trend": self._trend.state_dict(),
            "wandering": self._wandering.state_dict(),
            "linear": self._linear,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from ``state_dict``, of a detector with the same configuration."""
        for signal, level in self._levels.items():
            if signal in state["levels"]:
                level.load_state_dict(state["levels"][signal])
        self._evidence = float(state["evidence"])
        last, before = state["norms"]
        self._norms = (float(last), float(before))
        self._surges = int(state["surges"])
        self._rows = int(state["rows"])
        self._trend.load_state_dict(state["trend"])
        if "wandering" in state:
            self._wandering.load_state_dict(state["wandering"])
        self._linear = bool(state["linear"])
