"""Spikes that training makes without a fault, and ends without help: they are let through, on trial.

Steps that are longer than the curvature allows make the loss rise until the weights are where it is flatter
(Lewkowycz et al. 2020; the edge of stability, Cohen et al. 2021; slingshots, Thilak et al. 2022). The same
weights and the same batch then give the same spike again, so that neither a skip nor a rollback helps.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

from guard.records import Verdict
from guard.types import Decision

_LONGEST = 100
"""Attempts with a high loss; then the spike is none that ends without help."""
_LEVEL, _ALIKE = 16, 1.25
"""So many attempts in a row, most of them with at most so many times the first loss, are a new level."""
_OVER = 8
"""Attempts in a row without a high loss that end a trial."""
_SIMILAR = 2.0
"""A spike up to so many times as large as one that ended without help is let through at once."""
_SPAN = 256
"""Steps whose losses are known: more than lie between a spike and the snapshot that a rollback restores."""

Ended = Literal["over", "new level", "failed"]


@dataclass(slots=True)
class _Trial:
    """A spike that is let through: its first loss, its limit, the largest score and gradient norm; attempts
    with a high loss, those of them with one like the first, and those in a row without."""

    first: float
    limit: float
    score: float
    norm: float = 0.0
    high: int = 1
    alike: int = 1
    normal: int = 0


class OwnSpikes:
    """Knows by their losses whether weights and batch are the same again. Its state survives a rollback.

    A trial begins where a skip did not help, and

    - the batch that was skipped comes again with the same loss, so that it is the only one, on weights that
      have not moved far, or
    - a rollback was followed by the same losses up to the same alarm, so that no transient fault made it.

    Where a spike of this size has ended without help before, it begins at once.

    Args:
        window: attempts after a trial that failed in which none begins.
        factor: times the typical gradient norm, to which clipping ``auto`` limits it.
        replays: whether a rollback replays the data: the same alarm may then be that of a bad batch.
    """

    def __init__(self, window: int, factor: float = 3.0, *, replays: bool = False) -> None:
        self._window, self._factor, self._replays = window, factor, replays
        self._path: dict[int, list[float]] = {}
        """The losses of each step, of all histories that were rolled back too."""
        self._retraces = False
        self._explained = 0
        self._skipped: tuple[int, float] = (-1, math.nan)
        self._fixed = False
        self._attempt = 0
        self._trial: _Trial | None = None
        self._largest = 0.0
        """The largest score of spikes that ended without help."""
        self._norm = 0.0
        """Likewise of the gradient. Up to twice of it nothing is clipped by ``auto``: a spike ends since the
        optimizer sees its gradients (Adam takes shorter steps, descent moves to where it is flatter)."""
        self._failed: int | None = None

    @property
    def on_trial(self) -> bool:
        """Whether a spike is let through: no step counts as clean meanwhile."""
        return self._trial is not None

    def note(self, grad_norm: float) -> None:
        """The global gradient norm of the coming row."""
        if self._trial is not None and math.isfinite(grad_norm):
            self._trial.norm = max(self._trial.norm, grad_norm)

    def usual(self, typical: float | None) -> float | None:
        """The typical gradient norm; more where training ended spikes with larger ones."""
        return None if typical is None else max(typical, _SIMILAR * self._norm / self._factor)

    def observe(self, verdict: Verdict, loss: float, attempt: int, step: int) -> Ended | None:
        """One row. Returns how the trial ended, if it did."""
        known = self._path.setdefault(step, [])
        same = loss in known
        self._retraces = self._retraces and same
        if not same:
            known.append(loss)
        if len(self._path) > _SPAN:
            del self._path[next(iter(self._path))]
        self._attempt, self._fixed = attempt, self._skipped == (attempt - 1, loss)
        return None if self._trial is None else self._follow(self._trial, verdict, loss, attempt)

    def _follow(self, trial: _Trial, verdict: Verdict, loss: float, attempt: int) -> Ended | None:
        normal = verdict.kind == "ok" and loss <= trial.limit
        trial.normal = trial.normal + 1 if normal else 0
        trial.high += not normal
        alike = not normal and loss <= trial.first + (_ALIKE - 1.0) * abs(trial.first)
        trial.alike += alike
        if verdict.kind != "nonfinite":
            trial.score = max(trial.score, verdict.score)
        level = trial.high == _LEVEL and 4 * trial.alike >= 3 * _LEVEL and trial.normal == 0
        if not (level or trial.normal == _OVER or trial.high == _LONGEST):
            return None
        self._trial = None
        if trial.normal == _OVER:
            self._largest = max(self._largest, trial.score)
            self._norm = max(self._norm, trial.norm)
            return "over"
        if alike and verdict.kind != "nonfinite":
            return "new level"
        self._failed = attempt
        return "failed"

    def instead(
        self, verdict: Verdict, loss: float, attempt: int, *, limit: float, moved_far: Callable[[], bool]
    ) -> Decision | None:
        """What is right instead of a rollback or a skip; None where the spike may have another cause.

        Args:
            verdict: the detector's; not ``ok``.
            loss: agreed.
            attempt: its number.
            limit: the loss from which on one is anomalous.
            moved_far: whether the weights have moved farther than steps explain; measures them.
        """
        if verdict.kind not in ("suspect", "spike"):
            return None
        if self._trial is not None:
            return Decision("apply", "on trial: a spike that training makes")
        if self._failed is not None and attempt - self._failed < self._window:
            return None
        if verdict.signal not in ("loss", "grad_norm"):
            return None
        similar = 0.0 < verdict.score <= _SIMILAR * self._largest
        if self._retraces and not similar and self._skipped[0] != attempt - 1:
            return Decision("skip", f"{verdict.signal} {verdict.kind}: the same again after a rollback")
        if self._retraces or ((similar or self._fixed) and not moved_far()):
            return self._begin(verdict, loss, limit)
        return None

    def _begin(self, verdict: Verdict, loss: float, limit: float) -> Decision:
        self._trial = _Trial(loss, limit, verdict.score)
        self._explained, self._retraces = int(self._retraces), False
        reason = f"{verdict.signal} {verdict.kind}: training makes it itself, and is let through on trial"
        return Decision("apply", reason)

    def explained(self) -> int:
        """Returns how many rollbacks were for a spike whose trial begins; each once."""
        explained, self._explained = self._explained, 0
        return explained

    def skipped(self, loss: float, attempt: int) -> None:
        """The batch of this attempt is skipped."""
        self._skipped = attempt, loss

    def rolled_back(self) -> None:
        """The run has returned to a snapshot; within a trial, since the loss was not finite."""
        if self._trial is not None:
            self._failed = self._attempt
        self._trial, self._retraces = None, not self._replays

    def state_dict(self) -> dict[str, Any]:
        return {
            "path": [[step, *losses] for step, losses in self._path.items()],
            "retraces": self._retraces,
            "skipped": list(self._skipped),
            "trial": None if self._trial is None else asdict(self._trial),
            "largest": [self._largest, self._norm],
            "failed": self._failed,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._path = {int(step): losses for step, *losses in state["path"]}
        self._retraces = bool(state["retraces"])
        self._largest, self._norm = map(float, state["largest"])
        attempt, loss = state["skipped"]
        self._skipped = int(attempt), float(loss)
        self._trial = None if state["trial"] is None else _Trial(**state["trial"])
        self._failed = state["failed"]
