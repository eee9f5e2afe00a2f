"""What a user should know of a run that goes on: logged once, by the first rank."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from guard.decide.detector import SpikeDetector
    from guard.decide.replay import ReplayResult

log = logging.getLogger("guard")

_ALARM_FACTOR_EVERY = 25
_BLIND = 10.0
"""From this factor on an explosion shows in the norms at best: worth a warning."""
_WOULD = {"spike": "roll back", "nonfinite": "skip"}


class Advice:
    """Logs each kind once."""

    def __init__(self, *, rank: int) -> None:
        self._open = {"blind", "rate"} if rank == 0 else set()

    def alarm_factor(self, attempt: int, detector: SpikeDetector) -> float | None:
        """How many times its level the loss must reach for an alarm, every 25 attempts; logs a large one."""
        factor = None if attempt % _ALARM_FACTOR_EVERY else detector.alarm_factor()
        if factor is not None and factor > _BLIND:
            self._log("blind", blindness(factor) + "; see detect.sigmas and detect.loss_floor")
        return factor

    def rate(self, reason: str) -> None:
        """The learning rate is too high, and the guard may not change it."""
        self._log("rate", reason)

    def _log(self, kind: str, message: str) -> None:
        if kind in self._open:
            self._open.remove(kind)
            log.warning(message)


def blindness(factor: float | None) -> str:
    """One line: how far the loss must rise for an alarm."""
    if factor is None:
        return "loss: no alarm by a factor here, since its level is not positive or not yet known"
    return f"loss: an alarm needs x {factor:.3g} its level here"


def taken_for(result: ReplayResult) -> str:
    """What a log was taken for: ``nanoGPT log, 2,000 steps, no gradient norm: loss alone``."""
    columns = result.columns
    parts = [result.kind, f"{result.rows:,} steps"]
    parts += [f"{signal} from {name}" for signal, name in columns.items() if name not in (None, signal)]
    if columns.get("step") is None:
        parts.append("no column of the step: rows are counted from 0")
    if result.steps_back:
        parts.append(f"steps that go back: {result.steps_back:,}, rows are judged in the log's order")
    if columns.get("grad_norm") is None:
        parts.append("no gradient norm: loss alone")
    if columns.get("loss") is None:
        parts.append("no loss: gradient norm alone")
    return ", ".join(parts)


def would(result: ReplayResult, entry: dict[str, Any]) -> str:
    """What the guard would have done at an alarm or a trend of a log."""
    return "skip" if entry["step"] in result.skipped_first else _WOULD.get(entry["verdict"], "report")
