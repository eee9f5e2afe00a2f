"""A change on purpose is not an explosion: which level comes back on healthy weights, and is the data's.

A rollback restores weights that at least two clean steps had followed. If the rows right after it are high
from the first on, or if the same jump comes back at the same step, the weights are not the cause.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from guard.records import Verdict
from guard.types import Decision

_HIGH = 0.4
"""Share of the threshold from which on a row is evidence (see ``guard.decide.detector``)."""
_SOON = 16
"""Attempts after a rollback in which the level must be back: that many high rows are a level in any case."""
_CHANGED = 8
"""Attempts after the loop changed weights in which their loss shows."""
_SAME_STEP = 3
"""Steps between two alarms of the same change, which noise delays."""
_ALIKE = 2.0
"""Two jumps of the same size differ by less than this factor."""
_RETURNS = 2
"""Rollbacks of the same level before it is accepted, and skips of the same jump of the buffers ..."""
_STATISTICS_RETURN = 8
"""Skips of the same jump where all buffers are running statistics: none of them jumps by design."""
_HABIT = 2000
"""Attempts between two of that many rollbacks that did not help at once, which show a habit of the data, and
in which it shows again."""
_RETURNS_REPLAYED = 4
"""... but where data is replayed, the same batch comes again at the same step, and may be the cause."""


@dataclass(frozen=True, slots=True)
class _Alarm:
    """What a rollback, or a skip because of the buffers, was for."""

    attempt: int
    step: int
    signal: str
    score: float
    middle: float = math.nan
    """Between the level of the loss and the loss; NaN where either is unknown."""

    def like(self, verdict: Verdict) -> bool:
        """Whether the verdict is about the same signal, and about as far from its level."""
        same = self.signal == verdict.signal
        return same and self.score < _ALIKE * verdict.score < _ALIKE**2 * self.score


class NewLevel:
    """Remembers what the last rollbacks were for. Its state survives a rollback.

    Args:
        patience: elevated rows that are a new level; half as many are, right after a rollback.
        replays: whether a rollback replays the data.
    """

    moved_far: Callable[[], bool]
    """Whether the weights have moved farther than steps explain; measures them."""

    def __init__(self, *, patience: int = 16, replays: bool = False) -> None:
        self._in_place = patience // 2
        self._replays = replays
        self._same_step_returns = _RETURNS_REPLAYED if replays else _RETURNS
        self.moved_far = lambda: False
        self.only_statistics = False
        """Whether no buffer is watched but running statistics of normalization layers."""
        self._last: _Alarm | None = None
        self._rollbacks = self._rows = self._high = self._same = 0
        self._restored = -1
        self._least, self._most = math.inf, 0.0
        self._normal = True
        self._jumps = 0
        self._jump: _Alarm | None = None
        self._loaded = -_SOON
        self._loaded_skips = 0
        self._unexplained: deque[int] = deque(maxlen=_RETURNS)
        """The last attempts whose loss was high on healthy weights: the first ones after a rollback for it,
        and those of a known habit."""

    @property
    def waits(self) -> bool:
        """Whether the coming row is the first after a rollback."""
        return self._last is not None and not self._rows

    def observe(
        self, ratio: float, loss: float, attempt: int, step: int, *, normal: bool, changed: bool
    ) -> bool:
        """One row. Returns whether the last rollback was for a level that is the data's: the loss is still as
        high on healthy weights, and the run has passed the step of the rollback.

        Args:
            ratio: the larger excess of loss and gradient norm; anomalous from 1 on.
            loss: agreed.
            attempt: its number.
            step: steps before it.
            normal: whether the restored detector saw nothing in the rows before.
            changed: whether weights were loaded between the steps, whose loss is one that the run had before.
        """
        if changed:
            self._loaded, self._loaded_skips = attempt, 0
        if self._last is None:
            return False
        if self._rows < _SOON:
            if not self._rows:
                self._normal, self._restored = normal and ratio > _HIGH, step
                high = loss >= self._last.middle or (normal and ratio >= 1.0)
                if high and self._last.signal == "loss":
                    self._note_unexplained(attempt)
            self._rows += 1
            self._high += ratio > _HIGH
            self._same += loss >= self._last.middle
            self._least, self._most = min(self._least, ratio), max(self._most, ratio)
        return self._rows == _SOON and 4 * self._same >= 3 * _SOON and step > self._last.step

    def instead(self, verdict: Verdict, *, attempt: int, step: int, rate_rose: bool) -> Decision | None:
        """What is right instead of a rollback; None where the weights may well be the cause."""
        if verdict.kind not in ("spike", "suspect"):
            return None
        if attempt - self._loaded < _CHANGED:
            self._loaded_skips += 1
            if self._loaded_skips == 1:
                return Decision(
                    "skip", f"{verdict.signal} {verdict.kind} right after the weights were changed"
                )
            return Decision("apply", "the weights were changed between two steps", new_level=True, adopt=True)
        if verdict.signal == "buffers":
            return self._instead_of_skip(verdict, attempt, step)
        enough = _RETURNS if self._at_once(attempt) else self._same_step_returns
        if self._never_left(attempt, step):
            reason = f"{verdict.signal}: the same level in {self._rows} batches on healthy weights"
            return Decision("apply", reason, new_level=True)
        if self._rollbacks >= enough and self._comes_back(verdict, attempt, step, rate_rose):
            reason = f"{verdict.signal}: the same level after {self._rollbacks} rollbacks to healthy weights"
            return Decision("apply", reason, new_level=True)
        return None

    def habit(self, verdict: Verdict, attempt: int, *, rate_rose: bool) -> Decision | None:
        """What is right instead of another rollback, where the loss was still high after the last ones, on
        healthy weights, and fell again: batches that come several times, tasks one after the other."""
        loss = verdict.signal == "loss" and verdict.kind in ("spike", "suspect") and not rate_rose
        if self._replays or not loss or not self.has_habit(attempt) or self.moved_far():
            return None
        self._note_unexplained(attempt)
        return Decision("apply", "the loss rises now and then on healthy weights", new_level=True)

    def has_habit(self, attempt: int) -> bool:
        """Whether the loss is known to rise now and then on healthy weights."""
        return len(self._unexplained) == _RETURNS and attempt - self._unexplained[-1] < _HABIT

    def _note_unexplained(self, attempt: int) -> None:
        if self._unexplained and attempt - self._unexplained[-1] >= _HABIT:
            self._unexplained.clear()
        self._unexplained.append(attempt)

    def rolled_back(self, verdict: Verdict, loss: float, *, attempt: int, step: int, rate_rose: bool) -> None:
        """A rollback was decided because of this verdict."""
        again = self._comes_back(verdict, attempt, step, rate_rose)
        self._rollbacks = self._rollbacks + 1 if again else 1
        level = verdict.baseline if verdict.signal == "loss" else None
        middle = math.nan if level is None else (level + loss) / 2
        self._last = _Alarm(attempt, step, verdict.signal, verdict.score, middle)
        self._rows = self._high = self._same = 0
        self._least, self._most = math.inf, 0.0

    def accepted(self) -> int:
        """The level was accepted. Returns the rollbacks that were for it."""
        spent, self._rollbacks = self._rollbacks, 0
        self._last, self._jump, self._loaded = None, None, -_SOON
        return spent

    def _comes_back(self, verdict: Verdict, attempt: int, step: int, rate_rose: bool) -> bool:
        last = self._last
        if last is None or verdict.signal not in ("loss", "grad_norm"):
            return False
        if verdict.baseline is not None and self._at_once(attempt):
            return True
        same_step = abs(step - last.step) <= _SAME_STEP and last.like(verdict) and not rate_rose
        return same_step and not self.moved_far()

    def _at_once(self, attempt: int) -> bool:
        """Whether the rows since the last rollback were high from the first on."""
        soon = self._last is not None and attempt - self._last.attempt <= _SOON
        return soon and self._normal and 4 * self._high >= 3 * self._rows

    def _never_left(self, attempt: int, step: int) -> bool:
        """Whether every batch since the last rollback was high alike, so that none was applied: each counts
        as another rollback to the same weights would."""
        alike = self._least >= 1.0 and self._most < _ALIKE * self._least
        return step == self._restored and self._rows >= self._in_place and alike and self._at_once(attempt)

    def _instead_of_skip(self, verdict: Verdict, attempt: int, step: int) -> Decision | None:
        last, self._jump = self._jump, _Alarm(attempt, step, verdict.signal, verdict.score)
        again = last is not None and attempt == last.attempt + 1 and last.like(verdict)
        self._jumps = self._jumps + 1 if again else 1
        if self._jumps <= (_STATISTICS_RETURN if self.only_statistics else _RETURNS):
            return None
        reason = f"the buffers jump again after each of {self._jumps - 1} skips: they jump by design"
        return Decision("apply", reason, new_level=True)

    def state_dict(self) -> dict[str, Any]:
        return {
            "last": None if self._last is None else asdict(self._last),
            "jump": None if self._jump is None else asdict(self._jump),
            "counts": [self._rollbacks, self._rows, self._high, self._jumps, self._same],
            "normal": self._normal,
            "in_place": [self._restored, self._least if self._rows else None, self._most],
            "loaded": [self._loaded, self._loaded_skips],
            "unexplained": list(self._unexplained),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._last = None if state["last"] is None else _Alarm(**state["last"])
        self._jump = None if state["jump"] is None else _Alarm(**state["jump"])
        self._rollbacks, self._rows, self._high, self._jumps, *same = map(int, state["counts"])
        self._same = sum(same)  # absent in older checkpoints
        self._normal = bool(state.get("normal", state.get("calm")))  # its name in older checkpoints
        self._restored, least, self._most = state.get("in_place", (-1, None, 0.0))
        self._least = math.inf if least is None else least
        self._loaded, self._loaded_skips = map(int, state["loaded"])
        self._unexplained = deque(map(int, state.get("unexplained", ())), maxlen=_RETURNS)
