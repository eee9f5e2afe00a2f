"""Healthy or not: a verdict on each step from its loss and norms. Pure: no torch, no clock, no I/O.

Each value is measured against the run's own level and noise (``RobustBaseline``); a ratio of 1 is anomalous.
The loss's ratios add up over rows, less an allowance: Page's cumulative sum (Biometrika 41, 1954). To make it
robust, each is capped at 1, so that no single row suffices; a norm that is high in the same row, or in the
two rows before, confirms the loss and raises the cap. Hence one row is suspect; two rows, or loss and norm
together, are a spike; a rise that falls short of the threshold must last longer; and what a run does all the
time adds nothing.

A constant without another reason was chosen on the recorded runs of ``tests/benchmarks/bench_detection.py``.
"""

from __future__ import annotations

import math
from math import isfinite
from typing import Any

from guard.config import DetectConfig
from guard.decide.baseline import LOG_ZERO, Measured, RobustBaseline
from guard.decide.drift import SlowFaults
from guard.decide.runaway_updates import RunawayUpdates, UpdateSample
from guard.records import Kind, Signal, Verdict

_ALLOWANCE = 0.4
"""What a row's ratio must exceed to count as evidence, and what each row forgets: at a threshold of five
deviations this is two of them, which one healthy row in 40 exceeds."""
_ENOUGH = 0.95
"""Evidence for a spike: one row at the cap gives 1 - 0.4 = 0.6, two rows give 1.2, one confirmed row 1.2."""
_TRUST = 0.6
"""What a high norm adds to the cap of 1: as much as a second row would give."""
_MOST = 1.2
"""Evidence that is kept: that of two rows at the cap, so that three normal rows clear it."""
_NORM_SUSPECT = math.log(3)
"""A norm alone is suspect from three times its level on: one batch's is noisy, and clipping limits it."""
_NORM_SURGE = math.log(5)
"""A norm alone is a spike when in two of three rows it exceeds five times its level and ..."""
_SURGE = 2.0
"""... twice its threshold, so that a noisy norm does not roll a run back whose loss is fine."""
_OVERWHELMING = 3.0
"""One row is enough from three times the threshold (15 deviations) on, if it also exceeds ..."""
_OVERWHELMING_LOSS = math.log(2)
"""... twice the level of the loss: five deviations of a very quiet run are little; or ..."""
_OVERWHELMING_UPDATE = math.log(10)
"""... ten times that of the update: it has been applied, and skipping the next one does not help."""
_BUFFER_JUMP = math.log(10)
"""A jump of the buffers is suspect from ten times its level on: a short last batch alone makes it large."""
_SETTLES = 8
"""Rows in which the loss settles after a jump of the buffers by design, as of codes that are drawn again."""

_ABSENT = (0.0, math.nan)
"""A signal that was not measured in a row gives no evidence."""

# Plain tuples, unpacked where they are used: named ones would make each step a third slower.
_Row = tuple[RobustBaseline, Measured, Measured, Measured, Measured, UpdateSample | None]
"""One step, measured: the loss's baseline, on the scale that this loss needs; loss, gradient norm, update
norm and jump of the buffers; and a sample of the update where it is due."""
_Memory = tuple[float, float, float, int]
"""What the verdict on one row leaves for the next, immutable so that ``foresee`` can drop it: Page's sum; the
larger ratio of the two norms in the last row, and in the row before; bit i: whether a norm surged i rows
before the last one."""
_Judged = tuple[_Row | None, Verdict, _Memory]
"""``None`` is a row with a value that is not finite."""


class SpikeDetector:
    """Judges steps one by one; a deterministic function of the numbers it has seen.

    Args:
        config: the thresholds; the defaults were chosen on recorded runs and suit runs nobody has tuned.
    """

    def __init__(self, config: DetectConfig | None = None) -> None:
        self.config = config = DetectConfig.model_validate(config or {})
        least_norm = math.log1p(config.min_excess_norm)
        self._loss = RobustBaseline(config, math.log1p(config.min_excess), signed=True, of_batch=True)
        self._grad = RobustBaseline(config, least_norm, of_batch=True)
        self._update = RobustBaseline(config, least_norm)
        self._buffers = RobustBaseline(config, _BUFFER_JUMP)
        self._levels: dict[Signal, RobustBaseline] = {
            "loss": self._loss,
            "grad_norm": self._grad,
            "update_norm": self._update,
            "buffers": self._buffers,
        }
        self._memory: _Memory = (0.0, 0.0, 0.0, 0)
        self._ratios: tuple[float, ...] = (0.0, 0.0, 0.0)
        self._rows = 0
        self._slow = SlowFaults(config.sigmas)
        self._runaway = RunawayUpdates()
        self._expecting = 0
        self._foreseen: tuple[tuple[float | None, ...], _Judged] | None = None
        self.first: float | None = None
        """The first level of the loss; None until there is enough history."""
        self._zeros = 0
        """Norms of exactly zero in a row: they show no level, but that the gradient has vanished."""

    def observe(
        self,
        loss: float | None,
        grad_norm: float | None = None,
        update_norm: float | None = None,
        buffer_jump: float | None = None,
    ) -> Verdict:
        """Judges one step and learns from it.

        Args:
            loss: the loss of this step, of any sign; None when it was not measured.
            grad_norm: the global gradient norm of this step, before clipping.
            update_norm: the norm of the previous step's parameter change, best divided by its learning rate.
            buffer_jump: how far this step's forward moved the floating-point buffers.
        """
        row, verdict, self._memory = self._judged(loss, grad_norm, update_norm, buffer_jump)
        self._foreseen = None
        if row is None:
            self._ratios = tuple(math.inf if _bad(value) else 0.0 for value in (loss, grad_norm, update_norm))
            return verdict
        self._learn(row, verdict)
        if self.first is None and self._loss.ready:
            self.first = self._loss.first_level()
        self._rows += 1
        if self._jumps_by_design(row[4]):
            self._expecting = max(self._expecting, _SETTLES)
        elif self._expecting:
            self._expecting -= 1
        if self._rows % self.config.level_rows or verdict.kind != "ok":
            return verdict
        return self._judge_slow() or verdict

    def foresee(
        self,
        loss: float | None,
        grad_norm: float | None = None,
        update_norm: float | None = None,
        buffer_jump: float | None = None,
    ) -> Verdict:
        """What ``observe`` would return, but for drift and vanishing; changes nothing."""
        return self._judged(loss, grad_norm, update_norm, buffer_jump)[1]

    def _judged(self, *values: float | None) -> _Judged:
        """Kept until something is learned: what was foreseen is observed next, as a rule."""
        if any(map(_bad, values)):
            return None, self._nonfinite(*values[:3]), self._memory
        if self._foreseen is None or self._foreseen[0] != values:
            row = self._measure(*values)
            self._foreseen = values, (row, *self._judge(row, self._memory))
        return self._foreseen[1]

    def expect_change(self, steps: int, loss: float | None = None, grad_norm: float | None = None) -> None:
        """The levels change on purpose: they are relearned from the next ``steps`` rows, and these values.

        Meanwhile only the non-finite and the overwhelming (20 times all that was seen since) count.
        """
        self._loss.relearn(steps, loss)
        self._grad.relearn(steps, grad_norm)
        self._update.relearn(0)
        self._memory = (0.0, 0.0, 0.0, 0)
        self._slow.trend.clear()
        self._runaway.clear()
        self._foreseen, self._expecting = None, steps

    def accept_jump(self, jump: float) -> None:
        """The buffers jump that far by design: that much is no longer suspect."""
        if jump > 0.0:
            self._buffers.raise_floor(jump)
            self._foreseen, self._expecting = None, max(self._expecting, _SETTLES)

    def had_before(self, loss: float, factor: float = 1.0) -> bool:
        """Whether the loss is none that the run has not had: at most ``factor`` times its first level."""
        return self.first is not None and loss <= factor * self.first

    @property
    def normal(self) -> bool:
        """Whether the last rows of the loss were no evidence at all."""
        return self._memory[0] == 0.0 and max(self._memory[1:3]) < 1.0

    def alarm_factor(self) -> float | None:
        """How many times its level the loss must reach for an alarm (in two rows); what stays below that is
        not seen. None while it is unknown, and where the level is not positive."""
        loss = self._loss
        if not loss.ready or (loss.linear and loss.level <= 0.0):
            return None
        above = loss.alarm - max(loss.level, loss.floor)
        return loss.alarm / loss.level if loss.linear else loss.unscale(above)

    def ratios(self) -> dict[str, float]:
        """The excess of the last row over the run's level by signal; anomalous from 1 on."""
        return dict(zip(("loss", "grad_norm", "update_norm"), self._ratios, strict=True))

    @property
    def ready(self) -> bool:
        """Whether there is enough history for the ordinary thresholds."""
        return self._loss.ready and self._grad.ready

    def limits(self) -> tuple[float, float, float]:
        """The loss, the gradient norm and the jump of the buffers from which on a row is more than ``ok``."""
        loss, grad, buffers = self._loss, self._grad, self._buffers
        norm = grad.unscale(grad.reference + max(grad.threshold, _NORM_SUSPECT))
        jump = buffers.unscale(buffers.alarm) if buffers.ready and not self._expecting else math.inf
        return loss.unscale(loss.alarm), norm, jump

    def typical(self, signal: Signal) -> float | None:
        """The median of the recent accepted values of a signal; None until there is enough history."""
        level = self._levels[signal]
        return level.unscale(level.level) if level.ready else None

    def clip_level(self, factor: float) -> float | None:
        """The norm whose ``factor``-fold only an unusual one exceeds; None until there is enough history.

        It is the typical norm, unless ordinary norms are often that far above it: where most batches have a
        gradient near zero, the median is none of those that train. While the loss is below its floor, it is
        at least that of the last one above: there the gradients of a healthy run rise a thousandfold.
        """
        level = self._grad
        above = level.meaningful if self._loss.meaningless else -math.inf
        return level.unscale(max(level.level, level.peak - math.log(factor), above)) if level.ready else None

    def _measure(
        self, loss: float | None, grad_norm: float | None, update_norm: float | None, jump: float | None
    ) -> _Row:
        """Finite values against their baselines. Changes nothing."""
        level = self._loss if loss is None or loss > 0.0 else self._loss.for_value(loss)
        grad = _ABSENT if grad_norm is None else self._grad.measure(grad_norm)
        update, sample = _ABSENT, None
        if update_norm is not None:
            update = self._update.measure(update_norm)
            if update_norm > 0.0 and level.ready and self._grad.ready and not self._zeros:
                present = self._grad.level if grad_norm is None else max(self._grad.level, grad[1])
                sample = UpdateSample(update[1], level.gained, present)
        on_loss = _ABSENT if loss is None else level.measure(loss)
        buffers = _ABSENT if jump is None else self._buffers.measure(jump)
        return level, on_loss, grad, update, buffers, sample

    def _judge(self, row: _Row, memory: _Memory) -> tuple[Verdict, _Memory]:
        """The verdict on a row, and what the next row must know of it. Pure: changes nothing."""
        level, loss, grad, update, buffers, sample = row
        on_loss, on_grad, on_update = loss[0], grad[0], update[0]
        on_norm = on_grad if on_grad > on_update else on_update
        common = level.tail_ratio
        allowance = common if common > _ALLOWANCE else _ALLOWANCE
        if on_loss <= allowance and on_norm < 1.0:
            evidence = memory[0] + on_loss - allowance
            memory = (evidence if evidence > 0.0 else 0.0, on_norm, memory[1], memory[3] << 1 & 0b110)
            verdict = level.verdict("ok", "loss", on_loss)
        else:
            verdict, memory = self._judge_high(row, memory, on_norm, allowance)
        if sample is not None and verdict.kind in ("ok", "suspect"):
            verdict = self._judge_updates(sample) or verdict
        expecting = self._expecting > 0 or self._jumps_by_design(buffers)
        if expecting and verdict.score < _OVERWHELMING * self.config.sigmas:
            verdict = level.verdict("ok", "loss", on_loss)
        jumped = not expecting and buffers[0] >= 1.0 and buffers[1] - self._buffers.reference >= _BUFFER_JUMP
        if jumped and verdict.kind == "ok":
            verdict = self._buffers.verdict("suspect", "buffers", buffers[0])
        return verdict, memory

    def _jumps_by_design(self, buffers: Measured) -> bool:
        """Whether the buffers jumped as far as was accepted before: the loss may follow, and settles."""
        accepted = self._buffers.floor
        if accepted == -math.inf or buffers is _ABSENT:
            return False
        return buffers[1] - self._buffers.level >= _BUFFER_JUMP and buffers[1] <= accepted + _BUFFER_JUMP

    def _judge_high(
        self, row: _Row, memory: _Memory, on_norm: float, allowance: float
    ) -> tuple[Verdict, _Memory]:
        """The verdict on a row in which loss or norm is high."""
        level, loss, grad, update, *_ = row
        (on_loss, value), (evidence, last, before, surges) = loss, memory
        surges = surges << 1 & 0b110
        confirmed = min(max(on_norm, last, before, 0.0), 1.0) if level.ready else 0.0
        evidence = evidence + min(on_loss, 1.0 + _TRUST * confirmed) - allowance
        evidence = min(max(evidence, 0.0), _MOST)
        alone = on_loss >= _OVERWHELMING and (level.linear or value - level.reference >= _OVERWHELMING_LOSS)
        if on_loss > allowance and (evidence >= _ENOUGH or alone):
            return level.verdict("spike", "loss", on_loss), (evidence, on_norm, last, surges)
        signal: Signal = "grad_norm" if grad[0] >= update[0] else "update_norm"
        kind, surges = self._judge_norm(grad if signal == "grad_norm" else update, signal, surges)
        verdict = level.verdict("suspect" if on_loss >= 1.0 else "ok", "loss", on_loss)
        if kind == "spike" or (kind == "suspect" and on_loss < 1.0):
            verdict = self._levels[signal].verdict(kind, signal, on_norm)
        return verdict, (evidence, on_norm, last, surges)

    def _judge_norm(self, norm: Measured, signal: Signal, surges: int) -> tuple[Kind, int]:
        """The verdict on a norm alone, and the surges with this row's."""
        ratio, excess = norm[0], norm[1] - self._levels[signal].reference
        if ratio >= _SURGE and excess >= _NORM_SURGE:
            surges |= 1
            update = signal == "update_norm"
            applied = update and ratio >= _OVERWHELMING and excess >= _OVERWHELMING_UPDATE
            if (applied or surges.bit_count() >= 2) and not (update and self._loss.meaningless):
                return "spike", surges
        return "suspect" if ratio >= 1.0 and excess >= _NORM_SUSPECT else "ok", surges

    def _judge_updates(self, sample: UpdateSample) -> Verdict | None:
        """Weights that move ever farther while the loss gains nothing are a spike of the update."""
        longest = self._runaway.longest_if_runaway(self._rows, sample)
        if longest is None:
            return None
        update = self._update
        score = (sample.update_norm - longest) / update.threshold * self.config.sigmas
        return Verdict("spike", "update_norm", score, update.unscale(longest))

    def _learn(self, row: _Row, verdict: Verdict) -> None:
        """Each baseline accepts the value of the row or quarantines it."""
        level, loss, grad, update, buffers, sample = row
        self._ratios = (loss[0], grad[0], update[0])
        spike = verdict.signal if verdict.kind == "spike" else None
        if sample is not None:
            self._runaway.learn(self._rows, sample, spike=spike is not None)
        if loss is not _ABSENT:
            if level is not self._loss:
                self._loss = self._levels["loss"] = level
            if level.learn(loss, spike == "loss"):
                self._memory = (0.0, *self._memory[1:])
                self._slow.trend.clear()
        if grad is not _ABSENT:
            self._zeros = self._zeros + 1 if grad[1] == LOG_ZERO else 0
            if not self._zeros:
                self._grad.learn(grad, spike == "grad_norm", meaningful=not self._loss.meaningless)
        if update is not _ABSENT and not self._zeros:  # without a gradient it shows no level either
            self._update.learn(update, spike == "update_norm")
        if buffers is not _ABSENT:
            self._buffers.learn(buffers, verdict.kind != "ok")

    def _nonfinite(self, loss: float | None, grad_norm: float | None, update_norm: float | None) -> Verdict:
        row: dict[Signal, float | None] = {"update_norm": update_norm, "loss": loss, "grad_norm": grad_norm}
        signal: Signal = next((name for name, value in row.items() if _bad(value)), "buffers")
        return Verdict("nonfinite", signal, math.inf, self.typical(signal))

    def _judge_slow(self) -> Verdict | None:
        """Once in ``level_rows`` steps."""
        if not self._loss.ready:
            return None
        if self._slow.rescaled(self._loss):
            self._runaway.clear()
        return self._slow.judge(self._loss, self._grad, self._norm_level() if self._grad.ready else None)

    def _norm_level(self) -> float:
        """That of the gradient, zero included."""
        return LOG_ZERO if self._zeros >= self.config.level_rows else self._grad.level

    def state_dict(self) -> dict[str, Any]:
        """All that it remembers, as plain lists and numbers."""
        evidence, norm, norm_before, surges = self._memory
        return {
            "levels": {signal: level.state_dict() for signal, level in self._levels.items()},
            "evidence": evidence,
            "norms": [norm, norm_before],
            "surges": surges,
            "rows": self._rows,
            "trend": self._slow.trend.state_dict(),
            "runaway_updates": self._runaway.state_dict(),
            "linear": self._slow.linear,
            "expecting": self._expecting,
            "first": self.first,
            "zeros": self._zeros,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from ``state_dict``, of a detector with the same configuration."""
        self._foreseen = None
        for signal, saved in state["levels"].items():
            self._levels[signal].load_state_dict(saved)
        norm, norm_before = map(float, state["norms"])
        self._memory = (float(state["evidence"]), norm, norm_before, int(state["surges"]))
        self._rows = int(state["rows"])
        self._slow.trend.load_state_dict(state["trend"])
        if "runaway_updates" in state:
            self._runaway.load_state_dict(state["runaway_updates"])
        self._slow.linear = bool(state["linear"])
        self._expecting = int(state.get("expecting", 0))
        self.first, self._zeros = state.get("first"), int(state.get("zeros", 0))


def _bad(value: float | None) -> bool:
    return value is not None and not isfinite(value)
