"""From a verdict to an action: the ladder clip, skip, roll back, halt. Pure and equal on every rank."""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from typing import Any, Literal

from guard.config import BudgetConfig
from guard.records import Verdict
from guard.types import Decision, Rung


class EscalationLadder:
    """Counts skips and rollbacks and picks the rung. Its counters survive a rollback.

    Where no step was applied since the last rollback, the state is already the healthy one and the data is
    bad: it then skips instead of rolling back to where it is.
    """

    def __init__(self, budget: BudgetConfig, on_suspect: Literal["skip", "clip"]) -> None:
        self._budget = budget
        self._suspect_rung: Rung = on_suspect
        self._skips_in_a_row = 0
        self._advanced = True
        self._rollbacks: deque[int] = deque()

    def decide(
        self,
        verdict: Verdict,
        *,
        attempt: int,
        can_roll_back: bool,
        rate_rose: bool = False,
        instead: Decision | None = None,
    ) -> Decision:
        """Picks the rung for the step attempt ``attempt`` and counts it.

        Args:
            verdict: the detector's on this step.
            attempt: number of step attempts so far; only grows.
            can_roll_back: whether a healthy snapshot exists.
            rate_rose: whether the learning rate has just jumped: a rollback then cuts it at once.
            instead: of a rollback, where the weights are not the cause; of all else too unless it is a skip.
        """
        decision = self._choose(verdict, can_roll_back and self._advanced)
        if instead is not None and (decision.rung == "rollback" or instead.rung != "skip"):
            decision = instead
        if decision.rung == "rollback":
            at_once = rate_rose or verdict.signal == "update_norm"
            decision = self._spend_rollback(attempt, decision, at_once)
        elif decision.rung == "skip":
            self._skips_in_a_row += 1
        else:
            self._skips_in_a_row = 0
            self._advanced = True
        return decision

    def rollbacks_left(self, attempt: int) -> int:
        """Rollbacks that the budget still allows in the window that ends with this attempt."""
        spent = sum(number > attempt - self._budget.window_steps for number in self._rollbacks)
        return max(0, self._budget.rollbacks - spent)

    def give_back(self, rollbacks: int) -> None:
        """The last rollbacks were for a level that is the data's: they do not count."""
        for _ in range(min(rollbacks, len(self._rollbacks))):
            self._rollbacks.pop()

    def _choose(self, verdict: Verdict, can_roll_back: bool) -> Decision:
        if verdict.kind == "spike":
            return self._roll_back_or_skip(f"{verdict.signal} spike", can_roll_back)
        if verdict.kind == "nonfinite":
            reason = f"{verdict.signal} is not finite"
            if verdict.signal == "update_norm":  # it is the weights: another batch does not help
                return self._roll_back_or_skip(reason, can_roll_back)
            return self._skip(reason, can_roll_back)
        if verdict.kind == "suspect":
            if verdict.signal == "update_norm":  # applied already, and no spike
                return Decision("apply", "update_norm is suspect")
            if self._suspect_rung == "clip":
                return Decision("clip", f"{verdict.signal} is suspect")
            skip_restores = verdict.signal == "buffers"  # and the weights have seen nothing
            return self._skip(f"{verdict.signal} is suspect", can_roll_back and not skip_restores)
        return Decision("apply", verdict.kind)

    def _skip(self, reason: str, can_roll_back: bool) -> Decision:
        in_a_row = self._skips_in_a_row + 1
        if in_a_row >= self._budget.consecutive_skips and can_roll_back:
            return Decision("rollback", f"{reason}, {in_a_row} steps in a row")
        if in_a_row >= self._budget.stuck_skips:
            return Decision("halt", f"{reason}, {in_a_row} steps in a row")
        return Decision("skip", reason)

    def _roll_back_or_skip(self, reason: str, can_roll_back: bool) -> Decision:
        return Decision("rollback", reason) if can_roll_back else self._skip(reason, can_roll_back)

    def _spend_rollback(self, attempt: int, decision: Decision, recover: bool) -> Decision:
        while self._rollbacks and self._rollbacks[0] <= attempt - self._budget.window_steps:
            self._rollbacks.popleft()
        self._skips_in_a_row = 0
        if len(self._rollbacks) >= self._budget.rollbacks:
            spent = f"{len(self._rollbacks)} rollbacks within {self._budget.window_steps} steps"
            return Decision("halt", f"{decision.reason}; the budget is spent ({spent})")
        self._rollbacks.append(attempt)
        self._advanced = False
        return replace(decision, recover=decision.recover or recover or len(self._rollbacks) > 1)

    def state_dict(self) -> dict[str, Any]:
        return {
            "skips_in_a_row": self._skips_in_a_row,
            "advanced": self._advanced,
            "rollbacks": list(self._rollbacks),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._skips_in_a_row = int(state["skips_in_a_row"])
        self._advanced = bool(state["advanced"])
        self._rollbacks = deque(int(a) for a in state["rollbacks"])
