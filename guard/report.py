"""What one guarded step did."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from guard.detect import Verdict
from guard.record import Incident

Action = Literal["applied", "clipped", "skipped", "rolled_back"]


@dataclass(frozen=True, slots=True)
class StepReport:
    """What one guarded step did.

    ``step`` counts the optimizer steps applied in the history that stands: a skip does not advance it, a
    rollback sets it back. ``attempt`` counts calls of ``guard.step`` and only grows. ``grad_norm`` is the
    global norm before clipping, ``loss`` the mean over ranks. ``local_norms`` (one a rank) are those of the
    attempt before.
    """

    step: int
    attempt: int
    action: Action
    loss: float
    grad_norm: float
    clip_coef: float
    clip_threshold: float | None
    verdict: Verdict
    learning_rate: float
    guard_seconds: float
    rolled_back_to: int | None = None
    incident: Incident | None = None
    stop: bool = False
    overflow: bool = False
    local_norms: list[float] | None = None
    recovery: dict[str, float] = field(default_factory=dict)

    @property
    def applied(self) -> bool:
        """Whether the weights moved forward in this step."""
        return self.action in ("applied", "clipped")
