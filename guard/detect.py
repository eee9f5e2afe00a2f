"""Decide from loss and gradient norm alone whether a step is healthy. Pure: no torch, no clock, no I/O."""

import math
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from guard.robust import RobustWindow

Kind = Literal["ok", "suspect", "spike", "nonfinite", "drift", "vanishing"]
Signal = Literal["loss", "grad_norm", "update_norm"]


class DetectConfig(BaseModel):
    """How far from normal a step must be before the guard acts."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    window: int = Field(default=128, ge=8)
    """Accepted steps that describe what is normal."""
    min_history: int = Field(default=16, ge=2)
    """Accepted steps before the ordinary threshold applies; earlier only gross excess counts."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the detector makes of one step."""

    kind: Kind
    signal: Signal = "loss"
    score: float = 0.0
    baseline: float | None = None


class SpikeDetector:
    """First working version: median/MAD on the log scale, two of three rows."""

    def __init__(self, config: DetectConfig | None = None) -> None:
        self.config = config or DetectConfig()
        self._windows = {s: RobustWindow(self.config.window) for s in ("loss", "grad_norm", "update_norm")}
        self._recent: list[bool] = []

    def observe(
        self, loss: float, grad_norm: float | None = None, update_norm: float | None = None
    ) -> Verdict:
        """Judge one step from its loss and norms (None: not measured)."""
        values = {"loss": loss, "grad_norm": grad_norm, "update_norm": update_norm}
        for name, value in values.items():
            if value is not None and not math.isfinite(value):
                return Verdict("nonfinite", name, math.inf, self.typical(name))  # type: ignore[arg-type]
        worst = Verdict("ok")
        outliers = 0
        for name, value in values.items():
            if value is None:
                continue
            window = self._windows[name]
            score = 0.0
            if len(window) >= self.config.min_history:
                median, mad = window.median_mad()
                score = (value - median) / max(1.4826 * mad, 0.02 * abs(median), 1e-12)
            if score > 10:
                outliers += 1
                if score > worst.score:
                    worst = Verdict("suspect", name, score, median)  # type: ignore[arg-type]
            else:
                window.push(value)
        self._recent = [*self._recent[-2:], outliers > 0]
        if outliers > 1 or (outliers and sum(self._recent) >= 2):
            return Verdict("spike", worst.signal, worst.score, worst.baseline)
        return worst

    def typical(self, signal: Signal) -> float | None:
        """Median of the accepted values of a signal; None until there is enough history."""
        window = self._windows[signal]
        return window.median if len(window) >= self.config.min_history else None

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to continue identically."""
        return {
            "windows": {name: window.state_dict() for name, window in self._windows.items()},
            "recent": list(self._recent),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where the saved detector stood."""
        for name, window in self._windows.items():
            window.load_state_dict(state["windows"][name])
        self._recent = list(state["recent"])
