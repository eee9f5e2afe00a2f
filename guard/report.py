"""What one guarded step did."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from guard.act import Action, Outcome
from guard.detect import Verdict
from guard.judge import OK, Evidence
from guard.record import Incident


@dataclass(frozen=True, slots=True)
class StepReport:
    """What one guarded step did.

    ``step`` counts the optimizer steps applied in the history that stands: a skip does not advance it, a
    rollback sets it back. ``attempt`` counts calls of ``guard.step`` and only grows. ``grad_norm`` is the
    global norm before clipping, ``loss`` the mean over ranks. ``local_norms`` (one a rank) are those of the
    attempt before. ``update_norm`` is the mean distance of the weights per step, where it was measured.
    ``left_out`` are ranks without whose share of the batch the step was applied. ``pending`` marks the answer
    of a deferred guard that has nothing to tell yet.
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
    update_norm: float | None = None
    buffer_jump: float | None = None
    left_out: list[int] = field(default_factory=list)
    pending: bool = False

    @property
    def applied(self) -> bool:
        """Whether the weights moved forward in this step."""
        return self.action in ("applied", "clipped") and not self.pending


def describe(
    evidence: Evidence,
    outcome: Outcome,
    incident: Incident | None,
    *,
    guard_seconds: float,
    overflow: bool,
    local: bool,
    recovery: dict[str, float],
) -> StepReport:
    """The report of an attempt that was judged as ``evidence`` says and ended in ``outcome``."""
    return StepReport(
        step=outcome.step,
        attempt=evidence.attempt,
        action=outcome.action,
        loss=evidence.agreed.loss,
        grad_norm=evidence.grad_norm,
        clip_coef=outcome.clip_coef,
        clip_threshold=evidence.clip.limit,
        verdict=evidence.verdict,
        learning_rate=evidence.learning_rate,
        guard_seconds=guard_seconds,
        rolled_back_to=outcome.rolled_back_to,
        incident=incident,
        stop=evidence.agreed.stop,
        overflow=overflow,
        local_norms=evidence.agreed.local_norms.tolist() if local else None,
        recovery=recovery,
        update_norm=evidence.update_norm,
        buffer_jump=evidence.agreed.buffer_jump,
        left_out=evidence.left_out,
    )


def pending(step: int, attempt: int, learning_rate: float) -> StepReport:
    """What a deferred guard says of its first step: nothing yet."""
    return StepReport(
        step=step,
        attempt=attempt,
        action="applied",
        loss=math.nan,
        grad_norm=math.nan,
        clip_coef=1.0,
        clip_threshold=None,
        verdict=OK,
        learning_rate=learning_rate,
        guard_seconds=0.0,
        pending=True,
    )
